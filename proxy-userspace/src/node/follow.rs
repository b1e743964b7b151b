//! Netlink: a first full picture, then every change.

use std::collections::BTreeSet;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::tc::{TcHandle, TcMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use thiserror::Error;
use tokio::task::JoinHandle;

use super::{Address, Facts, Inventory, Link, LinkType, NodeEvent};
use crate::config::{DetectLocal, Edges};

/// What can go wrong with netlink.
#[derive(Debug, Error)]
pub enum NodeError {
    #[error("cannot open a netlink socket: CAP_NET_ADMIN and AF_NETLINK are needed")]
    Open { source: std::io::Error },
    #[error("cannot list {what} by netlink")]
    List { what: &'static str, source: Box<rtnetlink::Error> },
    #[error("the netlink socket was closed: start again")]
    Closed,
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, rtnetlink::sys::SocketAddr)>;

/// The node as netlink tells it, followed live. Belongs to the network namespace of the thread that opened it.
pub struct Node {
    edges: Edges,
    detect: DetectLocal,
    handle: Handle,
    messages: Messages,
    connection: JoinHandle<()>,
    inventory: Inventory,
    facts: Facts,
    /// Devices whose root has another queueing discipline, which no message tells when it is the kernel's own.
    asked: BTreeSet<u32>,
    /// Messages were lost: everything must be listed again.
    stale: bool,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Node {
    /// Subscribes to changes, then lists links and addresses. Needs a tokio runtime.
    ///
    /// # Errors
    /// If netlink cannot be used.
    pub async fn open(edges: Edges, detect: DetectLocal) -> Result<Self, NodeError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Tc,
        ];
        let (connection, handle, messages) =
            new_multicast_connection(&groups).map_err(|source| NodeError::Open { source })?;
        let connection = tokio::spawn(connection);
        let (inventory, facts) = (Inventory::default(), Facts::default());
        let asked = BTreeSet::new();
        let mut node =
            Self { edges, detect, handle, messages, connection, inventory, facts, asked, stale: true };
        node.rescan().await?;
        node.facts = node.inventory.facts(&node.edges, &node.detect);
        Ok(node)
    }

    /// The facts as of the last event returned.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Waits until something changed; all messages at hand make one set of events. After lost messages everything
    /// is listed again (L-08). Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the socket was closed, or listing failed, which the next call tries again.
    pub async fn next(&mut self) -> Result<Vec<NodeEvent>, NodeError> {
        loop {
            if !self.stale {
                let (message, _) = self.messages.next().await.ok_or(NodeError::Closed)?;
                self.note(message);
                while let Ok((message, _)) = self.messages.try_recv() {
                    self.note(message);
                }
            }
            self.ask().await?;
            let lost = self.stale;
            if lost {
                self.rescan().await?;
            }
            let facts = self.inventory.facts(&self.edges, &self.detect);
            let mut events = self.inventory.events(&self.facts, &facts);
            if lost {
                // A device may have been replaced by one that looks the same: have every edge looked at.
                events.retain(|event| !matches!(event, NodeEvent::Edge(_)));
                events.extend(facts.edges.iter().cloned().map(NodeEvent::Edge));
            }
            self.facts = facts;
            if !events.is_empty() {
                return Ok(events);
            }
        }
    }

    fn note(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => self.note_link(&link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link)) if is_device(&link) => {
                self.inventory.remove_link(link.header.index);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                if let Some(address) = read_address(&address) {
                    self.inventory.note_address(address);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(address)) => {
                if let Some(address) = read_address(&address) {
                    self.inventory.remove_address(address.ip, address.ifindex);
                }
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(told)) => {
                self.note_discipline(&told, true);
            }
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelQueueDiscipline(told)) => {
                self.note_discipline(&told, false);
            }
            NetlinkPayload::Overrun(_) => {
                tracing::warn!("netlink messages were lost: listing links and addresses again");
                self.stale = true;
            }
            _ => {}
        }
    }

    fn note_link(&mut self, link: &LinkMessage) {
        if is_device(link) {
            self.inventory.set_link(read_link(link));
        }
    }

    fn note_discipline(&mut self, told: &TcMessage, is_there: bool) {
        let Ok(ifindex) = u32::try_from(told.header.index) else { return };
        if told.header.parent == TcHandle::INGRESS {
            self.inventory.set_filtered(ifindex, is_there);
        } else {
            self.asked.insert(ifindex);
        }
    }

    /// Asks anew about [`Self::asked`]. A device that is gone is told of by a message of its own.
    async fn ask(&mut self) -> Result<(), NodeError> {
        while let Some(ifindex) = self.asked.first().copied() {
            let mut links = self.handle.link().get().match_index(ifindex).execute();
            match links.try_next().await {
                Ok(Some(link)) => self.note_link(&link),
                Ok(None) => {}
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {}
                Err(source) => return Err(NodeError::List { what: "a link", source: Box::new(source) }),
            }
            self.asked.remove(&ifindex);
        }
        Ok(())
    }

    async fn rescan(&mut self) -> Result<(), NodeError> {
        let mut inventory = Inventory::default();
        let failed = |what| move |source| NodeError::List { what, source: Box::new(source) };
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links.try_next().await.map_err(failed("links"))? {
            inventory.set_link(read_link(&link));
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.map_err(failed("addresses"))? {
            if let Some(address) = read_address(&address) {
                inventory.set_address(address);
            }
        }
        let mut disciplines = self.handle.qdisc().get().execute();
        while let Some(told) = disciplines.try_next().await.map_err(failed("queueing disciplines"))? {
            if told.header.parent == TcHandle::INGRESS
                && let Ok(ifindex) = u32::try_from(told.header.index)
            {
                inventory.set_filtered(ifindex, true);
            }
        }
        self.inventory = inventory;
        self.asked.clear();
        self.stale = false;
        Ok(())
    }
}

/// Bridges report their ports once more, in a family of their own, when a port leaves: that is no device going.
fn is_device(link: &LinkMessage) -> bool {
    link.header.interface_family == netlink_packet_route::AddressFamily::Unspec
}

pub(super) fn read_link(message: &LinkMessage) -> Link {
    let header = &message.header;
    let mut link = Link {
        ifindex: header.index,
        name: String::new(),
        kind: LinkType::Nic,
        up: header.flags.contains(LinkFlags::Up),
        ethernet: header.link_layer_type == LinkLayerType::Ether,
        mtu: 0,
        master: None,
        address: Vec::new(),
        peer_elsewhere: false,
        discipline: String::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(master) => link.master = (*master != 0).then_some(*master),
            LinkAttribute::Address(address) => link.address.clone_from(address),
            LinkAttribute::Qdisc(name) => link.discipline.clone_from(name),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = read_kind(kind);
                    }
                }
            }
            _ => {}
        }
    }
    if header.flags.contains(LinkFlags::Loopback) {
        link.kind = LinkType::Loopback;
    }
    link
}

fn read_kind(kind: &InfoKind) -> LinkType {
    match kind {
        InfoKind::Veth => LinkType::Veth,
        InfoKind::Netkit => LinkType::Netkit,
        InfoKind::Bridge => LinkType::Bridge,
        InfoKind::Bond | InfoKind::Team => LinkType::Bond,
        InfoKind::Vlan | InfoKind::MacSec => LinkType::Vlan,
        InfoKind::Wireguard => LinkType::Wireguard,
        InfoKind::Tun => LinkType::Tun,
        InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan | InfoKind::IpVtap => LinkType::SubInterface,
        InfoKind::Dummy
        | InfoKind::Ifb
        | InfoKind::Nlmon
        | InfoKind::Vrf
        | InfoKind::Can
        | InfoKind::Vcan
        | InfoKind::Vxcan => LinkType::Virtual,
        // Open vSwitch's own devices stand for its bridges.
        InfoKind::Other(name) if name == "openvswitch" => LinkType::Bridge,
        InfoKind::Ipoib
        | InfoKind::Hsr
        | InfoKind::Netdevsim
        | InfoKind::VirtWifi
        | InfoKind::Wwan
        | InfoKind::RmNet
        | InfoKind::Dsa => LinkType::Nic,
        // What is left, and what is not known yet, carries packets to other hosts inside packets.
        _ => LinkType::Tunnel,
    }
}

fn read_address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    let mut flags = AddressFlags::from_bits_truncate(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point device ADDRESS is the peer's.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip = ip?;
    // Bit 0 says "secondary" for IPv4 and "temporary" for IPv6, where it does not matter here.
    let bad = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    Some(Address {
        ip,
        prefix: message.header.prefix_len,
        ifindex: message.header.index,
        global: message.header.scope == AddressScope::Universe,
        secondary: ip.is_ipv4() && flags.contains(AddressFlags::Secondary),
        usable: ip.is_ipv4() || !flags.intersects(bad),
    })
}
