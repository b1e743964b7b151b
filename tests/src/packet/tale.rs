//! The language of packet stories. A row reads as a sentence:
//!
//! ```text
//! tale("a pod's packet to a ClusterIP goes to the endpoint, its answer comes from the ClusterIP (B1)")
//!     .enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND)
//!     .leaves(syn_ack(BACKEND, CLIENT)).becomes(VIP, CLIENT)
//! ```
//!
//! It is told in both families, over TCP, UDP and SCTP where it does not say otherwise, to the path on the host and to
//! the programs in the kernel. `syn` is a datagram over UDP; over SCTP it is an INIT, and `rst` an ABORT.

use std::net::IpAddr;

use proxy_common::abi::{Config, Device, Reason, protocol};

use super::frame::{ACK, FIN, Flags, RST, SYN, SYN_ACK};
use super::shape::Shape;
use super::story::PassedBy;
use super::world::{
    BACKEND_PORT, CATCH_ALL_IFINDEX, IFINDEX, NODE_PORT, PODS_IFINDEX, PORT, PROTOCOLS, Plan,
};

/// A party of the world, see [`Plan`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Pod,
    Outside,
    Vip,
    OtherVip,
    LoadBalancer,
    Bound,
    External,
    Node,
    Second,
    Plain,
    Backend,
    Masquerade,
    Loopback,
    /// Whoever sent the last packet that came out of a hook: port included.
    Seen,
}

impl Who {
    /// Its address; `None` for [`Who::Seen`].
    #[must_use]
    pub const fn address(self, plan: &Plan) -> Option<IpAddr> {
        Some(match self {
            Self::Pod => plan.pod,
            Self::Outside => plan.outside,
            Self::Vip => plan.vip,
            Self::OtherVip => plan.other_vip,
            Self::LoadBalancer => plan.load_balancer,
            Self::Bound => plan.bound,
            Self::External => plan.external,
            Self::Node => plan.node,
            Self::Second => plan.second,
            Self::Plain => plan.plain,
            Self::Backend => plan.backend,
            Self::Masquerade => plan.masquerade,
            Self::Loopback => plan.loopback,
            Self::Seen => return None,
        })
    }
}

/// A party and its port; port 0 in an expectation: any.
pub type Party = (Who, u16);

pub const CLIENT: Party = (Who::Pod, 40_001);
pub const STRANGER: Party = (Who::Outside, 40_002);
pub const BACKEND: Party = (Who::Backend, BACKEND_PORT);
pub const VIP: Party = (Who::Vip, PORT);
pub const OTHER_VIP: Party = (Who::OtherVip, PORT);
pub const NODEPORT: Party = (Who::Node, NODE_PORT);
/// The masquerade address with a port to be chosen.
pub const MASQUERADE: Party = (Who::Masquerade, 0);
/// A party under a source port to be chosen, as masqueraded flows have it between the edges (P-60).
#[must_use]
pub const fn renumbered(party: Party) -> Party {
    (party.0, 0)
}
/// The source of the last packet that came out of a hook.
pub const SEEN: Party = (Who::Seen, 0);

/// A packet to be built.
#[derive(Clone, Debug)]
pub struct Spec {
    pub flags: Flags,
    pub from: Party,
    pub to: Party,
    pub payload: Vec<u8>,
    pub mark: u32,
    pub shapes: Vec<Shape>,
    /// Segments of a super-packet.
    pub segments: u32,
    /// Its frame is for somebody else on the link.
    pub flooded: bool,
    pub forwarded: bool,
    /// Devices that the node's routes lead to, in the order in which they are asked; 0: to none.
    pub routes: [u32; 2],
}

impl Spec {
    #[must_use]
    pub fn marked(self, mark: u32) -> Self {
        Self { mark, ..self }
    }

    #[must_use]
    pub fn with(mut self, shapes: &[Shape]) -> Self {
        self.shapes.extend(shapes);
        self
    }

    /// A switch shows it to every node.
    #[must_use]
    pub fn flooded(self) -> Self {
        Self { flooded: true, ..self }
    }

    /// The stack passes it on. Other packets count as the node's own.
    #[must_use]
    pub fn forwarded(self) -> Self {
        Self { forwarded: true, ..self }
    }

    /// The node's routes lead such packets, and if asked for their answers those, to these devices.
    #[must_use]
    pub fn routed(self, devices: &[u32]) -> Self {
        let mut routes = [0; 2];
        routes.iter_mut().zip(devices).for_each(|(to, device)| *to = *device);
        Self { routes, ..self }
    }

    #[must_use]
    pub fn carrying(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    #[must_use]
    pub fn of_segments(self, segments: u32) -> Self {
        Self { payload: vec![0x5a; 1000 * segments as usize], segments, ..self }
    }
}

macro_rules! segments {
    ($($name:ident $flags:ident),*) => { $(
        #[must_use]
        pub fn $name(from: Party, to: Party) -> Spec {
            Spec { flags: $flags, from, to, payload: b"sluice".to_vec(), mark: 0, shapes: Vec::new(), segments: 0, flooded: false, forwarded: false, routes: [0; 2] }
        }
    )* };
}
segments!(syn SYN, syn_ack SYN_ACK, ack ACK, fin FIN, rst RST);

/// What a hook is to do with a packet.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// It goes on between these ends; nothing else about it has changed but checksums and, as said, the mark.
    Becomes(Party, Party, MarkChange),
    /// It leaves past the stack between these ends, with a hop less.
    PassesBy(Party, Party, MarkChange, PassedBy),
    /// It goes on as it is, mark included.
    Untouched,
    Dropped(Reason),
    /// It is answered by RST or port unreachable.
    Refused(Reason),
}

/// What becomes of the masquerade mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkChange {
    Kept,
    Set,
    Cleared,
}

/// One line of a tale.
#[derive(Clone)]
pub enum Step {
    /// A packet at a hook.
    Hook {
        ingress: bool,
        ifindex: u32,
        /// `None`: the packet that the last hook let through.
        packet: Option<Spec>,
        expect: Expect,
    },
    After(u32),
    /// Generation of the backend's endpoint id; 0: it has left.
    Endpoint(u32),
    /// Nothing refers to this address any more, except flows.
    Removed(Who),
    Config(fn(&mut Config)),
    Device(fn(&mut Device)),
    /// Another proxy has taken over (L-07).
    HandOver,
    PodsDevice(fn(&mut Device)),
    /// The device that packets are seen on has been removed.
    DeviceGone,
    Count(Reason, u64),
    /// Entries in the flow table.
    Entries(usize),
}

/// A story as a row.
#[derive(Clone)]
pub struct Tale {
    pub title: String,
    pub families: Vec<bool>,
    pub protocols: Vec<u8>,
    pub steps: Vec<Step>,
}

/// Begins a row.
#[must_use]
pub fn tale(title: impl Into<String>) -> Tale {
    Tale {
        title: title.into(),
        families: vec![false, true],
        protocols: PROTOCOLS.to_vec(),
        steps: Vec::new(),
    }
}

impl Tale {
    #[must_use]
    pub fn tcp(mut self) -> Self {
        self.protocols = vec![protocol::TCP];
        self
    }

    #[must_use]
    pub fn udp(mut self) -> Self {
        self.protocols = vec![protocol::UDP];
        self
    }

    #[must_use]
    pub fn sctp(mut self) -> Self {
        self.protocols = vec![protocol::SCTP];
        self
    }

    /// What SCTP does otherwise, and is told on its own.
    #[must_use]
    pub fn not_sctp(mut self) -> Self {
        self.protocols.retain(|number| *number != protocol::SCTP);
        self
    }

    /// Where packets open connections.
    #[must_use]
    pub fn connected(mut self) -> Self {
        self.protocols.retain(|number| *number != protocol::UDP);
        self
    }

    #[must_use]
    pub fn v4(mut self) -> Self {
        self.families = vec![false];
        self
    }

    #[must_use]
    pub fn v6(mut self) -> Self {
        self.families = vec![true];
        self
    }

    fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    fn hook(self, ingress: bool, packet: Option<Spec>) -> Self {
        self.step(Step::Hook { ingress, ifindex: IFINDEX, packet, expect: Expect::Untouched })
    }

    /// At ingress of an edge.
    #[must_use]
    pub fn enters(self, packet: Spec) -> Self {
        self.hook(true, Some(packet))
    }

    /// At egress of an edge.
    #[must_use]
    pub fn leaves(self, packet: Spec) -> Self {
        self.hook(false, Some(packet))
    }

    /// That edge is a pod's device.
    #[must_use]
    pub fn by_a_pods_device(self) -> Self {
        self.by(PODS_IFINDEX)
    }

    /// That edge is the catch-all device.
    #[must_use]
    pub fn by_the_catch_all(self) -> Self {
        self.by(CATCH_ALL_IFINDEX)
    }

    fn by(mut self, device: u32) -> Self {
        if let Some(Step::Hook { ifindex, .. }) = self.steps.last_mut() {
            *ifindex = device;
        }
        self
    }

    /// The packet that the last hook let through is forwarded to an edge's egress.
    #[must_use]
    pub fn goes_on(self) -> Self {
        self.hook(false, None)
    }

    fn expecting(mut self, want: Expect) -> Self {
        if let Some(Step::Hook { expect, .. }) = self.steps.last_mut() {
            *expect = want;
        }
        self
    }

    #[must_use]
    pub fn becomes(self, from: Party, to: Party) -> Self {
        self.expecting(Expect::Becomes(from, to, MarkChange::Kept))
    }

    /// And is to be masqueraded at the far edge.
    #[must_use]
    pub fn becomes_marked(self, from: Party, to: Party) -> Self {
        self.expecting(Expect::Becomes(from, to, MarkChange::Set))
    }

    #[must_use]
    pub fn becomes_unmarked(self, from: Party, to: Party) -> Self {
        self.expecting(Expect::Becomes(from, to, MarkChange::Cleared))
    }

    /// It leaves past the stack, by the egress of [`IFINDEX`].
    #[must_use]
    pub fn passes_by(self, from: Party, to: Party) -> Self {
        self.expecting(Expect::PassesBy(
            from,
            to,
            MarkChange::Kept,
            PassedBy { device: IFINDEX, peer: false },
        ))
    }

    /// The same, straight into the pod behind [`PODS_IFINDEX`].
    #[must_use]
    pub fn passes_into_the_pod(self, from: Party, to: Party) -> Self {
        let into = PassedBy { device: PODS_IFINDEX, peer: true };
        self.expecting(Expect::PassesBy(from, to, MarkChange::Kept, into))
    }

    /// The same by the egress of [`PODS_IFINDEX`].
    #[must_use]
    pub fn passes_by_the_pods_device(self, from: Party, to: Party) -> Self {
        let by = PassedBy { device: PODS_IFINDEX, peer: false };
        self.expecting(Expect::PassesBy(from, to, MarkChange::Kept, by))
    }

    /// It leaves past the stack by the egress of this device, where it is to be masqueraded.
    #[must_use]
    pub fn passes_by_marked(self, from: Party, to: Party, device: u32) -> Self {
        self.expecting(Expect::PassesBy(from, to, MarkChange::Set, PassedBy { device, peer: false }))
    }

    #[must_use]
    pub fn untouched(self) -> Self {
        self.expecting(Expect::Untouched)
    }

    #[must_use]
    pub fn dropped(self, reason: Reason) -> Self {
        self.expecting(Expect::Dropped(reason))
    }

    #[must_use]
    pub fn refused(self, reason: Reason) -> Self {
        self.expecting(Expect::Refused(reason))
    }

    /// Ticks of 1.07 s go by.
    #[must_use]
    pub fn after(self, ticks: u32) -> Self {
        self.step(Step::After(ticks))
    }

    /// The endpoint is taken from the Service; its slot is still there.
    #[must_use]
    pub fn endpoint_leaves(self) -> Self {
        self.step(Step::Endpoint(0))
    }

    /// The Service of this address is removed.
    #[must_use]
    pub fn removed(self, who: Who) -> Self {
        self.step(Step::Removed(who))
    }

    #[must_use]
    pub fn configured(self, change: fn(&mut Config)) -> Self {
        self.step(Step::Config(change))
    }

    #[must_use]
    pub fn on_device(self, change: fn(&mut Device)) -> Self {
        self.step(Step::Device(change))
    }

    /// From now on what is begun is another proxy's.
    #[must_use]
    pub fn handed_over(self) -> Self {
        self.step(Step::HandOver)
    }

    #[must_use]
    pub fn on_pods_device(self, change: fn(&mut Device)) -> Self {
        self.step(Step::PodsDevice(change))
    }

    #[must_use]
    pub fn device_gone(self) -> Self {
        self.step(Step::DeviceGone)
    }

    /// So often something has been counted since the beginning.
    #[must_use]
    pub fn counted(self, reason: Reason, times: u64) -> Self {
        self.step(Step::Count(reason, times))
    }

    /// The flow table now has this many entries.
    #[must_use]
    pub fn entries(self, number: usize) -> Self {
        self.step(Step::Entries(number))
    }
}
