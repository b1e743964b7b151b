//! Maps in memory: fail on demand, and are checked after every write.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use proxy_common::abi::{CHUNK, Frontend, FrontendKind, Run, Service, service_flags};

use crate::model::{Family, PortFrontend, PortId, PortState, Protocol};
use crate::sync::{Capacity, Dialled, EndpointId, Settings, Slot, Step, Store, Syncer};

#[derive(Clone, Debug)]
pub struct Fake {
    pub capacity: Capacity,
    pub frontends: BTreeMap<Dialled, Frontend>,
    pub services: BTreeMap<u32, Service>,
    pub slots: [Vec<Slot>; 2],
    pub endpoints: BTreeMap<u32, u16>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub ranges: BTreeSet<(u32, IpNet)>,
    /// Steps until one fails.
    pub fail_in: Option<usize>,
    pub steps: Vec<Step>,
    /// Endpoint lists that a frontend may lead to: anything else is half a list.
    pub allowed: BTreeSet<Vec<SocketAddr>>,
}

pub const EMPTY_SLOT: Slot = Slot {
    address: SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0),
    endpoint: EndpointId { id: 0, generation: 0 },
};

impl Fake {
    pub fn new() -> Self {
        Self {
            capacity: Capacity {
                services: 100,
                services_there: 100,
                endpoints: 1000,
                endpoints_there: 1000,
                frontends: 100,
                addresses: 1000,
                slots: 4 * CHUNK,
                ranges: 50,
            },
            frontends: BTreeMap::new(),
            services: BTreeMap::new(),
            slots: [Vec::new(), Vec::new()],
            endpoints: BTreeMap::new(),
            addresses: BTreeMap::new(),
            ranges: BTreeSet::new(),
            fail_in: None,
            steps: Vec::new(),
            allowed: BTreeSet::new(),
        }
    }

    pub fn allow(&mut self, state: &PortState) {
        self.allowed.extend(state.lists().map(<[_]>::to_vec));
    }

    /// What a packet would find (L-01): every frontend leads to a service in use, every list is a whole one, every
    /// endpoint in it is alive.
    fn check(&self, step: &Step) {
        for (dialled, frontend) in &self.frontends {
            let service = self.services.get(&frontend.service).copied().unwrap_or(Service::FREE);
            assert!(service.flags & service_flags::IN_USE != 0, "{dialled:?} leads nowhere after {step:?}");
            let asks = service.flags & service_flags::SOURCE_RANGES != 0;
            let has = self.ranges.iter().any(|(index, _)| *index == frontend.service);
            assert!(has || !asks, "{dialled:?} is closed to all after {step:?}");
            for run in [service.external, service.internal, service.cluster] {
                let slots = &self.slots[index(Family::of(&dialled.address))];
                let from = run.offset() as usize;
                let slots = &slots[from..from + run.count() as usize];
                let list: Vec<SocketAddr> = slots.iter().map(|slot| slot.address).collect();
                assert!(self.allowed.contains(&list), "{dialled:?} has half a list after {step:?}: {list:?}");
                for slot in slots {
                    let generation = self.endpoints.get(&slot.endpoint.id).copied();
                    assert_eq!(generation, Some(slot.endpoint.generation), "{slot:?} after {step:?}");
                }
            }
        }
        for map in [self.frontends.len(), self.services.len()] {
            assert!(map <= 100, "more entries than fit after {step:?}");
        }
    }
}

fn index(family: Family) -> usize {
    usize::from(family == Family::V6)
}

#[derive(Debug, thiserror::Error)]
#[error("the write that was to fail")]
pub struct Refusal;

impl Store for Fake {
    type Error = Refusal;

    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn frontends(&self) -> Result<Vec<(Dialled, Frontend)>, Refusal> {
        Ok(self.frontends.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn services(&self) -> Result<Vec<(u32, Service)>, Self::Error> {
        let used = |(_, service): &(&u32, &Service)| service.flags & service_flags::IN_USE != 0;
        Ok(self.services.iter().filter(used).map(|(index, service)| (*index, *service)).collect())
    }

    fn slots(&self, family: Family) -> Result<Vec<Slot>, Refusal> {
        Ok(self.slots[index(family)].clone())
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, Refusal> {
        Ok(self.endpoints.iter().map(|(&id, &generation)| EndpointId { id, generation }).collect())
    }

    fn ranges(&self) -> Result<Vec<(u32, IpNet)>, Refusal> {
        Ok(self.ranges.iter().copied().collect())
    }

    fn addresses(&self) -> Result<Vec<(IpAddr, u32)>, Refusal> {
        Ok(self.addresses.iter().map(|(ip, bits)| (*ip, *bits)).collect())
    }

    fn write(&mut self, step: &Step) -> Result<(), Refusal> {
        if let Some(left) = &mut self.fail_in {
            if *left == 0 {
                self.fail_in = None;
                return Err(Refusal);
            }
            *left -= 1;
        }
        match step {
            Step::Chunks(family, numbers) => {
                for number in numbers {
                    let slots = &mut self.slots[index(*family)];
                    assert_eq!(slots.len(), (number * CHUNK) as usize, "chunks come in order");
                    slots.resize(slots.len() + CHUNK as usize, EMPTY_SLOT);
                }
            }
            Step::Affinity(_) => {}
            Step::Endpoints(list) => {
                for &EndpointId { id, generation } in list {
                    match generation {
                        0 => self.endpoints.remove(&id),
                        generation => self.endpoints.insert(id, generation),
                    };
                }
            }
            Step::Slots(family, list) => {
                for &(at, slot) in list {
                    self.slots[index(*family)][at as usize] = slot;
                }
            }
            Step::Services(list) => {
                for &(index, word) in list {
                    let service = self.services.entry(index).or_insert(Service::FREE);
                    word.put(service);
                    self.services.retain(|_, service| *service != Service::FREE);
                    self.check(step);
                }
            }
            Step::Ranges(list) => list.iter().for_each(|range| {
                assert!(self.ranges.insert(*range), "{range:?} was there");
            }),
            Step::RemoveRanges(list) => list.iter().for_each(|range| {
                assert!(self.ranges.remove(range), "{range:?} was not there");
            }),
            Step::Frontends(list) => self.frontends.extend(list.iter().copied()),
            Step::RemoveFrontends(list) => list.iter().for_each(|dialled| {
                assert!(self.frontends.remove(dialled).is_some(), "{dialled:?} was not there");
            }),
            Step::Addresses(list) => self.addresses.extend(list.iter().copied()),
            Step::RemoveAddresses(list) => list.iter().for_each(|ip| {
                assert!(self.addresses.remove(ip).is_some(), "{ip} was not there");
            }),
        }
        self.check(step);
        self.steps.push(step.clone());
        Ok(())
    }
}

pub fn id(name: &str) -> PortId {
    PortId {
        namespace: "default".into(),
        service: name.into(),
        port: "".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

/// A ClusterIP `10.0.0.<number>:80` with these endpoints in both lists.
pub fn cluster_ip(number: u8, endpoints: &[&str]) -> PortState {
    let mut endpoints: Vec<SocketAddr> = endpoints.iter().map(|text| text.parse().unwrap()).collect();
    endpoints.sort();
    let endpoints: Arc<[SocketAddr]> = endpoints.into();
    PortState {
        frontends: vec![PortFrontend {
            kind: FrontendKind::ClusterIp,
            address: IpAddr::from([10, 0, 0, number]),
            port: 80,
        }],
        external: endpoints.clone(),
        internal: endpoints,
        cluster: Arc::default(),
        kept: Vec::new(),
        ranges: Vec::new(),
        flags: service_flags::MASQUERADE_EXTERNAL,
        affinity_timeout: 0,
    }
}

/// Runs of one service.
pub fn runs(fake: &Fake, dialled: &Dialled) -> [Run; 2] {
    let service = fake.services[&fake.frontends[dialled].service];
    [service.external, service.internal]
}

pub fn dialled(address: &str, port: u16) -> Dialled {
    Dialled { address: address.parse().unwrap(), port, protocol: Protocol::Tcp }
}

/// A time of the syncer's.
pub fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Empty maps, and a syncer that has found them so.
pub fn start() -> (Fake, Syncer) {
    let mut fake = Fake::new();
    fake.allowed.insert(Vec::new());
    let syncer = Syncer::adopt(&fake, Settings::default()).unwrap();
    (fake, syncer)
}
