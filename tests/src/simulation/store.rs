//! The maps as the agent sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::{CHUNK, Frontend, Service, service_flags};
use proxy_userspace::model::Family;
use proxy_userspace::sync::{Capacity, Dialled, EndpointId, Slot, Step, Store};

/// Contents, and the writes that were asked for, one by one: packets come in between.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shadow {
    pub frontends: BTreeMap<Dialled, (u32, u32)>,
    services: BTreeMap<u32, Service>,
    slots: [Vec<Slot>; 2],
    pub endpoints: BTreeMap<u32, u16>,
    ranges: BTreeSet<(u32, IpNet)>,
    pub addresses: BTreeMap<IpAddr, u32>,
    pub asked: Vec<Step>,
}

const EMPTY: Slot = Slot {
    address: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    endpoint: EndpointId { id: 0, generation: 0 },
};

impl Shadow {
    fn of(&mut self, family: Family) -> &mut Vec<Slot> {
        &mut self.slots[usize::from(family == Family::V6)]
    }

    pub fn in_use(&self) -> impl Iterator<Item = (u32, Service)> {
        let used = |(_, service): &(&u32, &Service)| service.flags & service_flags::IN_USE != 0;
        self.services.iter().filter(used).map(|(index, service)| (*index, *service))
    }

    /// Whether nothing leads anywhere. Slots stay where they are.
    pub fn is_empty(&self) -> bool {
        self.frontends.is_empty()
            && self.in_use().next().is_none()
            && self.endpoints.is_empty()
            && self.ranges.is_empty()
            && self.addresses.is_empty()
    }

    /// Does a step.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Chunks(family, numbers) => {
                for number in numbers {
                    let end = ((number + 1) * CHUNK) as usize;
                    self.of(*family).resize(end, EMPTY);
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
                    self.of(*family)[at as usize] = slot;
                }
            }
            Step::Services(list) => {
                for &(index, word) in list {
                    assert!(index < self.capacity().services, "the array has no element {index}");
                    let service = self.services.entry(index).or_insert(Service::FREE);
                    word.put(service);
                    self.services.retain(|_, service| *service != Service::FREE);
                }
            }
            Step::Frontends(list) => {
                self.frontends.extend(list.iter().map(|(key, value)| (*key, (value.service, value.kind))));
            }
            Step::RemoveFrontends(list) => list.iter().for_each(|key| _ = self.frontends.remove(key)),
            Step::Ranges(list) => self.ranges.extend(list.iter().copied()),
            Step::RemoveRanges(list) => list.iter().for_each(|range| _ = self.ranges.remove(range)),
            Step::Addresses(list) => self.addresses.extend(list.iter().copied()),
            Step::RemoveAddresses(list) => list.iter().for_each(|ip| _ = self.addresses.remove(ip)),
        }
    }
}

impl Store for Shadow {
    type Error = Infallible;

    fn capacity(&self) -> Capacity {
        Capacity {
            services: 64,
            services_there: 64,
            endpoints: 256,
            endpoints_there: 256,
            frontends: 64,
            addresses: 64,
            slots: CHUNK,
            ranges: 64,
        }
    }

    fn frontends(&self) -> Result<Vec<(Dialled, Frontend)>, Infallible> {
        let entry = |(key, (service, kind)): (&Dialled, &(u32, u32))| {
            (*key, Frontend { service: *service, kind: *kind })
        };
        Ok(self.frontends.iter().map(entry).collect())
    }

    fn services(&self) -> Result<Vec<(u32, Service)>, Infallible> {
        Ok(self.in_use().collect())
    }

    fn slots(&self, family: Family) -> Result<Vec<Slot>, Infallible> {
        Ok(self.slots[usize::from(family == Family::V6)].clone())
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, Infallible> {
        Ok(self.endpoints.iter().map(|(&id, &generation)| EndpointId { id, generation }).collect())
    }

    fn ranges(&self) -> Result<Vec<(u32, IpNet)>, Infallible> {
        Ok(self.ranges.iter().copied().collect())
    }

    fn addresses(&self) -> Result<Vec<(IpAddr, u32)>, Infallible> {
        Ok(self.addresses.iter().map(|(ip, bits)| (*ip, *bits)).collect())
    }

    fn write(&mut self, step: &Step) -> Result<(), Infallible> {
        self.apply(step);
        self.asked.extend(singles(step));
        Ok(())
    }
}

/// The step's writes, each alone. Those of one kind come in an order that does not depend on hashes, or a history could not be
/// repeated.
fn singles(step: &Step) -> Vec<Step> {
    fn each<T: Clone, K: Ord>(list: &[T], key: impl Fn(&T) -> K, one: impl Fn(Vec<T>) -> Step) -> Vec<Step> {
        let mut list = list.to_vec();
        list.sort_by_key(key);
        list.into_iter().map(|item| one(vec![item])).collect()
    }
    match step {
        Step::Chunks(family, list) => each(list, |n| *n, |one| Step::Chunks(*family, one)),
        Step::Affinity(family) => vec![Step::Affinity(*family)],
        Step::Endpoints(list) => each(list, |endpoint| endpoint.id, Step::Endpoints),
        Step::Slots(family, list) => each(list, |(at, _)| *at, |one| Step::Slots(*family, one)),
        // Their order is the agent's choice.
        Step::Services(list) => list.iter().map(|one| Step::Services(vec![*one])).collect(),
        Step::Frontends(list) => each(list, |(key, _)| *key, Step::Frontends),
        Step::RemoveFrontends(list) => each(list, |key| *key, Step::RemoveFrontends),
        Step::Ranges(list) => each(list, |range| *range, Step::Ranges),
        Step::RemoveRanges(list) => each(list, |range| *range, Step::RemoveRanges),
        Step::Addresses(list) => each(list, |(ip, _)| *ip, Step::Addresses),
        Step::RemoveAddresses(list) => each(list, |ip| *ip, Step::RemoveAddresses),
    }
}
