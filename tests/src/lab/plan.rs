//! The address plan.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::Knowledge;

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Family of an address.
    #[must_use]
    pub const fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The one of the two that has this family.
    #[must_use]
    pub const fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(v4),
            Self::V6 => IpAddr::V6(v6),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "v4",
            Self::V6 => "v6",
        })
    }
}

/// How the pods of n1 are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wiring {
    /// Each pod's veth ends in the node; one host route a pod.
    Routed,
    /// Each pod's veth is a port of the bridge `cni0`, hairpin mode off.
    Bridged,
}

impl Wiring {
    pub const BOTH: [Self; 2] = [Self::Routed, Self::Bridged];
}

impl fmt::Display for Wiring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Routed => "routed",
            Self::Bridged => "bridged",
        })
    }
}

/// Where sockets can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// Pods of n1.
    Pa,
    Pb,
    Pc,
    /// A pod of n2.
    Pd,
    /// A process of n1 itself.
    Host,
    /// A process of n2 itself.
    OtherHost,
    /// The outside client.
    Client,
}

impl Who {
    pub const ALL: [Self; 7] =
        [Self::Pa, Self::Pb, Self::Pc, Self::Pd, Self::Host, Self::OtherHost, Self::Client];
    /// The pods of n1.
    pub const LOCAL_PODS: [Self; 3] = [Self::Pa, Self::Pb, Self::Pc];

    /// Name of the place; for pods the pod's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pa => "pa",
            Self::Pb => "pb",
            Self::Pc => "pc",
            Self::Pd => "pd",
            Self::Host => "host",
            Self::OtherHost => "host2",
            Self::Client => "cl",
        }
    }

    /// The namespace it lives in.
    #[must_use]
    pub const fn namespace(self) -> &'static str {
        match self {
            Self::Host => "n1",
            Self::OtherHost => "n2",
            other => other.name(),
        }
    }

    /// Its first address in a family.
    #[must_use]
    pub const fn address(self, family: Family) -> IpAddr {
        let (v4, v6) = match self {
            Self::Pa => (Ipv4Addr::new(10, 244, 1, 5), Ipv6Addr::new(0xfd00, 0x10, 1, 0, 0, 0, 0, 5)),
            Self::Pb => (Ipv4Addr::new(10, 244, 1, 6), Ipv6Addr::new(0xfd00, 0x10, 1, 0, 0, 0, 0, 6)),
            Self::Pc => (Ipv4Addr::new(10, 244, 1, 7), Ipv6Addr::new(0xfd00, 0x10, 1, 0, 0, 0, 0, 7)),
            Self::Pd => (Ipv4Addr::new(10, 244, 2, 5), Ipv6Addr::new(0xfd00, 0x10, 2, 0, 0, 0, 0, 5)),
            Self::Host => (Ipv4Addr::new(192, 0, 2, 11), Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x11)),
            Self::OtherHost => (Ipv4Addr::new(192, 0, 3, 12), Ipv6Addr::new(0xfd00, 3, 0, 0, 0, 0, 0, 0x12)),
            Self::Client => (Ipv4Addr::new(198, 51, 100, 9), Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 9)),
        };
        family.pick(v4, v6)
    }

    /// Name of the node the place belongs to, as Kubernetes knows it.
    #[must_use]
    pub const fn node(self) -> &'static str {
        match self {
            Self::Pd | Self::OtherHost => "n2",
            _ => "n1",
        }
    }
}

/// The pods' gateway on n1: on every pod's veth (routed) or on the bridge.
#[must_use]
pub const fn gateway(family: Family) -> IpAddr {
    family.pick(Ipv4Addr::new(10, 244, 1, 1), Ipv6Addr::new(0xfd00, 0x10, 1, 0, 0, 0, 0, 1))
}

/// n1's second address.
#[must_use]
pub const fn second_address(family: Family) -> IpAddr {
    family.pick(Ipv4Addr::new(192, 0, 2, 111), Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x111))
}

/// The ClusterIP number `n`.
#[must_use]
pub const fn cluster_ip(family: Family, n: u8) -> IpAddr {
    family.pick(Ipv4Addr::new(10, 96, 0, n), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n as u16))
}

/// The LoadBalancer address number `n`.
#[must_use]
pub const fn load_balancer_ip(family: Family, n: u8) -> IpAddr {
    family.pick(Ipv4Addr::new(203, 0, 113, n), Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 0, n as u16))
}

/// The external IP number `n`, below 100.
#[must_use]
pub const fn external_ip(family: Family, n: u8) -> IpAddr {
    family.pick(Ipv4Addr::new(203, 0, 113, 100 + n), Ipv6Addr::new(0xfd00, 0x203, 0, 0, 0, 0, 1, n as u16))
}

/// All pods' addresses, as kube-proxy's `--cluster-cidr` wants them.
pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10::/32";

/// What the wire oracle has to know.
#[must_use]
pub fn knowledge() -> Knowledge {
    let service_prefixes = vec![
        (cluster_ip(Family::V4, 0), 16),
        (cluster_ip(Family::V6, 0), 112),
        (load_balancer_ip(Family::V4, 0), 24),
        (load_balancer_ip(Family::V6, 0), 64),
    ];
    Knowledge { service_prefixes }
}
