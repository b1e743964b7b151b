//! C-32: limits far below what is offered. Each Service is there as a whole, or not at all and named: in an Event, in a
//! metric and in the status. All are there once there is room, without a restart.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Admin, Bed, ControlPlane};
use sluice_tests::wait::{PATIENCE, until};

use crate::node::{Login, Node};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("capacity_c32_services", |plane| limited(plane, "services", "--limits=services=7")),
    ("capacity_c32_frontends", |plane| limited(plane, "frontends", "--limits=frontends=7")),
    ("capacity_c32_endpoints", |plane| limited(plane, "endpoints", "--limits=endpoints=20")),
    ("capacity_c32_slots", |plane| limited(plane, "slots", "--limits=slots=20")),
    ("capacity_c32_source_ranges", |plane| limited(plane, "ranges", "--limits=ranges=20")),
    ("capacity_c32_affinity", affinity),
];

/// Ports of each Service, all with target port 8080.
const PORTS: [(&str, u16); 2] = [("a", 80), ("b", 81)];
const SERVICES: usize = 8;
const BACKENDS: &[&str] = &Bed::BACKENDS;
/// How many of them each limit leaves room for, beside the API server's own Service; for a fourth it has not enough.
const ROOM: usize = 3;

type Names = BTreeSet<String>;

/// The Services of one test.
struct Offer<'a> {
    admin: &'a Admin,
    space: Space<'a>,
    namespace: String,
    left: Names,
}

impl<'a> Offer<'a> {
    /// Makes them, once those of earlier tests, which would take the room, are gone.
    fn new(admin: &'a Admin, namespace: String, more: &Value) -> Result<Self> {
        let services = admin.get("/api/v1/services")?;
        for service in services["items"].as_array().into_iter().flatten() {
            let meta = |field: &str| service["metadata"][field].as_str().unwrap_or_default();
            if meta("namespace") != "default" {
                admin.delete(&format!(
                    "/api/v1/namespaces/{}/services/{}",
                    meta("namespace"),
                    meta("name")
                ))?;
            }
        }
        let space = Space::new(admin, &namespace)?;
        let mut object = more.clone();
        let ports = PORTS.map(|(name, port)| json!({"name": name, "port": port, "targetPort": 8080}));
        object["spec"]["ports"] = json!(ports);
        let mut left = Names::new();
        for number in 0..SERVICES {
            let name = format!("s{number}");
            space.slice(&name, BACKENDS)?;
            let ports = PORTS.map(|(name, _)| json!({"name": name, "port": 8080, "protocol": "TCP"}));
            space.patch_slice(&name, &json!({"ports": ports}))?;
            space.service(&name, &object)?;
            left.insert(name);
        }
        let offer = Self { admin, space, namespace, left };
        if more["spec"]["type"] == "LoadBalancer" {
            for (number, name) in offer.left.iter().enumerate() {
                let ingress = json!([{"ip": format!("203.0.113.{number}")}]);
                let path = format!("/api/v1/namespaces/{}/services/{name}/status", offer.namespace);
                admin.patch(&path, &json!({"status": {"loadBalancer": {"ingress": ingress}}}))?;
            }
        }
        Ok(offer)
    }

    fn delete(&mut self, services: &Names) -> Result<()> {
        for service in services {
            self.space.delete_service(service)?;
            self.left.remove(service);
        }
        Ok(())
    }

    /// Waits until so many of the Services are served; which. None of them is there in part.
    fn served(&self, node: &mut Node, count: usize) -> Result<Names> {
        node.agent()?.wait(&format!("{count} of {SERVICES} Services are installed"), |agent| {
            let mut found = Names::new();
            for name in &self.left {
                let ports = agent.service(&self.space.key(name))?;
                ensure!([0, PORTS.len()].contains(&ports.len()), "{name} is there in part: {ports:?}");
                for port in &ports {
                    let whole = BACKENDS.iter().map(|ip| format!("{ip}:8080")).collect::<Vec<_>>();
                    ensure!(port["internal"] == json!(whole), "{name} is there in part: {port}");
                    found.insert(name.clone());
                }
            }
            ensure!(found.len() == count, "installed are {found:?}");
            Ok(found)
        })
    }

    /// Waits until the status and the metric tell of exactly the Services that are not `served`.
    fn told(&self, node: &mut Node, served: &Names) -> Result<()> {
        let refused: Names = self.left.difference(served).cloned().collect();
        let ports = |name: &String| PORTS.map(|(port, _)| format!("Service {}:{port}", self.space.key(name)));
        let wanted: Names = refused.iter().flat_map(ports).collect();
        let metric = format!("sluice_ports_refused {}", wanted.len());
        until("status and metric name what is refused", PATIENCE, || {
            let status = node.agent()?.status()?;
            let named = status["degraded"].as_array().into_iter().flatten();
            let named = named.filter_map(|part| part["what"].as_str());
            let named: Names = named.filter(|what| what.starts_with("Service ")).map(str::to_owned).collect();
            ensure!(named == wanted, "refused are {wanted:?}, degraded is {}", status["degraded"]);
            let metrics = metrics(node)?;
            ensure!(metrics.lines().any(|line| line == metric), "{metric} is missing in {metrics}");
            Ok(())
        })?;
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        until("an Event for each refused Service", PATIENCE, || {
            let events = self.admin.get(&path)?;
            for service in &refused {
                // The API server tells of Services as well, of addresses that it has to allocate anew.
                let mine = |event: &&Value| {
                    event["regarding"]["name"] == service.as_str()
                        && event["reason"] == "FailedToInstallService"
                };
                let event = events["items"].as_array().and_then(|events| events.iter().find(mine));
                let event = event.with_context(|| format!("none about {service} in {events}"))?;
                let note = event["note"].as_str().unwrap_or_default();
                ensure!(event["type"] == "Warning", "{event}");
                let has_ports = PORTS.iter().all(|(port, _)| note.contains(&format!("{service}:{port}")));
                ensure!(has_ports && note.contains("no room"), "{event}");
            }
            Ok(())
        })
    }
}

fn limited(plane: &mut ControlPlane, table: &str, flag: &'static str) -> Result<()> {
    let ranges = match table {
        "ranges" => json!(["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]),
        _ => Value::Null,
    };
    let kind = if ranges.is_null() { "ClusterIP" } else { "LoadBalancer" };
    let more = json!({"spec": {"type": kind, "loadBalancerSourceRanges": ranges}});
    let mut offer = Offer::new(plane.admin(), format!("capacity-{table}"), &more)?;
    let mut node = Node::prepare(plane, Login::InCluster)?;
    node.flag(flag);
    node.launch()?;
    node.synced()?;
    let id = node.id()?;
    while !offer.left.is_empty() {
        let served = offer.served(&mut node, ROOM.min(offer.left.len()))?;
        offer.told(&mut node, &served)?;
        for service in &served {
            let address = plane.admin().get(&format!("{}/{service}", offer.path()))?;
            let address = address["spec"]["clusterIP"].as_str().context("no address")?;
            for (_, port) in PORTS {
                let answer = node.bed.ask_at(address, port)?;
                ensure!(BACKENDS.contains(&answer.as_str()), "{service}: {answer}");
            }
        }
        offer.delete(&served)?;
    }
    node.recovered()?;
    node.finish(id)
}

/// Records of affinity are no part of a Service: the oldest makes way (D7), and nothing is refused.
fn affinity(plane: &mut ControlPlane) -> Result<()> {
    let more = json!({"spec": {"sessionAffinity": "ClientIP"}});
    let offer = Offer::new(plane.admin(), "capacity-affinity".to_owned(), &more)?;
    let mut node = Node::prepare(plane, Login::InCluster)?;
    node.flag("--limits=affinity=4");
    node.launch()?;
    node.synced()?;
    let id = node.id()?;
    let served = offer.served(&mut node, SERVICES)?;
    offer.told(&mut node, &served)?;
    for service in &served {
        let address = plane.admin().get(&format!("{}/{service}", offer.path()))?;
        let address = address["spec"]["clusterIP"].as_str().context("no address")?;
        for (_, port) in PORTS {
            let first = node.bed.ask_at(address, port)?;
            for _ in 0..5 {
                let next = node.bed.ask_at(address, port)?;
                ensure!(next == first, "{service}:{port} is answered by {first}, then by {next}");
            }
        }
    }
    node.finish(id)
}

impl Offer<'_> {
    fn path(&self) -> String {
        format!("/api/v1/namespaces/{}/services", self.namespace)
    }
}

fn metrics(node: &Node) -> Result<String> {
    node.bed.node().within(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10_249))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}
