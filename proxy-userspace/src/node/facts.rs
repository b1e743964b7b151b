//! From links and addresses to edges, and from one state to the next. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::catch_all::{SOURCE_V4, SOURCE_V6};
use super::classify::{EdgeKind, Link, LinkType, selected};
use super::leftovers::IPVS_DEVICE;
use super::shortcut::ways;
use super::{Edge, NodeEvent};
use crate::config::{DetectLocal, Edges};

/// An address of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
    pub ifindex: u32,
    /// Scope "global": meant for use beyond the link.
    pub global: bool,
    /// IPv4: not the first of its subnet on the device.
    pub secondary: bool,
    /// IPv6: not deprecated, not being checked for duplicates. IPv4: always.
    pub usable: bool,
}

impl Address {
    /// Where its device's link has room for other hosts.
    #[must_use]
    pub fn subnet(&self) -> Option<IpNet> {
        let alone = if self.ip.is_ipv4() { 32 } else { 128 };
        let net = IpNet::new(self.ip, self.prefix).ok()?;
        (self.global && self.prefix < alone).then(|| net.trunc())
    }
}

/// What follows from the node's links and addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// In the kernel's order, loopback addresses included.
    pub addresses: Vec<Address>,
    /// In order of ifindex.
    pub edges: Vec<Edge>,
}

/// Links and addresses as netlink reports them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    links: BTreeMap<u32, Link>,
    addresses: Vec<Address>,
    /// Devices with a place for filters of traffic control.
    filtered: BTreeSet<u32>,
    /// Devices that went since the last [`Inventory::events`]: their numbers may have come back with another device.
    went: BTreeSet<u32>,
}

impl Inventory {
    pub fn set_link(&mut self, link: Link) {
        self.links.insert(link.ifindex, link);
    }

    pub fn remove_link(&mut self, ifindex: u32) {
        self.links.remove(&ifindex);
        self.went.insert(ifindex);
        self.filtered.remove(&ifindex);
        self.addresses.retain(|address| address.ifindex != ifindex);
    }

    /// The device has a place for filters of traffic control now, or has none any more.
    pub fn set_filtered(&mut self, ifindex: u32, filtered: bool) {
        if filtered {
            self.filtered.insert(ifindex);
        } else {
            self.filtered.remove(&ifindex);
        }
    }

    /// An address in its turn of the kernel's own list, or news of a known one, which keeps its place: the first address
    /// of a device is what kernel MASQUERADE takes.
    pub fn set_address(&mut self, address: Address) {
        self.place_address(address, self.addresses.len());
    }

    /// The same for an address that may have been added just now: an IPv6 address is added to the front of its device's
    /// list (`ipv6_link_dev_addr`), one of IPv4 to the end.
    pub fn note_address(&mut self, address: Address) {
        let first =
            self.addresses.iter().position(|known| known.ifindex == address.ifindex && known.ip.is_ipv6());
        let end = self.addresses.len();
        self.place_address(address, first.filter(|_| address.ip.is_ipv6()).unwrap_or(end));
    }

    fn place_address(&mut self, address: Address, place: usize) {
        let same = |known: &&mut Address| known.ip == address.ip && known.ifindex == address.ifindex;
        match self.addresses.iter_mut().find(same) {
            Some(known) => *known = address,
            None => self.addresses.insert(place, address),
        }
    }

    pub fn remove_address(&mut self, ip: IpAddr, ifindex: u32) {
        self.addresses.retain(|known| known.ip != ip || known.ifindex != ifindex);
    }

    /// The facts under `--edges` and `detectLocalMode`.
    #[must_use]
    pub fn facts(&self, edges: &Edges, detect: &DetectLocal) -> Facts {
        let own = Sources::new(&self.addresses);
        let edge = |link: &Link| {
            let master = link.master.and_then(|ifindex| self.links.get(&ifindex));
            let kind = selected(link, master.map(|master| master.kind), edges)?;
            // Routes lead to the bridge, so netfilter sees the bridge as the device that packets leave by, and come by.
            let bridge = master.filter(|master| master.kind == LinkType::Bridge);
            let seen = bridge.unwrap_or(link);
            let pod = matches!(kind, EdgeKind::Veth | EdgeKind::Netkit)
                && link.peer_elsewhere
                && !self.has_subnet(link.ifindex);
            let (masquerade_v4, masquerade_v6) = match kind {
                EdgeKind::CatchAll => (Some(SOURCE_V4), Some(SOURCE_V6)),
                _ => (own.v4(seen.ifindex), own.v6(seen.ifindex)),
            };
            Some(Edge {
                name: link.name.clone(),
                ifindex: link.ifindex,
                kind,
                ethernet: link.ethernet,
                address: link.address.clone(),
                masquerade_v4,
                masquerade_v6,
                mtu: link.mtu,
                pod,
                // By a NIC a switch floods what is for other hosts: as a rule the bridge has the NIC's address.
                port: bridge.is_some_and(|bridge| pod || bridge.address != link.address),
                detected: detect.is_pods(&seen.name),
                ways: ways(link, kind, pod, self.filtered.contains(&link.ifindex)),
            })
        };
        // Service addresses, which kube-proxy's ipvs mode has left there: no NodePort is served on them.
        let is_own =
            |address: &&Address| self.links.get(&address.ifindex).is_none_or(|link| link.name != IPVS_DEVICE);
        Facts {
            addresses: self.addresses.iter().filter(is_own).copied().collect(),
            edges: self.links.values().filter_map(edge).collect(),
        }
    }

    /// Whether other hosts are on this device's link, by its addresses. A node that is itself a namespace has such devices for
    /// NICs; a pod's device has no address here, or one of its own.
    fn has_subnet(&self, ifindex: u32) -> bool {
        self.addresses.iter().any(|address| address.ifindex == ifindex && address.subnet().is_some())
    }

    /// What makes `before` into `after`: devices that went first, so that a reused ifindex is forgotten before it is
    /// served again, even if the new device looks like the old one (L-08, L-09).
    pub fn events(&mut self, before: &Facts, after: &Facts) -> Vec<NodeEvent> {
        let went = std::mem::take(&mut self.went);
        let old: HashMap<u32, &Edge> = before
            .edges
            .iter()
            .filter(|edge| !went.contains(&edge.ifindex))
            .map(|edge| (edge.ifindex, edge))
            .collect();
        let new: BTreeSet<u32> = after.edges.iter().map(|edge| edge.ifindex).collect();
        let gone =
            before.edges.iter().filter(|edge| went.contains(&edge.ifindex) || !new.contains(&edge.ifindex));
        let mut events: Vec<NodeEvent> = gone
            .map(|edge| NodeEvent::EdgeGone {
                ifindex: edge.ifindex,
                name: edge.name.clone(),
                device_gone: went.contains(&edge.ifindex) || !self.links.contains_key(&edge.ifindex),
            })
            .collect();
        let changed = after.edges.iter().filter(|edge| old.get(&edge.ifindex) != Some(edge));
        events.extend(changed.cloned().map(NodeEvent::Edge));
        if before.addresses != after.addresses {
            events.push(NodeEvent::Addresses(after.addresses.clone()));
        }
        events
    }
}

/// Where masquerade addresses come from: per device, and for devices without any.
struct Sources {
    v4: HashMap<u32, Ipv4Addr>,
    v6: HashMap<u32, Ipv6Addr>,
    any_v4: Option<Ipv4Addr>,
    any_v6: Option<Ipv6Addr>,
}

impl Sources {
    fn new(addresses: &[Address]) -> Self {
        let mut sources = Self { v4: HashMap::new(), v6: HashMap::new(), any_v4: None, any_v6: None };
        // inet_select_addr: the device's first primary address of global scope, else the first such of any device
        // in order of ifindex. IPv6's rule (RFC 6724) prefers the outgoing device likewise, and of addresses that its
        // other rules do not tell apart the first in the kernel's list.
        let mut usable: Vec<&Address> = addresses
            .iter()
            .filter(|address| address.global && address.usable && !address.secondary)
            .collect();
        usable.sort_by_key(|address| address.ifindex);
        for address in usable {
            match address.ip {
                IpAddr::V4(ip) => {
                    sources.v4.entry(address.ifindex).or_insert(ip);
                    sources.any_v4.get_or_insert(ip);
                }
                IpAddr::V6(ip) => {
                    sources.v6.entry(address.ifindex).or_insert(ip);
                    sources.any_v6.get_or_insert(ip);
                }
            }
        }
        sources
    }

    fn v4(&self, ifindex: u32) -> Option<Ipv4Addr> {
        self.v4.get(&ifindex).copied().or(self.any_v4)
    }

    fn v6(&self, ifindex: u32) -> Option<Ipv6Addr> {
        self.v6.get(&ifindex).copied().or(self.any_v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str, kind: LinkType, master: Option<u32>) -> Link {
        Link {
            ifindex,
            name: name.into(),
            kind,
            up: true,
            ethernet: true,
            mtu: 1500,
            master,
            address: vec![2, 0, 0, 0, 0, ifindex as u8],
            peer_elsewhere: kind == LinkType::Veth,
            discipline: "noqueue".into(),
        }
    }

    fn address(ifindex: u32, ip: &str) -> Address {
        let ip: IpAddr = ip.parse().unwrap();
        Address { ip, prefix: 24, ifindex, global: !ip.is_loopback(), secondary: false, usable: true }
    }

    fn node() -> Inventory {
        let mut node = Inventory::default();
        node.set_link(link(1, "lo", LinkType::Loopback, None));
        node.set_link(link(2, "eth0", LinkType::Nic, None));
        node.set_link(link(3, "cni0", LinkType::Bridge, None));
        node.set_link(link(4, "veth1", LinkType::Veth, Some(3)));
        node.set_link(link(5, "cali1", LinkType::Veth, None));
        node.set_address(address(1, "127.0.0.1"));
        node.set_address(Address { secondary: true, ..address(2, "192.0.2.9") });
        node.set_address(address(2, "192.0.2.1"));
        node.set_address(Address { usable: false, ..address(2, "2001:db8::9") });
        node.set_address(address(2, "2001:db8::1"));
        node.set_address(Address { global: false, ..address(5, "169.254.1.1") });
        node.set_address(address(3, "10.1.0.1"));
        node
    }

    #[test]
    fn masquerade_address_is_what_the_kernel_would_take() {
        let facts = node().facts(&Edges::Auto, &DetectLocal::NodeCidr);
        let got: Vec<_> = facts
            .edges
            .iter()
            .map(|edge| (edge.name.as_str(), edge.masquerade_v4.unwrap().to_string(), edge.pod))
            .collect();
        let want = [
            ("eth0", "192.0.2.1".to_owned(), false),
            // Packets leave by the bridge.
            ("veth1", "10.1.0.1".to_owned(), true),
            // No address of global scope: that of another device.
            ("cali1", "192.0.2.1".to_owned(), true),
        ];
        assert_eq!(got, want);
        assert!(facts.edges.iter().all(|edge| edge.masquerade_v6 == Some("2001:db8::1".parse().unwrap())));
    }

    #[test]
    fn a_device_with_a_subnet_leads_to_other_hosts_j20() {
        let pod = |of: Address| {
            let mut node = node();
            node.set_address(of);
            let facts = node.facts(&Edges::Auto, &DetectLocal::NodeCidr);
            facts.edges.into_iter().find(|edge| edge.name == "cali1").unwrap().pod
        };
        let of = |ip, prefix| Address { prefix, ..address(5, ip) };
        let rows = [
            ("the pods' gateway", of("10.1.0.1", 32), true),
            ("the pods' gateway, IPv6", of("fd00::1", 128), true),
            ("link-local", Address { global: false, ..of("fe80::1", 64) }, true),
            ("a subnet", of("192.0.9.11", 24), false),
            ("a subnet, IPv6", of("2001:db8:9::11", 64), false),
            ("another device's subnet", Address { ifindex: 2, ..of("192.0.9.11", 24) }, true),
        ];
        for (name, address, want) in rows {
            assert_eq!(pod(address), want, "{name}");
        }
    }

    #[test]
    fn f1_an_ipv6_address_that_is_added_later_comes_first() {
        let of = |node: &Inventory| {
            let facts = node.facts(&Edges::Auto, &DetectLocal::NodeCidr);
            let eth0 = facts.edges.into_iter().find(|edge| edge.name == "eth0").unwrap();
            (eth0.masquerade_v4.unwrap().to_string(), eth0.masquerade_v6.unwrap().to_string())
        };
        let mut node = node();
        node.note_address(address(2, "192.0.2.2"));
        node.note_address(address(2, "2001:db8::2"));
        assert_eq!(of(&node), ("192.0.2.1".into(), "2001:db8::2".into()));
        node.note_address(address(2, "2001:db8::1"));
        assert_eq!(of(&node).1, "2001:db8::2", "news of a known address");
        node.note_address(Address { usable: false, ..address(2, "2001:db8::2") });
        assert_eq!(of(&node).1, "2001:db8::1", "deprecated");
        node.note_address(address(3, "fd00::3"));
        assert_eq!(of(&node).1, "2001:db8::1", "of another device");
    }

    #[test]
    fn f7_devices_of_pods() {
        let (prefix, bridge) = (
            |text: &str| DetectLocal::InterfaceNamePrefix(text.into()),
            |text: &str| DetectLocal::BridgeInterface(text.into()),
        );
        let cases: [(&str, DetectLocal, &[&str]); 5] = [
            ("bridge: its ports", bridge("cni0"), &["veth1"]),
            ("prefix of routed veths", prefix("cali"), &["cali1"]),
            ("prefix of the bridge", prefix("cni"), &["veth1"]),
            ("ports are seen as the bridge", prefix("veth"), &[]),
            ("by range", DetectLocal::NodeCidr, &[]),
        ];
        for (name, detect, want) in cases {
            let facts = node().facts(&Edges::Auto, &detect);
            let got: Vec<_> =
                facts.edges.iter().filter(|edge| edge.detected).map(|edge| edge.name.as_str()).collect();
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn events_say_what_changed_and_nothing_else() {
        let edges = Edges::Auto;
        let before = node();
        let change = |edit: &dyn Fn(&mut Inventory)| {
            let mut after = before.clone();
            edit(&mut after);
            let facts = |node: &Inventory| node.facts(&edges, &DetectLocal::NodeCidr);
            after.events(&facts(&before), &facts(&after))
        };
        let names = |events: &[NodeEvent]| -> Vec<String> {
            let name = |event: &NodeEvent| match event {
                NodeEvent::Edge(edge) => format!("+{}", edge.name),
                NodeEvent::EdgeGone { name, device_gone, .. } => {
                    format!("-{name}{}", if *device_gone { "" } else { " stays" })
                }
                NodeEvent::Addresses(_) => "addresses".into(),
            };
            events.iter().map(name).collect()
        };
        type Edit<'a> = (&'a str, &'a dyn Fn(&mut Inventory), &'a [&'a str]);
        let cases: [Edit<'_>; 10] = [
            ("nothing", &|_| {}, &[]),
            ("pod comes", &|node| node.set_link(link(9, "cali2", LinkType::Veth, None)), &["+cali2"]),
            ("pod goes, address and all", &|node| node.remove_link(5), &["-cali1", "addresses"]),
            (
                "re-created at once under the same name and number",
                &|node| {
                    node.remove_link(4);
                    node.set_link(link(4, "veth1", LinkType::Veth, Some(3)));
                },
                &["-veth1", "+veth1"],
            ),
            (
                "pod's device goes down",
                &|node| node.set_link(Link { up: false, ..link(5, "cali1", LinkType::Veth, None) }),
                &["-cali1 stays"],
            ),
            (
                "a program may come between a device and the stack",
                &|node| node.set_filtered(5, true),
                &["+cali1"],
            ),
            (
                "the same of a device that is none of ours",
                &|node| {
                    node.set_filtered(3, true);
                    node.set_filtered(5, false);
                },
                &[],
            ),
            ("renamed", &|node| node.set_link(link(2, "uplink", LinkType::Nic, None)), &["+uplink"]),
            (
                "bridge gets another address: its ports masquerade anew",
                &|node| {
                    node.remove_address("10.1.0.1".parse().unwrap(), 3);
                    node.set_address(address(3, "10.2.0.1"));
                },
                &["+veth1", "addresses"],
            ),
            (
                "address that is no masquerade address",
                &|node| node.set_address(address(2, "192.0.2.77")),
                &["addresses"],
            ),
        ];
        for (what, edit, want) in cases {
            assert_eq!(names(&change(edit)), want, "{what}");
        }
    }
}
