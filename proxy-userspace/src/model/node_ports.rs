//! Which addresses of the node serve NodePorts (E1 … E6, I5).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::desired::Family;
use crate::cluster::types::Node;
use crate::config::{NodePortAddresses, NodePorts};

/// The node's IPs: one of each family, from `bindAddress` if given, else from the Node object (I5). Empty while
/// nothing is known.
#[must_use]
pub fn node_ips(bind: Option<IpAddr>, node: Option<&Node>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = bind.into_iter().collect();
    for address in node.map(|node| node.addresses.as_slice()).unwrap_or_default() {
        if !ips.iter().any(|ip| Family::of(ip) == Family::of(address)) {
            ips.push(*address);
        }
    }
    ips
}

/// The addresses that serve NodePorts, out of all addresses `local` to the node's devices. Loopback addresses are
/// among them only where the profile serves them (E5, E6); the node's `primary` IPs need not be on a device.
#[must_use]
pub fn node_port_addresses(selection: &NodePorts, local: &[IpAddr], node_ips: &[IpAddr]) -> BTreeSet<IpAddr> {
    let chosen = |address: &&IpAddr| match &selection.addresses {
        NodePortAddresses::All => true,
        NodePortAddresses::Primary => false,
        NodePortAddresses::Cidrs(cidrs) => inside(address, cidrs),
    };
    let mut addresses: BTreeSet<_> = local.iter().filter(chosen).copied().collect();
    if selection.addresses == NodePortAddresses::Primary {
        addresses.extend(node_ips);
    }
    addresses.retain(|address| selection.localhost || !address.is_loopback());
    addresses
}

/// Where health check node ports listen (H7): where NodePorts are served, but for loopback. A family that is served everywhere
/// has one listener, at its unspecified address. The others' can be bound only where they are on a device, and link-local ones
/// of IPv6 not without naming it. `node_port`: the addresses that serve NodePorts.
#[must_use]
pub fn health_check_addresses(
    selection: &NodePorts,
    local: &[IpAddr],
    node_port: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    let mut addresses = node_port.clone();
    let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    addresses.retain(|ip| local.contains(ip) && !ip.is_loopback() && !link_local(ip));
    for any in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
        let family = Family::of(&any);
        let everywhere = match &selection.addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Primary => false,
            NodePortAddresses::Cidrs(cidrs) => {
                let mut same = of_family(cidrs, family).peekable();
                same.peek().is_none() || same.any(|cidr| cidr.prefix_len() == 0)
            }
        };
        if everywhere {
            addresses.retain(|ip| Family::of(ip) != family);
            addresses.insert(any);
        }
    }
    addresses
}

/// E3: a family that no CIDR names is served everywhere.
fn inside(address: &IpAddr, cidrs: &[IpNet]) -> bool {
    let mut same = of_family(cidrs, Family::of(address)).peekable();
    same.peek().is_none() || same.any(|cidr| cidr.contains(address))
}

fn of_family(cidrs: &[IpNet], family: Family) -> impl Iterator<Item = &IpNet> {
    cidrs.iter().filter(move |cidr| Family::of(&cidr.addr()) == family)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn cidrs(list: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Cidrs(list.iter().map(|text| text.parse().unwrap()).collect())
    }

    #[test]
    fn e1_to_e6_selection() {
        let all = ["127.0.0.1", "192.0.2.11", "192.0.2.111", "::1", "fd00:2::11", "fe80::1"];
        let v6 = ["fd00:2::11", "fe80::1"];
        let cases: [(&str, NodePortAddresses, bool, Vec<&str>); 8] = [
            ("E1 all, with loopback", NodePortAddresses::All, true, all.to_vec()),
            ("E6 all, no loopback", NodePortAddresses::All, false, [&all[1..3], &v6].concat()),
            ("E2 primary", NodePortAddresses::Primary, false, vec!["192.0.2.11", "fd00:2::11"]),
            ("E3 one CIDR, other family whole", cidrs(&["192.0.2.96/27"]), false, [&all[2..3], &v6].concat()),
            (
                "E3 both families",
                cidrs(&["192.0.2.11/32", "fd00:2::/64"]),
                false,
                vec!["192.0.2.11", "fd00:2::11"],
            ),
            ("E3 zero CIDR", cidrs(&["0.0.0.0/0", "::/0"]), true, all.to_vec()),
            (
                "E5 loopback in a CIDR",
                cidrs(&["127.0.0.0/8", "fd00::/8"]),
                true,
                vec!["127.0.0.1", "fd00:2::11"],
            ),
            ("E3 no match", cidrs(&["198.51.100.0/24", "fd99::/64"]), true, vec![]),
        ];
        for (name, addresses, localhost, want) in cases {
            let selection = NodePorts { addresses, localhost };
            let got = node_port_addresses(&selection, &ips(&all), &ips(&["192.0.2.11", "fd00:2::11"]));
            assert_eq!(got, ips(&want).into_iter().collect(), "{name}");
        }
    }

    #[test]
    fn h7_where_health_checks_listen() {
        let local = ["127.0.0.1", "192.0.2.11", "192.0.2.111", "::1", "fd00:2::11", "fe80::1"];
        let cases: [(&str, NodePortAddresses, &[&str]); 6] = [
            ("all", NodePortAddresses::All, &["0.0.0.0", "::"]),
            ("one family's CIDR", cidrs(&["192.0.2.96/27"]), &["192.0.2.111", "::"]),
            ("zero CIDR", cidrs(&["0.0.0.0/0", "fd00::/8"]), &["0.0.0.0", "fd00:2::11"]),
            ("loopback", cidrs(&["127.0.0.0/8", "::1/128"]), &[]),
            ("link-local", cidrs(&["192.0.2.11/32", "fe80::/10"]), &["192.0.2.11"]),
            ("primary, one on no device", NodePortAddresses::Primary, &["192.0.2.11"]),
        ];
        for (name, addresses, want) in cases {
            let selection = NodePorts { addresses, localhost: true };
            let (local, node_ips) = (ips(&local), ips(&["192.0.2.11", "fd00:2::99"]));
            let node_port = node_port_addresses(&selection, &local, &node_ips);
            let got = health_check_addresses(&selection, &local, &node_port);
            assert_eq!(got, ips(want).into_iter().collect(), "{name}");
        }
    }

    #[test]
    fn i5_node_ips() {
        let node = Node {
            name: "n1".into(),
            addresses: ips(&["192.0.2.11", "fd00:2::11", "203.0.113.1"]),
            pod_cidrs: Vec::new(),
            zone: None,
            eligible: true,
            defects: Vec::new(),
        };
        assert_eq!(node_ips(None, Some(&node)), ips(&["192.0.2.11", "fd00:2::11"]));
        assert_eq!(node_ips(Some(ips(&["192.0.2.99"])[0]), Some(&node)), ips(&["192.0.2.99", "fd00:2::11"]));
        assert!(node_ips(None, None).is_empty());
    }
}
