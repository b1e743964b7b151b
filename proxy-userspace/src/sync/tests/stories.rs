//! Single behaviours.

use std::collections::HashSet;

use proxy_common::abi::{AddressClass, FrontendKind, Run, service_flags};

use super::fake::{Fake, at, cluster_ip, dialled, id, runs, start};
use crate::model::{Family, PortId, PortState, Protocol};
use crate::sync::{Lack, NodeAddresses, Settings, Step, Syncer, Word};

#[test]
fn a_change_writes_a_new_run_then_switches_and_reuses_the_old_one_after_the_grace_period() {
    let (mut fake, mut syncer) = start();
    let a = dialled("10.0.0.1", 80);
    let states = [
        cluster_ip(1, &["10.1.0.1:80", "10.1.0.2:80"]),
        cluster_ip(1, &["10.1.0.1:80", "10.1.0.3:80"]),
        cluster_ip(1, &["10.1.0.1:80"]),
        cluster_ip(1, &["10.1.0.4:80"]),
    ];
    states.iter().for_each(|state| fake.allow(state));
    let times = [at(0), at(1), at(2), at(3)];
    let want = [Run::new(0, 2), Run::new(2, 2), Run::new(4, 1), Run::new(5, 1)];
    for ((state, now), run) in states.into_iter().zip(times).zip(want) {
        assert!(syncer.apply(&mut fake, vec![(id("a"), Some(state))], now).is_clean());
        assert_eq!(runs(&fake, &a), [run; 2], "equal lists share a run");
    }
    let back = cluster_ip(1, &["10.1.0.1:80"]);
    syncer.apply(&mut fake, vec![(id("a"), Some(back))], at(4));
    assert_eq!(runs(&fake, &a), [Run::new(0, 1); 2], "retired at 1 s, free from 4 s on");
    assert_eq!(fake.endpoints.len(), 1, "endpoints that left are gone");
}

#[test]
fn an_unchanged_port_costs_nothing_and_a_changed_flag_one_store() {
    let (mut fake, mut syncer) = start();
    let mut state = cluster_ip(1, &["10.1.0.1:80"]);
    fake.allow(&state);
    syncer.apply(&mut fake, vec![(id("a"), Some(state.clone()))], at(0));
    let before = fake.steps.len();
    syncer.apply(&mut fake, vec![(id("a"), Some(state.clone()))], at(0));
    assert_eq!(fake.steps.len(), before);
    state.affinity_timeout = 10_800;
    syncer.apply(&mut fake, vec![(id("a"), Some(state.clone()))], at(0));
    let [Step::Affinity(Family::V4), Step::Services(words)] = &fake.steps[before..] else {
        unreachable!("there is room for records before anybody asks for it: {:?}", &fake.steps[before..]);
    };
    assert_eq!(words.len(), 1);
    let before = fake.steps.len();
    state.affinity_timeout = 3_600;
    syncer.apply(&mut fake, vec![(id("a"), Some(state))], at(0));
    assert!(matches!(&fake.steps[before..], [Step::Services(words)] if words.len() == 1));
}

#[test]
fn silence_is_in_force_before_the_list_is_empty() {
    let (mut fake, mut syncer) = start();
    let full = cluster_ip(1, &["10.1.0.1:80"]);
    let mut silent = cluster_ip(1, &[]);
    silent.flags |= service_flags::DROP_EXTERNAL;
    fake.allow(&full);
    for (state, now) in [(full.clone(), 0), (silent, 1), (full, 2)] {
        let before = fake.steps.len();
        syncer.apply(&mut fake, vec![(id("a"), Some(state))], at(now));
        let words = fake.steps[before..].iter().find_map(|step| match step {
            Step::Services(words) => {
                Some(words.iter().map(|(_, word)| format!("{word:?}")).collect::<Vec<_>>())
            }
            _ => None,
        });
        let words = words.unwrap();
        let settings = words.iter().position(|word| word.starts_with("Settings")).unwrap();
        let list = words.iter().position(|word| word.starts_with("External")).unwrap();
        assert_eq!(settings < list, now == 1, "{words:?}");
    }
}

#[test]
fn of_two_changes_at_once_to_one_port_the_last_counts() {
    let (mut fake, mut syncer) = start();
    let state = cluster_ip(1, &["10.1.0.1:80"]);
    fake.allow(&state);
    syncer.apply(&mut fake, vec![(id("a"), Some(state.clone())), (id("a"), None)], at(0));
    assert!(fake.steps.is_empty(), "it was never there");
    syncer.apply(&mut fake, vec![(id("a"), None), (id("a"), Some(state))], at(0));
    assert_eq!(syncer.len(), 1);
}

#[test]
fn a_frontend_moves_to_another_service_without_a_gap() {
    for first in ["loser", "winner"] {
        let (mut fake, mut syncer) = start();
        let (one, two) = (cluster_ip(1, &["10.1.0.1:80"]), cluster_ip(1, &["10.1.0.2:80"]));
        fake.allow(&one);
        fake.allow(&two);
        syncer.apply(&mut fake, vec![(id("loser"), Some(one))], at(0));
        let before = fake.steps.len();
        let mut changes = vec![(id("loser"), None), (id("winner"), Some(two))];
        if first == "winner" {
            changes.reverse();
        }
        assert!(syncer.apply(&mut fake, changes, at(1)).is_clean());
        let removed = fake.steps[before..].iter().any(|step| matches!(step, Step::RemoveFrontends(_)));
        assert!(!removed, "{first} first: the frontend is written over");
        let left = syncer.installed(&fake).unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].id, Some(id("winner")));
        assert_eq!(left[0].external, ["10.1.0.2:80".parse().unwrap()]);
        assert_eq!(fake.addresses.len(), 1);
    }
}

/// B9: an external IP that becomes the load balancer's, of the same Service.
#[test]
fn a_frontend_that_becomes_another_kind_is_written_again() {
    let (mut fake, mut syncer) = start();
    let mut state = cluster_ip(1, &["10.1.0.1:80"]);
    fake.allow(&state);
    for kind in [FrontendKind::ExternalIp, FrontendKind::LoadBalancer] {
        state.frontends[0].kind = kind;
        syncer.apply(&mut fake, vec![(id("a"), Some(state.clone()))], at(0));
        assert_eq!(fake.frontends[&dialled("10.0.0.1", 80)].kind(), Some(kind));
    }
}

/// G1, G6: flows find out by themselves that their endpoint has gone. What is written is the same for whoever has it, and
/// nothing is looked through: of flows the store knows nothing.
#[test]
fn g1_g6_a_departure_is_a_few_writes_however_much_there_is() {
    let udp = |number: u8| PortId { protocol: Protocol::Udp, ..id(&format!("s{number:03}")) };
    let written = |services: u8, endpoints: u8| {
        let (mut fake, mut syncer) = start();
        let texts: Vec<String> = (1..=endpoints).map(|host| format!("10.1.0.{host}:80")).collect();
        let texts: Vec<_> = texts.iter().map(String::as_str).collect();
        let whole = (1..=services).map(|number| (udp(number), Some(cluster_ip(number, &texts))));
        let whole: Vec<_> = whole.collect();
        let less = cluster_ip(1, &texts[1..]);
        whole
            .iter()
            .filter_map(|(_, state)| state.as_ref())
            .chain([&less])
            .for_each(|state| fake.allow(state));
        syncer.apply(&mut fake, whole, at(0));
        let before = fake.steps.len();
        assert!(syncer.apply(&mut fake, vec![(udp(1), Some(less))], at(1)).departed);
        fake.steps[before..].iter().map(Step::what).collect::<Vec<_>>()
    };
    let few = written(2, 2);
    assert!(few.len() < 5, "{few:?}");
    assert_eq!(written(90, 10), few);
}

/// S-08: a socket may be connected to an endpoint of UDP that goes, by itself or with its port.
#[test]
fn s08_departures_are_told_of_udp_alone() {
    let udp = |name| PortId { protocol: Protocol::Udp, ..id(name) };
    let (one, two) = (&["10.1.0.1:80"][..], &["10.1.0.1:80", "10.1.0.2:80"][..]);
    let state = |number, endpoints| Some(cluster_ip(number, endpoints));
    type Row = (&'static str, [Option<PortState>; 2], bool);
    // What becomes of a UDP port and of a TCP port that have two endpoints each.
    let cases: [Row; 5] = [
        ("the UDP port goes, then the other", [None, None], true),
        ("the TCP port goes", [state(1, two), None], false),
        ("an endpoint of the UDP port goes", [state(1, one), state(2, two)], true),
        ("an endpoint of the TCP port goes", [state(1, two), state(2, one)], false),
        (
            "the TCP port gets one more",
            [state(1, two), state(2, &["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80"])],
            false,
        ),
    ];
    for (name, [of_udp, of_tcp], departed) in cases {
        let (mut fake, mut syncer) = start();
        let before = [(udp("u"), state(1, two)), (id("t"), state(2, two))];
        let after = vec![(udp("u"), of_udp), (id("t"), of_tcp)];
        before
            .iter()
            .chain(&after)
            .filter_map(|(_, state)| state.as_ref())
            .for_each(|state| fake.allow(state));
        assert!(!syncer.apply(&mut fake, before.into(), at(0)).departed, "{name}: nothing has gone yet");
        assert_eq!(syncer.apply(&mut fake, after, at(1)).departed, departed, "{name}");
    }
}

#[test]
fn addresses_are_classified_for_the_node_too() {
    let (mut fake, mut syncer) = start();
    let state = cluster_ip(1, &["192.0.2.1:80"]);
    fake.allow(&state);
    syncer.apply(&mut fake, vec![(id("a"), Some(state))], at(0));
    let own = HashSet::from(["192.0.2.1".parse().unwrap(), "127.0.0.1".parse().unwrap()]);
    syncer.set_node(
        &mut fake,
        NodeAddresses { local: own.clone(), node_port: own, ..NodeAddresses::default() },
        at(0),
    );
    let class = |fake: &Fake, ip: &str| fake.addresses.get(&ip.parse().unwrap()).copied();
    let node = AddressClass::NODE_PORT | AddressClass::LOCAL;
    assert_eq!(class(&fake, "192.0.2.1"), Some(node));
    assert_eq!(class(&fake, "127.0.0.1"), Some(AddressClass::NODE_PORT));
    assert_eq!(class(&fake, "10.0.0.1"), Some(AddressClass::SERVICE));
}

#[test]
fn c7_the_list_for_pods_is_there_for_as_long_as_the_policy_is() {
    let (mut fake, mut syncer) = start();
    let everywhere = cluster_ip(1, &["10.1.0.1:80", "10.1.0.2:80"]);
    let mut local = cluster_ip(1, &["10.1.0.1:80"]);
    local.cluster.clone_from(&everywhere.external);
    local.flags = service_flags::LOCAL_EXTERNAL;
    [&everywhere, &local].into_iter().for_each(|state| fake.allow(state));
    for state in [&everywhere, &local, &everywhere] {
        let before = fake.steps.len();
        assert!(syncer.apply(&mut fake, vec![(id("a"), Some(state.clone()))], at(0)).is_clean());
        let words = fake.steps[before..].iter().filter_map(|step| match step {
            Step::Services(words) => Some(words),
            _ => None,
        });
        let mut policy = before > 0 && state == &everywhere;
        let mut list = policy;
        for (_, word) in words.flatten() {
            match word {
                Word::Settings { flags, .. } => policy = flags & service_flags::LOCAL_EXTERNAL != 0,
                Word::Cluster(run) => list = run.count() > 0,
                _ => {}
            }
            assert!(list || !policy, "{word:?}");
        }
        assert_eq!((policy, list), (state == &local, state == &local));
    }
}

/// Flows remember an endpoint's id and its generation, and are balanced anew when these do not fit any more.
#[test]
fn g2_an_endpoint_that_serves_keeps_its_id_without_a_slot() {
    let (mut fake, mut syncer) = start();
    let with = |listed: &[&str], kept: &[&str]| {
        let kept = kept.iter().map(|text| text.parse().unwrap()).collect();
        PortState { kept, ..cluster_ip(1, listed) }
    };
    let (one, two) = ("10.1.0.1:80", "10.1.0.2:80");
    [with(&[one, two], &[]), with(&[one], &[])].iter().for_each(|state| fake.allow(state));
    let udp = PortId { protocol: Protocol::Udp, ..id("a") };
    let mut apply = |state: PortState| {
        let report = syncer.apply(&mut fake, vec![(udp.clone(), Some(state))], at(0));
        assert!(report.is_clean());
        (report.departed, fake.endpoints.clone())
    };
    let (_, both) = apply(with(&[one, two], &[]));
    assert_eq!(apply(with(&[one], &[two])), (false, both.clone()), "it terminates, and serves");
    assert_eq!(apply(with(&[one, two], &[])), (false, both), "it is chosen again");
    let (departed, left) = apply(with(&[one], &[]));
    assert!(departed && left.len() == 1, "it serves no more");
    assert_eq!(apply(with(&[one], &[two])), (false, left), "no flow leads to one that was never chosen");
}

#[test]
fn d5_affinity_records_count_from_one_switch_to_the_next() {
    let (mut fake, mut syncer) = start();
    let plain = cluster_ip(1, &["10.1.0.1:80"]);
    let sticky = |seconds| PortState { affinity_timeout: seconds, ..plain.clone() };
    fake.allow(&plain);
    let epoch = |syncer: &mut Syncer, fake: &mut Fake, state: PortState| {
        assert!(syncer.apply(fake, vec![(id("a"), Some(state))], at(0)).is_clean());
        fake.services.values().next().unwrap().epoch()
    };
    let first = epoch(&mut syncer, &mut fake, sticky(10));
    assert_eq!(epoch(&mut syncer, &mut fake, sticky(99)), first, "another timeout: the records stay");
    let mut heir = Syncer::adopt(&fake, Settings { first_generation: 77, ..Settings::default() }).unwrap();
    assert_eq!(epoch(&mut heir, &mut fake, sticky(99)), first, "D6 another agent: the records stay");
    epoch(&mut heir, &mut fake, plain.clone());
    assert_ne!(epoch(&mut heir, &mut fake, sticky(99)), first, "off and on again");
}

#[test]
fn c16_source_ranges_are_there_before_a_service_asks_and_change_one_by_one() {
    let (mut fake, _) = start();
    fake.capacity.ranges = 3;
    let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
    let with = |ranges: &[&str]| {
        let mut state = cluster_ip(1, &["10.1.0.1:80"]);
        state.ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
        state.flags |= if ranges.is_empty() { 0 } else { service_flags::SOURCE_RANGES };
        state
    };
    fake.allow(&with(&[]));
    let lists: [&[&str]; 4] = [&["10.0.0.0/8"], &["10.0.0.0/8", "192.0.2.0/24"], &[], &["192.0.2.0/24"]];
    for ranges in lists {
        assert!(syncer.apply(&mut fake, vec![(id("a"), Some(with(ranges)))], at(0)).is_clean());
        let got: Vec<_> = fake.ranges.iter().map(|(_, range)| range.to_string()).collect();
        assert_eq!(got, ranges);
    }
    let many = with(&["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]);
    let report = syncer.apply(&mut fake, vec![(id("a"), Some(many))], at(0));
    assert_eq!(report.refused[0].why, Lack::Ranges(3));
    assert_eq!(fake.ranges.len(), 1, "C-32 what was there stays");
    fake.ranges.insert((99, "10.9.0.0/16".parse().unwrap()));
    let mut heir = Syncer::adopt(&fake, Settings::default()).unwrap();
    heir.replace_all(&mut fake, vec![(id("a"), with(&["192.0.2.0/24"]))], at(1));
    assert_eq!(fake.ranges.len(), 1, "what an agent that was killed has left is removed");
}
