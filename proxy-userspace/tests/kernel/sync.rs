//! The syncer on real maps: filling, changing, adopting.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::{Scratch, edge, in_namespace};
use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use proxy_common::abi::{Addr, FrontendKind, LAYOUT, service_flags};
use proxy_userspace::datapath::{Datapath, Named, Options, cleanup};
use proxy_userspace::model::{Family, PortFrontend, PortId, PortState, Protocol};
use proxy_userspace::sync::{InstalledPort, Settings, Syncer};

fn id(number: u32, family: Family) -> PortId {
    PortId {
        namespace: "default".into(),
        service: format!("service-{number}").into(),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family,
    }
}

fn ip(family: Family, net: u8, number: u32) -> IpAddr {
    let [_, a, b, c] = number.to_be_bytes();
    match family {
        Family::V4 => IpAddr::from([net, a, b, c]),
        Family::V6 => IpAddr::from([0xfd00, net.into(), 0, 0, 0, 0, a.into(), u16::from_be_bytes([b, c])]),
    }
}

/// A ClusterIP and a NodePort with `count` endpoints.
fn state(number: u32, family: Family, count: u32) -> PortState {
    let frontend = |kind, address, port| PortFrontend { kind, address, port };
    let any = if family == Family::V4 { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    let endpoint = |host| SocketAddr::new(ip(family, 11, number * 16 + host), 8080);
    let endpoints: Arc<[_]> = (0..count).map(endpoint).collect();
    PortState {
        frontends: vec![
            frontend(FrontendKind::ClusterIp, ip(family, 10, number), 80),
            frontend(FrontendKind::NodePort, any, 20_000 + u16::try_from(number).unwrap_or_default()),
        ],
        external: endpoints.clone(),
        internal: endpoints,
        cluster: Arc::default(),
        kept: Vec::new(),
        ranges: Vec::new(),
        flags: service_flags::MASQUERADE_EXTERNAL,
        affinity_timeout: 0,
    }
}

pub fn desired(services: u32, count: u32) -> Vec<(PortId, PortState)> {
    let family = |number: u32| if number.is_multiple_of(8) { Family::V6 } else { Family::V4 };
    (0..services).map(|n| (id(n, family(n)), state(n, family(n), count))).collect()
}

pub fn expect(installed: &[InstalledPort], desired: &[(PortId, PortState)]) {
    assert_eq!(installed.len(), desired.len());
    let mut desired = desired.to_vec();
    desired.sort_by(|a, b| a.0.cmp(&b.0));
    for (is, (id, want)) in installed.iter().zip(&desired) {
        assert_eq!(is.id.as_ref(), Some(id));
        assert_eq!([&is.external[..], &is.internal, &is.cluster], want.lists(), "{id}");
        let frontends: Vec<_> = is.frontends.iter().map(|f| (f.kind.unwrap(), f.address, f.port)).collect();
        let wanted: Vec<_> = want.frontends.iter().map(|f| (f.kind, f.address, f.port)).collect();
        assert_eq!(frontends, wanted, "{id}");
        assert_eq!(is.flags, ["masquerade-external"]);
    }
}

/// 10,000 Services with 10 endpoints (C-33): filled, changed by one endpoint, found again by another agent.
#[test]
fn ten_thousand_services_with_ten_endpoints() {
    in_namespace(|| {
        let options = Options::default();
        let want = desired(10_000, 10);
        let mut datapath = Datapath::load(&options).unwrap();
        datapath.attach_edge(&edge("edge0")).unwrap();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        let started = Instant::now();
        let report = syncer.replace_all(&mut datapath, want.clone(), Duration::ZERO);
        eprintln!("filled in {:?}", started.elapsed());
        assert!(report.is_clean(), "{:?}", report.failed);
        expect(&syncer.installed(&datapath).unwrap(), &want);

        let (changed, _) = &want[5000];
        let now = Duration::from_secs(1);
        let started = Instant::now();
        let fewer = state(5000, changed.family, 9);
        assert!(syncer.apply(&mut datapath, vec![(changed.clone(), Some(fewer))], now).is_clean());
        eprintln!("one endpoint changed in {:?}", started.elapsed());
        drop((syncer, datapath));

        let mut datapath = Datapath::load(&options).unwrap();
        assert!(datapath.adopted());
        let started = Instant::now();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        eprintln!("adopted in {:?}", started.elapsed());
        let started = Instant::now();
        let report = syncer.replace_all(&mut datapath, want.clone(), now);
        eprintln!("compared in {:?}", started.elapsed());
        assert!(report.is_clean());
        assert!(report.steps <= 4, "only the one port differs: {} steps", report.steps);
        expect(&syncer.installed(&datapath).unwrap(), &want);
        cleanup(&options, Named::ALL).unwrap();
    });
}

/// Frontends and addresses have room for few at first. What an agent has left that was killed while it made more, or that knew no other
/// than the hashes themselves, is found again.
#[test]
fn tables_grow_with_what_they_hold() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..Options::default() };
        let mut datapath = Datapath::load(&options).unwrap();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        let want = desired(12_000, 1);
        for (part, second) in want.chunks(1_500).zip(0..) {
            let part = part.iter().cloned().map(|(id, state)| (id, Some(state))).collect();
            let report = syncer.apply(&mut datapath, part, Duration::from_secs(second));
            assert!(report.is_clean(), "{:?}", report.failed);
            expect(&syncer.installed(&datapath).unwrap(), &want[..syncer.len()]);
        }
        drop((syncer, datapath));
        let dir = bpffs.path().join("sluice").join(LAYOUT.to_string());
        let hashes = ["FRONTENDS_V4", "FRONTENDS_V6", "ADDRESSES_V4", "ADDRESSES_V6"];
        let pinned = |name: &str| MapData::from_pin(dir.join(name)).unwrap().info().unwrap();
        let before = hashes.map(|name| pinned(name).id());
        assert!(
            pinned("FRONTENDS_V4").max_entries() >= 21_000 && pinned("FRONTENDS_V6").max_entries() < 21_000
        );
        let unnamed = |name: &str| {
            let path = dir.join(name);
            std::fs::rename(&path, dir.join(format!("{name}-grown"))).unwrap();
            let info = MapInfo::from_id(before[0]).unwrap();
            let (key, value) = (info.key_size(), info.value_size());
            assert_eq!((key, value), (8, 8));
            HashMap::<MapData, [u8; 8], [u8; 8]>::create(64, 1).unwrap().pin(&path).unwrap();
        };
        let placeless = |name: &str| {
            let (table, family) = name.split_once('_').map_or((name, ""), |(table, family)| (table, family));
            let place = format!("{table}_OF{}{family}", if family.is_empty() { "" } else { "_" });
            std::fs::remove_file(dir.join(place)).unwrap();
            match name {
                "SERVICES" => whole::<[u8; 32]>(&dir, name),
                "ENDPOINTS" => whole::<u64>(&dir, name),
                _ => {}
            }
        };
        type Leave<'a> = &'a dyn Fn(&str);
        let cases: [(&str, Leave, &[&str]); 2] = [
            ("killed before the larger one had its name", &unnamed, &hashes[..1]),
            (
                "of a version without places",
                &placeless,
                &["FRONTENDS_V4", "FRONTENDS_V6", "ADDRESSES_V4", "ADDRESSES_V6", "SERVICES", "ENDPOINTS"],
            ),
        ];
        for (name, leave, which) in cases {
            which.iter().for_each(|hash| leave(hash));
            let mut datapath = Datapath::load(&options).unwrap();
            let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
            let report = syncer.replace_all(&mut datapath, want.clone(), Duration::ZERO);
            assert!(report.is_clean() && report.steps == 0, "{name}: {} steps", report.steps);
            expect(&syncer.installed(&datapath).unwrap(), &want);
            assert_eq!(hashes.map(|name| pinned(name).id()), before, "{name}");
            assert!(hashes.iter().all(|hash| !dir.join(format!("{hash}-grown")).exists()), "{name}");
        }
        cleanup(&options, Named::ALL).unwrap();
    });
}

/// Puts one array in place of the chunks that are pinned.
fn whole<V: aya::Pod>(dir: &Path, name: &str) {
    const MMAPABLE: u32 = 1 << 10;
    let pins = (0..).map(|number| dir.join(format!("{name}-{number}"))).take_while(|pin| pin.exists());
    let mut values = Vec::new();
    for pin in pins {
        let chunk = Array::<_, V>::try_from(Map::Array(MapData::from_pin(&pin).unwrap())).unwrap();
        values.extend(chunk.iter().map(Result::unwrap));
        std::fs::remove_file(pin).unwrap();
    }
    let mut array = Array::<MapData, V>::create(values.len() as u32 + 8, MMAPABLE).unwrap();
    for (at, value) in (0..).zip(values) {
        array.set(at, value, 0).unwrap();
    }
    array.pin(dir.join(name)).unwrap();
}

/// Endpoints have no element of a map: programs know them by their bits, also where what held these was lost (P-60, L-23).
#[test]
fn endpoints_are_known_by_their_bits_from_the_start() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..crate::common::options() };
        let mut datapath = Datapath::load(&options).unwrap();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        let want = desired(16, 3);
        assert!(syncer.replace_all(&mut datapath, want.clone(), Duration::ZERO).is_clean());
        drop((syncer, datapath));
        let dir = bpffs.path().join("sluice").join(LAYOUT.to_string());
        let pins = ["SIEVE", "ENDPOINT_SIEVE"].map(|name| dir.join(name));
        let seen = || {
            let sieves = pins.each_ref().map(|pin| {
                let map = Map::Array(MapData::from_pin(pin).unwrap());
                Array::<_, u64>::try_from(map).unwrap()
            });
            let is_known = |endpoint: &SocketAddr| {
                let places = match endpoint.ip() {
                    IpAddr::V4(ip) => places(Addr::v4(ip.octets())),
                    IpAddr::V6(ip) => places(Addr::v6(ip.octets())),
                };
                sieves.iter().zip(places).all(|(sieve, (word, bit))| sieve.get(&word, 0).unwrap() & bit != 0)
            };
            want.iter().flat_map(|(_, state)| state.external.iter()).all(is_known)
        };
        assert!(seen(), "as they are installed");
        pins.iter().for_each(|pin| std::fs::remove_file(pin).unwrap());
        drop(Datapath::load(&options).unwrap());
        assert!(seen(), "where they were installed before");
        cleanup(&options, Named::ALL).unwrap();
    });
}

fn places<const N: usize>(address: Addr<N>) -> [(u32, u64); 2] {
    [address.sieve(), address.endpoint_sieve()]
}

/// What the first list does not name goes, whoever left it; what it names keeps its index (L-01).
#[test]
fn the_first_complete_list_removes_what_it_does_not_name() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..crate::common::options() };
        let old = desired(20, 3);
        let mut datapath = Datapath::load(&options).unwrap();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        assert!(syncer.replace_all(&mut datapath, old.clone(), Duration::ZERO).is_clean());
        drop((syncer, datapath));

        let mut datapath = Datapath::load(&options).unwrap();
        let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        let found = syncer.installed(&datapath).unwrap();
        assert_eq!((found.len(), found[0].id.clone()), (20, None), "nothing is removed before the list");
        let new: Vec<_> = old[10..].iter().cloned().chain(desired(40, 2).split_off(30)).collect();
        assert!(syncer.replace_all(&mut datapath, new.clone(), Duration::ZERO).is_clean());
        expect(&syncer.installed(&datapath).unwrap(), &new);
        cleanup(&options, Named::ALL).unwrap();
    });
}
