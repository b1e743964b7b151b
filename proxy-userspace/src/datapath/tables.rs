//! The open maps, each with its types.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use proxy_common::abi::{
    Addr, AddressClass, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Generations, Guard,
    RangeKey, Service, news,
};

use super::chunks::Chunked;
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
    pub slots: Chunked<Backend<N>>,
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
    news: Table<u32, u32>,
    pub counters: Table<u32, u64>,
    ring_used: Table<u32, RingUsed>,
    ring_pending: Table<u32, u32>,
    /// Storage of sockets: read by the iterator over sockets, not by key.
    pub sockets: OwnedFd,
    pub services: Chunked<Service>,
    pub endpoints: Chunked<Generations>,
    pub sieves: Sieves,
}

impl Tables {
    /// Takes the descriptors of all maps out of `maps`; what lies in others is among `pins`.
    pub fn open(
        maps: &mut HashMap<&'static str, OwnedFd>,
        pins: &Pins,
        sizes: &Sizes,
    ) -> Result<Self, DatapathError> {
        let (places_v4, places_v6) = (Places::<1>::take(maps)?, Places::<4>::take(maps)?);
        let (services, endpoints) = (take(maps, "SERVICES_OF")?, take(maps, "ENDPOINTS_OF")?);
        // The kernel waits for its readers whenever something is put in a place: these wait together.
        let (v4, v6, services, endpoints) = std::thread::scope(|scope| {
            let v4 = scope.spawn(|| places_v4.open(pins, sizes));
            let v6 = scope.spawn(|| places_v6.open(pins, sizes));
            let mut services = Chunked::open(services, specs::SERVICES, pins)?;
            services.reach(0, pins)?;
            let mut endpoints = Chunked::open(endpoints, specs::ENDPOINTS, pins)?;
            endpoints.reach(0, pins)?;
            Ok::<_, DatapathError>((joined(v4)?, joined(v6)?, services, endpoints))
        })?;
        Ok(Self {
            v4,
            v6,
            services,
            endpoints,
            devices: take(maps, "DEVICES")?,
            config: take(maps, "CONFIG")?,
            guard: take(maps, "GUARD")?,
            news: take(maps, "NEWS")?,
            counters: take(maps, "COUNTERS")?,
            ring_used: take(maps, "RING_USED")?,
            ring_pending: take(maps, "RING_PENDING")?,
            sockets: maps.remove("SOCKETS").ok_or(DatapathError::NoProgram { program: "SOCKETS" })?,
            sieves: Sieves::open(take(maps, "SIEVE")?, take(maps, "ENDPOINT_SIEVE")?)?,
        })
    }

    /// Has programs look at each flow again, after something has changed that established ones depend on: what they have just done with its
    /// packets is no rule any more.
    pub fn tell_news(&self) -> Result<(), DatapathError> {
        let failed = |operation| move |source| DatapathError::Map { operation, map: "NEWS", source };
        let last = self.news.get(&news::OF_AGENT).map_err(failed("read"))?.unwrap_or(0);
        self.news.set(&news::OF_AGENT, &last.wrapping_add(1)).map_err(failed("write"))
    }

    /// How many turns a family's ring holds, with what CPUs have held back.
    pub fn turns(&self, ring: u32) -> Result<u32, DatapathError> {
        let failed = |map| move |source| DatapathError::Map { operation: "read", map, source };
        let shared = self.ring_used.get(&ring).map_err(failed("RING_USED"))?.map_or(0, |[_, turns]| turns);
        let held_back = self.ring_pending.get_per_cpu(&ring).map_err(failed("RING_PENDING"))?;
        Ok(held_back.into_iter().fold(shared, u32::wrapping_add))
    }
}

/// Maps of one family, those of which lie others first.
struct Places<const N: usize> {
    frontends: Table<u32, u32>,
    addresses: Table<u32, u32>,
    slots: Table<u32, u32>,
    affinity: Table<u32, u32>,
    flows: Table<FlowKey<N>, Flow<N>>,
    ranges: Table<RangeKey<N>, u32>,
}

impl<const N: usize> Places<N> {
    fn take(maps: &mut HashMap<&'static str, OwnedFd>) -> Result<Self, DatapathError> {
        let name = |v4, v6| if N == 1 { v4 } else { v6 };
        Ok(Self {
            frontends: take(maps, name("FRONTENDS_OF_V4", "FRONTENDS_OF_V6"))?,
            addresses: take(maps, name("ADDRESSES_OF_V4", "ADDRESSES_OF_V6"))?,
            slots: take(maps, name("SLOTS_V4", "SLOTS_V6"))?,
            affinity: take(maps, name("AFFINITY_V4", "AFFINITY_V6"))?,
            flows: take(maps, name("FLOWS_V4", "FLOWS_V6"))?,
            ranges: take(maps, name("RANGES_V4", "RANGES_V6"))?,
        })
    }

    fn open(self, pins: &Pins, sizes: &Sizes) -> Result<FamilyTables<N>, DatapathError> {
        let Self { frontends, addresses, slots, affinity, flows, ranges } = self;
        Ok(FamilyTables {
            frontends: Growing::open(frontends, specs::frontends::<N>(), sizes.frontends, pins)?,
            addresses: Growing::open(addresses, specs::addresses::<N>(), sizes.addresses, pins)?,
            slots: Chunked::open(slots, specs::slots::<N>(), pins)?,
            affinity,
            flows,
            ranges,
        })
    }
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn take<K: proxy_common::abi::Abi, V: proxy_common::abi::Abi>(
    maps: &mut HashMap<&'static str, OwnedFd>,
    name: &'static str,
) -> Result<Table<K, V>, DatapathError> {
    let fd = maps.remove(name).ok_or(DatapathError::NoProgram { program: name })?;
    Table::new(fd).map_err(|source| DatapathError::Map { operation: "open", map: name, source })
}
