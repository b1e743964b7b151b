//! Devices: what the agent knows about an edge.

use super::{Addr, abi};

abi! {
    /// Value of the `devices` map; the key is the ifindex in host order. Written from netlink, followed live.
    pub struct Device {
        /// What kernel MASQUERADE would take on this device (F1); unspecified: nothing, masqueraded packets drop.
        pub masquerade_v4: Addr<1>,
        /// The same for IPv6.
        pub masquerade_v6: Addr<4>,
        /// MTU in bytes.
        pub mtu: u32,
        /// Bits of [`device_flags`].
        pub flags: u32,
    }
}

/// Bits of [`Device::flags`].
pub mod device_flags {
    /// A pod's device, as opposed to one that leads to other hosts.
    pub const POD: u32 = 1;
    /// What comes in by it is a pod's, by the local-traffic detector (F7).
    pub const DETECTED: u32 = 2;
    /// Shortcuts may begin and end here: nothing but the stack and our programs has to do with what comes and goes.
    pub const SHORTCUT: u32 = 4;
    /// They may end in the namespace at its other end.
    pub const PEER: u32 = 8;
    /// They may end at its egress: routes lead to it, and neighbours are found by it. Not so of a bridge's port.
    pub const NEIGHBOUR: u32 = 16;
}
