//! At which devices shortcuts may begin and end, by what netlink tells of them. Pure.

use super::classify::{EdgeKind, Link};

/// How a packet may leave by a device past the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    /// Straight into the namespace at the device's other end, past the device's own egress.
    pub peer: bool,
    /// By the device's egress, to a neighbour.
    pub neighbour: bool,
}

/// Queueing disciplines that order packets and shape none: those that the kernel gives devices by itself, or by
/// `net.core.default_qdisc`. Others may be a bandwidth limit, which a shortcut into a pod would get round.
const ORDINARY: [&str; 6] = ["noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "sfq"];

/// The ways out of `link`, an edge of this kind that leads to a `pod` or not, or what stands between it and the stack. `filtered`: it has a place for filters
/// of traffic control, `clsact` or `ingress`, which programs of ours run before.
///
/// XDP programs do not matter: what comes in has passed them before ours see it.
pub fn ways(link: &Link, kind: EdgeKind, pod: bool, filtered: bool) -> Result<Ways, String> {
    if kind == EdgeKind::CatchAll {
        return Err("the node's own processes are at its other end".to_owned());
    }
    if !link.ethernet {
        return Err("frames have no Ethernet header".to_owned());
    }
    if filtered {
        return Err("filters of traffic control (clsact or ingress) may be there".to_owned());
    }
    if !ORDINARY.contains(&link.discipline.as_str()) {
        return Err(format!("queueing discipline {}", link.discipline));
    }
    Ok(Ways {
        // A NIC of that kind has a switch at its other end, for which frames must be addressed to the next hop.
        peer: pod,
        // Routes lead to the bridge, or into the VRF, and not to its port.
        neighbour: link.master.is_none(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::LinkType;
    use super::*;

    fn link(kind: LinkType) -> Link {
        Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            kind,
            up: true,
            ethernet: true,
            mtu: 1500,
            master: None,
            address: Vec::new(),
            peer_elsewhere: kind == LinkType::Veth,
            discipline: "noqueue".to_owned(),
        }
    }

    #[test]
    fn which_devices_and_how() {
        let ways = |peer, neighbour| Ok(Ways { peer, neighbour });
        let with = |discipline: &str| Link { discipline: discipline.to_owned(), ..link(LinkType::Veth) };
        let refused = |why: &str| Err(why.to_owned());
        let filters = refused("filters of traffic control (clsact or ingress) may be there");
        let cases = [
            ("a pod's device", link(LinkType::Veth), EdgeKind::Veth, false, ways(true, true)),
            (
                "one that is a port of a bridge",
                Link { master: Some(3), ..link(LinkType::Veth) },
                EdgeKind::Veth,
                false,
                ways(true, false),
            ),
            (
                "both ends are here",
                Link { peer_elsewhere: false, ..link(LinkType::Veth) },
                EdgeKind::Veth,
                false,
                ways(false, true),
            ),
            ("a NIC", link(LinkType::Nic), EdgeKind::Nic, false, ways(false, true)),
            (
                "one with the default discipline of most",
                with("fq_codel"),
                EdgeKind::Nic,
                false,
                ways(false, true),
            ),
            ("bandwidth plugin", with("tbf"), EdgeKind::Veth, false, refused("queueing discipline tbf")),
            ("netem", with("netem"), EdgeKind::Nic, false, refused("queueing discipline netem")),
            ("filters", link(LinkType::Veth), EdgeKind::Veth, true, filters),
            (
                "a tunnel without Ethernet",
                Link { ethernet: false, ..link(LinkType::Tunnel) },
                EdgeKind::Tunnel,
                false,
                refused("frames have no Ethernet header"),
            ),
            (
                "our own pair of devices",
                link(LinkType::Veth),
                EdgeKind::CatchAll,
                false,
                refused("the node's own processes are at its other end"),
            ),
        ];
        for (name, link, kind, filtered, want) in cases {
            let pod = kind == EdgeKind::Veth && link.peer_elsewhere;
            assert_eq!(super::ways(&link, kind, pod, filtered), want, "{name}");
        }
    }
}
