//! Objects that come to be the agent's concern and cease to be, by label and type.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Bed, ControlPlane};
use sluice_tests::wait::{PATIENCE, until};

use crate::node::{Login, Node};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("objects_a3_opt_out_labels", opt_out_labels),
    ("objects_a2_external_name_and_back", external_name),
    ("objects_c23_recreated_with_the_same_address", recreated),
    ("objects_c16_endpoints_in_two_slices", two_slices),
    ("objects_i14_the_start_is_an_event_on_the_node", starting),
];

fn labels(name: &str, value: Value) -> Value {
    json!({"metadata": {"labels": {name: value}}})
}

fn opt_out_labels(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "objects-labels")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    let (key, installed) = (space.key("web"), ["10.244.1.21:8080"]);
    node.installed(&key, &installed)?;

    let proxy_name = "service.kubernetes.io/service-proxy-name";
    // The label counts by being there: an empty value opts out as well.
    for value in ["somebody-else", ""] {
        space.patch_service("web", &labels(proxy_name, json!(value)))?;
        node.gone(&key)?;
        ensure!(node.bed.ask(&address).is_err(), "opted out with {value:?}, yet served");
        space.patch_service("web", &labels(proxy_name, Value::Null))?;
        node.installed(&key, &installed)?;
        node.carries(&address, &Bed::BACKENDS[..1])?;
    }

    let headless = "service.kubernetes.io/headless";
    space.patch_slice("web", &labels(headless, json!("")))?;
    node.installed(&key, &[])?;
    space.patch_slice("web", &labels(headless, Value::Null))?;
    node.installed(&key, &installed)?;
    node.finish(id)
}

fn starting(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let name = node.bed.name().to_owned();
    let path = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = until("the event", PATIENCE, || {
        let list = plane.admin().get(path)?;
        let events = list["items"].as_array().cloned().unwrap_or_default();
        let mine = |event: &&Value| event["regarding"]["name"] == name.as_str();
        events.iter().find(mine).cloned().with_context(|| format!("{events:?}"))
    })?;
    let expected = [
        ("/type", "Normal"),
        ("/reason", "Starting"),
        ("/action", "StartKubeProxy"),
        ("/regarding/kind", "Node"),
        ("/regarding/uid", &name),
        ("/reportingController", "kube-proxy"),
    ];
    for (field, want) in expected {
        ensure!(event.pointer(field) == Some(&json!(want)), "{field} is not {want} in {event}");
    }
    node.finish(id)
}

fn external_name(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "objects-external-name")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;

    let away = json!({"spec": {
        "type": "ExternalName", "externalName": "elsewhere.example",
        "clusterIP": null, "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null,
    }});
    space.patch_service("web", &away)?;
    node.gone(&space.key("web"))?;
    ensure!(node.bed.ask(&address).is_err(), "an ExternalName is served at its old address");

    let back = space.patch_service("web", &json!({"spec": {"type": "ClusterIP", "externalName": null}}))?;
    let address = back["spec"]["clusterIP"].as_str().context("no cluster address")?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;
    node.carries(address, &Bed::BACKENDS[..1])?;
    node.finish(id)
}

fn recreated(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "objects-recreated")?;
    let address = space.service("old", &json!({}))?;
    space.slice("old", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("old"), &["10.244.1.21:8080"])?;

    // The slice of the new Service is there before the Service, and the old one's stays behind.
    space.slice("new", &Bed::BACKENDS[1..2])?;
    space.delete_service("old")?;
    space.service("new", &json!({"spec": {"clusterIP": address}}))?;
    node.installed(&space.key("new"), &["10.244.1.22:8080"])?;
    node.gone(&space.key("old"))?;
    node.carries(&address, &Bed::BACKENDS[1..2])?;
    node.finish(id)
}

fn two_slices(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "objects-two-slices")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..2])?;
    space.slice_as("web-2", "web", &Bed::BACKENDS[1..])?;
    let all = ["10.244.1.21:8080", "10.244.1.22:8080", "10.244.1.23:8080"];
    node.installed(&space.key("web"), &all)?;
    // .22 stands in both: it goes only with the second.
    space.delete_slice("web")?;
    node.installed(&space.key("web"), &all[1..])?;
    node.carries(&address, &Bed::BACKENDS[1..])?;
    node.finish(id)
}
