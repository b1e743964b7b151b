//! The catch-all device: a pair of devices of this namespace, and the routes that lead Service addresses into it.
//!
//! What the node's own processes send to a Service goes into [`OUTER`] and comes out of [`INNER`], whose program gives it
//! the source [`SOURCE_V4`] or [`SOURCE_V6`] (routed back to `INNER`) and a backend. Neither device has an address:
//! reverse path checks are content because routes lead back the way a packet came, in both directions.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use futures::stream::{self, StreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::classify::LinkType;
use super::follow::read_link;
use super::shortcut::ways;
use super::{Edge, EdgeKind};

/// Where packets go in.
pub const OUTER: &str = "sluice-catch";
/// Where they come out, and answers go in.
pub const INNER: &str = "sluice-catch-in";
/// Source of what comes out: link-local, so that no network has it.
pub const SOURCE_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 1);
/// The same for IPv6, from a unique local prefix: the kernel does not forward link-local addresses.
pub const SOURCE_V6: Ipv6Addr = Ipv6Addr::new(0xfd73, 0x6c75, 0x6963, 0x6500, 0, 0, 0, 1);

/// Both ends have this one: without ARP a packet is sent to the sender's own address.
const MAC: [u8; 6] = [0x02, 0x73, 0x6c, 0x75, 0x69, 0x63];
/// Marks routes as ours for routing daemons (`proto` of ip-route); nobody's in iproute2's table.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);
/// Routes written at a time.
const AT_A_TIME: usize = 64;

/// What can go wrong with the device.
#[derive(Debug, Error)]
pub enum CatchAllError {
    #[error("cannot open a netlink socket: CAP_NET_ADMIN and AF_NETLINK are needed")]
    Open { source: std::io::Error },
    #[error("device {name} exists and is no veth device: it is not ours, rename it")]
    Foreign { name: &'static str },
    #[error("cannot {operation} {object}: {source}")]
    Netlink { operation: &'static str, object: String, source: Box<rtnetlink::Error> },
}

/// A route that could not be written.
pub type Refused = (IpAddr, CatchAllError);

/// The devices, both up, and the Service addresses that are routed into them.
#[derive(Debug)]
pub struct CatchAll {
    netlink: Netlink,
    outer: u32,
    inner: LinkMessage,
    /// The kernel has IPv6.
    has_v6: bool,
    routes: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    fn open() -> Result<Self, CatchAllError> {
        let (connection, handle, _) = new_connection().map_err(|source| CatchAllError::Open { source })?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// The device of this name, if there is one.
    async fn find(&self, name: &'static str) -> Result<Option<LinkMessage>, CatchAllError> {
        let mut found = self.handle.link().get().match_name(name).execute();
        match found.try_next().await {
            Ok(found) => Ok(found),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(failed("look for", name)(error)),
        }
    }

    /// Brings a device up that is to have no address of its own.
    async fn bring_up(&self, index: u32) -> Result<(), rtnetlink::Error> {
        let none = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
        let attribute = LinkAttribute::AfSpecUnspec(vec![none]);
        let bare = LinkUnspec::new_with_index(index).append_extra_attribute(attribute).build();
        match self.handle.link().set(bare).execute().await {
            // A kernel without IPv6 makes no such addresses.
            Err(error) if errno(&error) != Some(libc::EAFNOSUPPORT) => return Err(error),
            _ => {}
        }
        self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await
    }

    /// Deletes the pair; whether there was one.
    async fn remove(&self) -> Result<bool, CatchAllError> {
        let mut removed = false;
        for name in [OUTER, INNER] {
            let Some(link) = self.find(name).await? else { continue };
            if read_link(&link).kind != LinkType::Veth {
                return Err(CatchAllError::Foreign { name });
            }
            match self.handle.link().del(link.header.index).execute().await {
                // Its other end took it along.
                Err(error) if errno(&error) != Some(libc::ENODEV) => {
                    return Err(failed("remove", name)(error));
                }
                _ => removed = true,
            }
        }
        Ok(removed)
    }
}

fn failed(operation: &'static str, object: impl ToString) -> impl FnOnce(rtnetlink::Error) -> CatchAllError {
    let object = object.to_string();
    move |source| CatchAllError::Netlink { operation, object, source: Box::new(source) }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.code.map(|code| -code.get()),
        _ => None,
    }
}

/// What both ends have in common: no neighbours, no multicast.
fn quiet<T>(link: LinkMessageBuilder<T>) -> LinkMessageBuilder<T> {
    link.address(MAC.to_vec()).arp(false).multicast(false)
}

impl CatchAll {
    /// Makes the pair, or takes over that of an earlier agent with its routes. Needs a tokio runtime. Nothing is routed
    /// into a new pair yet.
    ///
    /// # Errors
    /// Something of another kind has the names, or the source's route.
    pub async fn open() -> Result<Self, CatchAllError> {
        let netlink = Netlink::open()?;
        let pair = match (netlink.find(OUTER).await?, netlink.find(INNER).await?) {
            (Some(outer), Some(inner)) => Some((outer, inner)),
            // Half a pair is none; a device of another kind is refused.
            (Some(_), None) | (None, Some(_)) => {
                netlink.remove().await?;
                None
            }
            (None, None) => None,
        };
        let (outer, inner) = match pair {
            Some(pair) => pair,
            None => create(&netlink).await?,
        };
        for (link, name) in [(&outer, OUTER), (&inner, INNER)] {
            if read_link(link).kind != LinkType::Veth {
                return Err(CatchAllError::Foreign { name });
            }
            netlink.bring_up(link.header.index).await.map_err(failed("bring up", name))?;
        }
        let mut device =
            Self { netlink, outer: outer.header.index, inner, has_v6: true, routes: BTreeSet::new() };
        let inner = device.inner.header.index;
        device.add(SOURCE_V4.into(), inner, true).await?;
        device.has_v6 = match device.add(SOURCE_V6.into(), inner, true).await {
            Ok(()) => true,
            Err(error) => {
                tracing::info!(%error, "the catch-all device serves IPv4 only");
                false
            }
        };
        device.refresh().await?;
        Ok(device)
    }

    /// The end that carries programs, as an edge.
    #[must_use]
    pub fn edge(&self) -> Edge {
        let link = read_link(&self.inner);
        let ways = ways(&link, EdgeKind::CatchAll, false, false);
        Edge {
            address: link.address,
            name: link.name,
            ifindex: link.ifindex,
            kind: EdgeKind::CatchAll,
            ethernet: true,
            masquerade_v4: Some(SOURCE_V4),
            masquerade_v6: Some(SOURCE_V6),
            mtu: link.mtu,
            pod: false,
            port: false,
            detected: false,
            ways,
        }
    }

    /// The addresses that are routed into the pair.
    #[must_use]
    pub const fn routes(&self) -> &BTreeSet<IpAddr> {
        &self.routes
    }

    /// Whether IPv6 is served.
    #[must_use]
    pub const fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// Looks which routes are there: others may have removed some.
    ///
    /// # Errors
    /// They cannot be listed.
    pub async fn refresh(&mut self) -> Result<(), CatchAllError> {
        self.routes = self.list().await?;
        Ok(())
    }

    /// Adds and removes routes. Those that could not be written.
    pub async fn route(&mut self, changes: impl IntoIterator<Item = (IpAddr, bool)>) -> Vec<Refused> {
        let wanted: Vec<_> = changes
            .into_iter()
            .filter(|(ip, add)| *add != self.routes.contains(ip) && (self.has_v6 || ip.is_ipv4()))
            .collect();
        let device = &*self;
        let done: Vec<_> = stream::iter(wanted)
            .map(|(ip, add)| async move {
                let written =
                    if add { device.add(ip, device.outer, false).await } else { device.drop_route(ip).await };
                (ip, add, written)
            })
            .buffer_unordered(AT_A_TIME)
            .collect()
            .await;
        let mut refused = Vec::new();
        for (ip, add, written) in done {
            match written {
                Ok(()) if add => drop(self.routes.insert(ip)),
                Ok(()) => drop(self.routes.remove(&ip)),
                Err(error) => refused.push((ip, error)),
            }
        }
        refused
    }

    /// Takes the pair away, and with it its routes.
    ///
    /// # Errors
    /// The kernel keeps it.
    pub async fn remove(self) -> Result<(), CatchAllError> {
        self.netlink.remove().await.map(drop)
    }

    /// A route to `ip` by device `index`; `again`: one that is there already may stay.
    async fn add(&self, ip: IpAddr, index: u32, again: bool) -> Result<(), CatchAllError> {
        let request = self.netlink.handle.route().add(route(ip, index));
        let request = if again { request.replace() } else { request };
        request.execute().await.map_err(failed("add a route to", ip))
    }

    async fn drop_route(&self, ip: IpAddr) -> Result<(), CatchAllError> {
        match self.netlink.handle.route().del(route(ip, self.outer)).execute().await {
            Err(error) if errno(&error) == Some(libc::ESRCH) => Ok(()),
            done => done.map_err(failed("remove the route to", ip)),
        }
    }

    /// The routes that lead into the pair.
    async fn list(&self) -> Result<BTreeSet<IpAddr>, CatchAllError> {
        let mut found = BTreeSet::new();
        let empty =
            [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()];
        for filter in empty {
            let mut routes = self.netlink.handle.route().get(filter).execute();
            while let Some(route) = routes.try_next().await.map_err(failed("list routes of", OUTER))? {
                found.extend(leads_to(&route, self.outer));
            }
        }
        Ok(found)
    }
}

async fn create(netlink: &Netlink) -> Result<(LinkMessage, LinkMessage), CatchAllError> {
    let inner = quiet(LinkMessageBuilder::<LinkUnspec>::new().name(INNER)).build();
    let pair =
        quiet(LinkVeth::new(OUTER, INNER)).set_info_data(InfoData::Veth(InfoVeth::Peer(inner))).build();
    netlink.handle.link().add(pair).execute().await.map_err(failed("create", OUTER))?;
    let gone = || failed("create", OUTER)(rtnetlink::Error::RequestFailed);
    Ok((netlink.find(OUTER).await?.ok_or_else(gone)?, netlink.find(INNER).await?.ok_or_else(gone)?))
}

fn route(ip: IpAddr, index: u32) -> RouteMessage {
    match ip {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .output_interface(index)
            .scope(RouteScope::Link)
            .protocol(PROTOCOL)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .output_interface(index)
            .protocol(PROTOCOL)
            .build(),
    }
}

/// The address that a route of ours leads by device `index` to.
fn leads_to(route: &RouteMessage, index: u32) -> Option<IpAddr> {
    let full = match route.header.address_family {
        AddressFamily::Inet => 32,
        AddressFamily::Inet6 => 128,
        _ => return None,
    };
    if route.header.destination_prefix_length != full || route.header.protocol != PROTOCOL {
        return None;
    }
    let mut destination = None;
    let mut device = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(oif) => device = Some(*oif),
            _ => {}
        }
    }
    destination.filter(|_| device == Some(index))
}

/// Takes the pair away if there is one, for clean-up; whether there was. Needs a tokio runtime.
///
/// # Errors
/// The kernel keeps it, or its name is another device's.
pub async fn remove_catch_all() -> Result<bool, CatchAllError> {
    Netlink::open()?.remove().await
}
