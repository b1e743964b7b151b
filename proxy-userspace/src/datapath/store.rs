//! The real maps behind `sync`'s [`Store`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use ipnet::IpNet;
use proxy_common::abi::{
    Abi, Addr, AddressClass, Backend, CHUNK, Frontend, FrontendKey, Generations, Port, RangeKey, Run,
    Service, SourceRange, service_flags,
};

use super::Datapath;
use super::error::DatapathError;
use super::pins::Pins;
use super::sieves::Sieves;
use super::specs::{self, CHUNKS};
use super::sys::Table;
use super::tables::{FamilyTables, Tables};
use crate::model::{Family, Protocol};
use crate::sync::{Capacity, Dialled, EndpointId, Slot, Step, Store, Word};

/// An address in the maps' form and in the library's.
pub(super) trait Wire<const N: usize> {
    fn wire(ip: IpAddr) -> Option<Addr<N>>;
    fn ip(wire: Addr<N>) -> IpAddr;
}

/// Carries the two forms of each family.
pub(super) struct Net;

impl Wire<1> for Net {
    fn wire(ip: IpAddr) -> Option<Addr<1>> {
        match ip {
            IpAddr::V4(ip) => Some(Addr::v4(ip.octets())),
            IpAddr::V6(_) => None,
        }
    }

    fn ip(wire: Addr<1>) -> IpAddr {
        Ipv4Addr::from(wire.octets()).into()
    }
}

impl Wire<4> for Net {
    fn wire(ip: IpAddr) -> Option<Addr<4>> {
        match ip {
            IpAddr::V6(ip) => Some(Addr::v6(ip.octets())),
            IpAddr::V4(_) => None,
        }
    }

    fn ip(wire: Addr<4>) -> IpAddr {
        Ipv6Addr::from(wire.octets()).into()
    }
}

pub(super) fn failed(operation: &'static str, map: &'static str) -> impl Fn(io::Error) -> DatapathError {
    move |source| DatapathError::Map { operation, map, source }
}

fn protocol(number: u8) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|protocol| protocol.number() == number)
}

impl<const N: usize> FamilyTables<N>
where
    Net: Wire<N>,
{
    /// Makes the map of affinity records where there is none yet.
    fn open_affinity(&self, pins: &Pins, records: u32) -> Result<(), DatapathError> {
        let spec = specs::affinity::<N>();
        if self.affinity.get(&0).map_err(failed("read", spec.name))?.is_some() {
            return Ok(());
        }
        let fd = spec.make(spec.name, records).map_err(failed("create", spec.name))?;
        pins.keep(fd.as_fd(), &pins.chunk(spec.name, 0))?;
        put(&self.affinity, &[0], &[fd.as_fd()]).map_err(failed("add records to", spec.name))
    }

    /// The sieves first: whoever may be an endpoint is known as one.
    fn write_slots(&self, slots: &[(u32, Slot)], sieves: &Sieves) -> Result<(), DatapathError> {
        let backend = |(_, slot): &(u32, Slot)| {
            let address = Net::wire(slot.address.ip())?;
            sieves.note_endpoint(&address);
            let EndpointId { id, generation } = slot.endpoint;
            Some(Backend { address, port: Port::new(slot.address.port()), generation, id })
        };
        self.slots.set_all(slots, |(at, _)| *at, backend)
    }

    fn read_slots(&self) -> Result<Vec<Slot>, DatapathError> {
        let mut slots = Vec::with_capacity(self.slots.chunks().len() * CHUNK as usize);
        for chunk in self.slots.chunks() {
            slots.extend(chunk.dump().map_err(failed("read", "SLOTS"))?.into_iter().map(|(_, backend)| {
                Slot {
                    address: SocketAddr::new(Net::ip(backend.address), backend.port.number()),
                    endpoint: EndpointId { id: backend.id, generation: backend.generation },
                }
            }));
        }
        Ok(slots)
    }

    fn read_frontends(&self, into: &mut Vec<(Dialled, Frontend)>) -> io::Result<()> {
        into.extend(self.frontends.table().dump()?.into_iter().filter_map(|(key, frontend)| {
            let (address, port) = (Net::ip(key.address), key.port.number());
            Some((Dialled { address, port, protocol: protocol(key.protocol)? }, frontend))
        }));
        Ok(())
    }

    fn read_addresses(&self, into: &mut Vec<(IpAddr, u32)>) -> io::Result<()> {
        into.extend(
            self.addresses.table().dump()?.into_iter().map(|(key, class)| (Net::ip(key), class.bits)),
        );
        Ok(())
    }

    fn set_frontends(&mut self, list: &[(Dialled, Frontend)], pins: &Pins) -> Result<(), DatapathError> {
        let (keys, values): (Vec<_>, Vec<_>) =
            list.iter().filter_map(|(dialled, frontend)| Some((key(dialled)?, *frontend))).unzip();
        self.frontends.set_all(&keys, &values, pins)
    }

    fn remove_frontends(&self, list: &[Dialled]) -> io::Result<()> {
        remove_all(self.frontends.table(), &list.iter().filter_map(key).collect::<Vec<_>>())
    }

    /// The sieve first.
    fn set_addresses(
        &mut self,
        list: &[(IpAddr, u32)],
        sieves: &Sieves,
        pins: &Pins,
    ) -> Result<(), DatapathError> {
        list.iter().filter_map(|(ip, _)| Net::wire(*ip)).for_each(|address| sieves.let_through(&address));
        let (keys, values): (Vec<_>, Vec<_>) = list
            .iter()
            .filter_map(|(ip, bits)| Some((Net::wire(*ip)?, AddressClass { bits: *bits })))
            .unzip();
        self.addresses.set_all(&keys, &values, pins)
    }

    fn read_ranges(&self, into: &mut Vec<(u32, IpNet)>) -> io::Result<()> {
        let read = |(key, _): (RangeKey<N>, u32)| {
            let length = u8::try_from(key.bits.checked_sub(SERVICE_BITS)?).ok()?;
            Some((key.range.service, IpNet::new(Net::ip(key.range.address), length).ok()?))
        };
        into.extend(self.ranges.dump()?.into_iter().filter_map(read));
        Ok(())
    }

    fn set_ranges(&self, list: &[(u32, IpNet)]) -> io::Result<()> {
        list.iter().filter_map(range_key).try_for_each(|key| self.ranges.set(&key, &1))
    }

    fn remove_ranges(&self, list: &[(u32, IpNet)]) -> io::Result<()> {
        list.iter().filter_map(range_key).try_for_each(|key| self.ranges.remove(&key).map(drop))
    }

    fn remove_addresses(&self, list: &[IpAddr]) -> io::Result<()> {
        remove_all(self.addresses.table(), &list.iter().filter_map(|ip| Net::wire(*ip)).collect::<Vec<_>>())
    }
}

fn key<const N: usize>(dialled: &Dialled) -> Option<FrontendKey<N>>
where
    Net: Wire<N>,
{
    let address = Net::wire(dialled.address)?;
    Some(FrontendKey { address, port: Port::new(dialled.port), protocol: dialled.protocol.number(), pad: 0 })
}

/// Bits of a range's key before its address.
const SERVICE_BITS: u32 = 32;

fn range_key<const N: usize>((service, net): &(u32, IpNet)) -> Option<RangeKey<N>>
where
    Net: Wire<N>,
{
    let address = Net::wire(net.network())?;
    Some(RangeKey {
        bits: SERVICE_BITS + u32::from(net.prefix_len()),
        range: SourceRange { service: *service, address },
    })
}

/// Puts maps in these places of an outer map. At once: the kernel waits a grace period for each call.
pub(super) fn put(places: &Table<u32, u32>, numbers: &[u32], maps: &[BorrowedFd<'_>]) -> io::Result<()> {
    let values: Vec<u32> = maps.iter().map(|map| map.as_raw_fd().cast_unsigned()).collect();
    set_all(places, numbers, &values)
}

/// From so many elements on a batch is worth a second thread: the kernel takes half a microsecond for each.
const SHARED: usize = 8_192;

/// Kernels before 5.6 have no batches.
pub(super) fn set_all<K: Abi + Sync, V: Abi + Sync>(
    table: &Table<K, V>,
    keys: &[K],
    values: &[V],
) -> io::Result<()> {
    if keys.len() >= SHARED && keys.len() == values.len() {
        let ((keys, other_keys), (values, other_values)) =
            (keys.split_at(keys.len() / 2), values.split_at(values.len() / 2));
        return std::thread::scope(|scope| {
            let rest = || set_some(table, other_keys, other_values);
            let other = std::thread::Builder::new().spawn_scoped(scope, rest);
            let own = set_some(table, keys, values);
            // Where no thread can be had this one does it all.
            own.and(other.map_or_else(
                |_| rest(),
                |other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            ))
        });
    }
    set_some(table, keys, values)
}

fn set_some<K: Abi, V: Abi>(table: &Table<K, V>, keys: &[K], values: &[V]) -> io::Result<()> {
    match table.set_all(keys, values) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            keys.iter().zip(values).try_for_each(|(key, value)| table.set(key, value))
        }
        result => result,
    }
}

/// A key that is missing is as good as removed.
fn remove_all<K: Abi, V: Abi>(table: &Table<K, V>, keys: &[K]) -> io::Result<()> {
    match table.remove_all(keys) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) => {
            keys.iter().try_for_each(|key| table.remove(key).map(drop))
        }
        result => result,
    }
}

/// Settings as they lie in a service's fourth word: flags first.
fn settings(flags: u32, affinity_timeout: u32) -> u64 {
    let [a, b, c, d] = flags.to_ne_bytes();
    let [e, f, g, h] = affinity_timeout.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn read_settings(word: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = word.to_ne_bytes();
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// 64-bit words of a value.
const fn words_of<V>() -> usize {
    size_of::<V>() / size_of::<u64>()
}

impl Tables {
    fn store_generations(&mut self, list: &[EndpointId], pins: &Pins) -> Result<(), DatapathError> {
        let element = |endpoint: &EndpointId| Generations::index(endpoint.id);
        self.endpoints.write(list, pins, element, |EndpointId { id, generation }, words| {
            let Some(word) = words.first() else { return };
            let before = Generations(word.load(Ordering::Relaxed));
            // Programs see either generation; nobody else writes.
            word.store(before.with(*id, *generation).0, Ordering::Release);
        })?;
        self.tell_news()
    }

    fn store_words(&mut self, list: &[(u32, Word)], pins: &Pins) -> Result<(), DatapathError> {
        self.services.write(
            list,
            pins,
            |(index, _)| *index,
            |(_, word), words| {
                let (at, value) = match *word {
                    Word::External(run) => (0, run.0),
                    Word::Internal(run) => (1, run.0),
                    Word::Cluster(run) => (2, run.0),
                    Word::Settings { flags, affinity_timeout } => (3, settings(flags, affinity_timeout)),
                };
                // Release: a program that sees the new run sees the slots written before.
                words.get(at).into_iter().for_each(|place| place.store(value, Ordering::Release));
            },
        )
    }
}

impl Store for Datapath {
    type Error = DatapathError;

    fn capacity(&self) -> Capacity {
        let tables = &self.tables;
        Capacity {
            services: self.sizes.services.min(tables.services.most()),
            services_there: tables.services.elements(),
            endpoints_there: tables.endpoints.elements().saturating_mul(Generations::COUNT),
            endpoints: self.sizes.endpoints.min(tables.endpoints.most().saturating_mul(Generations::COUNT)),
            frontends: tables.v4.frontends.most().min(tables.v6.frontends.most()),
            addresses: tables.v4.addresses.most().min(tables.v6.addresses.most()),
            slots: self.sizes.slots.min(CHUNKS * CHUNK),
            ranges: tables.v4.ranges.max_entries().min(tables.v6.ranges.max_entries()),
        }
    }

    fn frontends(&self) -> Result<Vec<(Dialled, Frontend)>, DatapathError> {
        let mut found = Vec::new();
        self.tables.v4.read_frontends(&mut found).map_err(failed("read", "FRONTENDS_V4"))?;
        self.tables.v6.read_frontends(&mut found).map_err(failed("read", "FRONTENDS_V6"))?;
        Ok(found)
    }

    fn services(&self) -> Result<Vec<(u32, Service)>, DatapathError> {
        let service = |(index, words): (u32, &[AtomicU64])| {
            let word = |at: usize| words.get(at).map_or(0, |word| word.load(Ordering::Acquire));
            let (flags, affinity_timeout) = read_settings(word(3));
            let [external, internal, cluster] = [0, 1, 2].map(|at| Run(word(at)));
            let service = Service { external, internal, cluster, flags, affinity_timeout };
            (flags & service_flags::IN_USE != 0).then_some((index, service))
        };
        let windows = self.tables.services.windows().map_err(failed("read", "SERVICES"))?;
        let words = windows.words().flat_map(|words| words.chunks_exact(words_of::<Service>()));
        Ok((0..).zip(words).filter_map(service).collect())
    }

    fn slots(&self, family: Family) -> Result<Vec<Slot>, DatapathError> {
        match family {
            Family::V4 => self.tables.v4.read_slots(),
            Family::V6 => self.tables.v6.read_slots(),
        }
    }

    fn endpoints(&self) -> Result<Vec<EndpointId>, DatapathError> {
        let live = |(first, word): (u32, &AtomicU64)| {
            let generations = Generations(word.load(Ordering::Acquire));
            let ids = first..first + Generations::COUNT;
            let of = move |id| EndpointId { id, generation: generations.of(id) };
            ids.map(of).filter(|live| live.generation != 0)
        };
        let windows = self.tables.endpoints.windows().map_err(failed("read", "ENDPOINTS"))?;
        let words = (0..).step_by(Generations::COUNT as usize).zip(windows.words().flatten());
        Ok(words.filter(|(_, word)| word.load(Ordering::Relaxed) != 0).flat_map(live).collect())
    }

    fn ranges(&self) -> Result<Vec<(u32, IpNet)>, DatapathError> {
        let mut found = Vec::new();
        self.tables.v4.read_ranges(&mut found).map_err(failed("read", "RANGES_V4"))?;
        self.tables.v6.read_ranges(&mut found).map_err(failed("read", "RANGES_V6"))?;
        Ok(found)
    }

    fn addresses(&self) -> Result<Vec<(IpAddr, u32)>, DatapathError> {
        let mut found = Vec::new();
        self.tables.v4.read_addresses(&mut found).map_err(failed("read", "ADDRESSES_V4"))?;
        self.tables.v6.read_addresses(&mut found).map_err(failed("read", "ADDRESSES_V6"))?;
        Ok(found)
    }

    fn write(&mut self, step: &Step) -> Result<(), DatapathError> {
        let Self { tables, pins, sizes, .. } = self;
        let Tables { v4, v6, sieves, .. } = tables;
        let last = |numbers: &[u32]| numbers.last().map_or(0, |number| (number + 1) * CHUNK - 1);
        match step {
            Step::Chunks(Family::V4, numbers) => v4.slots.reach(last(numbers), pins),
            Step::Chunks(Family::V6, numbers) => v6.slots.reach(last(numbers), pins),
            Step::Affinity(Family::V4) => v4.open_affinity(pins, sizes.affinity),
            Step::Affinity(Family::V6) => v6.open_affinity(pins, sizes.affinity),
            Step::Endpoints(list) => tables.store_generations(list, pins),
            Step::Slots(Family::V4, slots) => v4.write_slots(slots, sieves),
            Step::Slots(Family::V6, slots) => v6.write_slots(slots, sieves),
            Step::Services(words) => tables.store_words(words, pins),
            Step::Ranges(list) => {
                v4.set_ranges(list).map_err(failed("write", "RANGES_V4"))?;
                v6.set_ranges(list).map_err(failed("write", "RANGES_V6"))
            }
            Step::RemoveRanges(list) => {
                v4.remove_ranges(list).map_err(failed("remove from", "RANGES_V4"))?;
                v6.remove_ranges(list).map_err(failed("remove from", "RANGES_V6"))
            }
            Step::Frontends(list) => {
                v4.set_frontends(list, pins)?;
                v6.set_frontends(list, pins)
            }
            Step::RemoveFrontends(list) => {
                v4.remove_frontends(list).map_err(failed("remove from", "FRONTENDS_V4"))?;
                v6.remove_frontends(list).map_err(failed("remove from", "FRONTENDS_V6"))
            }
            Step::Addresses(list) => {
                v4.set_addresses(list, sieves, pins)?;
                v6.set_addresses(list, sieves, pins)
            }
            Step::RemoveAddresses(list) => {
                v4.remove_addresses(list).map_err(failed("remove from", "ADDRESSES_V4"))?;
                v6.remove_addresses(list).map_err(failed("remove from", "ADDRESSES_V6"))
            }
        }
    }
}
