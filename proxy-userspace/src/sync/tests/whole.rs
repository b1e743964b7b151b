//! Random histories: whole after every step, and right after a kill or a failed write at any of them (L-01).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use proxy_common::abi::{AddressClass, FrontendKind, service_flags};

use super::fake::{Fake, id};
use crate::model::{Family, PortFrontend, PortId, PortState, Protocol};
use crate::sync::{InstalledPort, Settings, Syncer};

/// One change: a port by number, and its state made of small numbers, or its removal.
type Change = (u8, Option<(Vec<u8>, Vec<u8>, u32, bool, bool)>);

fn change() -> impl Strategy<Value = Change> {
    let list = || proptest::collection::vec(0_u8..6, 0..4);
    let state = (list(), list(), 0_u32..16, any::<bool>(), any::<bool>());
    (0_u8..5, proptest::option::weighted(0.8, state))
}

fn port(number: u8) -> PortId {
    let family = if number.is_multiple_of(2) { Family::V4 } else { Family::V6 };
    let protocol = if number < 3 { Protocol::Tcp } else { Protocol::Sctp };
    PortId { family, protocol, ..id(&format!("port{number}")) }
}

fn address(family: Family, subnet: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([10, subnet, 0, host + 1]),
        Family::V6 => IpAddr::from([0xfd00, u16::from(subnet), 0, 0, 0, 0, 0, u16::from(host) + 1]),
    }
}

fn state(
    number: u8,
    (external, internal, flags, node_port, same): &(Vec<u8>, Vec<u8>, u32, bool, bool),
) -> PortState {
    let family = port(number).family;
    let list = |hosts: &[u8]| {
        let mut list: Vec<_> =
            hosts.iter().map(|host| SocketAddr::new(address(family, 1, *host), 80)).collect();
        list.sort();
        list.dedup();
        list
    };
    // Two ports of one address, of two protocols.
    let address_of = address(family, 0, if number == 4 { 0 } else { number });
    let mut frontends = vec![PortFrontend { kind: FrontendKind::ClusterIp, address: address_of, port: 80 }];
    if *node_port {
        let any = address(family, 0, 0);
        let unspecified: IpAddr = if any.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let kind = FrontendKind::NodePort;
        frontends.push(PortFrontend { kind, address: unspecified, port: 30_000 + u16::from(number) });
    }
    let external = list(external);
    let internal = if *same { external.clone() } else { list(internal) };
    let mut flags = flags << 1;
    let mut ranges: Vec<IpNet> = Vec::new();
    if *same {
        flags |= service_flags::SOURCE_RANGES;
        ranges = external.iter().map(|endpoint| endpoint.ip().into()).collect();
        ranges.push(IpNet::new(address(family, 7, 0), 16).unwrap().trunc());
        ranges.sort_unstable();
    }
    let mut cluster = Vec::new();
    if flags & service_flags::LOCAL_EXTERNAL != 0 {
        cluster = [&external[..], &internal[..]].concat();
        cluster.sort();
        cluster.dedup();
    }
    let affinity_timeout = if *node_port { 10 } else { 0 };
    let [external, internal, cluster] = [external, internal, cluster].map(Arc::from);
    PortState { frontends, external, internal, cluster, kept: Vec::new(), ranges, flags, affinity_timeout }
}

fn verify(fake: &Fake, syncer: &Syncer, desired: &BTreeMap<PortId, PortState>) {
    let installed = syncer.installed(fake).unwrap();
    let got: BTreeMap<_, _> = installed.iter().map(|port| (port.id.clone(), port)).collect();
    assert_eq!(got.len(), desired.len(), "{installed:#?}");
    let (mut endpoints, mut ranges) = (0, 0);
    let mut addresses: BTreeMap<IpAddr, u32> = BTreeMap::new();
    let (mut cluster_ips, mut hosts) = (BTreeSet::new(), BTreeSet::new());
    for (id, want) in desired {
        let is: &InstalledPort = got[&Some(id.clone())];
        assert_eq!([&is.external[..], &is.internal, &is.cluster], want.lists(), "{id}");
        assert_eq!((&is.ranges, is.affinity_timeout), (&want.ranges, want.affinity_timeout), "{id}");
        ranges += is.ranges.len();
        let frontends: Vec<_> = is.frontends.iter().map(|f| (f.kind.unwrap(), f.address, f.port)).collect();
        let wanted: Vec<_> = want.frontends.iter().map(|f| (f.kind, f.address, f.port)).collect();
        assert_eq!(frontends, wanted, "{id}");
        let mut all = want.lists().concat();
        all.sort();
        all.dedup();
        endpoints += all.len();
        hosts.extend(all.iter().map(SocketAddr::ip));
        for frontend in want.frontends.iter().filter(|frontend| !frontend.address.is_unspecified()) {
            let sctp = if id.protocol == Protocol::Sctp { AddressClass::SCTP } else { 0 };
            *addresses.entry(frontend.address).or_default() |= AddressClass::SERVICE | sctp;
            if frontend.kind == FrontendKind::ClusterIp {
                cluster_ips.insert(frontend.address);
            }
        }
    }
    for (address, bits) in &mut addresses {
        if hosts.contains(address) && !cluster_ips.contains(address) {
            *bits |= AddressClass::SHARED;
        }
    }
    assert_eq!(fake.endpoints.len(), endpoints, "no endpoint id is left behind");
    assert_eq!(fake.ranges.len(), ranges, "no source range is left behind");
    assert_eq!(fake.addresses, addresses);
    assert_eq!(fake.services.len(), desired.len(), "no service is left behind");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn maps_are_whole_after_every_step(history in proptest::collection::vec(
        (proptest::collection::vec(change(), 1..4), 0_u64..3), 1..12)) {
        let mut fake = Fake::new();
        fake.allowed.insert(Vec::new());
        let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
        let mut desired = BTreeMap::new();
        let mut now = Duration::ZERO;
        for (changes, seconds) in &history {
            now += Duration::from_secs(*seconds);
            let before = (fake.clone(), desired.clone());
            let changes: Vec<_> = changes.iter().map(|(number, want)| {
                let want = want.as_ref().map(|want| state(*number, want));
                (port(*number), want)
            }).collect();
            for (id, want) in &changes {
                match want {
                    Some(want) => { fake.allow(want); desired.insert(id.clone(), want.clone()); }
                    None => { desired.remove(id); }
                }
            }
            let steps = fake.steps.len();
            prop_assert!(syncer.apply(&mut fake, changes.clone(), now).is_clean());
            verify(&fake, &syncer, &desired);
            let steps = fake.steps.len() - steps;
            for step in 0..steps {
                kill_and_fail(&before, &fake, &changes, &desired, step, now);
            }
        }
    }
}

/// The same changes from the same start, with the write number `step` failing: the same agent recovers, and another
/// agent that finds the maps so brings them to the same end.
fn kill_and_fail(
    (start, had): &(Fake, BTreeMap<PortId, PortState>),
    end: &Fake,
    changes: &[(PortId, Option<PortState>)],
    desired: &BTreeMap<PortId, PortState>,
    step: usize,
    now: Duration,
) {
    let mut fake = Fake { allowed: end.allowed.clone(), ..start.clone() };
    let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
    let had: Vec<_> = had.iter().map(|(id, state)| (id.clone(), state.clone())).collect();
    assert!(syncer.replace_all(&mut fake, had, now).is_clean());
    fake.fail_in = Some(step);
    let report = syncer.apply(&mut fake, changes.to_vec(), now);
    if fake.fail_in.take().is_some() {
        // An adopted start may need fewer steps.
        return;
    }
    assert_eq!(report.failed.len(), 1);
    let mut killed = fake.clone();
    let early = syncer.tick(&mut fake, now);
    assert!(early.rests && !early.is_clean(), "not before the grace period");
    assert!(early.failed.is_empty(), "to wait is no failure");
    assert!(syncer.tick(&mut fake, now + Duration::from_secs(9)).is_clean());
    verify(&fake, &syncer, desired);
    let mut heir = Syncer::adopt(&killed, Settings::default()).unwrap();
    let all = desired.iter().map(|(id, state)| (id.clone(), state.clone())).collect();
    assert!(heir.replace_all(&mut killed, all, now).is_clean());
    verify(&killed, &heir, desired);
}
