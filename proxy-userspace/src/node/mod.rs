//! What the agent knows of its node from netlink: devices, addresses, which devices are edges; and its UDP sockets.

mod catch_all;
mod classify;
mod diag;
mod facts;
mod follow;
mod kube_proxy;
mod leftovers;
mod netlink;
mod nftables;
mod rules;
mod shortcut;
mod sockets;
mod ways;
mod xfrm;

pub use catch_all::{CatchAll, CatchAllError, INNER, OUTER, SOURCE_V4, SOURCE_V6, remove_catch_all};
pub use classify::{EdgeKind, Link, LinkType, classify, selected};
pub use diag::SocketId;
pub use facts::{Address, Facts, Inventory};
pub use follow::{Node, NodeError};
pub use kube_proxy::Rules;
pub use leftovers::Leftover;
pub use rules::are_routes_by_address;
pub use shortcut::Ways;
pub use sockets::{SocketDiag, SocketsError};
pub use ways::{Routed, Way, way};
pub use xfrm::policies as xfrm_policies;

use std::net::{Ipv4Addr, Ipv6Addr};

/// A device through which traffic enters or leaves the node's stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    pub name: String,
    pub ifindex: u32,
    pub kind: EdgeKind,
    /// Frames start with an Ethernet header.
    pub ethernet: bool,
    /// Its hardware address; empty without.
    pub address: Vec<u8>,
    /// What kernel MASQUERADE would take on the device that packets leave by (F1): for a bridge's port, the bridge.
    pub masquerade_v4: Option<Ipv4Addr>,
    pub masquerade_v6: Option<Ipv6Addr>,
    /// Bytes.
    pub mtu: u32,
    /// Leads to a pod rather than to other hosts.
    pub pod: bool,
    /// A port of a bridge: what comes in may be for others than its own hardware address, and the node's all the same.
    pub port: bool,
    /// What comes in by it is a pod's, by a detector that goes by device (F7).
    pub detected: bool,
    /// How shortcuts may end here, or what keeps them from beginning and ending here.
    pub ways: Result<Ways, String>,
}

/// A change of [`Facts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// New, or changed in any field: attach it.
    Edge(Edge),
    /// No edge any more. `device_gone`: its programs went with it; otherwise detach them.
    EdgeGone { ifindex: u32, name: String, device_gone: bool },
    /// The node's own addresses, all of them.
    Addresses(Vec<Address>),
}
