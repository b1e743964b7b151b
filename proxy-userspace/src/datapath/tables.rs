//! The open maps, each with its types.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use proxy_common::abi::{
    Addr, AddressClass, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Generations, Guard,
    RangeKey, Service,
};

use super::error::DatapathError;
use super::growing::Growing;
use super::pins::Pins;
use super::sieves::Sieves;
use super::specs::{self, RingUsed, Sizes};
use super::sys::Table;

/// Maps of one family. `N` words an address.
#[derive(Debug)]
pub struct FamilyTables<const N: usize> {
    pub frontends: Growing<FrontendKey<N>, Frontend>,
    pub addresses: Growing<Addr<N>, AddressClass>,
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

impl Tables {
    /// Takes the descriptors of all maps out of `maps`; what lies in others is among `pins`.
    pub fn open(
        maps: &mut HashMap<&'static str, OwnedFd>,
        pins: &Pins,
        sizes: &Sizes,
    ) -> Result<Self, DatapathError> {
        let Sizes { frontends, addresses, .. } = *sizes;
        Ok(Self {
            v4: FamilyTables {
                frontends: Growing::open(
                    take(maps, "FRONTENDS_OF_V4")?,
                    specs::frontends::<1>(),
                    frontends,
                    pins,
                )?,
                addresses: Growing::open(
                    take(maps, "ADDRESSES_OF_V4")?,
                    specs::addresses::<1>(),
                    addresses,
                    pins,
                )?,
                flows: take(maps, "FLOWS_V4")?,
                ranges: take(maps, "RANGES_V4")?,
                slots: take(maps, "SLOTS_V4")?,
                chunks: Vec::new(),
                affinity: take(maps, "AFFINITY_V4")?,
            },
            v6: FamilyTables {
                frontends: Growing::open(
                    take(maps, "FRONTENDS_OF_V6")?,
                    specs::frontends::<4>(),
                    frontends,
                    pins,
                )?,
                addresses: Growing::open(
                    take(maps, "ADDRESSES_OF_V6")?,
                    specs::addresses::<4>(),
                    addresses,
                    pins,
                )?,
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
            sieves: Sieves::open(take(maps, "SIEVE")?, take(maps, "ENDPOINT_SIEVE")?)?,
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
