//! What flags or the Node name, and this node has not.

use std::net::IpAddr;

use crate::config::{EdgePattern, Edges, NodePortAddresses, NodePorts};
use crate::model::{Family, node_port_addresses};
use crate::node::Address;
use crate::status::Trouble;

/// `--edges` names what is not there among `devices`: a typing error, or a device that comes later.
pub fn devices<'a>(asked: &Edges, devices: impl Iterator<Item = &'a str> + Clone) -> Option<Trouble> {
    let Edges::Names(patterns) = asked else { return None };
    let absent = |pattern: &&EdgePattern| !devices.clone().any(|device| pattern.matches(device));
    let absent: Vec<_> = patterns.iter().filter(absent).map(ToString::to_string).collect();
    if absent.is_empty() {
        return None;
    }
    let next = "correct the name; a device that appears later is served then";
    Some(Trouble::new(
        "--edges",
        format_args!("no device that could be served is called {}", absent.join(" or ")),
        next,
    ))
}

/// The node's IPs (I5) need not be on a device, but one of a family of which no device has any is a mistake (I7).
pub fn families(node_ips: &[IpAddr], addresses: &[Address]) -> Vec<Trouble> {
    let has = |family| addresses.iter().any(|address| address.global && Family::of(&address.ip) == family);
    let absent = node_ips.iter().filter(|ip| !has(Family::of(ip)));
    let trouble = |ip: &IpAddr| {
        let why = format_args!("no device of the node has an {} address", Family::of(ip).name());
        let next = "correct --bind-address or the Node object, or give a device such an address";
        Trouble::new(format_args!("the node's address {ip}"), why, next)
    };
    absent.map(trouble).collect()
}

/// `--nodeport-addresses` leaves no address of a family that the node has any of: there its NodePorts are nowhere (E3).
pub fn node_ports(asked: &NodePorts, addresses: &[Address]) -> Vec<Trouble> {
    let NodePortAddresses::Cidrs(cidrs) = &asked.addresses else { return Vec::new() };
    let own: Vec<IpAddr> = addresses.iter().filter(|own| own.global).map(|own| own.ip).collect();
    let serving = node_port_addresses(asked, &own, &[]);
    let trouble = |family: Family| {
        let is_of = |ip: &IpAddr| Family::of(ip) == family;
        if !own.iter().any(is_of) || serving.iter().any(is_of) {
            return None;
        }
        let ranges: Vec<_> =
            cidrs.iter().filter(|cidr| is_of(&cidr.addr())).map(ToString::to_string).collect();
        let why = format!("no {} address of the node is in {}", family.name(), ranges.join(" or "));
        let next =
            "no NodePort is served in that family; correct the ranges, or give a device such an address";
        Some(Trouble::new("--nodeport-addresses", why, next))
    };
    [Family::V4, Family::V6].into_iter().filter_map(trouble).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_that_are_not_there() {
        let name = |text: &str| EdgePattern::Name(text.to_owned());
        let prefix = |text: &str| EdgePattern::Prefix(text.to_owned());
        let cases = [
            (Edges::Auto, None),
            (Edges::Names(vec![name("eth0"), prefix("veth")]), None),
            (
                Edges::Names(vec![name("eth0"), name("veth")]),
                Some("no device that could be served is called veth"),
            ),
            (
                Edges::Names(vec![name("eth1"), prefix("cali")]),
                Some("no device that could be served is called eth1 or cali*"),
            ),
        ];
        for (asked, want) in cases {
            let told = devices(&asked, ["eth0", "veth12"].into_iter());
            assert_eq!(told.as_ref().map(|trouble| trouble.why.as_str()), want, "{asked:?}");
        }
    }

    #[test]
    fn families_that_are_not_there() {
        let address = |text: &str, global| Address {
            ip: text.parse().unwrap(),
            prefix: 24,
            ifindex: 2,
            global,
            secondary: false,
            usable: true,
        };
        let device = [address("192.0.2.1", true), address("fe80::1", false)];
        let ips: Vec<IpAddr> = ["203.0.113.9", "fd00::9"].iter().map(|ip| ip.parse().unwrap()).collect();
        let told = families(&ips, &device);
        assert!(
            told.len() == 1 && told[0].what.contains("fd00::9") && told[0].why.contains("IPv6"),
            "{told:?}"
        );
        let ranges = |text: &str| {
            NodePortAddresses::Cidrs(text.split(',').map(|cidr| cidr.parse().unwrap()).collect())
        };
        let cases = [
            (NodePortAddresses::All, vec![]),
            (ranges("192.0.2.0/24,10.0.0.0/8"), vec![]),
            (
                ranges("203.0.113.0/24,10.0.0.0/8"),
                vec!["no IPv4 address of the node is in 203.0.113.0/24 or 10.0.0.0/8"],
            ),
            (ranges("192.0.2.1/32,fd00::/8"), vec![]),
        ];
        for (addresses, want) in cases {
            let asked = NodePorts { addresses, localhost: false };
            let told: Vec<_> = node_ports(&asked, &device).into_iter().map(|trouble| trouble.why).collect();
            assert_eq!(told, want, "{asked:?}");
        }
        assert_eq!(families(&ips, &[device.as_slice(), &[address("fd00::2", true)]].concat()), []);
    }
}
