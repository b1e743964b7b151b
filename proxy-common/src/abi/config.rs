//! The one element of the `config` array: settings that may change while programs run.

use super::{Addr, abi};

abi! {
    /// An address prefix: `address & mask`. A zero mask matches everything, so use the flag that goes with it.
    pub struct Cidr<const N: usize> {
        /// Network address, host bits zero.
        pub address: Addr<N>,
        /// Network mask, wire order.
        pub mask: Addr<N>,
    }
}

impl<const N: usize> Cidr<N> {
    /// Whether `address` lies inside.
    #[must_use]
    #[inline(always)]
    pub fn contains(&self, address: &Addr<N>) -> bool {
        let mut difference = 0;
        let mut word = 0;
        while word < N {
            difference |= (address.0[word] ^ self.address.0[word]) & self.mask.0[word];
            word += 1;
        }
        difference == 0
    }
}

/// Ranges of Service addresses that are guarded, for each family.
pub const SERVICE_CIDRS: usize = 4;

impl<const N: usize> Cidr<N> {
    /// No range: nothing is [`Cidr::inside_any`] of these.
    pub const NONE: Self = Self { address: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED };

    /// Whether `address` lies in one of `ranges`, which come before the first [`Cidr::NONE`]. The mask of a range is not zero.
    #[must_use]
    #[inline(always)]
    pub fn inside_any(ranges: &[Self; SERVICE_CIDRS], address: &Addr<N>) -> bool {
        for range in ranges {
            if range.mask.0[0] == 0 {
                return false;
            }
            if range.contains(address) {
                return true;
            }
        }
        false
    }
}

abi! {
    /// Value of the `config` array's only element.
    pub struct Config {
        /// The cluster's pods, or this node's (F6), IPv4; used with [`config_flags::DETECT_V4`].
        pub cluster_v4: Cidr<1>,
        /// The cluster's pods, IPv6; used with [`config_flags::DETECT_V6`].
        pub cluster_v6: Cidr<4>,
        /// Ranges that ClusterIPs come from, where what is not assigned is guarded (B15); the rest is [`Cidr::NONE`].
        pub services_v4: [Cidr<1>; SERVICE_CIDRS],
        /// The same for IPv6.
        pub services_v6: [Cidr<4>; SERVICE_CIDRS],
        /// Bits of [`config_flags`].
        pub flags: u32,
        /// kube-proxy's masquerade mark, `1 << masqueradeBit` (F3).
        pub masquerade_mark: u32,
        /// Secret of the masquerade port order, drawn at the agent's first start.
        pub seed: u32,
        /// The clock in ticks for programs loaded in test mode.
        pub test_clock: u32,
        /// Cookie of the network namespace whose sockets are the node's own (`SO_NETNS_COOKIE`).
        pub netns_cookie: u64,
    }
}

/// Bits of [`Config::flags`].
pub mod config_flags {
    /// A local-traffic detector exists for IPv4 (F5): ClusterIP traffic from outside `cluster_v4` is masqueraded.
    pub const DETECT_V4: u32 = 1;
    /// The same for IPv6.
    pub const DETECT_V6: u32 = 2;
    /// `masqueradeAll` (F4): all ClusterIP traffic is masqueraded.
    pub const MASQUERADE_ALL: u32 = 4;
    /// Sockets of every network namespace are translated at connect time (`--sockets all`).
    pub const SOCKETS_ALL: u32 = 8;
    /// The local-traffic detector goes by device, for both families (F7): what comes in by one with
    /// [`super::device_flags::DETECTED`] is a pod's.
    pub const DETECT_DEVICE: u32 = 16;
    /// kube-proxy's NAT is there: TCP segments without a flow belong to connections that it has begun, and the stack
    /// finishes them.
    pub const STRAYS_PASS: u32 = 32;
    /// Flows of TCP may take shortcuts.
    pub const SHORTCUT_TCP: u32 = 64;
    /// Those of UDP may.
    pub const SHORTCUT_UDP: u32 = 128;
    /// The routes alone give leases: nothing in the stack has anything against a packet.
    pub const SHORTCUT_ALWAYS: u32 = 256;
    /// For the sake of shortcuts an agent has made connection tracking liberal, which it was not: for whoever cleans up.
    pub const MADE_LIBERAL: u32 = 512;
    /// No rule and no choice between paths looks at ports: what the routes tell for two addresses and a transport holds for every flow between
    /// them.
    pub const ROUTES_BY_ADDRESS: u32 = 1024;
}
