//! Services (one per Service port and family) and the slots that hold their endpoints.

use super::{Abi, Addr, Port, abi};

/// Slots in one inner array of a `slots` map. A run never crosses a chunk, so a list has at most this many
/// endpoints.
pub const CHUNK: u32 = 16_384;

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
        /// Index into the `endpoints` array, whose entry equals `generation` for as long as this endpoint of this
        /// Service port may be used. Flows remember both, so that UDP flows notice a departed backend (P-52).
        pub id: u32,
    }
}
