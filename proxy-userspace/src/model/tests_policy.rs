//! Policies, topology and types of Services through the whole model: objects in, lists out.

use proxy_common::abi::service_flags;
use serde_json::{Value, json};

use super::tests::{endpoints, frontends, model, service, slice, with, with_status};
use super::*;
use crate::cluster::types::Watched;

fn node(zone: Option<&str>) -> Event {
    let labels = zone.map_or(json!({}), |zone| json!({"topology.kubernetes.io/zone": zone}));
    let object = json!({"metadata": {"name": "n1", "labels": labels}});
    Event::Nodes(Change::Apply(serde_json::from_value::<Watched<Node>>(object).unwrap().object))
}

fn hinted(address: &str, hints: Value) -> Value {
    json!({"addresses": [address], "hints": hints})
}

fn zones(list: &[&str]) -> Value {
    json!({"forZones": list.iter().map(|name| json!({"name": name})).collect::<Vec<_>>()})
}

fn web() -> Service {
    service("x", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}))
}

fn in_slice(endpoints: Value) -> Slice {
    slice("s", "x", "IPv4", json!([{"port": 80}]), endpoints)
}

#[test]
fn c11_c13_hints_are_read_from_slices() {
    let nodes = |name: &str| json!({"forZones": [{"name": "b"}], "forNodes": [{"name": name}]});
    let (one, both) = (vec!["ns/x 10.0.0.1:80/TCP"], vec!["ns/x 10.0.0.1:80/TCP", "ns/x 10.0.0.2:80/TCP"]);
    let cases = [
        ("C11 zone", zones(&["a"]), zones(&["b"]), Some("a"), &one),
        ("C11 node without zone", zones(&["a"]), zones(&["b"]), None, &both),
        ("C11 a hint is missing", zones(&["a"]), json!(null), Some("a"), &both),
        ("C11 zone of nobody", zones(&["a"]), zones(&["b"]), Some("c"), &both),
        ("C13 several zones match any", zones(&["c", "a"]), zones(&["b", "c"]), Some("a"), &one),
        ("C12 node before zone", nodes("n1"), nodes("n2"), Some("b"), &one),
        ("C-31 hints of the wrong shape", json!(7), zones(&["a"]), Some("a"), &both),
        (
            "C-31 names of the wrong shape",
            json!({"forZones": [5, {"name": 6}]}),
            zones(&["a"]),
            Some("a"),
            &both,
        ),
    ];
    for (name, first, second, zone, want) in cases {
        let slice = in_slice(json!([hinted("10.0.0.1", first), hinted("10.0.0.2", second)]));
        let mut model = with(&[web()], &[slice]);
        model.apply(node(zone));
        assert_eq!(endpoints(&model), *want, "{name}");
    }
}

#[test]
fn c15_a_change_of_zone_counts_at_once() {
    let slice = in_slice(json!([hinted("10.0.0.1", zones(&["a"])), hinted("10.0.0.2", zones(&["b"]))]));
    let other = service("y", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}));
    let mut model = with(&[web(), other], &[slice]);
    model.drain_changes();
    for (zone, want) in [(Some("a"), 1), (Some("b"), 1), (None, 2), (Some("a"), 1)] {
        model.apply(node(zone));
        let changes = model.drain_changes();
        assert_eq!(changes.len(), 1, "only the Service that has hints is planned again");
        assert_eq!(changes[0].1.as_ref().unwrap().internal.len(), want, "{zone:?}");
        model.apply(node(zone));
        assert!(model.drain_changes().is_empty(), "the same zone changes nothing");
    }
    model.apply(Event::Nodes(Change::Delete("n1".into())));
    assert_eq!(endpoints(&model).len(), 2, "a node that is not known has no zone");
}

#[test]
fn c7_c8_c18_lists_under_policy_local() {
    let here =
        json!([{"addresses": ["10.0.0.1"], "nodeName": "n1"}, {"addresses": ["10.0.0.2"], "nodeName": "n2"}]);
    let spec = |external: &str, internal: &str| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}],
               "externalTrafficPolicy": external, "internalTrafficPolicy": internal})
    };
    let local = service_flags::LOCAL_EXTERNAL;
    let masquerade = service_flags::MASQUERADE_EXTERNAL;
    let cases = [
        ("C5", "Cluster", "Cluster", [2, 2, 0], masquerade),
        ("C6 C7 C8", "Local", "Cluster", [1, 2, 2], local),
        ("C4", "Cluster", "Local", [2, 1, 0], masquerade),
        ("C18", "Local", "Local", [1, 1, 2], local),
    ];
    for (name, external, internal, want, flags) in cases {
        let model = with(&[service("x", spec(external, internal))], &[in_slice(here.clone())]);
        let state = model.desired().into_values().next().unwrap();
        assert_eq!((state.lists().map(<[_]>::len), state.flags), (want, flags), "{name}");
    }
}

/// A2: the API server keeps the ClusterIP in some updates, and manifests may hold anything.
#[test]
fn a2_changes_of_type_take_the_frontends_away_and_bring_them_back() {
    let spec = |kind: &str, ip: &str| json!({"type": kind, "clusterIP": ip, "externalName": "example.org", "ports": [{"port": 80, "nodePort": 30080}]});
    let mut model = model();
    let slice = in_slice(json!([{"addresses": ["10.0.0.1"]}]));
    model.apply(Event::Slices(Change::Apply(slice)));
    let steps = [
        ("NodePort", "10.96.0.1", 2),
        ("ExternalName", "10.96.0.1", 0),
        ("ClusterIP", "10.96.0.1", 2),
        ("ExternalName", "", 0),
        ("NodePort", "10.96.0.2", 2),
        ("ClusterIP", "None", 0),
        ("ClusterIP", "10.96.0.2", 2),
    ];
    for (kind, ip, want) in steps {
        model.apply(Event::Services(Change::Apply(service("x", spec(kind, ip)))));
        let changes = model.drain_changes();
        assert_eq!(frontends(&model).len(), want, "{kind} {ip}");
        let removed = changes.iter().any(|(_, state)| state.is_none());
        assert_eq!(removed, want == 0, "{kind} {ip}: {changes:?}");
    }
}

/// A11: a balancer in mode Proxy wants the traffic itself.
#[test]
fn a11_ip_mode_can_change() {
    let balancer = |mode: &str| {
        let metadata = json!({"name": "x", "namespace": "ns"});
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
        let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": mode}]}});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        serde_json::from_value::<Watched<Service>>(object).unwrap().object
    };
    let mut model = model();
    for (mode, want) in [("VIP", 2), ("Proxy", 1), ("VIP", 2)] {
        model.apply(Event::Services(Change::Apply(balancer(mode))));
        assert_eq!(frontends(&model).len(), want, "{mode}");
    }
}

/// A13: fields that kube-proxy does not look at.
#[test]
fn a13_a16_ignored_fields_change_nothing() {
    let plain =
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.1", "ports": [{"port": 80, "nodePort": 30080}]});
    let mut odd = plain.clone();
    odd["selector"] = json!({"a": "b"});
    odd["ports"][0]["targetPort"] = json!("nonsense");
    odd["ports"][0]["appProtocol"] = json!("http");
    odd["publishNotReadyAddresses"] = json!(true);
    odd["trafficDistribution"] = json!("PreferClose");
    odd["loadBalancerIP"] = json!("203.0.113.9");
    odd["loadBalancerClass"] = json!("example.org/x");
    odd["allocateLoadBalancerNodePorts"] = json!(false);
    let not_ready = json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]);
    let planned = |spec| with(&[service("x", spec)], &[in_slice(not_ready.clone())]).desired();
    assert_eq!(planned(plain), planned(odd));
}

fn balanced(ranges: &[&str], status: &str) -> Service {
    let spec = json!({"type": "LoadBalancer", "clusterIPs": ["10.96.0.1", "fd00:96::1"], "ports": [{"port": 80}],
                      "loadBalancerSourceRanges": ranges});
    let ingress: Vec<_> = status.split(' ').map(|ip| json!({"ip": ip})).collect();
    with_status("x", "2026-01-01T00:00:00Z", spec, json!({"loadBalancer": {"ingress": ingress}}))
}

#[test]
fn a12_c16_source_ranges() {
    let both = "203.0.113.1 fd00:113::1";
    /// Ranges, the addresses in the status, and what closes each family.
    type Case<'a> = (&'a str, &'a [&'a str], &'a str, [Option<&'a str>; 2]);
    let cases: [Case<'_>; 9] = [
        ("none", &[], both, [None, None]),
        ("A12 white space", &[" 192.0.2.0/24 "], both, [Some("192.0.2.0/24"), None]),
        (
            "A12 by family",
            &["192.0.2.0/24", "fd00:2::/64"],
            both,
            [Some("192.0.2.0/24"), Some("fd00:2::/64")],
        ),
        ("A12 ranges of the other family only: open", &["fd00:2::/64"], both, [None, Some("fd00:2::/64")]),
        ("A12 everything", &["192.0.2.0/24", "0.0.0.0/0"], both, [None, None]),
        ("host bits, twice", &["192.0.2.9/24", "192.0.2.0/24"], both, [Some("192.0.2.0/24"), None]),
        ("unreadable ones close", &["192.0.2.0/33"], both, [Some(""), Some("")]),
        ("no LoadBalancer address of the family", &["192.0.2.0/24"], "fd00:113::1", [None, None]),
        ("one range of two is unreadable", &["x", "192.0.2.0/24"], both, [Some("192.0.2.0/24"), Some("")]),
    ];
    for (name, ranges, status, want) in cases {
        let model = with(&[balanced(ranges, status)], &[]);
        let got: Vec<Option<String>> = model
            .desired()
            .values()
            .map(|state| {
                let asks = state.flags & service_flags::SOURCE_RANGES != 0;
                let ranges = state.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                asks.then_some(ranges)
            })
            .collect();
        assert_eq!(got, want.map(|text| text.map(str::to_owned)), "{name}");
    }
    let mut model = with(&[balanced(&["x"], both)], &[]);
    model.drain_changes();
    assert!(model.problems()[0].what.contains("is no CIDR, admits nobody"), "{:?}", model.problems());
}

/// E10: done better than kube-proxy, which keeps the old address.
#[test]
fn c17_the_node_is_admitted_by_its_own_address_followed_live() {
    let ips = |list: &[&str]| {
        let addresses: Vec<_> = list.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        let object = json!({"metadata": {"name": "n1"}, "status": {"addresses": addresses}});
        Event::Nodes(Change::Apply(serde_json::from_value::<Watched<Node>>(object).unwrap().object))
    };
    let other = service("y", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80}]}));
    let ranged = balanced(&["192.0.2.0/24", "fd00:2::/64"], "203.0.113.1 fd00:113::1");
    let mut model = with(&[ranged, other], &[]);
    model.drain_changes();
    let steps: [(&[&str], [bool; 2]); 4] = [
        (&["192.0.2.11", "fd00:2::11"], [true, true]),
        (&["192.0.2.11", "fd00:9::11"], [true, false]),
        (&["198.51.100.1", "192.0.2.11"], [false, false]),
        (&["192.0.2.12", "fd00:2::11"], [true, true]),
    ];
    for (addresses, want) in steps {
        model.apply(ips(addresses));
        let changes = model.drain_changes();
        let node =
            |(_, state): &PortChange| state.as_ref().unwrap().flags & service_flags::NODE_IN_RANGES != 0;
        assert_eq!(changes.iter().map(node).collect::<Vec<_>>(), want, "{addresses:?}");
        model.apply(ips(addresses));
        assert!(model.drain_changes().is_empty(), "the same addresses change nothing");
    }
}

#[test]
fn h7_health_checks() {
    let spec = |kind: &str, policy: &str| {
        json!({"type": kind, "clusterIPs": ["10.96.0.1", "fd00:96::1"], "externalTrafficPolicy": policy,
               "healthCheckNodePort": 32_000, "ports": [{"port": 80}, {"name": "b", "port": 81}]})
    };
    let on = |ip: &str, node: &str, conditions: Value| json!({"addresses": [ip], "nodeName": node, "conditions": conditions});
    let ready = json!({});
    let terminating = json!({"ready": false, "serving": true, "terminating": true});
    let v4 = json!([
        on("10.0.0.1", "n1", ready.clone()),
        on("10.0.0.2", "n1", ready.clone()),
        on("10.0.0.3", "n2", ready.clone()),
        on("10.0.0.4", "n1", terminating.clone()),
    ]);
    let ports = json!([{"port": 8080}, {"name": "b", "port": 8081}]);
    let slices = [
        slice("s", "x", "IPv4", ports.clone(), v4.clone()),
        slice("t", "x", "IPv4", ports.clone(), json!([on("10.0.0.1", "n1", ready)])),
        slice("u", "x", "IPv6", ports, json!([on("fd00::1", "n1", terminating)])),
    ];
    let cases = [
        ("A14 Local", "LoadBalancer", "Local", Some(vec![(Family::V4, 2), (Family::V6, 0)])),
        ("A14 Cluster", "LoadBalancer", "Cluster", None),
        ("A14 no LoadBalancer", "NodePort", "Local", None),
    ];
    for (name, kind, policy, want) in cases {
        let mut model = with(&[service("x", spec(kind, policy))], &slices);
        model.drain_changes();
        let got = model.health_checks().get(&ObjectName::new("ns", "x")).cloned();
        assert_eq!(got, want.map(|ready| HealthCheck { port: 32_000, ready }), "{name}");
        model.apply(Event::Services(Change::Delete(ObjectName::new("ns", "x"))));
        model.drain_changes();
        assert!(model.health_checks().is_empty(), "{name}");
    }
}
