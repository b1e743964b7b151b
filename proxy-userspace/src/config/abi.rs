//! From settings to the one element of the `config` map, and to marks on devices.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proxy_common::abi::{self, Addr, Cidr, SERVICE_CIDRS, config_flags, flags};

use super::{Config, DetectLocal, Profile, Sockets};

impl Config {
    /// The settings that programs read (F3, F4, F5, F8). `earlier` is what is in force: the secret is kept, and with it the
    /// ranges of `NodeCIDR`, until the Node is known (F6), and what is to be put back.
    #[must_use]
    pub fn abi(&self, earlier: &abi::Config, seed: u32, netns_cookie: u64) -> abi::Config {
        const RANGES: u32 = config_flags::DETECT_V4 | config_flags::DETECT_V6;
        let kept = flags([
            (self.detect_local == DetectLocal::NodeCidr, RANGES),
            (!self.conntrack.tcp_be_liberal, config_flags::MADE_LIBERAL),
        ]);
        let mut config = abi::Config {
            flags: earlier.flags & kept,
            masquerade_mark: 1 << self.masquerade_bit,
            seed,
            test_clock: 0,
            netns_cookie,
            ..*earlier
        };
        config.flags |= flags([
            (self.masquerade_all, config_flags::MASQUERADE_ALL),
            (self.sockets == Sockets::All, config_flags::SOCKETS_ALL),
        ]);
        if !self.guards_service_cidrs() {
            set_service_cidrs(&mut config, &[]);
        }
        match self.detect_local {
            DetectLocal::ClusterCidr { v4, v6 } => set_ranges(&mut config, v4, v6),
            DetectLocal::NodeCidr => {}
            DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => {
                config.flags |= config_flags::DETECT_DEVICE;
            }
        }
        config
    }

    /// Whether ClusterIPs that no Service has are guarded: in kube-proxy's nftables mode they are (B15). An earlier agent's
    /// ranges stay until they are known.
    #[must_use]
    pub fn guards_service_cidrs(&self) -> bool {
        self.profile == Profile::Nftables
    }
}

/// Guards these ranges and no others; returns those that there is no room for (B15).
pub fn set_service_cidrs(config: &mut abi::Config, ranges: &[IpNet]) -> Vec<IpNet> {
    (config.services_v4, config.services_v6) = ([Cidr::NONE; SERVICE_CIDRS], [Cidr::NONE; SERVICE_CIDRS]);
    let (mut v4, mut v6) = (config.services_v4.iter_mut(), config.services_v6.iter_mut());
    let place = |range: &&IpNet| match range {
        IpNet::V4(net) => v4.next().map(|place| *place = cidr_v4(*net)).is_none(),
        IpNet::V6(net) => v6.next().map(|place| *place = cidr_v6(*net)).is_none(),
    };
    ranges.iter().filter(place).copied().collect()
}

impl DetectLocal {
    /// F6: the first range of each family of the node's `podCIDRs`. False: this detector does not go by them.
    pub fn set_node(&self, pod_cidrs: &[IpNet], config: &mut abi::Config) -> bool {
        if *self != Self::NodeCidr {
            return false;
        }
        let v4 = pod_cidrs.iter().find_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
        let v6 = pod_cidrs.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
        set_ranges(config, v4, v6);
        true
    }

    /// F7: whether what comes in by a device is a pod's; `device` is the one that the stack sees, for a bridge's port the
    /// bridge.
    #[must_use]
    pub fn is_pods(&self, device: &str) -> bool {
        match self {
            Self::BridgeInterface(name) => device == name,
            Self::InterfaceNamePrefix(prefix) => device.starts_with(prefix.as_str()),
            Self::ClusterCidr { .. } | Self::NodeCidr => false,
        }
    }
}

/// A family without a range has no detector (F5, F8).
fn set_ranges(config: &mut abi::Config, v4: Option<Ipv4Net>, v6: Option<Ipv6Net>) {
    config.flags &= !(config_flags::DETECT_V4 | config_flags::DETECT_V6);
    config.flags |= flags([(v4.is_some(), config_flags::DETECT_V4), (v6.is_some(), config_flags::DETECT_V6)]);
    config.cluster_v4 = cidr_v4(v4.unwrap_or_default());
    config.cluster_v6 = cidr_v6(v6.unwrap_or_default());
}

fn cidr_v4(net: Ipv4Net) -> Cidr<1> {
    Cidr { address: Addr::v4(net.network().octets()), mask: Addr::v4(net.netmask().octets()) }
}

fn cidr_v6(net: Ipv6Net) -> Cidr<4> {
    Cidr { address: Addr::v6(net.network().octets()), mask: Addr::v6(net.netmask().octets()) }
}

#[cfg(test)]
pub mod tests {
    use super::super::{RunArgs, load};
    use super::*;

    /// Nothing is in force yet.
    pub const ZERO: abi::Config = abi::Config {
        cluster_v4: Cidr { address: Addr([0]), mask: Addr([0]) },
        cluster_v6: Cidr { address: Addr([0; 4]), mask: Addr([0; 4]) },
        services_v4: [Cidr::NONE; SERVICE_CIDRS],
        services_v6: [Cidr::NONE; SERVICE_CIDRS],
        flags: 0,
        masquerade_mark: 0,
        seed: 0,
        test_clock: 0,
        netns_cookie: 0,
    };

    fn config(detect_local: DetectLocal) -> Config {
        let mut args = RunArgs::default();
        args.sluice.manifests = Some("/unused".into());
        args.sluice.edges = "auto".to_owned();
        args.sluice.sockets = "host".to_owned();
        Config { detect_local, ..load(&args).unwrap() }
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn contains(config: &abi::Config, address: [u8; 4]) -> bool {
        config.flags & config_flags::DETECT_V4 != 0 && config.cluster_v4.contains(&Addr::v4(address))
    }

    #[test]
    fn f5_f8_cluster_cidr() {
        let v4 = Some("10.244.0.0/16".parse().unwrap());
        let both = config(DetectLocal::ClusterCidr { v4, v6: None }).abi(&ZERO, 7, 9);
        assert_eq!((both.flags, both.seed, both.netns_cookie), (config_flags::DETECT_V4, 7, 9));
        assert!(contains(&both, [10, 244, 9, 1]) && !contains(&both, [10, 245, 9, 1]));
        let none = config(DetectLocal::ClusterCidr { v4: None, v6: None }).abi(&both, 7, 9);
        assert_eq!(none.flags, 0, "F8: an earlier agent's range is not kept");
    }

    #[test]
    fn f6_node_cidr_follows_the_node_and_is_kept_over_a_restart() {
        let detect = DetectLocal::NodeCidr;
        let mut first = config(detect.clone()).abi(&ZERO, 7, 9);
        assert_eq!(first.flags, 0, "not known yet: no detector");
        let ranges = nets(&["10.244.1.0/24", "fd00:10:1::/64", "10.244.2.0/24"]);
        assert!(detect.set_node(&ranges, &mut first));
        assert_eq!(first.flags, config_flags::DETECT_V4 | config_flags::DETECT_V6);
        assert!(contains(&first, [10, 244, 1, 9]) && !contains(&first, [10, 244, 2, 9]), "the first counts");
        let mut next = config(detect.clone()).abi(&first, 7, 9);
        assert_eq!(next, first);
        assert!(detect.set_node(&nets(&["fd00:10:7::/64"]), &mut next));
        assert_eq!(next.flags, config_flags::DETECT_V6, "F5: a family without a range has no detector");
        assert!(!DetectLocal::BridgeInterface("cni0".into()).set_node(&ranges, &mut next));
    }

    #[test]
    fn b15_ranges_are_guarded_in_nftables_mode_as_far_as_there_is_room() {
        let nft = Config { profile: Profile::Nftables, ..config(DetectLocal::NodeCidr) };
        let mut first = nft.abi(&ZERO, 7, 9);
        let ranges = nets(&["10.1.0.0/16", "10.3.0.0/16", "fd00:96::/112", "10.5.0.0/16", "10.7.0.0/16"]);
        assert_eq!(set_service_cidrs(&mut first, &ranges), []);
        let more = nets(&["10.9.0.0/16"]);
        assert_eq!(set_service_cidrs(&mut first, &[ranges, more.clone()].concat()), more);
        let guarded =
            |config: &abi::Config, address| Cidr::inside_any(&config.services_v4, &Addr::v4(address));
        assert!(guarded(&first, [10, 7, 3, 4]) && !guarded(&first, [10, 9, 3, 4]));
        assert!(Cidr::inside_any(
            &first.services_v6,
            &Addr([u32::from_ne_bytes([0xfd, 0, 0, 0x96]), 0, 0, 0])
        ));
        assert_eq!(nft.abi(&first, 7, 9), first, "kept over a restart");
        let iptables = config(DetectLocal::NodeCidr).abi(&first, 7, 9);
        assert!(!guarded(&iptables, [10, 7, 3, 4]), "another mode's next agent");
    }

    #[test]
    fn f7_devices() {
        let (bridge, prefix) =
            (DetectLocal::BridgeInterface("cni0".into()), DetectLocal::InterfaceNamePrefix("cali".into()));
        for (detect, device, want) in [
            (&bridge, "cni0", true),
            (&bridge, "cni01", false),
            (&prefix, "cali12", true),
            (&prefix, "cali", true),
            (&prefix, "eth0", false),
            (&DetectLocal::NodeCidr, "cni0", false),
        ] {
            assert_eq!(detect.is_pods(device), want, "{detect:?} {device}");
        }
        assert_eq!(config(bridge).abi(&ZERO, 7, 9).flags, config_flags::DETECT_DEVICE);
        assert_eq!(config(prefix).abi(&ZERO, 7, 9).flags, config_flags::DETECT_DEVICE);
    }
}
