//! The plan's result: what should be installed for each Service port and family.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proxy_common::abi::{FrontendKind, protocol};
use serde::{Deserialize, Serialize};

/// An IP family. A Service exists once per family, independently (A15).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub const fn of(address: &IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The API's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// A transport protocol of a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Sctp => protocol::SCTP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// Identity of a Service port in one family (A4): same port number for two protocols are two ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    /// Port name, empty for an unnamed port.
    pub port: Arc<str>,
    pub protocol: Protocol,
    pub family: Family,
}

impl fmt::Display for PortId {
    /// kube-proxy's spelling: `namespace/service:port`, without the colon for an unnamed port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service)?;
        if !self.port.is_empty() {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

/// One address and port that clients dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortFrontend {
    pub kind: FrontendKind,
    /// Unspecified for a NodePort: it is served on every address that is selected for NodePorts.
    pub address: IpAddr,
    pub port: u16,
}

/// What should be installed for one [`PortId`]. Lists are sorted and without duplicates; equal ones mostly share their memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortState {
    /// Frontends that this port owns. A frontend claimed by several Services is in the winner's list only (A17).
    pub frontends: Vec<PortFrontend>,
    /// Endpoints for NodePort, external IP and LoadBalancer frontends.
    pub external: Arc<[SocketAddr]>,
    /// Endpoints for the ClusterIP.
    pub internal: Arc<[SocketAddr]>,
    /// Under external policy Local: endpoints for pods and the node itself, that dial what `external` is for (C7, C8).
    /// Empty otherwise.
    pub cluster: Arc<[SocketAddr]>,
    /// Of a UDP port: endpoints that serve and are in no list. Nobody is sent there, and flows that lead there go on (G2).
    pub kept: Vec<SocketAddr>,
    /// With the flag `SOURCE_RANGES`: who may dial LoadBalancer addresses (C16), sorted. Empty otherwise.
    pub ranges: Vec<IpNet>,
    /// Bits of `proxy_common::abi::service_flags`, without `IN_USE` and the epoch.
    pub flags: u32,
    /// Seconds; 0: no affinity.
    pub affinity_timeout: u32,
}

impl PortState {
    /// The lists in the order in which a service's entry has them.
    #[must_use]
    pub fn lists(&self) -> [&[SocketAddr]; 3] {
        [&self.external, &self.internal, &self.cluster]
    }
}

/// A port on which load balancers ask whether this node has endpoints of a Service (H7).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node, for each family that the Service has (H9).
    pub ready: Vec<(Family, usize)>,
}

/// One step of the plan: install this, or (`None`) remove the port.
pub type PortChange = (PortId, Option<PortState>);
