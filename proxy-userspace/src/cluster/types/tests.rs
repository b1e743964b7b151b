//! Whatever stands in an object, decoding keeps the rest of it.

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::cluster::{Change, Event};
use crate::model::{Model, Protocol, Settings};

fn yaml<T: Kind>(text: &str) -> T {
    serde_saphyr::from_str::<Watched<T>>(text).unwrap().object
}

#[test]
fn c_15_unknown_values_and_fields() {
    let service: Service = yaml(
        "metadata: {name: a, namespace: ns, future: 1, creationTimestamp: '2026-01-01T00:00:00Z'}\nfuture: {x: [1]}\nspec:\n  clusterIP: 10.96.0.1\n  internalTrafficPolicy: FutureValue\n  trafficDistribution: FutureValue\n  ports: [{port: 53, protocol: UDP, future: 1}]\n",
    );
    assert_eq!((service.created, service.internal_local), (1_767_225_600, false));
    assert_eq!((service.ports[0].protocol, service.ports[0].port), (Protocol::Udp, 53));
    assert_eq!(service.defects.len(), 1, "{:?}", service.defects);
}

#[test]
fn c22_numbers_out_of_range_name_their_place() {
    let cases = [
        ("{port: 0}", "spec.ports[0].port is 0, ignored"),
        ("{port: 65536}", "spec.ports[0].port is 65536, ignored"),
        ("{port: -1}", "spec.ports[0].port is -1, ignored"),
        ("{port: 99999999999999999999}", "spec.ports[0].port has the wrong type, ignored"),
        ("{port: '80'}", "spec.ports[0].port has the wrong type, ignored"),
        ("{port: 80, nodePort: 70000}", "spec.ports[0].nodePort is 70000, ignored"),
        ("{port: 80, protocol: QUIC}", "spec.ports[0].protocol \"QUIC\" is not known, port ignored"),
        ("{port: 80, name: 80}", "spec.ports[0].name has the wrong type, ignored"),
        ("{}", "spec.ports[0] has no port, ignored"),
        ("7", "spec.ports[0] has the wrong type, ignored"),
    ];
    for (port, want) in cases {
        let service: Service =
            yaml(&format!("metadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, ports: [{port}]}}\n"));
        assert!(service.defects.iter().any(|defect| defect.what == want), "{port}: {:?}", service.defects);
    }
}

#[test]
fn affinity_timeouts() {
    let cases = [
        ("{}", 0),
        ("{sessionAffinity: None}", 0),
        ("{sessionAffinity: ClientIP}", 10_800),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}", 5),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}", 10_800),
        ("{sessionAffinity: ClientIP, sessionAffinityConfig: 3}", 10_800),
    ];
    for (spec, want) in cases {
        assert_eq!(yaml::<Service>(&format!("spec: {spec}\n")).affinity_timeout, want, "{spec}");
    }
}

/// Any value, made of the words that the schemas use.
fn anything() -> impl Strategy<Value = Value> {
    let words = [
        "metadata",
        "name",
        "namespace",
        "labels",
        "kubernetes.io/service-name",
        "spec",
        "status",
        "type",
        "clusterIP",
        "clusterIPs",
        "ports",
        "port",
        "nodePort",
        "protocol",
        "addressType",
        "endpoints",
        "addresses",
        "conditions",
        "ready",
        "nodeName",
        "loadBalancer",
        "ingress",
        "ip",
        "externalIPs",
        "podCIDRs",
        "address",
        "creationTimestamp",
    ];
    let texts = [
        "",
        "a",
        "None",
        "10.0.0.1",
        "fd00::1",
        "TCP",
        "UDP",
        "IPv4",
        "IPv6",
        "Local",
        "ClientIP",
        "10.0.0.0/8",
        "\u{0}é",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0_i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        proptest::sample::select(texts.to_vec()).prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        let word = proptest::sample::select(words.to_vec());
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(word, inner, 0..8).prop_map(|map| {
                Value::from(
                    map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Map<_, _>>(),
                )
            }),
        ]
    })
}

proptest! {
    #[test]
    fn c20_c31_no_content_fails_an_object(spec in anything(), status in anything(), ports in anything(), endpoints in anything(), more in anything()) {
        let object = json!({
            "metadata": {"name": "x", "namespace": "ns", "labels": {"kubernetes.io/service-name": "x", "more": more}},
            "spec": spec, "status": status, "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
        });
        let service = serde_json::from_value::<Watched<Service>>(object.clone());
        let slice = serde_json::from_value::<Watched<Slice>>(object.clone());
        let node = serde_json::from_value::<Watched<Node>>(object);
        let (Ok(service), Ok(slice), Ok(node)) = (service, slice, node) else {
            return Err(TestCaseError::fail("an object was given up"));
        };
        let mut model = Model::new(Settings::of_node("x"));
        model.apply(Event::Nodes(Change::Snapshot(vec![node.object])));
        model.apply(Event::Services(Change::Snapshot(vec![service.object])));
        model.apply(Event::Slices(Change::Snapshot(vec![slice.object])));
        model.drain_changes();
        prop_assert_eq!(model.counts().0, 1);
    }
}
