//! The maps. Sizes given here are minima: the agent decides them at load time.

use aya_ebpf::{
    Global,
    bindings::bpf_spin_lock,
    btf_maps::{
        Array as BtfArray, ArrayOfMaps, HashMap as BtfHashMap, LruHashMap as BtfLruHashMap, SkStorage,
    },
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, Queue, lpm_trie::LpmTrie},
};
use proxy_common::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, CHUNK, Config, Device, Flow, FlowKey, Fragment,
    Frontend, FrontendKey, GENERATIONS_CHUNK, Generations, Guard, Reason, Recent, SERVICES_CHUNK,
    SIEVE_WORDS, Service, SocketPairs, SourceRange, Turn, news,
};
use proxy_common::{
    path::{Beyond, Looked, Scratch, Told},
    wire::Headers,
};

use crate::route::Route;

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): the agent switches runs by a 64-bit store.
const MMAPABLE: u32 = 1 << 10;

/// `BPF_F_NO_PREALLOC` (include/uapi/linux/bpf.h): elements take memory when they are there. Tries have no other form.
const NO_PREALLOC: u32 = 1;

/// Inner arrays of a slots map.
const CHUNKS: usize = 1024;

/// Those of services and of endpoints.
const PLACES: usize = 1024;

/// How many turns a ring holds: queues do not tell. A lock, since Rust has no atomic addition for BPF.
#[repr(C)]
pub struct RingUsed {
    pub lock: bpf_spin_lock,
    pub turns: u32,
}

/// Who is dialled, by address, port and protocol.
pub type Frontends<const N: usize> = BtfHashMap<FrontendKey<N>, Frontend, 1024, { NO_PREALLOC as usize }>;

/// What addresses are.
pub type Addresses<const N: usize> = BtfHashMap<Addr<N>, AddressClass, 1024, { NO_PREALLOC as usize }>;

/// Affinity records.
pub type Records<const N: usize> = BtfLruHashMap<AffinityKey<N>, Affinity<N>, 1024>;

/// One chunk of services.
pub type Services = BtfArray<Service, { SERVICES_CHUNK as usize }, { MMAPABLE as usize }>;

/// One chunk of endpoints' generations.
pub type Endpoints = BtfArray<Generations, { GENERATIONS_CHUNK as usize }, { MMAPABLE as usize }>;

/// One chunk of slots.
pub type Slots<const N: usize> = BtfArray<Backend<N>, { CHUNK as usize }>;

/// One place each: where the agent needs more room, a larger hash with the same elements takes the place.
#[btf_map]
pub static FRONTENDS_OF_V4: ArrayOfMaps<Frontends<1>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static FRONTENDS_OF_V6: ArrayOfMaps<Frontends<4>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static SERVICES_OF: ArrayOfMaps<Services, PLACES> = ArrayOfMaps::new();
#[btf_map]
pub static SLOTS_V4: ArrayOfMaps<Slots<1>, CHUNKS> = ArrayOfMaps::new();
#[btf_map]
pub static SLOTS_V6: ArrayOfMaps<Slots<4>, CHUNKS> = ArrayOfMaps::new();
/// As of frontends.
#[btf_map]
pub static ADDRESSES_OF_V4: ArrayOfMaps<Addresses<1>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static ADDRESSES_OF_V6: ArrayOfMaps<Addresses<4>, 1> = ArrayOfMaps::new();
#[map]
pub static SIEVE: Array<u64> = Array::with_max_entries(SIEVE_WORDS, MMAPABLE);
#[map]
pub static ENDPOINT_SIEVE: Array<u64> = Array::with_max_entries(SIEVE_WORDS, MMAPABLE);
#[map]
pub static RANGES_V4: LpmTrie<SourceRange<1>, u32> = LpmTrie::with_max_entries(1024, NO_PREALLOC);
#[map]
pub static RANGES_V6: LpmTrie<SourceRange<4>, u32> = LpmTrie::with_max_entries(1024, NO_PREALLOC);
/// One place each, empty until a Service asks for affinity: such a map takes its memory when it is made.
#[btf_map]
pub static AFFINITY_V4: ArrayOfMaps<Records<1>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static AFFINITY_V6: ArrayOfMaps<Records<4>, 1> = ArrayOfMaps::new();
#[btf_map]
pub static ENDPOINTS_OF: ArrayOfMaps<Endpoints, PLACES> = ArrayOfMaps::new();
#[map]
pub static FRAGMENTS_V4: LruHashMap<FlowKey<1>, Fragment<1>> = LruHashMap::with_max_entries(1024, 0);
#[map]
pub static FRAGMENTS_V6: LruHashMap<FlowKey<4>, Fragment<4>> = LruHashMap::with_max_entries(1024, 0);
#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(4096, NO_PREALLOC);
#[map]
pub static FLOWS_V4: HashMap<FlowKey<1>, Flow<1>> = HashMap::with_max_entries(1024, 0);
#[map]
pub static FLOWS_V6: HashMap<FlowKey<4>, Flow<4>> = HashMap::with_max_entries(1024, 0);
#[map]
pub static RING_V4: Queue<Turn<1>> = Queue::with_max_entries(1024, 0);
#[map]
pub static RING_V6: Queue<Turn<4>> = Queue::with_max_entries(1024, 0);
/// Of IPv4, of IPv6.
#[btf_map]
pub static RING_USED: BtfArray<RingUsed, 2> = BtfArray::new();
/// What each CPU has not added to [`RING_USED`] yet. It outlives the programs, as that number does.
#[map]
pub static RING_PENDING: PerCpuArray<u32> = PerCpuArray::with_max_entries(2, 0);
/// The moment of the last storm, of IPv4, of IPv6.
#[map]
pub static STORM: Array<u32> = Array::with_max_entries(2, 0);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static GUARD: Array<Guard> = Array::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
pub static DRAWS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// State of the dice; 0: not thrown yet.
#[map]
pub static DICE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Room for a flow in the making, per family.
#[map]
pub static SCRATCH_V4: PerCpuArray<Scratch<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH_V6: PerCpuArray<Scratch<4>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static RECENT_V4: PerCpuArray<Recent<1>> = PerCpuArray::with_max_entries(Recent::<1>::PLACES, 0);
#[map]
pub static RECENT_V6: PerCpuArray<Recent<4>> = PerCpuArray::with_max_entries(Recent::<4>::PLACES, 0);
#[map]
pub static NEWS: Array<u32> = Array::with_max_entries(news::PLACES, 0);
/// Room for the headers of the packet at hand, per family.
#[map]
pub static HEADERS_V4: PerCpuArray<Headers<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static HEADERS_V6: PerCpuArray<Headers<4>> = PerCpuArray::with_max_entries(1, 0);
/// Routes of just now, by [`Told::place`].
#[map]
pub static ROUTES: PerCpuArray<Route> = PerCpuArray::with_max_entries(Told::PLACES, 0);
/// Room for the turn that is being looked at, per family.
#[map]
pub static LOOKED_V4: PerCpuArray<Looked<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static LOOKED_V6: PerCpuArray<Looked<4>> = PerCpuArray::with_max_entries(1, 0);
/// Room for the keys of a masqueraded flow's pair at the other edge, per family.
#[map]
pub static BEYOND_V4: PerCpuArray<Beyond<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static BEYOND_V6: PerCpuArray<Beyond<4>> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
pub static SOCKETS: SkStorage<SocketPairs> = SkStorage::new();

/// Pairs that a family's flow table has room for.
#[unsafe(no_mangle)]
pub static RING_SIZE: Global<u32> = Global::new(64);
/// Where `ip_summed` is in `struct sk_buff`, in bits; 0: not known, or [`proxy_common::abi::CAST_CALL`] calls nothing.
#[unsafe(no_mangle)]
pub static SUMMED_AT: Global<u32> = Global::new(0);
/// Not zero: time comes from [`Config::test_clock`] and draws from a counter, so that a run can be repeated.
#[unsafe(no_mangle)]
pub static TEST_MODE: Global<u32> = Global::new(0);
