//! What there is no room for, and what has just enough.

use proxy_common::abi::{CHUNK, service_flags};

use super::fake::{Fake, at, cluster_ip, id, start};
use crate::model::{Family, PortFrontend, PortId, PortState};
use crate::sync::{Capacity, Lack, Settings, Syncer};

/// C-32: refused as a whole, by name; others go on; in as soon as room appears.
#[test]
fn what_does_not_fit_waits_for_room() {
    let (mut fake, mut syncer) = start();
    let changes: Vec<_> = (0..150_u8)
        .map(|number| {
            (id(&format!("s{number:03}")), Some(cluster_ip(number, &["10.1.0.1:80", "10.1.0.2:80"])))
        })
        .collect();
    fake.allow(changes[0].1.as_ref().unwrap());
    let report = syncer.apply(&mut fake, changes, at(0));
    assert_eq!(report.refused.len(), 50);
    assert_eq!((&report.refused[0].id, report.refused[0].why), (&id("s100"), Lack::Services(100)));
    assert_eq!((syncer.len(), fake.frontends.len(), fake.endpoints.len()), (100, 100, 200));
    let gone = (0..60).map(|number| (id(&format!("s{number:03}")), None)).collect();
    syncer.apply(&mut fake, gone, at(1));
    assert_eq!(syncer.len(), 40, "ids rest first");
    assert!(syncer.tick(&mut fake, at(10)).is_clean());
    assert_eq!((syncer.len(), fake.frontends.len(), fake.endpoints.len()), (90, 90, 180));
    assert!(syncer.refused().is_empty());
}

/// C-32: a Service is installed with all of its ports, or with none until there is room.
#[test]
fn a_service_comes_whole_or_not_at_all() {
    let named = |service: &str, port: &str| PortId { port: port.into(), ..id(service) };
    type Limit = fn(&mut Capacity);
    let limits: [(&str, Limit, Lack); 5] = [
        ("services", |capacity| capacity.services = 3, Lack::Services(3)),
        ("endpoints", |capacity| capacity.endpoints = 7, Lack::Endpoints(7)),
        ("frontends", |capacity| capacity.frontends = 3, Lack::Frontends(3)),
        ("addresses", |capacity| capacity.addresses = 3, Lack::Addresses(3)),
        ("slots", |capacity| capacity.slots = 7, Lack::Slots(2, 7)),
    ];
    for (what, limit, why) in limits {
        let (mut fake, _) = start();
        limit(&mut fake.capacity);
        let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
        let mut changes = Vec::new();
        for (number, name) in (0..).zip(["one", "two"]) {
            for (at, port) in (0..).zip(["a", "b"]) {
                let endpoints = [format!("10.1.{number}.1:{at}"), format!("10.1.{number}.2:{at}")];
                let state = cluster_ip(10 * number + at, &endpoints.each_ref().map(String::as_str));
                fake.allow(&state);
                changes.push((named(name, port), Some(state)));
            }
        }
        // In between, so that the order of changes does not matter.
        changes.swap(1, 2);
        let report = syncer.apply(&mut fake, changes, at(0));
        let refused: Vec<_> =
            report.refused.iter().map(|refused| (refused.id.clone(), refused.why)).collect();
        assert_eq!(refused, [(named("two", "a"), why), (named("two", "b"), why)], "{what}");
        assert_eq!(why.limit(), what);
        let installed = |syncer: &Syncer, fake: &Fake| -> Vec<_> {
            syncer.installed(fake).unwrap().into_iter().filter_map(|port| port.id).collect()
        };
        assert_eq!(installed(&syncer, &fake), [named("one", "a"), named("one", "b")], "{what}");
        let gone = ["a", "b"].map(|port| (named("one", port), None)).into();
        syncer.apply(&mut fake, gone, at(1));
        assert!(syncer.tick(&mut fake, at(10)).is_clean(), "{what}");
        assert_eq!(installed(&syncer, &fake), [named("two", "a"), named("two", "b")], "{what}");
    }
}

/// C-32: both families count, and what fits exactly fits.
#[test]
fn a_service_of_both_families_comes_whole_or_not_at_all() {
    let mut v4 = cluster_ip(1, &["10.1.0.1:80"]);
    v4.ranges = vec!["10.0.0.0/8".parse().unwrap()];
    v4.flags |= service_flags::SOURCE_RANGES;
    let mut v6 = cluster_ip(1, &["[fd00:1::1]:80", "[fd00:1::2]:80"]);
    v6.frontends[0].address = "fd00::1".parse().unwrap();
    type Limit = fn(&mut Capacity, u32);
    type Row = (Limit, u32, fn(u32) -> Lack);
    // What they need, the one family that needs most or both together.
    let cases: [Row; 5] = [
        (|capacity, room| capacity.services = room, 2, Lack::Services),
        (|capacity, room| capacity.endpoints = room, 3, Lack::Endpoints),
        (|capacity, room| capacity.frontends = room, 1, Lack::Frontends),
        (|capacity, room| capacity.addresses = room, 1, Lack::Addresses),
        (|capacity, room| capacity.ranges = room, 1, Lack::Ranges),
    ];
    for (limit, needed, lack) in cases {
        for (room, refused) in [(needed, None), (needed - 1, Some(lack(needed - 1)))] {
            let (mut fake, _) = start();
            limit(&mut fake.capacity, room);
            [&v4, &v6].into_iter().for_each(|state| fake.allow(state));
            let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
            let of = |family, state: &PortState| (PortId { family, ..id("web") }, Some(state.clone()));
            let changes = vec![of(Family::V4, &v4), of(Family::V6, &v6)];
            let report = syncer.apply(&mut fake, changes, at(0));
            let told: Vec<_> = report.refused.iter().map(|refused| refused.why).collect();
            assert_eq!(told, refused.map_or(vec![], |why| vec![why; 2]), "{room} of {needed}");
            assert_eq!(syncer.len(), if refused.is_some() { 0 } else { 2 }, "{room} of {needed}");
        }
    }
}

/// C-32: what needs no rest is another's in the same call.
#[test]
fn room_that_one_gives_another_has_at_once() {
    let with = |number: u8, endpoints: &[&str], ranges: &[&str]| {
        let mut state = cluster_ip(number, endpoints);
        state.ranges = ranges.iter().map(|text| text.parse().unwrap()).collect();
        state.flags |= if ranges.is_empty() { 0 } else { service_flags::SOURCE_RANGES };
        state
    };
    let of_v6 = |port| {
        let mut state = cluster_ip(1, &[]);
        (state.frontends[0].address, state.frontends[0].port) = ("fd00::1".parse().unwrap(), port);
        state.external = ["[fd00:1::1]:80".parse().unwrap()].into();
        state.internal.clone_from(&state.external);
        state
    };
    let (none, range) = (&[][..], &["10.0.0.0/8"][..]);
    let (one, two) = (&["10.1.0.1:80"][..], &["10.1.0.1:80", "10.1.0.2:80"][..]);
    let other = &["10.1.0.3:80"][..];
    let mut two_ports = with(1, one, none);
    two_ports.frontends.push(PortFrontend { port: 81, ..two_ports.frontends[0] });
    struct Row(&'static str, fn(&mut Capacity), Family, PortState, Option<PortState>, PortState);
    // What there is least of, what is there, what it becomes, what waits.
    let cases = [
        Row(
            "frontends",
            |c| c.frontends = 2,
            Family::V4,
            two_ports,
            Some(with(1, one, none)),
            with(2, one, none),
        ),
        Row("frontends", |c| c.frontends = 1, Family::V6, of_v6(80), None, of_v6(81)),
        Row("addresses", |c| c.addresses = 1, Family::V4, with(1, two, none), None, with(2, other, none)),
        Row(
            "ranges",
            |c| c.ranges = 1,
            Family::V4,
            with(1, one, range),
            Some(with(1, one, none)),
            with(2, one, range),
        ),
        Row(
            "nothing",
            |c| c.ranges = 1,
            Family::V4,
            with(1, one, range),
            Some(with(1, two, range)),
            with(2, one, range),
        ),
    ];
    for Row(what, limit, family, before, after, waiting) in cases {
        let (mut fake, _) = start();
        limit(&mut fake.capacity);
        [&before, &waiting].into_iter().chain(&after).for_each(|state| fake.allow(state));
        let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
        let [first, second] = ["one", "two"].map(|name| PortId { family, ..id(name) });
        let changes = vec![(first.clone(), Some(before)), (second.clone(), Some(waiting))];
        let report = syncer.apply(&mut fake, changes, at(0));
        assert_eq!(report.refused.len(), 1, "{what} {family:?}");
        assert_eq!(report.refused[0].id, second, "{what} {family:?}");
        let report = syncer.apply(&mut fake, vec![(first, after)], at(1));
        assert!(report.is_clean(), "{what} {family:?}: {:?}", report.refused);
        assert_eq!(syncer.refused().len(), usize::from(what == "nothing"), "{what} {family:?}");
    }
}

#[test]
fn a_change_that_does_not_fit_leaves_what_is_installed() {
    let (mut fake, _) = start();
    fake.capacity.endpoints = 3;
    fake.capacity.slots = CHUNK;
    let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
    let small = cluster_ip(1, &["10.1.0.1:80", "10.1.0.2:80"]);
    fake.allow(&small);
    syncer.apply(&mut fake, vec![(id("a"), Some(small.clone()))], at(0));
    let many = cluster_ip(1, &["10.1.0.1:80", "10.1.0.2:80", "10.1.0.3:80", "10.1.0.4:80"]);
    let report = syncer.apply(&mut fake, vec![(id("a"), Some(many))], at(0));
    assert_eq!(report.refused[0].why, Lack::Endpoints(3));
    assert_eq!(syncer.installed(&fake).unwrap()[0].external, *small.external);
    fake.capacity.endpoints = 1000;
    let mut syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
    let texts: Vec<String> = (0..=CHUNK).map(|n| format!("10.2.{}.{}:80", n >> 8, n & 255)).collect();
    let huge = cluster_ip(1, &texts.iter().map(String::as_str).collect::<Vec<_>>());
    fake.capacity.endpoints = 100_000;
    let report = syncer.apply(&mut fake, vec![(id("a"), Some(huge))], at(0));
    assert!(matches!(report.refused[0].why, Lack::Endpoints(1000)), "capacity as adopted");
}
