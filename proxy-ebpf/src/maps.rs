//! The maps. Sizes given here are minima: the agent decides them at load time.

use aya_ebpf::{
    Global,
    btf_maps::{Array as BtfArray, ArrayOfMaps, SkStorage},
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray},
};
use proxy_common::abi::{
    Addr, AddressClass, Backend, CHUNK, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Reason,
    RingHead, SIEVE_WORDS, Service, SocketPairs,
};
use proxy_common::{path::Scratch, wire::Headers};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): the agent switches runs by a 64-bit store.
const MMAPABLE: u32 = 1 << 10;

/// Inner arrays of a slots map.
const CHUNKS: usize = 1024;

/// What the clock showed during a jiffy: the coarse clock moves no faster, and jiffies cost a load.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Clock {
    pub jiffies: u64,
    pub tick: u64,
}

/// One chunk of slots.
pub type Slots<const N: usize> = BtfArray<Backend<N>, { CHUNK as usize }>;

#[map]
pub static FRONTENDS_V4: HashMap<FrontendKey<1>, Frontend> = HashMap::with_max_entries(1024, 0);
#[map]
pub static FRONTENDS_V6: HashMap<FrontendKey<4>, Frontend> = HashMap::with_max_entries(1024, 0);
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(1024, MMAPABLE);
#[btf_map]
pub static SLOTS_V4: ArrayOfMaps<Slots<1>, CHUNKS> = ArrayOfMaps::new();
#[btf_map]
pub static SLOTS_V6: ArrayOfMaps<Slots<4>, CHUNKS> = ArrayOfMaps::new();
#[map]
pub static ADDRESSES_V4: HashMap<Addr<1>, AddressClass> = HashMap::with_max_entries(1024, 0);
#[map]
pub static ADDRESSES_V6: HashMap<Addr<4>, AddressClass> = HashMap::with_max_entries(1024, 0);
#[map]
pub static SIEVE: Array<u64> = Array::with_max_entries(SIEVE_WORDS, MMAPABLE);
#[map]
pub static ENDPOINTS: Array<u32> = Array::with_max_entries(1024, 0);
#[map]
pub static DEVICES: HashMap<u32, Device> = HashMap::with_max_entries(4096, 0);
#[map]
pub static FLOWS_V4: HashMap<FlowKey<1>, Flow<1>> = HashMap::with_max_entries(1024, 0);
#[map]
pub static FLOWS_V6: HashMap<FlowKey<4>, Flow<4>> = HashMap::with_max_entries(1024, 0);
#[map]
pub static RINGS_V4: Array<FlowKey<1>> = Array::with_max_entries(1024, 0);
#[map]
pub static RINGS_V6: Array<FlowKey<4>> = Array::with_max_entries(1024, 0);
#[map]
pub static RING_HEADS: PerCpuArray<RingHead> = PerCpuArray::with_max_entries(2, 0);
#[map]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Reason::COUNT, 0);
#[map]
pub static DRAWS: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);
/// The clock as last read.
#[map]
pub static CLOCKS: PerCpuArray<Clock> = PerCpuArray::with_max_entries(1, 0);
/// Room for a flow in the making, per family.
#[map]
pub static SCRATCH_V4: PerCpuArray<Scratch<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static SCRATCH_V6: PerCpuArray<Scratch<4>> = PerCpuArray::with_max_entries(1, 0);
/// Room for the headers of the packet at hand, per family.
#[map]
pub static HEADERS_V4: PerCpuArray<Headers<1>> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static HEADERS_V6: PerCpuArray<Headers<4>> = PerCpuArray::with_max_entries(1, 0);
#[btf_map]
pub static SOCKETS: SkStorage<SocketPairs> = SkStorage::new();

/// Keys each CPU's ring holds, a power of two.
#[unsafe(no_mangle)]
pub static RING_SIZE: Global<u32> = Global::new(64);
/// Not zero: time comes from [`Config::test_clock`] and draws from a counter, so that a run can be repeated.
#[unsafe(no_mangle)]
pub static TEST_MODE: Global<u32> = Global::new(0);
