//! What the node itself has to do with what is served.

use serde_json::{Value, json};

use super::tests::{frontends, model, problems, service, with};
use super::*;
use crate::cluster::types::Watched;

#[test]
fn c22_the_nodes_own_ports_are_no_node_ports() {
    let mut model = with(&[], &[]);
    model.settings.own_ports = vec![10_256];
    let ports = [
        (22, "TCP", None),
        (22, "UDP", Some("ns/a:p1 node 0.0.0.0 22/UDP")),
        (10_250, "TCP", None),
        (10_256, "TCP", None),
        (10_257, "TCP", Some("ns/a:p4 node 0.0.0.0 10257/TCP")),
    ];
    let port = |(at, (node_port, protocol, _)): (usize, &(u16, &str, Option<&str>))| json!({"name": format!("p{at}"), "port": 80 + at, "protocol": protocol, "nodePort": node_port});
    let list: Vec<Value> = ports.iter().enumerate().map(port).collect();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.1", "ports": list});
    model.apply(Event::Services(Change::Apply(service("a", spec))));
    let served: Vec<_> = frontends(&model).into_iter().filter(|line| line.contains(" node ")).collect();
    assert_eq!(served, ports.iter().filter_map(|(_, _, want)| *want).collect::<Vec<_>>());
    let told = |at, port| {
        format!(
            "Service ns/a: spec.ports[{at}].nodePort is {port}, by which the node itself is reached, ignored"
        )
    };
    assert_eq!(problems(&mut model), [told(0, 22), told(2, 10_250), told(3, 10_256)]);
}

#[test]
fn c29_a_name_that_no_node_has_is_told() {
    let node = |name: &str| {
        let object = json!({"metadata": {"name": name}});
        serde_json::from_value::<Watched<Node>>(object).unwrap().object
    };
    let mut model = model();
    model.apply(Event::Nodes(Change::Snapshot(Vec::new())));
    assert!(problems(&mut model).is_empty(), "manifests need no Nodes");
    model.apply(Event::Nodes(Change::Snapshot(vec![node("n2"), node("n3")])));
    assert_eq!(problems(&mut model), ["Node n1: there are other Nodes and none of this name"]);
    model.apply(Event::Nodes(Change::Apply(node("n4"))));
    assert_eq!(problems(&mut model).len(), 1);
    ["n2", "n3", "n4"].iter().for_each(|name| model.apply(Event::Nodes(Change::Delete((*name).into()))));
    assert!(problems(&mut model).is_empty());
    model.apply(Event::Nodes(Change::Apply(node("n4"))));
    assert_eq!(problems(&mut model).len(), 1);
    model.apply(Event::Nodes(Change::Apply(node("n1"))));
    assert!(problems(&mut model).is_empty());
}
