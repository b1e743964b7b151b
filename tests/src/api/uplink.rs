//! The wire between a node and the control plane, and what may happen to it.

use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Result;

use super::{ControlPlane, PLANE_ADDRESS, PLANE_ADDRESS6};
use crate::lab::command::{ip_batch, run_in};
use crate::lab::namespace::Namespace;

/// A node's connection to the control plane: one device, one address of each family.
pub struct Uplink {
    /// Name of the control plane's end.
    device: String,
    address: String,
    address6: String,
}

impl Uplink {
    /// Connects `node` by a new device of the name `device` there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn connect(plane: &ControlPlane, node: &Namespace, device: &str) -> Result<Self> {
        static NUMBER: AtomicU8 = AtomicU8::new(10);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (address, address6) = (format!("198.18.0.{number}"), format!("fd00:198:18::{number}"));
        let uplink = Self { device: format!("node{number}"), address, address6 };
        let (mine, netns) = (&uplink.device, node.name());
        let pair = format!("link add {mine} type veth peer name {device} netns {netns}");
        ip_batch(Some(plane.netns().name()), &[pair])?;
        uplink.heal(plane)?;
        let (address, address6) = (&uplink.address, &uplink.address6);
        let lines = [
            format!("link set {device} up"),
            format!("addr add {address}/32 dev {device}"),
            format!("addr add {address6}/128 dev {device} nodad"),
            format!("addr add fe80::2/64 dev {device} nodad"),
            format!("route add {PLANE_ADDRESS}/32 dev {device} src {address}"),
            format!("route add {PLANE_ADDRESS6}/128 via fe80::1 dev {device}"),
        ];
        ip_batch(Some(node.name()), &lines)?;
        Ok(uplink)
    }

    /// The node's IPv4 address on it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether `address` is one of the node's, by which the API server sees the agent.
    pub fn is_address(&self, address: &str) -> bool {
        address == self.address || address == self.address6
    }

    /// Kills every connection of `node` to the API server, as a middlebox with too little memory would.
    ///
    /// # Errors
    /// If `ss` fails.
    pub fn cut(&self, node: &Namespace) -> Result<()> {
        run_in(node.path(), "ss", &["--kill", "--tcp", "dport", "=", ":6443"]).map(drop)
    }

    /// Takes the API server out of the node's reach: what is sent is lost.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn part(&self, plane: &ControlPlane) -> Result<()> {
        ip_batch(Some(plane.netns().name()), &[format!("link set {} down", self.device)])
    }

    /// Loses what the API server sends to the node's IPv4 address, and only that: no end of a connection is seen.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn mute(&self, plane: &ControlPlane) -> Result<()> {
        ip_batch(Some(plane.netns().name()), &[format!("route replace blackhole {}/32", self.address)])
    }

    /// Ends what [`Uplink::part`] or [`Uplink::mute`] began. The routes went with the device.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn heal(&self, plane: &ControlPlane) -> Result<()> {
        let Self { device, address, address6 } = self;
        let lines = [
            format!("link set {device} up"),
            // Both ends have one link-local address by which the other is routed.
            format!("addr replace fe80::1/64 dev {device} nodad"),
            format!("route replace {address}/32 dev {device}"),
            format!("route replace {address6}/128 via fe80::2 dev {device}"),
        ];
        ip_batch(Some(plane.netns().name()), &lines)
    }
}
