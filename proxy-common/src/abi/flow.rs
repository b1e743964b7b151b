//! Flows: what was decided for a connection, and the rings that forget it.

use super::{Addr, Port, abi};

/// Where a program runs. Part of every flow key: an address may be a client at one hook and a frontend at another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// tc ingress of an edge: packets entering the node's stack.
    Ingress = 0,
    /// tc egress of an edge: packets leaving it.
    Egress = 1,
}

impl Hook {
    /// The other one.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }
}

abi! {
    /// Key of the `flows` maps: a packet's five-tuple and the hook that sees it. No device: replies may come back
    /// another way.
    pub struct FlowKey<const N: usize> {
        /// Source address.
        pub src: Addr<N>,
        /// Destination address.
        pub dst: Addr<N>,
        /// Source port.
        pub sport: Port,
        /// Destination port.
        pub dport: Port,
        /// IP protocol number.
        pub protocol: u8,
        /// A [`Hook`].
        pub hook: u8,
        /// Zero.
        pub pad: u16,
    }
}

impl<const N: usize> FlowKey<N> {
    /// The packet that answers this one, seen at the opposite hook of the same edge.
    #[must_use]
    #[inline(always)]
    pub const fn reply(&self) -> Self {
        Self {
            src: self.dst,
            dst: self.src,
            sport: self.dport,
            dport: self.sport,
            protocol: self.protocol,
            hook: self.hook ^ 1,
            pad: 0,
        }
    }

    /// A packet of the other direction at the same hook. A masqueraded flow's masquerade and restore entries have keys that
    /// are so to each other, since the stack between them changes nothing.
    #[must_use]
    #[inline(always)]
    pub const fn mirrored(&self) -> Self {
        let mut key = self.reply();
        key.hook = self.hook;
        key
    }

    /// A value that differs between keys with high probability: written into [`Flow::tag`].
    #[must_use]
    #[inline(always)]
    pub fn tag(&self) -> u32 {
        let mut hash = u32::from(self.protocol) << 8 | u32::from(self.hook) | 0x5105_0000;
        let mut word = 0;
        while word < N {
            hash = (hash ^ self.src.0[word]).wrapping_mul(0x9e37_79b1);
            hash = (hash ^ self.dst.0[word]).wrapping_mul(0x85eb_ca6b);
            word += 1;
        }
        (hash ^ (u32::from(self.sport.0) << 16 | u32::from(self.dport.0))).wrapping_mul(0xc2b2_ae35)
    }
}

abi! {
    /// Value of the `flows` maps: the whole rewrite of one direction of a flow at one edge.
    ///
    /// Two entries make a pair, each the [`Flow::partner`] of the other: translate and restore at the client's
    /// edge, masquerade and unmasquerade at the backend's edge.
    pub struct Flow<const N: usize> {
        /// New source address.
        pub src: Addr<N>,
        /// New destination address.
        pub dst: Addr<N>,
        /// New source port.
        pub sport: Port,
        /// New destination port.
        pub dport: Port,
        /// Ones' complement sum of what the address change adds to a checksum.
        pub address_diff: u32,
        /// When a packet last used this entry, in ticks (2^30 ns of the monotonic clock).
        pub seen: u32,
        /// When the entry was made, in moments: sixteenths of a tick, wrapping. Layouts before 12 wrote ticks: to later ones such a flow is
        /// an old one, and to those before a later one's is new for as long as it lives.
        pub created: u32,
        /// Index into `services`; [`Flow::NO_SERVICE`] for direct and masquerade pairs.
        pub service: u32,
        /// Index into `endpoints`, meaningful when `service` is.
        pub endpoint: u32,
        /// Device the first packet was seen on.
        pub ifindex: u32,
        /// [`Turn::serial`] of the pair's turn in the ring.
        pub serial: u32,
        /// Generation of `endpoint` when the flow was made.
        pub generation: u16,
        /// A [`Kind`].
        pub kind: u8,
        /// Bits of [`state`].
        pub state: u8,
        /// [`FlowKey::tag`] of the key this value was written for. Elements of a preallocated hash are reused at
        /// once: a reader compares the tag after what it has read.
        pub tag: u32,
        /// On the reply's entry of a connection: what a client has to show that has had the answer, see [`crate::wire::Headers::asks_for`].
        /// 0: not known.
        pub proof: u32,
        /// When this direction was last seen to come out of the stack where its flow says, in ticks: it may pass the stack by for a
        /// while. 0: not yet; [`Flow::NO_LEASE`]: never again. Of translate and restore entries.
        pub lease: u32,
        /// Device of the backend, likewise: by it the one direction leaves, and the other must come. 0: not known.
        pub far: u32,
        /// Length in bytes of the longest packet of this direction that has come out there since the lease was last new: none that is
        /// longer passes by, as a route may have a smaller MTU than its device has. [`Flow::ROUTED`]: the MTU of the route itself.
        pub size: u32,
        /// Nothing; see [`super::GROWS`].
        pub more: [u32; MORE],
    }
}

/// Moments in a tick.
pub const MOMENTS: u32 = 16;

/// Words that a flow has more in the build that tests upgrades.
pub const MORE: usize = if super::GROWS { 2 } else { 0 };

/// Which of the four rewrites an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Client's edge, ingress: C → F becomes C → B.
    Translate = 1,
    /// Client's edge, egress: B → C becomes F → C.
    Restore = 2,
    /// Backend's edge, egress: C → B becomes M → B.
    Masquerade = 3,
    /// Backend's edge, ingress: B → M becomes B → C.
    Unmasquerade = 4,
}

/// Bits of [`Flow::state`]. Each entry records what *its own* direction has shown; a pair is judged by both. In TCP's words, see
/// [`crate::wire::tcp_flags`].
pub mod state {
    /// A packet of this direction has passed. On the reply's entry: the flow is answered.
    pub const SEEN: u8 = 1;
    /// This direction has sent FIN.
    pub const FIN: u8 = 2;
    /// This direction's latest segment was a RST.
    pub const RST: u8 = 4;
    /// Packets of this flow are to be masqueraded at the far edge: set the mark.
    pub const MARK: u8 = 8;
    /// On the forward entry: the client has completed the handshake, with what only the answer has told. Whoever only pretends to be
    /// there cannot.
    pub const ESTABLISHED: u8 = 16;
    /// This direction's latest segment was a SYN that opens a connection: only then does a SYN-ACK begin anything.
    pub const BEGUN: u8 = 32;
    /// On the forward entry: the pair has the turn of one before it, which may come at once.
    pub const INHERITS: u8 = 64;
}

impl<const N: usize> Flow<N> {
    /// [`Flow::service`] of pairs that belong to no Service.
    pub const NO_SERVICE: u32 = u32::MAX;
    /// [`Flow::lease`] of a connection that is ending: all that is left of it goes by the stack.
    pub const NO_LEASE: u32 = u32::MAX;

    /// Bit of [`Flow::size`]: the routes alone have given the lease, and the stack knows nothing of the flow.
    pub const ROUTED: u32 = 1 << 31;

    /// Key of the other entry of the pair, given this entry's own key.
    #[must_use]
    #[inline(always)]
    pub const fn partner(&self, key: &FlowKey<N>) -> FlowKey<N> {
        let mut partner = *key;
        self.write_partner(key, &mut partner);
        partner
    }

    /// [`Flow::partner`], written in place: as a value it would be built on the stack first.
    #[inline(always)]
    pub const fn write_partner(&self, key: &FlowKey<N>, to: &mut FlowKey<N>) {
        to.src = self.dst;
        to.dst = self.src;
        to.sport = self.dport;
        to.dport = self.sport;
        to.protocol = key.protocol;
        to.hook = key.hook ^ 1;
        to.pad = 0;
    }

    /// The kind, or `None` for a number that no version of this layout writes.
    #[must_use]
    #[inline(always)]
    pub const fn kind(&self) -> Option<Kind> {
        Some(match self.kind {
            1 => Kind::Translate,
            2 => Kind::Restore,
            3 => Kind::Masquerade,
            4 => Kind::Unmasquerade,
            _ => return None,
        })
    }
}

/// Turns more or less that a CPU keeps to itself before it adds them to the number that all CPUs see.
pub const TURNS_HELD_BACK: u32 = 16;

abi! {
    /// Element of the `RING` queues: a pair of flow entries that waits to be looked at, in order of insertion.
    pub struct Turn<const N: usize> {
        /// Key of the pair's forward entry.
        pub key: FlowKey<N>,
        /// [`Flow::serial`] of the pair that this turn is for, and perhaps [`Turn::MISSED`]. A later pair with the same key has
        /// inherited it, or has a turn of its own.
        pub serial: u32,
    }
}

impl<const N: usize> Turn<N> {
    /// Bit of [`Turn::serial`]: the pair was not there when the turn came last.
    pub const MISSED: u32 = 1 << 31;

    /// Whether it is the turn of the pair with this [`Flow::serial`].
    #[must_use]
    #[inline(always)]
    pub const fn is_of(&self, serial: u32) -> bool {
        (self.serial ^ serial) & !Self::MISSED == 0
    }
}

abi! {
    /// Value of the `fragments` maps: what a hook has made of a datagram's first fragment. The key is a [`FlowKey`] with the
    /// datagram's id in place of the ports.
    pub struct Fragment<const N: usize> {
        /// New source address.
        pub src: Addr<N>,
        /// New destination address.
        pub dst: Addr<N>,
        /// The masquerade mark as it was left, no other bits.
        pub mark: u32,
        /// When that was, in ticks.
        pub seen: u32,
        /// [`FlowKey::tag`] of the key this value was written for.
        pub tag: u32,
    }
}
