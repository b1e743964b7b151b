//! The generator: every case, and every cell of a round.

use serde_json::json;

use super::case::{Case, Endpoint, State, both, ready};
use super::cell::{Cell, SHARED, Transport, Way};
use super::{Variant, change};
use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{Family, Who, Wiring, external_ip, second_address};

/// Who dials: a pod of the node, one that often is a backend itself, a pod of another node, the node, another node,
/// an outside client.
pub const CLIENTS: [Who; 6] = [Who::Pa, Who::Pb, Who::Pd, Who::Host, Who::OtherHost, Who::Client];

/// Services of SCTP too (B3): what is not the same code for all protocols does not depend on much else.
const SCTP: [&str; 4] = ["local", "both", "none", "remote-all-local"];

/// Everything that is put into the API server.
#[must_use]
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    cases.extend(policies());
    cases.extend(kinds());
    cases.extend(source_ranges());
    cases.extend(hints());
    cases.extend(affinity());
    cases.extend(intake());
    for (number, case) in (1..).zip(&mut cases) {
        case.number = number;
    }
    let first = cases.last().map_or(1, |case| case.number + 1);
    cases.extend(change::cases(first));
    cases
}

/// B1, B2, B7, B12, B17, C1, C2, C3, C4, C5, C6, C7, C8, C9, C18, E8, P-23, P-26, P-27, P-33: every list of endpoints under every pair of policies.
fn policies() -> Vec<Case> {
    use State::{NotReady, Ready, Terminating};
    let layouts: [(&str, &[(Who, State)]); 11] = [
        ("local", &[(Who::Pb, Ready)]),
        ("remote", &[(Who::Pd, Ready)]),
        ("both", &[(Who::Pb, Ready), (Who::Pd, Ready)]),
        ("none", &[]),
        ("not_ready", &[(Who::Pb, NotReady), (Who::Pd, NotReady)]),
        ("local_terminating", &[(Who::Pb, Terminating)]),
        ("remote_terminating", &[(Who::Pd, Terminating)]),
        ("local_terminating_remote_ready", &[(Who::Pb, Terminating), (Who::Pd, Ready)]),
        ("local_ready_remote_terminating", &[(Who::Pb, Ready), (Who::Pd, Terminating)]),
        ("node", &[(Who::Host, Ready)]),
        ("other_node", &[(Who::OtherHost, Ready)]),
    ];
    let pairs = [
        ("", "Cluster", "Cluster"),
        ("_external_local", "Local", "Cluster"),
        ("_internal_local", "Cluster", "Local"),
        ("_all_local", "Local", "Local"),
    ];
    let case = |(layout, endpoints): (&str, &[(Who, State)]),
                (suffix, external, internal): (&str, &str, &str)| {
        let endpoints = endpoints.iter().map(|(who, state)| Endpoint::new(*who, *state));
        let case = Case::new(format!("{layout}{suffix}").replace('_', "-"), endpoints)
            .spec(json!({"externalTrafficPolicy": external, "internalTrafficPolicy": internal}));
        if SCTP.contains(&&*case.name) { case.and_sctp() } else { case }
    };
    layouts.into_iter().flat_map(|layout| pairs.map(|pair| case(layout, pair))).collect()
}

/// A10, A11, A17, B8, B9, B10, B13, B14, B15, C1, E5, E7, P-09, P-24, P-32, P-36: kinds of Services and of addresses.
fn kinds() -> Vec<Case> {
    let large = [Way::ClusterIpLarge, Way::NodePortLarge, Way::LoadBalancerLarge];
    let unlisted = [
        Way::ClusterIpOtherPort,
        Way::ExternalIpOtherPort,
        Way::LoadBalancerOtherPort,
        Way::NodePortGateway,
        Way::NodePortLoopback,
        Way::Unassigned,
    ];
    let without_ports = json!([
        {"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT},
        {"name": "udp", "protocol": "UDP", "port": SERVICE_PORT},
    ]);
    let mut proxied = Case::new("load-balancer-proxied", both());
    proxied.ip_mode = "Proxy";
    let shared = Family::BOTH.map(|family| external_ip(family, SHARED).to_string());
    let shared = |name: &str, who| {
        Case::new(name, [ready(who)])
            .spec(json!({"externalIPs": shared}))
            .ways(&[Way::SharedIp, Way::ClusterIp])
    };
    let mut on_node = Case::new("load-balancer-on-node", both()).ways(&[
        Way::LoadBalancerOnNode,
        Way::OtherPortOnNode,
        Way::NodePortSecond,
    ]);
    on_node.balancer = |family, _| second_address(family);
    // Its port of a bridge sends nothing back.
    let mut own = Case::new("own-without-hairpin", [ready(Who::Pc)]);
    own.clients = &[Who::Pc];
    vec![
        Case::new("addresses", both()).ways(&[&unlisted[..], &large].concat()),
        Case::new("addresses-empty", []).ways(&unlisted),
        Case::new("addresses-external-local", [ready(Who::Pd)])
            .spec(json!({"externalTrafficPolicy": "Local"}))
            .ways(&unlisted),
        Case::new("cluster-ip", both())
            .spec(json!({"type": "ClusterIP", "externalIPs": null, "ports": without_ports})),
        Case::new("cluster-ip-external", both()).spec(json!({"type": "ClusterIP", "ports": without_ports})),
        Case::new("cluster-ip-external-local", both())
            .spec(json!({"type": "ClusterIP", "ports": without_ports, "externalTrafficPolicy": "Local"})),
        Case::new("node-port", both()).spec(json!({"type": "NodePort", "externalIPs": null})),
        Case::new("load-balancer-without-node-port", both())
            .spec(json!({"allocateLoadBalancerNodePorts": false, "ports": without_ports})),
        proxied,
        Case::new("ending", [Who::Pb, Who::Pd].map(|who| Endpoint::new(who, State::Ending))),
        Case::new("outside-endpoint", [ready(Who::Client)]),
        own,
        on_node,
        shared("shared-first", Who::Pb),
        shared("shared-second", Who::Pd),
        Case::new("three", [ready(Who::Pa), ready(Who::Pb), ready(Who::Pd)]),
    ]
}

/// A12, C16, C17: who may come in by a LoadBalancer's address.
fn source_ranges() -> Vec<Case> {
    let case = |name: &str, ranges: &[&str], endpoints: &[Endpoint]| {
        Case::new(format!("ranges-{name}"), endpoints.iter().copied())
            .spec(json!({"loadBalancerSourceRanges": ranges}))
            .ways(&[Way::LoadBalancer, Way::ExternalIp, Way::NodePort, Way::ClusterIp])
    };
    let client = ["198.51.100.0/24", "fd00:c::/64"];
    vec![
        case("client", &client, &both()),
        case("client-empty", &client, &[]),
        case("pods", &["10.244.0.0/16", "fd00:10::/32"], &both()),
        case("node", &["192.0.2.11/32", "fd00:2::11/128"], &both()),
        case("nobody", &["192.0.9.0/24", "fd00:9::/64"], &both()),
        case("four-only", &client[..1], &both()),
        case("everybody-four", &["0.0.0.0/0", "192.0.9.0/24", "fd00:9::/64"], &both()),
        case("client-local", &client, &[ready(Who::Pd)]).spec(json!({"externalTrafficPolicy": "Local"})),
    ]
}

/// The case whose endpoints differ in nothing but their hint: the first is meant for n1's zone.
pub const HINTED: &str = "hints-zone";

/// C11, C12, C13, C14: topology hints; no annotation says that they are meant.
fn hints() -> Vec<Case> {
    let zoned = |who: Who, zones: &'static [&'static str]| Endpoint { zones, ..ready(who) };
    let noded = |who: Who, nodes: &'static [&'static str]| Endpoint { nodes, ..ready(who) };
    let case = |name: &str, endpoints: &[Endpoint]| {
        Case::new(format!("hints-{name}"), endpoints.iter().copied())
            .ways(&[Way::ClusterIp, Way::LoadBalancer])
    };
    let east_west = [zoned(Who::Pb, &["east"]), zoned(Who::Pd, &["west"])];
    vec![
        case("zone", &east_west),
        case("zone-elsewhere", &[zoned(Who::Pb, &["west"]), zoned(Who::Pd, &["west"])]),
        case("zone-partly", &[zoned(Who::Pb, &["east"]), ready(Who::Pd)]),
        case("zone-several", &[zoned(Who::Pb, &["west"]), zoned(Who::Pd, &["west", "east"])]),
        case("node", &[noded(Who::Pb, &["n2"]), noded(Who::Pd, &["n1"])]),
        case(
            "node-elsewhere-zone",
            &[
                Endpoint { zones: &["east"], nodes: &["n2"], ..ready(Who::Pb) },
                Endpoint { zones: &["west"], nodes: &["n2"], ..ready(Who::Pd) },
            ],
        ),
        case("zone-local", &[zoned(Who::Pb, &["west"]), zoned(Who::Pd, &["east"])])
            .spec(json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"})),
        case(
            "zone-terminating",
            &[
                Endpoint { zones: &["east"], ..Endpoint::new(Who::Pb, State::Terminating) },
                zoned(Who::Pd, &["west"]),
            ],
        ),
    ]
}

/// B7, D1, D3, D9, P-35: session affinity.
fn affinity() -> Vec<Case> {
    let sticky = json!({"sessionAffinity": "ClientIP"});
    let three = [ready(Who::Pa), ready(Who::Pb), ready(Who::Pd)];
    let mut ways = Way::USUAL.to_vec();
    ways.push(Way::Alternately);
    vec![
        Case::new("affinity", three).spec(sticky.clone()).ways(&ways),
        Case::new("affinity-local", three)
            .spec(sticky.clone())
            .spec(json!({"externalTrafficPolicy": "Local"}))
            .ways(&ways),
        Case::new("affinity-one-ready", [ready(Who::Pb), Endpoint::new(Who::Pd, State::NotReady)])
            .spec(sticky),
    ]
}

/// A3, A15, B4, P-25, P-38: what is read and what is left out.
fn intake() -> Vec<Case> {
    let labelled = |name: &str, key: &str| {
        let mut case = Case::new(name, both());
        case.labels = json!({key: ""});
        case
    };
    let mut headless = Case::new("headless-slice", both());
    headless.slice_labels = json!({"service.kubernetes.io/headless": ""});
    let mut half = Case::new("slice-without-udp", both());
    half.transports = &[Transport::Tcp];
    let tcp_only = json!([{"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT}]);
    vec![
        labelled("another-proxy", "service.kubernetes.io/service-proxy-name"),
        labelled("headless-service", "service.kubernetes.io/headless"),
        headless,
        half,
        Case::new("tcp-only", both()).spec(json!({"ports": tcp_only})),
        Case::new("four-only", both()).families(&[Family::V4]),
        Case::new("six-only", both()).families(&[Family::V6]),
    ]
}

/// The cells of a round under a configuration. Each client dials each address once a family, by TCP or by UDP, and by the other in the
/// other wiring; by SCTP, where that is served, in both.
#[must_use]
pub fn cells(cases: &[Case], wiring: Wiring, variant: Variant) -> Vec<Cell<'_>> {
    let mut cells = Vec::new();
    for (row, case) in cases.iter().enumerate().filter(|(_, case)| variant.concerns(case)) {
        for (column, way) in case.ways.iter().enumerate() {
            for (position, client) in case.clients.iter().enumerate() {
                if *way == Way::NodePortLoopback && *client != Who::Host {
                    continue;
                }
                if *way == Way::NodePortAdded && variant != Variant::Changed {
                    continue;
                }
                for (side, family) in Family::BOTH.into_iter().enumerate() {
                    let turn = row + column + position + side + usize::from(wiring == Wiring::Bridged);
                    let transport = Transport::BOTH[turn % 2];
                    let sticky = case.is_sticky(variant == Variant::Changed);
                    let cell = Cell { case, way: *way, client: *client, family, transport, sticky };
                    if variant == Variant::Plain && case.serves.contains(&Transport::Sctp) {
                        cells.push(Cell { transport: Transport::Sctp, ..cell.clone() });
                    }
                    cells.push(cell);
                }
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn both_wirings_together_ask_everything() {
        let cases = cases();
        assert!(cases.len() < 99, "{} cases: addresses are planned for 98 and the sentinel", cases.len());
        let names: BTreeSet<_> = cases.iter().map(|case| &case.name).collect();
        assert_eq!(names.len(), cases.len(), "names are unique");
        let asked: Vec<String> = Wiring::BOTH
            .into_iter()
            .flat_map(|wiring| {
                cells(&cases, wiring, Variant::Plain).iter().map(ToString::to_string).collect::<Vec<_>>()
            })
            .collect();
        let unique: BTreeSet<_> = asked.iter().collect();
        let sctp = asked.iter().filter(|name| name.ends_with("::sctp")).count();
        assert_eq!(unique.len() + sctp / 2, asked.len(), "nothing but SCTP is asked in both");
        assert_eq!(sctp, 2 * SCTP.len() * Way::USUAL.len() * CLIENTS.len() * Family::BOTH.len());
        assert!(asked.len() >= 1_500, "{} cells", asked.len());
        let each = cases[0].ways.len() * CLIENTS.len() * Family::BOTH.len() * Transport::BOTH.len();
        let first = asked.iter().filter(|name| name.starts_with(&format!("{}::", cases[0].name)));
        let first = first.filter(|name| !name.ends_with("::sctp"));
        assert_eq!(first.count(), each, "each combination is asked");
        for variant in Variant::SPECIAL {
            assert!(!cells(&cases, Wiring::Routed, variant).is_empty(), "{variant:?}");
        }
    }
}
