//! What a new agent finds in the maps: another's work, half done, or damaged (L-01, L-05).
//!
//! Input: entries, each a byte that says of which map, and its fields. Their values are few, so that entries meet.

use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use ipnet::IpNet;
use proxy_common::abi::{CHUNK, Frontend, FrontendKind, Run, service_flags};
use proxy_userspace::model::{Family, PortFrontend, PortId, PortState, Protocol};
use proxy_userspace::sync::{Dialled, EndpointId, NodeAddresses, Settings, Slot, Step, Store, Syncer, Word};

use super::settled::REST;
use crate::simulation::Shadow;

/// Whatever is found, the agent reads it without a panic, and brings the maps to what a new node's would be; and back to
/// nothing.
pub fn run(data: &[u8]) {
    let mut found = Shadow::default();
    // An input that ends early has said all that it has to say.
    let _ = fill(&mut found, &mut Unstructured::new(data));
    let mut fresh = Shadow::default();
    let (mut heir, mut first) = (adopt(&found), adopt(&fresh));
    let Ok(_) = heir.installed(&found);
    let own = HashSet::from([address(Family::V4, 2, 7)]);
    for syncer_and_maps in [(&mut heir, &mut found), (&mut first, &mut fresh)] {
        let (syncer, maps) = syncer_and_maps;
        // As an agent does: its addresses first.
        syncer.set_node(
            maps,
            NodeAddresses { local: own.clone(), node_port: own.clone(), ..NodeAddresses::default() },
            Duration::ZERO,
        );
        let report = syncer.replace_all(maps, desired(), Duration::ZERO);
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        syncer.tick(maps, REST);
        assert!(syncer.refused().is_empty(), "{:?}", syncer.refused());
    }
    let Ok(is) = heir.installed(&found);
    let Ok(want) = first.installed(&fresh);
    assert_eq!(is, want);
    assert_eq!(found.addresses, fresh.addresses);
    assert_eq!(found.endpoints.len(), fresh.endpoints.len(), "{:?}", found.endpoints);
    let ranges = |maps: &Shadow| {
        maps.ranges().map(|list| list.into_iter().map(|(_, range)| range).collect::<BTreeSet<_>>())
    };
    assert_eq!(ranges(&found), ranges(&fresh));
    heir.set_node(&mut found, NodeAddresses::default(), 2 * REST);
    heir.replace_all(&mut found, Vec::new(), 2 * REST);
    heir.tick(&mut found, 3 * REST);
    assert!(found.is_empty(), "left behind: {found:?}");
}

fn adopt(maps: &Shadow) -> Syncer {
    let Ok(syncer) = Syncer::adopt(maps, Settings::default());
    syncer
}

fn address(family: Family, subnet: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => [10, subnet, 0, host].into(),
        Family::V6 => [0xfd00, u16::from(subnet), 0, 0, 0, 0, 0, u16::from(host)].into(),
    }
}

/// Two ports of each family whose entries the input may contain too.
fn desired() -> Vec<(PortId, PortState)> {
    let of = |family: Family, number: u8| {
        let id = PortId {
            namespace: "shop".into(),
            service: format!("web{number}").into(),
            port: "".into(),
            protocol: Protocol::Tcp,
            family,
        };
        let endpoints: Vec<_> = (1..4).map(|host| SocketAddr::new(address(family, 1, host), 8080)).collect();
        let frontends = vec![PortFrontend {
            kind: FrontendKind::ClusterIp,
            address: address(family, 2, number),
            port: 80,
        }];
        let flags = service_flags::SOURCE_RANGES;
        let ranges = vec![IpNet::from(address(family, 3, number))];
        let (external, internal) = (endpoints[..].into(), endpoints[..2].into());
        (id, PortState { frontends, external, internal, flags, ranges, ..PortState::default() })
    };
    [Family::V4, Family::V6].into_iter().flat_map(|family| [of(family, 1), of(family, 2)]).collect()
}

fn fill(maps: &mut Shadow, input: &mut Unstructured<'_>) -> Result<()> {
    let room = maps.capacity();
    let mut has_slots = [false; 2];
    let index =
        |input: &mut Unstructured<'_>| Ok::<u32, arbitrary::Error>(u32::from(input.arbitrary::<u8>()?));
    while !input.is_empty() {
        let kind = input.arbitrary::<u8>()?;
        let family = if kind & 0x80 == 0 { Family::V4 } else { Family::V6 };
        let host = |input: &mut Unstructured<'_>, subnet| {
            Ok::<IpAddr, arbitrary::Error>(address(family, subnet, input.int_in_range(0..=7)?))
        };
        let run = |input: &mut Unstructured<'_>| {
            // Mostly where slots are, sometimes anywhere.
            let (offset, count) = (index(input)?, index(input)? % 8);
            Ok::<Run, arbitrary::Error>(if offset == 255 {
                Run(input.arbitrary()?)
            } else {
                Run::new(offset, count)
            })
        };
        let step = match kind & 0x7f {
            0 => {
                has_slots[usize::from(family == Family::V6)] = true;
                Step::Chunks(family, vec![0])
            }
            1 => {
                let (id, generation) = (index(input)? % room.endpoints, input.arbitrary()?);
                Step::Endpoints(vec![EndpointId { id, generation }])
            }
            2 if has_slots[usize::from(family == Family::V6)] => {
                let address = SocketAddr::new(host(input, 1)?, if input.arbitrary()? { 8080 } else { 53 });
                let endpoint = EndpointId { id: index(input)?, generation: input.arbitrary()? };
                Step::Slots(family, vec![(index(input)? % CHUNK, Slot { address, endpoint })])
            }
            3 => {
                let (index, list) = (index(input)? % room.services, run(input)?);
                let word = match input.int_in_range(0..=2)? {
                    0 => Word::External(list),
                    1 => Word::Internal(list),
                    _ => Word::Cluster(list),
                };
                Step::Services(vec![(index, word)])
            }
            4 => {
                let index = index(input)? % room.services;
                let (flags, affinity_timeout) = (input.arbitrary()?, input.arbitrary()?);
                Step::Services(vec![(index, Word::Settings { flags, affinity_timeout })])
            }
            5 => {
                let protocol = input.choose(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp])?;
                let dialled = Dialled { address: host(input, 2)?, port: 80, protocol: *protocol };
                let service =
                    if input.ratio(1, 16)? { input.arbitrary()? } else { index(input)? % room.services };
                Step::Frontends(vec![(dialled, Frontend { service, kind: index(input)? })])
            }
            6 => {
                let length = if family == Family::V4 { 32 } else { 128 };
                let network = IpNet::new(host(input, 3)?, input.int_in_range(0..=length)?);
                let Ok(network) = network else { continue };
                Step::Ranges(vec![(index(input)? % room.services, network.trunc())])
            }
            7 => Step::Addresses(vec![(host(input, 1)?, input.arbitrary()?)]),
            8 => Step::Addresses(vec![(host(input, 2)?, input.arbitrary()?)]),
            _ => continue,
        };
        maps.apply(&step);
    }
    Ok(())
}

/// Something of everything; the same with two endpoints that share an id; and a frontend that leads nowhere.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![whole(2), whole(1), LEADS_NOWHERE.to_vec()]
}

/// A service of each family with two endpoints, of which the second says that it has this id.
fn whole(second: u8) -> Vec<u8> {
    let mut whole = Vec::new();
    for family in [0, 0x80] {
        for entry in [
            &[0][..],
            &[1, 1, 1, 0],
            &[1, 2, 1, 0],
            &[2, 1, 1, 1, 1, 0, 0],
            &[2, 2, 1, second, 1, 0, 1],
            &[4, 0, 33, 0, 0, 0, 0, 0, 0, 0],
            &[3, 0, 0, 2, 0],
            &[3, 0, 0, 1, 1],
            &[5, 0, 1, 9, 0, 0],
            &[6, 1, 32, 0],
            &[7, 1, 1, 0, 0, 0],
            &[8, 1, 2, 0, 0, 0],
        ] {
            whole.push(entry[0] | family);
            whole.extend(&entry[1..]);
        }
    }
    whole
}

/// A frontend leads to a service that is not in use and has lists: found by libFuzzer.
const LEADS_NOWHERE: [u8; 130] = [
    0, 1, 1, 1, 0, 1, 2, 1, 0, 2, 1, 1, 1, 1, 0, 0, 66, 2, 1, 2, 1, 0, 1, 4, 0, 33, 0, 0, 0, 0, 0, 0, 0, 3,
    0, 0, 2, 0, 3, 0, 0, 1, 65, 5, 0, 130, 9, 0, 0, 6, 1, 32, 0, 7, 1, 0, 130, 1, 1, 1, 171, 170, 170, 170,
    170, 170, 170, 10, 0, 1, 132, 0, 40, 0, 0, 0, 0, 0, 0, 0, 131, 0, 0, 2, 0, 131, 0, 0, 1, 1, 133, 0, 1, 9,
    0, 0, 134, 1, 32, 0, 135, 1, 0, 131, 0, 0, 1, 1, 133, 0, 1, 9, 0, 134, 0, 1, 32, 0, 43, 1, 1, 0, 0, 0,
    136, 1, 252, 255, 0, 0,
];
