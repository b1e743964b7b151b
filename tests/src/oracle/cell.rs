//! One question: what becomes of a client that dials an address?

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Case;
use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{Family, Who, cluster_ip, external_ip, gateway, load_balancer_ip, second_address};
use crate::wire;

/// What a client dials by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    /// Those of most Services.
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// The laboratory's; SCTP is spoken over raw sockets.
    #[must_use]
    pub const fn of_sockets(self) -> Option<wire::Transport> {
        match self {
            Self::Tcp => Some(wire::Transport::Tcp),
            Self::Udp => Some(wire::Transport::Udp),
            Self::Sctp => None,
        }
    }

    /// As manifests spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name().to_lowercase())
    }
}

/// What a client can dial of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    ClusterIp,
    NodePort,
    /// The one that a change moves it to.
    NodePortMoved,
    /// On an address that n1 gets while proxies run.
    NodePortAdded,
    /// On n1's second address.
    NodePortSecond,
    /// On n1's end of the pods' network.
    NodePortGateway,
    /// On 127.0.0.1 and ::1.
    NodePortLoopback,
    ExternalIp,
    LoadBalancer,
    ClusterIpOtherPort,
    ExternalIpOtherPort,
    LoadBalancerOtherPort,
    /// An external IP that two Services claim.
    SharedIp,
    /// A LoadBalancer's address that is n1's second one.
    LoadBalancerOnNode,
    /// Another port there: the node's own.
    OtherPortOnNode,
    /// An address of the Services' range that nobody has.
    Unassigned,
    /// The usual ones, with as much as a datagram holds.
    ClusterIpLarge,
    NodePortLarge,
    LoadBalancerLarge,
    /// The ClusterIP, external IP, LoadBalancer address and NodePort in turn.
    Alternately,
}

impl Way {
    /// The addresses that each Service has.
    pub const USUAL: [Self; 5] =
        [Self::ClusterIp, Self::NodePort, Self::NodePortSecond, Self::ExternalIp, Self::LoadBalancer];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster_ip",
            Self::NodePort => "node_port",
            Self::NodePortMoved => "node_port_moved",
            Self::NodePortAdded => "node_port_on_added_address",
            Self::NodePortSecond => "node_port_on_second_address",
            Self::NodePortGateway => "node_port_on_gateway",
            Self::NodePortLoopback => "node_port_on_loopback",
            Self::ExternalIp => "external_ip",
            Self::LoadBalancer => "load_balancer",
            Self::ClusterIpOtherPort => "other_port_of_cluster_ip",
            Self::ExternalIpOtherPort => "other_port_of_external_ip",
            Self::LoadBalancerOtherPort => "other_port_of_load_balancer",
            Self::SharedIp => "shared_external_ip",
            Self::LoadBalancerOnNode => "load_balancer_on_node",
            Self::OtherPortOnNode => "other_port_on_node",
            Self::Unassigned => "unassigned_cluster_ip",
            Self::ClusterIpLarge => "much_by_cluster_ip",
            Self::NodePortLarge => "much_by_node_port",
            Self::LoadBalancerLarge => "much_by_load_balancer",
            Self::Alternately => "all_addresses_in_turn",
        }
    }

    fn targets(self, case: &Case, family: Family) -> Vec<SocketAddr> {
        let n = case.number;
        let (address, port): (IpAddr, u16) = match self {
            Self::ClusterIp | Self::ClusterIpLarge => (cluster_ip(family, n), SERVICE_PORT),
            Self::NodePort | Self::NodePortLarge => (Who::Host.address(family), case.node_port()),
            Self::NodePortMoved => (Who::Host.address(family), case.moved_node_port()),
            Self::NodePortAdded => (added_address(family), case.node_port()),
            Self::NodePortSecond => (second_address(family), case.node_port()),
            Self::NodePortGateway => (gateway(family), case.node_port()),
            Self::NodePortLoopback => {
                (family.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), case.node_port())
            }
            Self::ExternalIp => (external_ip(family, n), SERVICE_PORT),
            Self::LoadBalancer | Self::LoadBalancerLarge => (load_balancer_ip(family, n), SERVICE_PORT),
            Self::ClusterIpOtherPort => (cluster_ip(family, n), SERVICE_PORT + 1),
            Self::ExternalIpOtherPort => (external_ip(family, n), SERVICE_PORT + 1),
            Self::LoadBalancerOtherPort => (load_balancer_ip(family, n), SERVICE_PORT + 1),
            Self::SharedIp => (external_ip(family, SHARED), SERVICE_PORT),
            Self::LoadBalancerOnNode => (second_address(family), SERVICE_PORT),
            Self::OtherPortOnNode => (second_address(family), SERVICE_PORT + 1),
            Self::Unassigned => (cluster_ip(family, 250), SERVICE_PORT),
            Self::Alternately => {
                let each = [Self::ClusterIp, Self::ExternalIp, Self::LoadBalancer, Self::NodePort];
                return each.iter().flat_map(|way| way.targets(case, family)).collect();
            }
        };
        vec![(address, port).into()]
    }
}

/// Number of the external IP that two Services claim.
pub const SHARED: u8 = 150;

/// The address that n1 gets while proxies run.
#[must_use]
pub const fn added_address(family: Family) -> IpAddr {
    family.pick(Ipv4Addr::new(192, 0, 2, 112), Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 0x112))
}

/// A client, the addresses that it dials in turn, and the Service that they belong to.
#[derive(Clone, Debug)]
pub struct Cell<'a> {
    pub case: &'a Case,
    pub way: Way,
    pub client: Who,
    pub family: Family,
    pub transport: Transport,
    /// Clients stick to a backend.
    pub sticky: bool,
}

impl Cell<'_> {
    /// How much to send and to get back, beside a greeting. With the server's own line it fills its largest answer.
    #[must_use]
    pub const fn payload(&self) -> usize {
        match self.way {
            Way::ClusterIpLarge | Way::NodePortLarge | Way::LoadBalancerLarge => 64_900,
            _ => 0,
        }
    }

    /// What to dial, one after the other.
    #[must_use]
    pub fn targets(&self) -> Vec<SocketAddr> {
        self.way.targets(self.case, self.family)
    }
}

impl fmt::Display for Cell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, way, client, family, transport, .. } = self;
        write!(f, "{}::{}::from_{}::{family}::{transport}", case.name, way.name(), client.name())
    }
}
