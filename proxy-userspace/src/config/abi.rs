//! From settings to the one element of the `config` map.

use ipnet::{Ipv4Net, Ipv6Net};
use proxy_common::abi::{self, Addr, Cidr, config_flags};

use super::{Config, DetectLocal, Sockets};

impl Config {
    /// The settings that programs read (F3, F4, F5, F8). A detector by device or by the Node's own range is not
    /// part of it: without a cluster range there is no detector, and ClusterIP traffic keeps its source.
    #[must_use]
    pub fn abi(&self, seed: u32, netns_cookie: u64) -> abi::Config {
        let (v4, v6) = match self.detect_local {
            DetectLocal::ClusterCidr { v4, v6 } => (v4, v6),
            _ => (None, None),
        };
        let mut flags = 0;
        for (on, flag) in [
            (v4.is_some(), config_flags::DETECT_V4),
            (v6.is_some(), config_flags::DETECT_V6),
            (self.masquerade_all, config_flags::MASQUERADE_ALL),
            (self.sockets == Sockets::All, config_flags::SOCKETS_ALL),
        ] {
            flags |= if on { flag } else { 0 };
        }
        abi::Config {
            cluster_v4: cidr_v4(v4.unwrap_or_default()),
            cluster_v6: cidr_v6(v6.unwrap_or_default()),
            flags,
            masquerade_mark: 1 << self.masquerade_bit,
            seed,
            test_clock: 0,
            netns_cookie,
        }
    }
}

fn cidr_v4(net: Ipv4Net) -> Cidr<1> {
    Cidr { address: Addr::v4(net.network().octets()), mask: Addr::v4(net.netmask().octets()) }
}

fn cidr_v6(net: Ipv6Net) -> Cidr<4> {
    Cidr { address: Addr::v6(net.network().octets()), mask: Addr::v6(net.netmask().octets()) }
}
