//! Where the kernel would send a packet: the question that `ip route get` asks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{RouteMessageBuilder, new_connection};

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// To a process of this node.
    Local,
    /// Out by this device, or by one of these ports where it is a bridge.
    Out { ifindex: u32, ports: Vec<u32> },
    /// Nowhere: why.
    Nowhere(String),
}

/// A packet to be routed.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    pub to: IpAddr,
    /// Its source and the device it comes in by; `None`: the node's own.
    pub from: Option<(IpAddr, u32)>,
    pub mark: u32,
}

/// Asks the kernel of the calling process's network namespace. Needs a tokio runtime.
///
/// # Errors
/// If netlink cannot be used.
pub async fn way(packet: Routed) -> std::io::Result<Way> {
    let (connection, handle, _) = new_connection()?;
    let connection = tokio::spawn(connection);
    let mut found = Box::pin(handle.route().get(question(packet)).execute());
    let way = match found.try_next().await {
        Ok(Some(route)) => match route.header.kind {
            RouteType::Local => Way::Local,
            RouteType::Unicast => match device(&route) {
                Some(ifindex) => Way::Out { ifindex, ports: ports(&handle, ifindex).await },
                None => Way::Nowhere("the route has no device".to_owned()),
            },
            other => Way::Nowhere(format!("the route is of type {other:?}").to_lowercase()),
        },
        Ok(None) => Way::Nowhere("no route".to_owned()),
        Err(error) => Way::Nowhere(error.to_string()),
    };
    connection.abort();
    Ok(way)
}

fn question(packet: Routed) -> RouteMessage {
    let iif = packet.from.map_or(0, |(_, iif)| iif);
    match (packet.to, packet.from.map(|(source, _)| source)) {
        (IpAddr::V4(to), source) => {
            let mut route =
                RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).mark(packet.mark);
            if let Some(IpAddr::V4(source)) = source {
                route = route.source_prefix(source, 32).input_interface(iif);
            }
            route.build()
        }
        (IpAddr::V6(to), source) => {
            let mut route =
                RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(to, 128).mark(packet.mark);
            if let Some(IpAddr::V6(source)) = source {
                route = route.source_prefix(source, 128).input_interface(iif);
            }
            route.build()
        }
    }
}

fn device(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

/// Devices whose master this one is. None is as good as an answer that does not come.
async fn ports(handle: &rtnetlink::Handle, master: u32) -> Vec<u32> {
    let mut links = Box::pin(handle.link().get().execute());
    let mut ports = Vec::new();
    while let Ok(Some(link)) = links.try_next().await {
        if link.attributes.contains(&LinkAttribute::Controller(master)) {
            ports.push(link.header.index);
        }
    }
    ports
}
