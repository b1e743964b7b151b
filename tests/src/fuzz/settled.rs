//! What becomes of objects once everything has been planned and written, and what must be true of that.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_userspace::cluster::{Change, Event};
use proxy_userspace::model::{Model, PortId, PortState, Settings};
use proxy_userspace::sync::{self, Syncer};
use serde_json::{Value, json};

use crate::simulation::Shadow;

/// Longer than what is freed has to rest.
pub const REST: Duration = Duration::from_secs(10);

/// A node that has been told that there is nothing.
pub fn listed() -> Model {
    let mut model = Model::new(Settings::of_node("n1"));
    model.apply(Event::Services(Change::Snapshot(Vec::new())));
    model.apply(Event::Slices(Change::Snapshot(Vec::new())));
    model
}

/// Carries what has changed over to `told`, which is then the whole plan.
pub fn follow(model: &mut Model, told: &mut BTreeMap<PortId, PortState>) {
    for (id, state) in model.drain_changes() {
        match state {
            Some(state) => drop(told.insert(id, state)),
            None => drop(told.remove(&id)),
        }
    }
    assert_eq!(*told, model.desired(), "changes and plan differ");
}

/// The same plan and the same problems follow from the events forwards, backwards and one by one (C-17); it can be installed.
pub fn whatever_the_order(events: &[Event]) {
    let (mut forth, mut back) = (listed(), listed());
    let mut told = BTreeMap::new();
    for event in events {
        forth.apply(event.clone());
        follow(&mut forth, &mut told);
    }
    events.iter().rev().for_each(|event| back.apply(event.clone()));
    follow(&mut back, &mut BTreeMap::new());
    assert_eq!(forth.desired(), back.desired());
    assert_eq!(forth.problems(), back.problems());
    assert_eq!(forth.health_checks(), back.health_checks());
    installs(&forth);
}

/// Every port of the plan is installed whole or refused by name (C-32), and nothing is left once all is taken back.
pub fn installs(model: &Model) {
    let desired = model.desired();
    let mut maps = Shadow::default();
    let Ok(mut syncer) = Syncer::adopt(&maps, sync::Settings::default());
    let report = syncer.replace_all(&mut maps, desired.clone().into_iter().collect(), Duration::ZERO);
    assert!(report.failed.is_empty(), "{:?}", report.failed);
    let Ok(installed) = syncer.installed(&maps);
    let refused = syncer.refused();
    assert_eq!(installed.len() + refused.len(), desired.len(), "{refused:?}");
    for port in installed {
        let want = port.id.as_ref().and_then(|id| desired.get(id)).expect("nothing else is installed");
        // Where every frontend is another's, nothing leads to the lists.
        if !want.frontends.is_empty() {
            assert_eq!(
                [&port.external, &port.internal, &port.cluster],
                want.lists(),
                "{want:?} became {port:?}"
            );
        }
    }
    syncer.replace_all(&mut maps, Vec::new(), REST);
    syncer.tick(&mut maps, 2 * REST);
    assert!(maps.is_empty(), "left behind: {maps:?}");
}

/// Objects to begin with: Services with everything that their kinds can have, slices of both families, a node, a range.
pub fn example() -> Vec<Value> {
    let meta = |name: &str| json!({"name": name, "namespace": "shop", "uid": name, "resourceVersion": "1"});
    let slice = |name: &str, family: &str, addresses: [&str; 3], zone: &str| {
        let endpoint = |address: &str, node: &str, conditions: Value| {
            json!({"addresses": [address], "nodeName": node, "zone": zone, "conditions": conditions,
                "hints": {"forZones": [{"name": zone}], "forNodes": [{"name": node}]}})
        };
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": family,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        "endpoints": [
            endpoint(addresses[0], "n1", json!({"ready": true, "serving": true, "terminating": false})),
            endpoint(addresses[1], "n2", json!({"ready": false, "serving": true, "terminating": true})),
            endpoint(addresses[2], "n2", json!({})),
        ]})
    };
    vec![
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("web"), "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"], "ports": [
                {"name": "http", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "TCP"},
                {"name": "dns", "port": 53, "targetPort": "dns", "nodePort": 30053, "protocol": "UDP"}],
            "externalIPs": ["198.51.100.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local",
            "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "loadBalancerSourceRanges": ["203.0.113.0/24", "2001:db8::/32"], "trafficDistribution": "PreferClose"},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.40", "ipMode": "VIP"}, {"ip": "192.0.2.41", "ipMode": "Proxy"}]}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("rival"), "spec": {
            "type": "ClusterIP", "clusterIP": "10.96.0.11", "ports": [{"port": 80}], "externalIPs": ["198.51.100.7"]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("headless"), "spec": {
            "clusterIP": "None", "ports": [{"port": 80}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta("elsewhere"), "spec": {
            "type": "ExternalName", "externalName": "example.org"}}),
        slice("web-4", "IPv4", ["10.1.0.5", "10.1.1.6", "10.1.1.7"], "a"),
        slice("web-6", "IPv6", ["fd00:1::5", "fd00:1::6", "fd00:1::7"], "b"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"podCIDRs": ["10.1.0.0/24"]}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.11"}]}}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
            "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]}}),
    ]
}
