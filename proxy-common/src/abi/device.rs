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
        /// The hardware addresses, destination and source in wire order, of the frames that leave by it into a pod: what comes straight
        /// into the pod must have them too, as a bridge may be behind it. Written by the programs. Zero: not known yet;
        /// [`Device::SEVERAL`] in the first word: there is more than one destination.
        pub frames: [u32; 3],
    }
}

impl Device {
    /// Multicast, and so nobody's own.
    pub const SEVERAL: u32 = u32::MAX;
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
    /// A port of a bridge: what comes in may be for the bridge's address, or for another port's.
    pub const PORT: u32 = 32;
}
