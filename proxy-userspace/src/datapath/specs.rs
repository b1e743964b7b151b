//! Which maps outlive the agent, and what each must look like to be taken over.

use std::io;
use std::os::fd::OwnedFd;

use proxy_common::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, CHUNK, Config, Device, Flow, FlowKey, Fragment,
    Frontend, FrontendKey, GENERATIONS_CHUNK, Generations, Guard, RangeKey, Recent, SERVICES_CHUNK, Service,
    SocketPairs, TURNS_HELD_BACK, Turn,
};

use super::sys::{self, MapInfo, MapShape};

/// `enum bpf_map_type`.
pub mod kind {
    pub const HASH: u32 = 1;
    pub const ARRAY: u32 = 2;
    pub const PERCPU_ARRAY: u32 = 6;
    pub const LRU_HASH: u32 = 9;
    pub const LPM_TRIE: u32 = 11;
    pub const ARRAY_OF_MAPS: u32 = 12;
    pub const QUEUE: u32 = 22;
    pub const SK_STORAGE: u32 = 24;
}

const NO_PREALLOC: u32 = 1;
const MMAPABLE: u32 = 1 << 10;

/// Inner arrays of a slots map.
pub const CHUNKS: u32 = 1024;

/// How many entries each kind of thing may have. What an adopted map holds wins over what is asked for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Service ports, both families together.
    pub services: u32,
    /// Frontends of one family.
    pub frontends: u32,
    /// Endpoints, counted per Service port.
    pub endpoints: u32,
    /// Slots of one family: entries of all endpoint lists. Memory is taken by the [`CHUNK`].
    pub slots: u32,
    /// Distinct addresses of one family: Services' and the node's.
    pub addresses: u32,
    /// Source ranges of one family.
    pub ranges: u32,
    /// Affinity records of one family: clients times Service ports that ask. The oldest makes way (D7).
    pub affinity: u32,
    /// Flow entries of one family; a connection takes two, four where it is masqueraded.
    pub flows: u32,
}

impl Default for Sizes {
    /// More than any cluster has. What has a default beyond what Kubernetes allows, 10,000 Services and 150,000 pods, takes the memory that
    /// it needs; a range takes none until it is there.
    fn default() -> Self {
        Self {
            services: 1_048_576,
            frontends: 4_194_304,
            endpoints: 8_388_608,
            slots: CHUNKS * CHUNK,
            addresses: 2_097_152,
            ranges: 262_144,
            affinity: 65_536,
            flows: default_flows(),
        }
    }
}

/// kube-proxy's rule for conntrack: 32,768 a core, at least 131,072 (J9).
fn default_flows() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(cores).unwrap_or(512).saturating_mul(32_768).max(131_072)
}

/// What the programs count turns with: a lock of theirs and a number.
pub type RingUsed = [u32; 2];

/// Turns a ring holds beyond [`pairs`], for each CPU: one that looks at a turn must be able to queue it again, and CPUs that
/// look at the number of turns at the same time may each add one.
const SLACK: u32 = 4;

/// A map as this layout has it.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub name: &'static str,
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub flags: u32,
    /// `None`: fixed by the object.
    pub entries: Option<u32>,
}

impl Spec {
    /// Makes a map of this kind with room for so many entries.
    pub fn make(&self, name: &str, entries: u32) -> io::Result<OwnedFd> {
        let Self { kind, key, value, flags, .. } = *self;
        let shape = MapShape { kind, key_size: key, value_size: value, max_entries: entries, flags };
        sys::create_map(name, shape)
    }

    /// Why `found` cannot take this map's place: what it is and what is needed.
    pub fn conflict(&self, found: &MapInfo) -> Option<(String, String)> {
        let is = (found.kind, found.key_size, found.value_size, found.flags);
        let needed = (self.kind, self.key, self.value, self.flags);
        let tell = |(kind, key, value, flags)| {
            format!("of type {kind} with {key}-byte keys, {value}-byte values and flags {flags:#x}")
        };
        (is != needed).then(|| (tell(is), tell(needed)))
    }
}

const fn spec<K, V>(name: &'static str, kind: u32, flags: u32, entries: Option<u32>) -> Spec {
    Spec { name, kind, key: size_of::<K>() as u32, value: size_of::<V>() as u32, flags, entries }
}

/// Every map that is pinned and adopted. Working memory of the programs is not among them.
pub fn persistent(sizes: &Sizes, cpus: u32) -> Vec<Spec> {
    let turns = sizes.flows / 2 + SLACK * cpus;
    vec![
        spec::<u32, u32>("FRONTENDS_OF_V4", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("FRONTENDS_OF_V6", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("SERVICES_OF", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("SLOTS_V4", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("SLOTS_V6", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("ADDRESSES_OF_V4", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("ADDRESSES_OF_V6", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u64>("SIEVE", kind::ARRAY, MMAPABLE, None),
        spec::<u32, u64>("ENDPOINT_SIEVE", kind::ARRAY, MMAPABLE, None),
        spec::<RangeKey<1>, u32>("RANGES_V4", kind::LPM_TRIE, NO_PREALLOC, Some(sizes.ranges)),
        spec::<RangeKey<4>, u32>("RANGES_V6", kind::LPM_TRIE, NO_PREALLOC, Some(sizes.ranges)),
        spec::<u32, u32>("AFFINITY_V4", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, u32>("AFFINITY_V6", kind::ARRAY_OF_MAPS, 0, None),
        spec::<FlowKey<1>, Fragment<1>>("FRAGMENTS_V4", kind::LRU_HASH, 0, Some(datagrams(cpus))),
        spec::<FlowKey<4>, Fragment<4>>("FRAGMENTS_V6", kind::LRU_HASH, 0, Some(datagrams(cpus))),
        spec::<u32, u32>("ENDPOINTS_OF", kind::ARRAY_OF_MAPS, 0, None),
        spec::<u32, Device>("DEVICES", kind::HASH, NO_PREALLOC, None),
        spec::<FlowKey<1>, Flow<1>>("FLOWS_V4", kind::HASH, 0, Some(sizes.flows)),
        spec::<FlowKey<4>, Flow<4>>("FLOWS_V6", kind::HASH, 0, Some(sizes.flows)),
        spec::<(), Turn<1>>("RING_V4", kind::QUEUE, 0, Some(turns)),
        spec::<(), Turn<4>>("RING_V6", kind::QUEUE, 0, Some(turns)),
        spec::<u32, RingUsed>("RING_USED", kind::ARRAY, 0, None),
        spec::<u32, u32>("RING_PENDING", kind::PERCPU_ARRAY, 0, None),
        spec::<u32, Recent<1>>("RECENT_V4", kind::PERCPU_ARRAY, 0, Some(Recent::<1>::PLACES)),
        spec::<u32, Recent<4>>("RECENT_V6", kind::PERCPU_ARRAY, 0, Some(Recent::<4>::PLACES)),
        spec::<u32, u32>("NEWS", kind::ARRAY, 0, None),
        spec::<u32, Config>("CONFIG", kind::ARRAY, 0, None),
        spec::<u32, Guard>("GUARD", kind::ARRAY, 0, None),
        spec::<u32, u64>("COUNTERS", kind::PERCPU_ARRAY, 0, None),
        spec::<u32, SocketPairs>("SOCKETS", kind::SK_STORAGE, NO_PREALLOC, None),
    ]
}

/// A chunk of slots: an inner array. `N` words an address.
pub const fn slots<const N: usize>() -> Spec {
    let name = if N == 1 { "SLOTS_V4" } else { "SLOTS_V6" };
    spec::<u32, Backend<N>>(name, kind::ARRAY, 0, Some(CHUNK))
}

/// A chunk of services.
pub const SERVICES: Spec = spec::<u32, Service>("SERVICES", kind::ARRAY, MMAPABLE, Some(SERVICES_CHUNK));

/// A chunk of endpoints' generations.
pub const ENDPOINTS: Spec =
    spec::<u32, Generations>("ENDPOINTS", kind::ARRAY, MMAPABLE, Some(GENERATIONS_CHUNK));

/// Arrays that come in chunks.
pub const CHUNKED: [Spec; 4] = [slots::<1>(), slots::<4>(), SERVICES, ENDPOINTS];

/// The hash of frontends: see [`super::growing`].
pub const fn frontends<const N: usize>() -> Spec {
    let name = if N == 1 { "FRONTENDS_V4" } else { "FRONTENDS_V6" };
    spec::<FrontendKey<N>, Frontend>(name, kind::HASH, NO_PREALLOC, None)
}

/// That of addresses, likewise.
pub const fn addresses<const N: usize>() -> Spec {
    let name = if N == 1 { "ADDRESSES_V4" } else { "ADDRESSES_V6" };
    spec::<Addr<N>, AddressClass>(name, kind::HASH, NO_PREALLOC, None)
}

/// Hashes that grow. Their pins have the names that they had when there was no other map around them: agents from before and this one
/// take them over from each other. Of arrays that come in chunks now an agent from before begins with empty ones.
pub const GROWING: [Spec; 4] = [frontends::<1>(), frontends::<4>(), addresses::<1>(), addresses::<4>()];

/// The map of affinity records. `N` words an address.
pub const fn affinity<const N: usize>() -> Spec {
    let name = if N == 1 { "AFFINITY_V4" } else { "AFFINITY_V6" };
    spec::<AffinityKey<N>, Affinity<N>>(name, kind::LRU_HASH, 0, None)
}

/// Datagrams of one family that may be on their way in parts. They are so for microseconds: with a million first fragments a second
/// besides (P-11) each is kept for 4 ms. On large machines twice as many as all CPUs may take to themselves at a time.
fn datagrams(cpus: u32) -> u32 {
    cpus.saturating_mul(256).max(4_096)
}

/// Pairs that may be in a flow table of `flows` entries, as far as a CPU sees them: what the others hold back has room beside
/// them.
pub fn pairs(flows: u32, cpus: u32) -> u32 {
    let room = flows / 2;
    room.saturating_sub(TURNS_HELD_BACK.saturating_mul(cpus)).max(room / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_taken_over_only_if_it_is_what_the_programs_expect() {
        let sizes = Sizes::default();
        let spec = persistent(&sizes, 2).into_iter().find(|spec| spec.name == "FLOWS_V4").unwrap();
        let good = MapInfo {
            kind: spec.kind,
            id: 1,
            key_size: spec.key,
            value_size: spec.value,
            max_entries: 7,
            flags: spec.flags,
            name: "FLOWS_V4".into(),
        };
        let cases = [
            ("the same map", good.clone(), true),
            ("other number of entries (L-22)", MapInfo { max_entries: 1 << 20, ..good.clone() }, true),
            ("larger value: aya would read past it", MapInfo { value_size: 4096, ..good.clone() }, false),
            ("other key", MapInfo { key_size: 8, ..good.clone() }, false),
            ("other type (L-23)", MapInfo { kind: kind::ARRAY, ..good.clone() }, false),
            ("other flags", MapInfo { flags: NO_PREALLOC, ..good }, false),
        ];
        for (what, found, fits) in cases {
            assert_eq!(spec.conflict(&found).is_none(), fits, "{what}");
        }
    }

    #[test]
    fn a_ring_holds_a_turn_for_every_pair_and_what_cpus_have_in_hand() {
        let sizes = Sizes { flows: 4_096, ..Sizes::default() };
        let of =
            |name: &str| persistent(&sizes, 64).into_iter().find(|spec| spec.name == name).unwrap().entries;
        assert_eq!((of("FLOWS_V6"), pairs(4_096, 64)), (Some(4_096), 2_048 - 64 * 16));
        assert_eq!(pairs(1_024, 64), 256, "a small table on a large machine");
        assert_eq!(of("RING_V6"), Some(2_048 + 64 * 4));
    }
}
