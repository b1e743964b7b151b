//! The model by tables: objects in, ports and problems out.

use std::sync::Arc;

use proxy_common::abi::FrontendKind;
use serde_json::{Value, json};

use super::*;
use crate::cluster::types::Watched;

pub fn service(name: &str, spec: Value) -> Service {
    created(name, "2026-01-01T00:00:00Z", spec)
}

fn created(name: &str, time: &str, spec: Value) -> Service {
    with_status(name, time, spec, Value::Null)
}

pub fn with_status(name: &str, time: &str, spec: Value, status: Value) -> Service {
    let metadata = json!({"name": name, "namespace": "ns", "creationTimestamp": time});
    let object = json!({"metadata": metadata, "spec": spec, "status": status});
    serde_json::from_value::<Watched<Service>>(object).unwrap().object
}

pub fn slice(name: &str, service: &str, kind: &str, ports: Value, endpoints: Value) -> Slice {
    let labels = json!({"kubernetes.io/service-name": service});
    let metadata = json!({"name": name, "namespace": "ns", "labels": labels});
    let object = json!({"metadata": metadata, "addressType": kind, "ports": ports, "endpoints": endpoints});
    serde_json::from_value::<Watched<Slice>>(object).unwrap().object
}

/// A slice of ready endpoints at port 8080 of the unnamed port.
fn ready(name: &str, service: &str, addresses: &[&str]) -> Slice {
    let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
    slice(name, service, "IPv4", json!([{"port": 8080}]), json!(endpoints))
}

pub fn model() -> Model {
    let mut model = Model::new(Settings::of_node("n1"));
    model.apply(Event::Services(Change::Snapshot(Vec::new())));
    model.apply(Event::Slices(Change::Snapshot(Vec::new())));
    model
}

pub fn with(services: &[Service], slices: &[Slice]) -> Model {
    let mut model = model();
    services.iter().for_each(|s| model.apply(Event::Services(Change::Apply(s.clone()))));
    slices.iter().for_each(|s| model.apply(Event::Slices(Change::Apply(s.clone()))));
    model
}

/// `port frontend…` lines, for tables.
pub fn frontends(model: &Model) -> Vec<String> {
    let kind = |kind| match kind {
        FrontendKind::ClusterIp => "cluster",
        FrontendKind::NodePort => "node",
        FrontendKind::ExternalIp => "external",
        FrontendKind::LoadBalancer => "lb",
    };
    let line = |id: &PortId, f: &PortFrontend| {
        format!("{id} {} {} {}/{}", kind(f.kind), f.address, f.port, id.protocol)
    };
    model
        .desired()
        .iter()
        .flat_map(|(id, s)| s.frontends.iter().map(|f| line(id, f)).collect::<Vec<_>>())
        .collect()
}

pub fn endpoints(model: &Model) -> Vec<String> {
    let line = |id: &PortId, a: &std::net::SocketAddr| format!("{id} {a}/{}", id.protocol);
    model
        .desired()
        .iter()
        .flat_map(|(id, s)| s.internal.iter().map(|a| line(id, a)).collect::<Vec<_>>())
        .collect()
}

fn changed(model: &mut Model) -> Vec<String> {
    let sign = |state: &Option<PortState>| if state.is_some() { '+' } else { '-' };
    model.drain_changes().iter().map(|(id, state)| format!("{}{id}", sign(state))).collect()
}

pub fn problems(model: &mut Model) -> Vec<String> {
    model.drain_changes();
    model.problems().iter().map(|p| format!("{}: {}", p.object, p.what)).collect()
}

#[test]
fn i1_c35_nothing_before_both_lists() {
    let mut model = Model::new(Settings::of_node("n1"));
    model.apply(Event::Services(Change::Snapshot(vec![service(
        "a",
        json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
    )])));
    model.apply(Event::Slices(Change::Apply(ready("a-1", "a", &["10.0.0.1"]))));
    assert!(!model.is_complete() && model.drain_changes().is_empty());
    model.apply(Event::Slices(Change::Snapshot(vec![ready("a-1", "a", &["10.0.0.1"])])));
    assert!(model.is_complete());
    assert_eq!(changed(&mut model), ["+ns/a"]);
    assert!(changed(&mut model).is_empty());
}

#[test]
fn a_rows_frontends() {
    let port = json!([{"port": 80}]);
    let dual = json!(["10.96.0.1", "fd00:96::1"]);
    let balancer = |ingress: Value| json!({"loadBalancer": {"ingress": ingress}});
    let cases: Vec<(&str, Value, Value, Vec<&str>)> = vec![
        ("A2 headless", json!({"clusterIP": "None", "ports": port}), json!(null), vec![]),
        ("A2 no ClusterIP", json!({"ports": port}), json!(null), vec![]),
        (
            "A2 ExternalName",
            json!({"type": "ExternalName", "clusterIP": "10.96.0.1", "ports": port}),
            json!(null),
            vec![],
        ),
        (
            "A4 three protocols",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"}]}),
            json!(null),
            vec!["ns/a:t cluster 10.96.0.1 53/TCP", "ns/a:u cluster 10.96.0.1 53/UDP"],
        ),
        (
            "A10 external IPs by family",
            json!({"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1", "fd00::1", "x"], "ports": port}),
            json!(null),
            vec!["ns/a cluster 10.96.0.1 80/TCP", "ns/a external 203.0.113.1 80/TCP"],
        ),
        (
            "A11 ingress modes",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": port}),
            balancer(
                json!([{"ip": "203.0.113.1", "ipMode": "VIP"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "x"}, {"ip": "203.0.113.3", "ports": [{"port": 1}]}]),
            ),
            vec!["ns/a cluster 10.96.0.1 80/TCP", "ns/a lb 203.0.113.1 80/TCP", "ns/a lb 203.0.113.3 80/TCP"],
        ),
        (
            "A15 dual stack, NodePort",
            json!({"type": "NodePort", "clusterIPs": dual, "ports": [{"port": 80, "nodePort": 30080}]}),
            json!(null),
            vec![
                "ns/a cluster 10.96.0.1 80/TCP",
                "ns/a node 0.0.0.0 30080/TCP",
                "ns/a cluster fd00:96::1 80/TCP",
                "ns/a node :: 30080/TCP",
            ],
        ),
        (
            "one address as external and LB",
            json!({"clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1"], "ports": port}),
            balancer(json!([{"ip": "203.0.113.1"}])),
            vec!["ns/a cluster 10.96.0.1 80/TCP", "ns/a lb 203.0.113.1 80/TCP"],
        ),
        (
            "B3 A4 SCTP beside TCP on one number",
            json!({"type": "NodePort", "clusterIP": "10.96.0.1", "externalIPs": ["203.0.113.1"],
                "ports": [{"name": "s", "port": 80, "nodePort": 30080, "protocol": "SCTP"}, {"name": "t", "port": 80}]}),
            json!(null),
            vec![
                "ns/a:s cluster 10.96.0.1 80/SCTP",
                "ns/a:s node 0.0.0.0 30080/SCTP",
                "ns/a:s external 203.0.113.1 80/SCTP",
                "ns/a:t cluster 10.96.0.1 80/TCP",
                "ns/a:t external 203.0.113.1 80/TCP",
            ],
        ),
        (
            "C-28 refused external IPs",
            json!({"clusterIP": "10.96.0.1", "externalIPs": ["127.0.0.1", "0.0.0.0", "224.0.0.1"], "ports": port}),
            json!(null),
            vec!["ns/a cluster 10.96.0.1 80/TCP"],
        ),
        (
            "two ports with one number",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "x", "port": 80}, {"name": "y", "port": 80}]}),
            json!(null),
            vec!["ns/a:x cluster 10.96.0.1 80/TCP"],
        ),
        (
            "C-15 future values",
            json!({"type": "FutureValue", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "FutureValue", "sessionAffinity": "FutureValue", "ports": port}),
            json!(null),
            vec!["ns/a cluster 10.96.0.1 80/TCP"],
        ),
    ];
    for (name, spec, status, want) in cases {
        let model = with(&[with_status("a", "2026-01-01T00:00:00Z", spec, status)], &[]);
        assert_eq!(frontends(&model), want, "{name}");
    }
}

#[test]
fn a3_opt_out_labels() {
    let mut model = model();
    let own = service("a", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let other = Service { other_proxy: true, ..own.clone() };
    for (next, want) in [(&own, 1), (&other, 0), (&own, 1)] {
        model.apply(Event::Services(Change::Apply(next.clone())));
        assert_eq!(frontends(&model).len(), want);
    }
    assert_eq!(changed(&mut model), ["+ns/a"]);
    let hidden = Slice { headless: true, ..ready("a-1", "a", &["10.0.0.1"]) };
    model.apply(Event::Slices(Change::Apply(ready("a-1", "a", &["10.0.0.1"]))));
    assert_eq!(endpoints(&model).len(), 1);
    model.apply(Event::Slices(Change::Apply(hidden)));
    assert_eq!(endpoints(&model).len(), 0);
}

#[test]
fn a_rows_endpoints() {
    let two =
        json!({"clusterIP": "10.96.0.1", "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 2}]});
    let one = |n: &str| json!([{"addresses": [n]}]);
    let v4 = |ports: Value, endpoints: Value| slice("s", "x", "IPv4", ports, endpoints);
    let cases: Vec<(&str, Vec<Slice>, Vec<&str>)> = vec![
        (
            "A4 joined by name",
            vec![v4(json!([{"name": "b", "port": 81}, {"name": "a", "port": 82}]), one("10.0.0.1"))],
            vec!["ns/x:a 10.0.0.1:82/TCP", "ns/x:b 10.0.0.1:81/TCP"],
        ),
        (
            "A4 and by protocol",
            vec![v4(json!([{"name": "a", "port": 81, "protocol": "UDP"}]), one("10.0.0.1"))],
            vec![],
        ),
        (
            "A5 a number for each slice",
            vec![
                v4(json!([{"name": "a", "port": 8080}]), one("10.0.0.1")),
                slice("t", "x", "IPv4", json!([{"name": "a", "port": 9090}]), one("10.0.0.2")),
            ],
            vec!["ns/x:a 10.0.0.1:8080/TCP", "ns/x:a 10.0.0.2:9090/TCP"],
        ),
        (
            "A6 host names",
            vec![slice("s", "x", "FQDN", json!([{"name": "a", "port": 80}]), one("host.example"))],
            vec![],
        ),
        (
            "A6 other family",
            vec![slice("s", "x", "IPv6", json!([{"name": "a", "port": 80}]), one("fd00::1"))],
            vec![],
        ),
        (
            "A6 first address only",
            vec![v4(json!([{"name": "a", "port": 80}]), json!([{"addresses": ["10.0.0.1", "10.0.0.2"]}]))],
            vec!["ns/x:a 10.0.0.1:80/TCP"],
        ),
        (
            "A6 C-20 no number, zero, too large",
            vec![v4(
                json!([{"name": "a"}, {"name": "a", "port": 0}, {"name": "a", "port": 65536}, {"name": "b", "port": 80}]),
                one("10.0.0.1"),
            )],
            vec!["ns/x:b 10.0.0.1:80/TCP"],
        ),
        (
            "C-20 no address",
            vec![v4(
                json!([{"name": "a", "port": 80}]),
                json!([{"addresses": []}, {}, {"addresses": ["10.0.0.2"]}]),
            )],
            vec!["ns/x:a 10.0.0.2:80/TCP"],
        ),
        (
            "A7 C-16 one endpoint in two slices",
            vec![
                v4(json!([{"name": "a", "port": 80}]), one("10.0.0.1")),
                slice("t", "x", "IPv4", json!([{"name": "a", "port": 80}]), one("10.0.0.1")),
            ],
            vec!["ns/x:a 10.0.0.1:80/TCP"],
        ),
        (
            "A8 C-19 defaults",
            vec![v4(
                json!([{"name": "a", "port": 80}]),
                json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": null}}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]),
            )],
            vec!["ns/x:a 10.0.0.1:80/TCP"],
        ),
        (
            "C-21 unfit addresses",
            vec![v4(
                json!([{"name": "a", "port": 80}]),
                json!([{"addresses": ["127.0.0.1"]}, {"addresses": ["169.254.169.254"]}, {"addresses": ["010.0.0.1"]}, {"addresses": ["10.0.0.9"]}]),
            )],
            vec!["ns/x:a 10.0.0.9:80/TCP"],
        ),
        (
            "C-31 fields of wrong shape",
            vec![v4(
                json!([{"name": 5, "port": 1}, {"name": "a", "port": 80}]),
                json!([7, {"addresses": "x"}, {"addresses": [{"a": 1}]}, {"addresses": ["10.0.0.9"], "conditions": [1], "nodeName": {}}]),
            )],
            vec!["ns/x:a 10.0.0.9:80/TCP"],
        ),
        (
            "B13 outside the cluster",
            vec![v4(json!([{"name": "a", "port": 80}]), one("192.0.2.9"))],
            vec!["ns/x:a 192.0.2.9:80/TCP"],
        ),
    ];
    for (name, slices, want) in cases {
        assert_eq!(endpoints(&with(&[service("x", two.clone())], &slices)), want, "{name}");
    }
}

#[test]
fn a9_a14_policies_reach_the_plan() {
    let node = |n: Value| json!([{"addresses": ["10.0.0.1"], "nodeName": n}]);
    let local = |kind: &str| json!({"type": kind, "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let cases = [
        ("C6 local endpoint", local("NodePort"), json!("n1"), 1),
        ("A9 other node", local("NodePort"), json!("n2"), 0),
        ("A9 no node is never local", local("NodePort"), json!(null), 0),
        ("A14 a ClusterIP Service has no external policy", local("ClusterIP"), json!("n2"), 1),
    ];
    for (name, spec, on, want) in cases {
        let model = with(&[service("x", spec)], &[slice("s", "x", "IPv4", json!([{"port": 80}]), node(on))]);
        assert_eq!(model.desired().values().next().unwrap().external.len(), want, "{name}");
    }
}

#[test]
fn a17_c28_shared_addresses() {
    let claim = |time: &str, name: &str, ip: &str| {
        created(name, time, json!({"clusterIP": ip, "externalIPs": ["203.0.113.1"], "ports": [{"port": 80}]}))
    };
    let old = claim("2026-01-01T00:00:00Z", "z", "10.96.0.1");
    let young = claim("2026-01-02T00:00:00Z", "a", "10.96.0.2");
    for order in [[&old, &young], [&young, &old]] {
        let mut model = with(&[order[0].clone(), order[1].clone()], &[]);
        let owner =
            |m: &Model| frontends(m).into_iter().filter(|f| f.contains("external")).collect::<Vec<_>>();
        assert_eq!(owner(&model), ["ns/z external 203.0.113.1 80/TCP"], "the oldest wins");
        assert_eq!(
            problems(&mut model),
            ["Service ns/a: external IP 203.0.113.1 port 80/TCP belongs to Service ns/z, not served here"]
        );
        model.apply(Event::Services(Change::Delete(old.name.clone())));
        assert_eq!(changed(&mut model), ["+ns/a", "-ns/z"], "the next one takes over");
        assert_eq!(owner(&model), ["ns/a external 203.0.113.1 80/TCP"]);
        assert!(problems(&mut model).is_empty());
    }
    let thief = created(
        "thief",
        "2020-01-01T00:00:00Z",
        json!({"clusterIP": "10.96.0.9", "externalIPs": ["10.96.0.1"], "ports": [{"port": 80}, {"name": "o", "port": 81}]}),
    );
    let mut model = with(&[thief, old.clone()], &[]);
    assert_eq!(
        frontends(&model).iter().filter(|f| f.contains(" 10.96.0.1 ")).count(),
        1,
        "a ClusterIP is never taken"
    );
    assert_eq!(problems(&mut model).len(), 2);
    model.apply(Event::Services(Change::Delete(old.name)));
    model.drain_changes();
    assert!(frontends(&model).contains(&"ns/thief external 10.96.0.1 80/TCP".to_owned()));
}

#[test]
fn a17_shared_node_ports_and_cluster_ips_from_manifests() {
    let spec = |ip: &str, port: u16| json!({"type": "NodePort", "clusterIP": ip, "ports": [{"port": 80, "nodePort": port}]});
    let young = |name: &str, ip, port| created(name, "2026-02-01T00:00:00Z", spec(ip, port));
    let mut model = with(&[young("b", "10.96.0.1", 30080), service("a", spec("10.96.0.1", 30080))], &[]);
    assert_eq!(frontends(&model), ["ns/a cluster 10.96.0.1 80/TCP", "ns/a node 0.0.0.0 30080/TCP"]);
    assert_eq!(problems(&mut model).len(), 2);
    model.apply(Event::Services(Change::Apply(young("b", "10.96.0.2", 30081))));
    assert!(problems(&mut model).is_empty());
    assert_eq!(frontends(&model).len(), 4);
}

#[test]
fn c_17_order_does_not_matter() {
    let x = service("x", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let events: Vec<Event> = vec![
        Event::Services(Change::Apply(x)),
        Event::Slices(Change::Apply(ready("b", "x", &["10.0.0.2", "10.0.0.3"]))),
        Event::Slices(Change::Apply(ready("c", "x", &["10.0.0.3", "10.0.0.4"]))),
    ];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut model = model();
        model.apply(Event::Slices(Change::Apply(ready("a", "x", &["10.0.0.1"]))));
        order.iter().for_each(|i| model.apply(events[*i].clone()));
        model.apply(Event::Slices(Change::Delete(ObjectName::new("ns", "a"))));
        assert_eq!(
            endpoints(&model),
            ["ns/x 10.0.0.2:8080/TCP", "ns/x 10.0.0.3:8080/TCP", "ns/x 10.0.0.4:8080/TCP"]
        );
        assert_eq!(changed(&mut model), ["+ns/x"]);
    }
}

#[test]
fn c_04_a_relist_removes_and_touches_only_what_differs() {
    let svc = |n: u8| {
        service(&format!("s{n}"), json!({"clusterIP": format!("10.96.0.{n}"), "ports": [{"port": 80}]}))
    };
    let mut model =
        with(&[svc(1), svc(2), svc(3)], &[ready("a", "s1", &["10.0.0.1"]), ready("b", "s2", &["10.0.0.2"])]);
    model.drain_changes();
    model.apply(Event::Services(Change::Snapshot(vec![svc(2), svc(1)])));
    assert_eq!(changed(&mut model), ["-ns/s3"]);
    model.apply(Event::Slices(Change::Snapshot(vec![
        ready("c", "s1", &["10.0.0.1", "10.0.0.9"]),
        ready("b", "s2", &["10.0.0.2"]),
    ])));
    assert_eq!(changed(&mut model), ["+ns/s1"]);
    let moved = ready("b", "s1", &["10.0.0.2"]);
    model.apply(Event::Slices(Change::Apply(moved)));
    assert_eq!(
        changed(&mut model),
        ["+ns/s1", "+ns/s2"],
        "a slice whose label changes leaves its old Service"
    );
    assert_eq!(model.counts(), (2, 3));
}

#[test]
fn c31_one_bad_object_never_stops_the_others() {
    let good = service("good", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}));
    let bad = ["spec", "ports", "x"]
        .map(|text| service(text, json!({"clusterIP": ["x"], "ports": {"port": text}, "externalIPs": 7})));
    let mut model = with(&[bad[0].clone(), good, bad[1].clone(), service("text", json!("x"))], &[]);
    assert_eq!(frontends(&model), ["ns/good cluster 10.96.0.1 80/TCP"]);
    let problems = problems(&mut model);
    assert!(
        problems.contains(&"Service ns/spec: spec.ports has the wrong type, ignored".to_owned()),
        "{problems:?}"
    );
    assert!(
        problems.contains(&"Service ns/text: spec has the wrong type, ignored".to_owned()),
        "{problems:?}"
    );
}

#[test]
fn i6_only_the_own_node_counts() {
    let node = |name: &str| {
        let status = json!({"addresses": [{"type": "ExternalIP", "address": "203.0.113.1"}, {"type": "InternalIP", "address": "192.0.2.11"}]});
        serde_json::from_value::<Watched<Node>>(json!({"metadata": {"name": name}, "status": status}))
            .unwrap()
            .object
    };
    let mut model = model();
    model.apply(Event::Nodes(Change::Snapshot(vec![node("n2"), node("n1")])));
    assert_eq!(model.node().map(|n| n.addresses[0].to_string()), Some("192.0.2.11".to_owned()));
    model.apply(Event::Nodes(Change::Delete(Arc::from("n2"))));
    assert!(model.node().is_some());
    model.apply(Event::Nodes(Change::Delete(Arc::from("n1"))));
    assert!(model.node().is_none());
}
