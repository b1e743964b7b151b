//! Services (one per Service port and family) and the slots that hold their endpoints.

use super::{Abi, Addr, Port, abi};

/// Slots in one inner array of a `slots` map. A run never crosses a chunk, so a list has at most this many
/// endpoints.
pub const CHUNK: u32 = 16_384;

/// Services in one inner array of the services map.
pub const SERVICES_CHUNK: u32 = 16_384;

/// [`Generations`] in one inner array of the endpoints map.
pub const GENERATIONS_CHUNK: u32 = 32_768;

/// A contiguous run of slots: offset in the high half, count in the low half, so that one 64-bit store switches
/// a list. Offset / [`CHUNK`] names the inner array, the remainder the slot.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run(pub u64);

impl Abi for Run {
    const CHECKED: () = ();
}

impl Run {
    /// The empty list.
    pub const EMPTY: Self = Self(0);

    /// `count` slots from `offset` on.
    #[must_use]
    pub const fn new(offset: u32, count: u32) -> Self {
        Self((offset as u64) << 32 | count as u64)
    }

    /// Index of the first slot.
    #[must_use]
    pub const fn offset(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Number of slots.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.0 as u32
    }
}

abi! {
    /// Value of the `services` array. Everything about a Service port that changes.
    pub struct Service {
        /// Endpoints for NodePorts, external IPs and LoadBalancer addresses.
        pub external: Run,
        /// Endpoints for the ClusterIP.
        pub internal: Run,
        /// With [`service_flags::LOCAL_EXTERNAL`]: endpoints for pods and for the node itself when they dial what `external`
        /// is for (C7, C8).
        pub cluster: Run,
        /// Bits of [`service_flags`].
        pub flags: u32,
        /// Session affinity timeout in seconds; 0: none.
        pub affinity_timeout: u32,
    }
}

impl Service {
    /// Epoch of its affinity records.
    #[must_use]
    #[inline(always)]
    pub const fn epoch(&self) -> u16 {
        service_flags::epoch(self.flags)
    }

    /// A free entry: no flags, no endpoints.
    pub const FREE: Self = Self {
        external: Run::EMPTY,
        internal: Run::EMPTY,
        cluster: Run::EMPTY,
        flags: 0,
        affinity_timeout: 0,
    };
}

/// Bits of [`Service::flags`].
pub mod service_flags {
    /// The entry is in use. A frontend that leads to an entry without it is being removed: treated as unlisted.
    pub const IN_USE: u32 = 1;
    /// External traffic is masqueraded (policy Cluster, C5).
    pub const MASQUERADE_EXTERNAL: u32 = 2;
    /// An empty external list means silence, not refusal: endpoints exist, none on this node (C3, C6).
    pub const DROP_EXTERNAL: u32 = 4;
    /// An empty internal list means silence, not refusal (C4).
    pub const DROP_INTERNAL: u32 = 8;
    /// External traffic is kept to this node (policy Local, C6), except for pods and the node itself: they are served from
    /// [`super::Service::cluster`].
    pub const LOCAL_EXTERNAL: u32 = 16;
    /// LoadBalancer addresses are open to the sources in `ranges` only (C16).
    pub const SOURCE_RANGES: u32 = 32;
    /// This node's own address is among them: its processes may dial, and so may the LoadBalancer address itself (C17).
    pub const NODE_IN_RANGES: u32 = 64;
    /// The upper half is the epoch of the service's affinity records (D5): of another one, a record does not count.
    pub const EPOCH_SHIFT: u32 = 16;

    /// The epoch in them.
    #[must_use]
    #[inline(always)]
    pub const fn epoch(flags: u32) -> u16 {
        (flags >> EPOCH_SHIFT) as u16
    }
}

abi! {
    /// Sources that may dial LoadBalancer addresses of a service, or one such source.
    pub struct SourceRange<const N: usize> {
        /// Index into `services`.
        pub service: u32,
        /// Network address, or the source.
        pub address: Addr<N>,
    }
}

abi! {
    /// Key of the `ranges` maps, longest prefix first; the value means nothing. Written for services with
    /// [`service_flags::SOURCE_RANGES`] only.
    pub struct RangeKey<const N: usize> {
        /// Leading bits of `range` that count: 32 for the service, and the prefix's length.
        pub bits: u32,
        /// What they are compared with.
        pub range: SourceRange<N>,
    }
}

abi! {
    /// Key of the `affinity` maps.
    pub struct AffinityKey<const N: usize> {
        /// The client; unspecified for this node's own processes, which share one record (D8).
        pub client: Addr<N>,
        /// Index into `services`: affinity is a Service port's (D1).
        pub service: u32,
    }
}

abi! {
    /// Value of the `affinity` maps: where a client's last connection went.
    pub struct Affinity<const N: usize> {
        /// Endpoint address.
        pub address: Addr<N>,
        /// Endpoint port.
        pub port: Port,
        /// Epoch of the service's records when this one was written.
        pub epoch: u16,
        /// When the last connection was made, in ticks.
        pub seen: u32,
    }
}

abi! {
    /// A slot: one endpoint in one run.
    pub struct Backend<const N: usize> {
        /// Endpoint address, wire order.
        pub address: Addr<N>,
        /// Endpoint port, wire order.
        pub port: Port,
        /// Generation of `id` when the slot was written.
        pub generation: u16,
        /// The `endpoints` array tells `generation` of it for as long as this endpoint of this Service port may be used. Flows
        /// remember both, so that UDP flows notice a departed backend (P-52).
        pub id: u32,
    }
}

/// Value of the `endpoints` array: generations of as many neighbouring endpoint ids as fit into the 64 bits that an element
/// of an array takes anyway; 0: gone.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations(pub u64);

impl Abi for Generations {
    const CHECKED: () = ();
}

impl Generations {
    /// Ids in one element.
    pub const COUNT: u32 = 4;

    /// The element that has this id's generation.
    #[must_use]
    #[inline(always)]
    pub const fn index(id: u32) -> u32 {
        id / Self::COUNT
    }

    /// Generation of `id`, in its own element.
    #[must_use]
    #[inline(always)]
    pub const fn of(self, id: u32) -> u16 {
        (self.0 >> Self::shift(id)) as u16
    }

    /// With another generation for `id`.
    #[must_use]
    pub const fn with(self, id: u32, generation: u16) -> Self {
        let others = self.0 & !((u16::MAX as u64) << Self::shift(id));
        Self(others | (generation as u64) << Self::shift(id))
    }

    const fn shift(id: u32) -> u32 {
        id % Self::COUNT * u16::BITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_in_an_element_do_not_touch_each_other() {
        let ids = 8..8 + Generations::COUNT;
        let all = ids.clone().fold(Generations::default(), |all, id| all.with(id, id as u16 + 1));
        for id in ids.clone() {
            assert_eq!((Generations::index(id), all.of(id)), (2, id as u16 + 1));
            let gone = all.with(id, 0);
            for other in ids.clone() {
                assert_eq!(gone.of(other), if other == id { 0 } else { all.of(other) }, "{id} {other}");
            }
        }
    }
}
