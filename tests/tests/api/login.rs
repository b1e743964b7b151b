//! Both ways to log in, from an object in the API to an answer in a pod (issue 3, acceptance 6; rows A1, A3).

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Bed, ControlPlane, audit};

use crate::node::{Login, Node, all_granted};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("login_in_cluster_turns_objects_into_traffic", in_cluster),
    ("login_kubeadm_kubeconfig_turns_objects_into_traffic", kubeadm),
    ("login_c13_c14_ipv6_server_among_proxy_variables", ipv6_among_proxies),
    ("login_a1_requests_are_those_of_node_proxier", requests),
];

fn in_cluster(plane: &mut ControlPlane) -> Result<()> {
    objects_become_traffic(plane, Login::InCluster, "login-in-cluster")
}

fn kubeadm(plane: &mut ControlPlane) -> Result<()> {
    objects_become_traffic(plane, Login::Kubeadm, "login-kubeadm")
}

fn ipv6_among_proxies(plane: &mut ControlPlane) -> Result<()> {
    objects_become_traffic(plane, Login::InClusterIpv6, "login-ipv6")
}

fn objects_become_traffic(plane: &mut ControlPlane, login: Login, name: &str) -> Result<()> {
    let mark = plane.mark();
    let mut node = Node::start(plane, login)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), name)?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..2])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080", "10.244.1.22:8080"])?;
    node.carries(&address, &Bed::BACKENDS[..2])?;

    space.set_endpoints("web", &Bed::BACKENDS[2..])?;
    node.installed(&space.key("web"), &["10.244.1.23:8080"])?;
    node.carries(&address, &Bed::BACKENDS[2..])?;

    let six = json!({"spec": {"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}});
    let address = space.service("web6", &six)?;
    space.slice("web6", &Bed::BACKENDS6[..1])?;
    node.installed(&space.key("web6"), &["[fd00:10:1::21]:8080"])?;
    node.carries(&address, &Bed::BACKENDS[..1])?;

    space.delete_service("web6")?;
    node.gone(&space.key("web6"))?;
    all_granted(&node.requests(plane, mark)?)?;
    node.finish(id)
}

fn requests(plane: &mut ControlPlane) -> Result<()> {
    let mark = plane.mark();
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let seen = node.requests(plane, mark)?;
    all_granted(&seen)?;
    let services = "!service.kubernetes.io/service-proxy-name";
    let slices = "!service.kubernetes.io/headless";
    let name = format!("metadata.name={}", node.bed.name());
    let expected = [
        ("/services", "labelSelector", services),
        ("discovery.k8s.io/endpointslices", "labelSelector", slices),
        ("/nodes", "fieldSelector", name.as_str()),
    ];
    for (target, parameter, selector) in expected {
        let mine: Vec<&audit::Entry> = seen.iter().filter(|entry| entry.target() == target).collect();
        ensure!(mine.iter().any(|entry| entry.verb == "watch"), "no watch of {target}: {seen:?}");
        for entry in mine {
            let found = entry.query(parameter);
            let holds = found.as_deref().is_some_and(|found| found.split(',').any(|part| part == selector));
            ensure!(holds, "{target} is asked for with {parameter}={found:?}, not {selector}");
        }
    }
    node.finish(id)
}
