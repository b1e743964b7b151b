//! Which devices are edges. A pure function over what netlink says of a device.

use super::catch_all::{INNER, OUTER};
use crate::config::{EdgePattern, Edges};

/// What kind of device netlink says this is (`IFLA_INFO_KIND` and the header's type), as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkType {
    Loopback,
    Veth,
    /// No kind: a physical or virtual NIC.
    Nic,
    Bridge,
    /// bond or team.
    Bond,
    Vlan,
    /// Carries packets to other hosts inside packets: vxlan, geneve, gre, ipip, sit, xfrm and their like.
    Tunnel,
    Wireguard,
    /// tun or tap.
    Tun,
    /// netkit's host side.
    Netkit,
    /// macvlan or ipvlan of the node itself.
    SubInterface,
    /// dummy, ifb, nlmon, vrf: nothing enters or leaves by it.
    Virtual,
}

/// What is known of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub ifindex: u32,
    pub name: String,
    pub kind: LinkType,
    pub up: bool,
    /// Frames have an Ethernet header (ARPHRD_ETHER).
    pub ethernet: bool,
    /// Bytes.
    pub mtu: u32,
    /// Device that this one is a port of.
    pub master: Option<u32>,
    /// Its own hardware address.
    pub address: Vec<u8>,
    /// The peer is in another network namespace.
    pub peer_elsewhere: bool,
    /// The root's queueing discipline.
    pub discipline: String,
}

/// What an edge leads to, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EdgeKind {
    Veth,
    Nic,
    Bond,
    Vlan,
    Tunnel,
    Wireguard,
    Tun,
    Netkit,
    SubInterface,
    /// The end of our own pair of devices that serves the node's own processes.
    CatchAll,
    /// Named by the operator although it would not be chosen.
    Named,
}

impl EdgeKind {
    /// The word used in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Nic => "nic",
            Self::Bond => "bond",
            Self::Vlan => "vlan",
            Self::Tunnel => "tunnel",
            Self::Wireguard => "wireguard",
            Self::Tun => "tun",
            Self::Netkit => "netkit",
            Self::SubInterface => "sub-interface",
            Self::CatchAll => "catch-all",
            Self::Named => "named",
        }
    }
}

/// Whether `link`, a port of `master`, is an edge, and what kind. A parent of VLAN devices stays one: it leaves
/// tagged packets to them (P-04).
#[must_use]
pub fn classify(link: &Link, master: Option<LinkType>) -> Option<EdgeKind> {
    // What arrives at a bond's member is seen again, whole, at the bond.
    if !link.up || master == Some(LinkType::Bond) {
        return None;
    }
    match link.kind {
        LinkType::Veth => Some(EdgeKind::Veth),
        LinkType::Nic => Some(EdgeKind::Nic),
        LinkType::Bond => Some(EdgeKind::Bond),
        LinkType::Vlan => Some(EdgeKind::Vlan),
        LinkType::Tunnel => Some(EdgeKind::Tunnel),
        LinkType::Wireguard => Some(EdgeKind::Wireguard),
        LinkType::Tun => Some(EdgeKind::Tun),
        LinkType::Netkit => Some(EdgeKind::Netkit),
        LinkType::SubInterface => Some(EdgeKind::SubInterface),
        LinkType::Loopback | LinkType::Bridge | LinkType::Virtual => None,
    }
}

/// [`classify`] under `--edges`: a device the operator names is an edge whatever it is, as long as it is up and not
/// the loopback device; one not named is none.
#[must_use]
pub fn selected(link: &Link, master: Option<LinkType>, edges: &Edges) -> Option<EdgeKind> {
    // Our own pair: not for the operator to choose.
    if link.kind == LinkType::Veth && (link.name == INNER || link.name == OUTER) {
        return (link.up && link.name == INNER).then_some(EdgeKind::CatchAll);
    }
    let Edges::Names(patterns) = edges else { return classify(link, master) };
    let named = patterns.iter().any(|pattern| match pattern {
        EdgePattern::Name(name) => link.name == *name,
        EdgePattern::Prefix(prefix) => link.name.starts_with(prefix.as_str()),
    });
    if !named || !link.up || link.kind == LinkType::Loopback {
        return None;
    }
    Some(classify(link, master).unwrap_or(EdgeKind::Named))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, kind: LinkType) -> Link {
        Link {
            ifindex: 2,
            name: name.into(),
            kind,
            up: true,
            ethernet: true,
            mtu: 1500,
            master: None,
            address: Vec::new(),
            peer_elsewhere: false,
            discipline: "noqueue".into(),
        }
    }

    #[test]
    fn edges_are_where_traffic_enters_or_leaves_the_stack() {
        use LinkType::{Bond, Bridge, Loopback, Nic, Tun, Tunnel, Veth, Virtual, Vlan, Wireguard};
        let down = Link { up: false, ..link("eth0", Nic) };
        let cases = [
            ("physical NIC", link("eth0", Nic), None, Some(EdgeKind::Nic)),
            ("down: attached when it comes up", down, None, None),
            ("loopback", link("lo", Loopback), None, None),
            ("pod's veth, routed", link("cali1", Veth), None, Some(EdgeKind::Veth)),
            ("pod's veth, bridged", link("veth1", Veth), Some(Bridge), Some(EdgeKind::Veth)),
            ("bridge", link("cni0", Bridge), None, None),
            ("NIC in a bridge", link("eth0", Nic), Some(Bridge), Some(EdgeKind::Nic)),
            ("bond", link("bond0", Bond), None, Some(EdgeKind::Bond)),
            ("bond's member", link("eth1", Nic), Some(Bond), None),
            ("VLAN device", link("eth0.7", Vlan), None, Some(EdgeKind::Vlan)),
            ("VLAN device on a bond", link("bond0.7", Vlan), None, Some(EdgeKind::Vlan)),
            ("VXLAN", link("flannel.1", Tunnel), None, Some(EdgeKind::Tunnel)),
            ("WireGuard", link("wg0", Wireguard), None, Some(EdgeKind::Wireguard)),
            ("VPN", link("tun0", Tun), None, Some(EdgeKind::Tun)),
            ("dummy", link("nodelocaldns", Virtual), None, None),
            ("NIC in a VRF", link("eth2", Nic), Some(Virtual), Some(EdgeKind::Nic)),
        ];
        for (what, link, master, want) in cases {
            assert_eq!(classify(&link, master), want, "{what}");
        }
    }

    #[test]
    fn names_given_by_the_operator_decide_alone() {
        let edges = Edges::Names(vec![EdgePattern::Name("eth0".into()), EdgePattern::Prefix("cali".into())]);
        let cases = [
            ("exact name", link("eth0", LinkType::Nic), Some(EdgeKind::Nic)),
            ("an exact name is no prefix", link("eth01", LinkType::Nic), None),
            ("prefix", link("cali12", LinkType::Veth), Some(EdgeKind::Veth)),
            ("not named", link("eth1", LinkType::Nic), None),
            ("our own pair, where the program is", link(INNER, LinkType::Veth), Some(EdgeKind::CatchAll)),
            ("our own pair, the other end", link(OUTER, LinkType::Veth), None),
            (
                "named, of a kind that auto leaves out",
                link("cali0", LinkType::Virtual),
                Some(EdgeKind::Named),
            ),
            ("loopback never", link("cali-lo", LinkType::Loopback), None),
        ];
        for (what, link, want) in cases {
            assert_eq!(selected(&link, None, &edges), want, "{what}");
        }
    }
}
