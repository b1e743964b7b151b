//! The open maps, each with its types.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use proxy_common::abi::{
    Addr, AddressClass, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Generations, Guard,
    RangeKey, Service,
};

use super::error::DatapathError;
use super::specs::RingUsed;
use super::sys::{Table, Window};

/// Maps of one family. `N` words an address.
#[derive(Debug)]
pub struct FamilyTables<const N: usize> {
    pub frontends: Table<FrontendKey<N>, Frontend>,
    pub addresses: Table<Addr<N>, AddressClass>,
    pub flows: Table<FlowKey<N>, Flow<N>>,
    pub ranges: Table<RangeKey<N>, u32>,
    /// Chunk number → inner map; read back, it gives the inner map's id.
    pub slots: Table<u32, u32>,
    pub chunks: Vec<Table<u32, Backend<N>>>,
    /// At 0, once a Service has asked: the map of records. Read back, it gives that map's id.
    pub affinity: Table<u32, u32>,
}

/// Every map that the agent reads or writes.
#[derive(Debug)]
pub struct Tables {
    pub v4: FamilyTables<1>,
    pub v6: FamilyTables<4>,
    pub devices: Table<u32, Device>,
    pub config: Table<u32, Config>,
    pub guard: Table<u32, Guard>,
    pub counters: Table<u32, u64>,
    ring_used: Table<u32, RingUsed>,
    ring_pending: Table<u32, u32>,
    /// Storage of sockets: read by the iterator over sockets, not by key.
    pub sockets: OwnedFd,
    pub services: Table<u32, Service>,
    pub endpoints: Table<u32, Generations>,
    pub sieves: Sieves,
}

/// Who may be somebody.
#[derive(Debug)]
pub struct Sieves {
    /// See [`Addr::sieve`]. Bits are never cleared: a stale one costs look-ups, and flows outlive addresses.
    all: Window,
    /// See [`Addr::endpoint_sieve`]. A stale bit may cost flow entries: each start forgets them.
    endpoints: Window,
}

impl Sieves {
    /// What this does not let through is not looked up.
    pub fn let_through<const N: usize>(&self, address: &Addr<N>) {
        set(&self.all, address.sieve());
    }

    pub fn note_endpoint<const N: usize>(&self, address: &Addr<N>) {
        set(&self.endpoints, address.endpoint_sieve());
        self.let_through(address);
    }

    /// These are the endpoints' bits, and no others. Word by word, so that nobody's who stays is off meanwhile.
    pub fn set_endpoints(&self, words: &[u64]) {
        self.endpoints
            .words()
            .iter()
            .zip(words)
            .for_each(|(word, bits)| word.store(*bits, Ordering::Release));
    }
}

fn set(sieve: &Window, (word, bit): (u32, u64)) {
    if let Some(word) = sieve.word(word as usize) {
        word.fetch_or(bit, Ordering::Release);
    }
}

impl Tables {
    /// Takes the descriptors of all maps out of `maps`.
    pub fn open(maps: &mut HashMap<&'static str, OwnedFd>) -> Result<Self, DatapathError> {
        let mut sieve = |map| {
            let array = take::<u32, u64>(maps, map)?;
            let failed = |source| DatapathError::Map { operation: "share memory of", map, source };
            Window::open(array.fd(), 0..array.max_entries() as usize).map_err(failed)
        };
        let sieves = Sieves { all: sieve("SIEVE")?, endpoints: sieve("ENDPOINT_SIEVE")? };
        Ok(Self {
            v4: FamilyTables {
                frontends: take(maps, "FRONTENDS_V4")?,
                addresses: take(maps, "ADDRESSES_V4")?,
                flows: take(maps, "FLOWS_V4")?,
                ranges: take(maps, "RANGES_V4")?,
                slots: take(maps, "SLOTS_V4")?,
                chunks: Vec::new(),
                affinity: take(maps, "AFFINITY_V4")?,
            },
            v6: FamilyTables {
                frontends: take(maps, "FRONTENDS_V6")?,
                addresses: take(maps, "ADDRESSES_V6")?,
                flows: take(maps, "FLOWS_V6")?,
                ranges: take(maps, "RANGES_V6")?,
                slots: take(maps, "SLOTS_V6")?,
                chunks: Vec::new(),
                affinity: take(maps, "AFFINITY_V6")?,
            },
            devices: take(maps, "DEVICES")?,
            config: take(maps, "CONFIG")?,
            guard: take(maps, "GUARD")?,
            counters: take(maps, "COUNTERS")?,
            ring_used: take(maps, "RING_USED")?,
            ring_pending: take(maps, "RING_PENDING")?,
            sockets: maps.remove("SOCKETS").ok_or(DatapathError::NoProgram { program: "SOCKETS" })?,
            services: take(maps, "SERVICES")?,
            endpoints: take(maps, "ENDPOINTS")?,
            sieves,
        })
    }

    /// How many turns a family's ring holds, with what CPUs have held back.
    pub fn turns(&self, ring: u32) -> Result<u32, DatapathError> {
        let failed = |map| move |source| DatapathError::Map { operation: "read", map, source };
        let shared = self.ring_used.get(&ring).map_err(failed("RING_USED"))?.map_or(0, |[_, turns]| turns);
        let held_back = self.ring_pending.get_per_cpu(&ring).map_err(failed("RING_PENDING"))?;
        Ok(held_back.into_iter().fold(shared, u32::wrapping_add))
    }
}

fn take<K: proxy_common::abi::Abi, V: proxy_common::abi::Abi>(
    maps: &mut HashMap<&'static str, OwnedFd>,
    name: &'static str,
) -> Result<Table<K, V>, DatapathError> {
    let fd = maps.remove(name).ok_or(DatapathError::NoProgram { program: name })?;
    Table::new(fd).map_err(|source| DatapathError::Map { operation: "open", map: name, source })
}
