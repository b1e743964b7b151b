//! What each address is: reference counts from frontends, endpoints and the node.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::abi::{AddressClass, FrontendKind};

use super::by_address::ByAddress;
use super::{Dialled, NodeAddresses};
use crate::model::{Family, Protocol};

/// What is known of an address that is in the map, or is to be.
#[derive(Clone, Copy, Debug, Default)]
struct Uses {
    /// `LOCAL` and `NODE_PORT`.
    node: u8,
    /// What the map holds; `None`: it has no such entry.
    written: Option<u8>,
    /// Among the addresses that have changed.
    dirty: bool,
}

/// The frontends at an address.
#[derive(Clone, Copy, Debug, Default)]
struct Frontends {
    all: u32,
    /// How many of these are ClusterIPs.
    cluster: u32,
    /// And how many are of SCTP.
    sctp: u32,
}

impl Frontends {
    /// A Service's, and nobody's ClusterIP.
    const fn are_external(self) -> bool {
        self.all > 0 && self.cluster == 0
    }

    /// Another one, or one less.
    fn count(&mut self, dialled: &Dialled, kind: u32, step: impl Fn(u32) -> u32) {
        self.all = step(self.all);
        if kind == FrontendKind::ClusterIp as u32 {
            self.cluster = step(self.cluster);
        }
        if dialled.protocol == Protocol::Sctp {
            self.sctp = step(self.sctp);
        }
    }
}

const fn bits(uses: Uses, frontends: Frontends, shared: bool) -> u32 {
    let service = if frontends.all > 0 { AddressClass::SERVICE } else { 0 };
    let shared = if shared { AddressClass::SHARED } else { 0 };
    let sctp = if frontends.sctp > 0 { AddressClass::SCTP } else { 0 };
    service | shared | sctp | uses.node as u32
}

/// Bits that say what an address is to the node itself.
const NODE: u8 = (AddressClass::LOCAL | AddressClass::NODE_PORT) as u8;

/// Stands for bits that no class has, in damaged maps.
const OTHER: u8 = 1 << 7;

/// Class bits in a byte.
const fn byte(bits: u32) -> u8 {
    const { assert!(AddressClass::SHARED < OTHER as u32, "the last of them") };
    let [low, high @ ..] = bits.to_le_bytes();
    let other = low & OTHER != 0 || !matches!(high, [0, 0, 0]);
    low & !OTHER | if other { OTHER } else { 0 }
}

/// Classes of all addresses, and which of them differ from the map.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    uses: ByAddress<Uses>,
    /// Of addresses that have any.
    frontends: ByAddress<Frontends>,
    /// How many endpoints have an address. They have no class, so that the map does not grow with them
    /// ([`proxy_common::abi::Addr::endpoint_sieve`]).
    endpoints: ByAddress<u32>,
    /// Each once.
    dirty: Vec<IpAddr>,
    /// Frontends of SCTP.
    sctp: usize,
    /// The node's links.
    links: Vec<IpNet>,
}

/// Writes that bring the map up to date, in the places where they belong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClassWrites {
    /// Once the frontends are there: an address that is a Service's rejects what is not listed.
    pub gain: Vec<(IpAddr, u32)>,
    /// Before frontends are removed.
    pub lose: Vec<(IpAddr, u32)>,
    pub remove: Vec<IpAddr>,
}

impl Classes {
    /// From what the map holds. Nothing refers to the addresses yet.
    pub fn new(written: impl IntoIterator<Item = (IpAddr, u32)>) -> Self {
        let mut classes = Self::default();
        for (ip, written) in written {
            let written = byte(written);
            *classes.uses.of(ip) = Uses { written: Some(written), node: written & NODE, ..Uses::default() };
        }
        classes
    }

    fn change(&mut self, ip: IpAddr, edit: impl FnOnce(&mut Uses)) {
        let uses = self.uses.of(ip);
        edit(uses);
        if !std::mem::replace(&mut uses.dirty, true) {
            self.dirty.push(ip);
        }
    }

    /// `kind` is a [`FrontendKind`].
    pub fn add_frontend(&mut self, dialled: &Dialled, kind: u32) {
        if !dialled.address.is_unspecified() {
            self.sctp += usize::from(dialled.protocol == Protocol::Sctp);
            self.frontends.of(dialled.address).count(dialled, kind, |count| count + 1);
            self.change(dialled.address, |_| ());
        }
    }

    /// As it was added.
    pub fn remove_frontend(&mut self, dialled: &Dialled, kind: u32) {
        let Some(frontends) = self.frontends.get_mut(&dialled.address) else { return };
        frontends.count(dialled, kind, |count| count.saturating_sub(1));
        if frontends.all == 0 {
            self.frontends.remove(&dialled.address);
        }
        self.sctp = self.sctp.saturating_sub(usize::from(dialled.protocol == Protocol::Sctp));
        self.change(dialled.address, |_| ());
    }

    /// Whether any address is dialled over SCTP.
    pub const fn have_sctp(&self) -> bool {
        self.sctp > 0
    }

    pub fn add_endpoint(&mut self, ip: IpAddr) {
        *self.endpoints.of(ip) += 1;
        self.endpoints_changed(ip);
    }

    pub fn remove_endpoint(&mut self, ip: IpAddr) {
        let Some(count) = self.endpoints.get_mut(&ip) else { return };
        *count -= 1;
        if *count == 0 {
            self.endpoints.remove(&ip);
        }
        self.endpoints_changed(ip);
    }

    fn endpoints_changed(&mut self, ip: IpAddr) {
        if self.frontends.get(&ip).is_some() {
            self.change(ip, |_| ());
        }
    }

    /// Whether this may be some host's: it is on one of the node's links, or an endpoint's.
    fn may_be_a_hosts(&self, ip: &IpAddr) -> bool {
        self.endpoints.get(ip).is_some() || self.links.iter().any(|link| link.contains(ip))
    }

    /// Every address is looked at again: once the first complete list is there, what nothing refers to goes.
    pub fn review(&mut self) {
        let clean = self.uses.iter_mut().filter(|(_, uses)| !uses.dirty);
        self.dirty.extend(clean.map(|(ip, uses)| {
            uses.dirty = true;
            ip
        }));
    }

    /// What the node has. A loopback address is never local to a packet.
    pub fn set_node(&mut self, node: &NodeAddresses) {
        let NodeAddresses { local, node_port, links } = node;
        let known: Vec<IpAddr> =
            self.uses.iter().filter(|(_, uses)| uses.node != 0).map(|(ip, _)| ip).collect();
        for ip in known.into_iter().chain(local.iter().copied()).chain(node_port.iter().copied()) {
            let mut bits = 0;
            if local.contains(&ip) && !ip.is_loopback() {
                bits |= AddressClass::LOCAL;
            }
            if node_port.contains(&ip) {
                bits |= AddressClass::NODE_PORT;
            }
            self.change(ip, |uses| uses.node = byte(bits));
        }
        if self.links != *links {
            self.links.clone_from(links);
            let external = self.frontends.iter().filter(|(_, frontends)| frontends.are_external());
            let external: Vec<IpAddr> = external.map(|(ip, _)| ip).collect();
            external.into_iter().for_each(|ip| self.change(ip, |_| ()));
        }
    }

    /// Addresses of one family that the map holds or will hold.
    pub fn len(&self, family: Family) -> usize {
        self.uses.len(family)
    }

    pub fn contains(&self, ip: &IpAddr) -> bool {
        self.uses.get(ip).is_some()
    }

    /// What must be written; taken as written.
    pub fn flush(&mut self) -> ClassWrites {
        let mut writes = ClassWrites::default();
        // Taken with its room: the first flush is of all Services.
        for ip in std::mem::take(&mut self.dirty) {
            let frontends = self.frontends.get(&ip).copied().unwrap_or_default();
            let shared = frontends.are_external() && self.may_be_a_hosts(&ip);
            let uses = self.uses.of(ip);
            uses.dirty = false;
            let want = bits(*uses, frontends, shared);
            let entry = uses.written.replace(byte(want));
            let is = u32::from(entry.unwrap_or_default());
            if want == 0 {
                self.uses.remove(&ip);
                if entry.is_some() {
                    writes.remove.push(ip);
                }
            } else if is & !want & AddressClass::SERVICE != 0 {
                writes.lose.push((ip, want));
            } else if want != is {
                writes.gain.push((ip, want));
            }
        }
        writes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_keeps_each_class_as_long_as_something_refers_to_it() {
        let (a, lo) = (ip("10.0.0.1"), ip("127.0.0.1"));
        let dialled = |address, protocol| Dialled { address, port: 80, protocol };
        let (tcp, sctp) = (dialled(a, Protocol::Tcp), dialled(a, Protocol::Sctp));
        let mut classes = Classes::default();
        let cluster = FrontendKind::ClusterIp as u32;
        classes.add_frontend(&tcp, cluster);
        classes.add_frontend(&dialled(a, Protocol::Udp), cluster);
        classes.add_frontend(&dialled(ip("0.0.0.0"), Protocol::Sctp), FrontendKind::NodePort as u32);
        assert!(!classes.have_sctp());
        assert_eq!(classes.flush().gain, [(a, AddressClass::SERVICE)]);
        classes.add_frontend(&sctp, cluster);
        assert!(classes.have_sctp());
        assert_eq!(classes.flush().gain, [(a, AddressClass::SERVICE | AddressClass::SCTP)]);
        classes.remove_frontend(&sctp, cluster);
        assert!(!classes.have_sctp());
        assert_eq!(classes.flush().gain, [(a, AddressClass::SERVICE)]);
        classes.remove_frontend(&tcp, cluster);
        assert_eq!(classes.flush(), ClassWrites::default(), "another port of the Service is left");
        let own = HashSet::from([a, lo]);
        classes.set_node(&NodeAddresses { local: own.clone(), node_port: own, ..NodeAddresses::default() });
        let mut node = classes.flush().gain;
        node.sort();
        let local = AddressClass::LOCAL | AddressClass::NODE_PORT;
        assert_eq!(node, [(a, local | AddressClass::SERVICE), (lo, AddressClass::NODE_PORT)]);
        classes.add_endpoint(a);
        classes.add_endpoint(ip("10.0.0.9"));
        assert_eq!(classes.flush(), ClassWrites::default(), "endpoints have no class");
        classes.remove_frontend(&dialled(a, Protocol::Udp), cluster);
        assert_eq!(classes.flush().lose, [(a, local)]);
        classes.set_node(&NodeAddresses::default());
        let mut gone = classes.flush().remove;
        gone.sort();
        assert_eq!(gone, [a, lo]);
        assert_eq!(classes.len(Family::V4), 0);
    }

    /// B9: of an external address on a link of the node's, or that is an endpoint's, as long as nobody has it for a ClusterIP.
    #[test]
    fn an_address_may_be_another_hosts() {
        let (a, far) = (ip("192.0.2.7"), ip("198.51.100.7"));
        let at = |address, port| Dialled { address, port, protocol: Protocol::Tcp };
        let [cluster, balancer] =
            [FrontendKind::ClusterIp, FrontendKind::LoadBalancer].map(|kind| kind as u32);
        let service = AddressClass::SERVICE;
        let shared = service | AddressClass::SHARED;
        let mut classes = Classes::default();
        classes.add_frontend(&at(a, 80), balancer);
        assert_eq!(classes.flush().gain, [(a, service)], "no link is known");
        let links = vec!["192.0.2.0/29".parse().unwrap()];
        classes.set_node(&NodeAddresses { links, ..NodeAddresses::default() });
        assert_eq!(classes.flush().gain, [(a, shared)], "on a link");
        classes.add_frontend(&at(a, 443), cluster);
        assert_eq!(classes.flush().gain, [(a, service)], "somebody's ClusterIP");
        classes.remove_frontend(&at(a, 443), cluster);
        assert_eq!(classes.flush().gain, [(a, shared)]);
        classes.add_frontend(&at(far, 80), balancer);
        assert_eq!(classes.flush().gain, [(far, service)], "on none");
        classes.add_endpoint(far);
        assert_eq!(classes.flush().gain, [(far, shared)], "an endpoint's");
        classes.add_endpoint(far);
        classes.remove_endpoint(far);
        assert_eq!(classes.flush(), ClassWrites::default(), "another endpoint has it");
        classes.remove_endpoint(far);
        assert_eq!(classes.flush().gain, [(far, service)], "no endpoint's any more");
        classes.set_node(&NodeAddresses::default());
        assert_eq!(classes.flush().gain, [(a, service)]);
    }

    #[test]
    fn adopted_addresses_stay_until_reviewed() {
        let (service, node) = (ip("10.0.0.1"), ip("192.0.2.1"));
        let damaged = ip("10.0.0.2");
        let found = [(service, AddressClass::SERVICE), (node, AddressClass::LOCAL), (damaged, 0)];
        let mut classes = Classes::new(found);
        assert_eq!(classes.flush(), ClassWrites::default());
        classes.review();
        let mut gone = classes.flush().remove;
        gone.sort();
        assert_eq!(gone, [service, damaged], "the node's own are the node's to change");
    }

    #[test]
    fn bits_that_no_class_has_are_written_over() {
        const ENDPOINT_ONCE: u32 = 8;
        let (a, b, c) = (ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3"));
        let (local, service) = (AddressClass::LOCAL, AddressClass::SERVICE);
        let mut classes =
            Classes::new([(a, local | 1 << 7), (b, service | local | 1 << 31), (c, ENDPOINT_ONCE)]);
        classes.add_endpoint(c);
        classes.review();
        let writes = classes.flush();
        assert_eq!((writes.gain, writes.lose, writes.remove), (vec![(a, local)], vec![(b, local)], vec![c]));
        classes.review();
        assert_eq!(classes.flush(), ClassWrites::default());
    }
}
