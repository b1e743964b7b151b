//! The real programs, by BPF_PROG_TEST_RUN.

use std::borrow::BorrowMut;
use std::net::IpAddr;

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{
    Array, ArrayOfMaps, HashMap, Map, MapData, MapError, MapType, PerCpuArray, PerCpuValues, Queue,
};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use proxy_common::abi::{
    Abi, Addr, AddressClass, Affinity, AffinityKey, Backend, CHUNK, Config, Device, Flow, FlowKey, Fragment,
    Frontend, FrontendKey, GENERATIONS_CHUNK, Generations, Guard, Reason, SERVICES_CHUNK, Service,
    SourceRange, Turn, news,
};
use proxy_userspace::OBJECT;
use proxy_userspace::datapath::Summed;

use super::host::{PAIRS, SEGMENT};
use super::story::{Action, At, Flows, Node, Outcome, PassedBy};
use super::world::{self, CATCH_ALL_IFINDEX, IFINDEX, PODS_IFINDEX, Writer};
use crate::sys::{Wire, create_map};

/// Offset and size of `__sk_buff` (include/uapi/linux/bpf.h); `mark` is its third word.
const CONTEXT: usize = 192;
const MARK_AT: usize = 8;
const IFINDEX_AT: usize = 40;
const SEGMENTS_AT: usize = 164;
const SEGMENT_SIZE_AT: usize = 176;
/// `cb`, where programs in test mode keep a packet's note and where they have sent it.
const NOTE_AT: usize = 48;
const FLOODED_AT: usize = 50;
const FORWARDED_AT: usize = 51;
const SENT_AT: usize = 52;
const SENT_TO_PEER_AT: usize = 56;
/// Where they find the devices that routes lead to.
const ROUTES_AT: usize = 60;

/// Return values of tc programs.
const TC_ACT_UNSPEC: u32 = u32::MAX;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;

/// A word of `__sk_buff`.
fn word(context: &[u8; CONTEXT], at: usize) -> u32 {
    let [a, b, c, d] = context[at..at + 4] else { unreachable!("four bytes") };
    u32::from_ne_bytes([a, b, c, d])
}

/// By hook and device: see [`program`].
const PROGRAMS: [&str; 6] = [
    "sluice_egress",
    "sluice_ingress",
    "sluice_egr_l3",
    "sluice_ingr_l3",
    "sluice_eg_catch",
    "sluice_in_catch",
];

const fn program(at: &At) -> &'static str {
    let device = match (at.ifindex, at.ethernet) {
        (CATCH_ALL_IFINDEX, _) => 4,
        (_, false) => 2,
        (_, true) => 0,
    };
    PROGRAMS[at.ingress as usize + device]
}

/// A node in the kernel: programs and maps that are attached to nothing.
pub struct Kernel {
    ebpf: Ebpf,
    /// Whether something of the world has been removed.
    removed: bool,
}

/// What lies in a place: `BPF_MAP_TYPE_HASH`, `_ARRAY` or `_LRU_HASH`, how many entries, with which flags.
type Shape = (u32, u32, u32);
const HASH: Shape = (1, 1024, 1);
const LRU_HASH: Shape = (9, 1024, 0);
const SERVICES: Shape = (2, SERVICES_CHUNK, 1 << 10);
const GENERATIONS: Shape = (2, GENERATIONS_CHUNK, 1 << 10);

/// Makes the maps that the agent makes for one family, and puts them in their places.
fn put_places<const N: usize>(ebpf: &mut Ebpf, family: &str) -> Result<()> {
    put_place::<FrontendKey<N>, Frontend>(ebpf, &format!("FRONTENDS_OF_{family}"), HASH)?;
    put_place::<Addr<N>, AddressClass>(ebpf, &format!("ADDRESSES_OF_{family}"), HASH)?;
    put_place::<AffinityKey<N>, Affinity<N>>(ebpf, &format!("AFFINITY_{family}"), LRU_HASH)
}

fn put_place<K: Abi, V: Abi>(ebpf: &mut Ebpf, name: &str, (kind, entries, flags): Shape) -> Result<()> {
    let made = create_map(kind, size_of::<K>() as u32, size_of::<V>() as u32, entries, flags)?;
    let mut place: ArrayOfMaps<_, MapData> =
        ebpf.map_mut(name).with_context(|| format!("no place {name}"))?.try_into()?;
    Ok(place.set(0, &MapData::from_fd(made)?, 0)?)
}

fn clear<K: Abi, V: Abi>(map: &mut HashMap<impl BorrowMut<MapData>, Wire<K>, Wire<V>>) -> Result<()> {
    let keys = map.keys().collect::<Result<Vec<_>, _>>()?;
    keys.iter().try_for_each(|key| map.remove(key)).map_err(Into::into)
}

impl Kernel {
    /// Loads programs and maps in test mode and writes the world.
    pub fn load(summed: Option<Summed>) -> Result<Self> {
        let test_mode = 1u32;
        let summed_at = summed.map_or(0, |summed| summed.at);
        let object = summed.map(|summed| summed.put(OBJECT));
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global("RING_SIZE", &PAIRS, true)
            .override_global("TEST_MODE", &test_mode, true)
            .override_global("SUMMED_AT", &summed_at, true);
        for (flows, ring) in [("FLOWS_V4", "RING_V4"), ("FLOWS_V6", "RING_V6")] {
            // A turn that is being looked at can be queued again.
            loader.map_max_entries(flows, 2 * PAIRS).map_max_entries(ring, PAIRS + 1);
        }
        let mut ebpf =
            loader.load(object.as_deref().unwrap_or(OBJECT)).context("cannot load the BPF object")?;
        for name in PROGRAMS {
            let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
            program.load().with_context(|| format!("cannot load {name}"))?;
        }
        put_places::<1>(&mut ebpf, "V4")?;
        put_places::<4>(&mut ebpf, "V6")?;
        put_place::<u32, Service>(&mut ebpf, "SERVICES_OF", SERVICES)?;
        put_place::<u32, u64>(&mut ebpf, "ENDPOINTS_OF", GENERATIONS)?;
        let mut kernel = Self { ebpf, removed: false };
        kernel.write_config(world::config())?;
        kernel.fill::<1>("V4")?;
        kernel.fill::<4>("V6")?;
        Ok(kernel)
    }

    fn write_config(&mut self, config: Config) -> Result<()> {
        let mut map: Array<_, Wire<Config>> = self.map("CONFIG")?.try_into()?;
        map.set(0, Wire(config), 0)?;
        self.tell_news()
    }

    /// As the agent does after it has changed what established flows depend on.
    fn tell_news(&mut self) -> Result<()> {
        let mut map: Array<_, u32> = self.map("NEWS")?.try_into()?;
        let last = map.get(&news::OF_AGENT, 0)?;
        Ok(map.set(news::OF_AGENT, last.wrapping_add(1), 0)?)
    }

    fn writable<'a, M: TryFrom<&'a mut Map, Error: Into<anyhow::Error>>>(
        &'a mut self,
        name: &str,
    ) -> Result<M> {
        M::try_from(self.map(name)?).map_err(Into::into)
    }

    /// Everything that packets have left behind, and what stories may have changed.
    fn forget(&mut self) -> Result<()> {
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
        self.clear::<FlowKey<1>, Flow<1>>("FLOWS_V4")?;
        self.clear::<FlowKey<4>, Flow<4>>("FLOWS_V6")?;
        clear::<AffinityKey<1>, Affinity<1>>(&mut self.placed("AFFINITY_V4")?)?;
        clear::<AffinityKey<4>, Affinity<4>>(&mut self.placed("AFFINITY_V6")?)?;
        self.clear::<FlowKey<1>, Fragment<1>>("FRAGMENTS_V4")?;
        self.clear::<FlowKey<4>, Fragment<4>>("FRAGMENTS_V6")?;
        self.drain::<1>("RING_V4")?;
        self.drain::<4>("RING_V6")?;
        let mut used: Array<_, Wire<[u32; 2]>> = self.writable("RING_USED")?;
        for family in 0..2 {
            used.set(family, Wire([0; 2]), 0)?;
        }
        let mut pending: PerCpuArray<_, u32> = self.writable("RING_PENDING")?;
        for family in 0..2 {
            pending.set(family, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        let mut storm: Array<_, u32> = self.writable("STORM")?;
        for family in 0..2 {
            storm.set(family, 0, 0)?;
        }
        let mut draws: PerCpuArray<_, u32> = self.writable("DRAWS")?;
        draws.set(0, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        let mut counters: PerCpuArray<_, u64> = self.writable("COUNTERS")?;
        for reason in 0..Reason::COUNT {
            counters.set(reason, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        for v6 in [false, true] {
            self.set_endpoint(v6, world::GENERATION.into());
        }
        if self.removed {
            self.fill::<1>("V4")?;
            self.fill::<4>("V6")?;
            self.removed = false;
        }
        self.set_device(IFINDEX, Some(world::device()));
        self.set_device(PODS_IFINDEX, Some(world::pods_device()));
        self.set_guard(world::alive());
        self.write_config(world::config())
    }

    fn take<const N: usize>(&mut self, family: &str, address: Addr<N>) -> Result<()> {
        self.removed = true;
        let mut frontends = self.placed::<FrontendKey<N>, Frontend>(&format!("FRONTENDS_OF_{family}"))?;
        let keys = frontends.keys().collect::<Result<Vec<_>, _>>()?;
        for key in keys.iter().filter(|key| key.0.address == address) {
            frontends.remove(key)?;
        }
        let mut addresses = self.placed::<Addr<N>, AddressClass>(&format!("ADDRESSES_OF_{family}"))?;
        Ok(addresses.remove(&Wire(address))?)
    }

    fn write_generation(&mut self, id: u32, generation: u32) -> Result<()> {
        let mut map = self.chunk::<u64>("ENDPOINTS_OF")?;
        let index = Generations::index(id);
        let before = Generations(map.get(&index, 0)?.0);
        Ok(map.set(index, Wire(before.with(id, generation.try_into()?).0), 0)?)
    }

    fn entries<K: Abi, V: Abi>(&mut self, name: &str) -> Result<Vec<(K, V)>> {
        let map: HashMap<_, Wire<K>, Wire<V>> = self.writable(name)?;
        let entries = map.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
        Ok(entries.collect::<Result<_, _>>()?)
    }

    fn clear<K: Abi, V: Abi>(&mut self, name: &str) -> Result<()> {
        clear::<K, V>(&mut self.writable(name)?)
    }

    fn drain<const N: usize>(&mut self, name: &str) -> Result<()> {
        let mut ring: Queue<_, Wire<Turn<N>>> = self.writable(name)?;
        loop {
            match ring.pop(0) {
                Ok(_) => {}
                Err(MapError::ElementNotFound) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The hash in the one place of this map.
    fn placed<K: Abi, V: Abi>(&mut self, name: &str) -> Result<HashMap<MapData, Wire<K>, Wire<V>>> {
        let place: ArrayOfMaps<_, MapData> = self.writable(name)?;
        let hash = place.get(&0, 0)?;
        let map = match hash.info()?.map_type()? {
            MapType::LruHash => Map::LruHashMap(hash),
            _ => Map::HashMap(hash),
        };
        Ok(map.try_into()?)
    }

    /// The first chunk of this array.
    fn chunk<V: Abi>(&mut self, name: &str) -> Result<Array<MapData, Wire<V>>> {
        let places: ArrayOfMaps<_, MapData> = self.writable(name)?;
        Ok(Map::Array(places.get(&0, 0)?).try_into()?)
    }

    fn map(&mut self, name: &str) -> Result<&mut Map> {
        self.ebpf.map_mut(name).with_context(|| format!("the object has no map {name}"))
    }

    fn fill<const N: usize>(&mut self, family: &'static str) -> Result<()> {
        let mut writer = Maps { kernel: self, family, failed: None };
        world::fill::<N>(&mut writer);
        writer.failed.map_or(Ok(()), Err)
    }
}

/// Writes one family's maps; the first failure is kept.
struct Maps<'a> {
    kernel: &'a mut Kernel,
    family: &'static str,
    failed: Option<anyhow::Error>,
}

impl Maps<'_> {
    fn keep(&mut self, result: Result<()>) {
        if let Err(error) = result {
            self.failed.get_or_insert(error);
        }
    }

    fn hash<K: Abi, V: Abi>(&mut self, name: &str, key: K, value: V) {
        let result = (|| {
            let mut map: HashMap<_, Wire<K>, Wire<V>> = self.kernel.map(name)?.try_into()?;
            Ok(map.insert(Wire(key), Wire(value), 0)?)
        })();
        self.keep(result);
    }

    /// Writes an element of the hash in this place.
    fn put<K: Abi, V: Abi>(&mut self, name: &str, key: K, value: V) {
        let hash = self.kernel.placed(name);
        self.keep(hash.and_then(|mut hash| Ok(hash.insert(Wire(key), Wire(value), 0)?)));
    }

    fn sieve(&mut self, name: &str, (word, bit): (u32, u64)) -> Result<()> {
        let mut map: Array<_, u64> = self.kernel.map(name)?.try_into()?;
        let before = map.get(&word, 0)?;
        Ok(map.set(word, before | bit, 0)?)
    }

    fn chunk<const N: usize>(&mut self, slots: &[Backend<N>]) -> Result<()> {
        for Backend { address, .. } in slots {
            self.sieve("SIEVE", address.sieve())?;
            self.sieve("ENDPOINT_SIEVE", address.endpoint_sieve())?;
        }
        let name = format!("SLOTS_{}", self.family);
        let mut outer: ArrayOfMaps<_, Array<MapData, Wire<Backend<N>>>> =
            self.kernel.map(&name)?.try_into()?;
        let mut inner = Array::<MapData, Wire<Backend<N>>>::create(CHUNK, 0)?;
        for (slot, backend) in (0..).zip(slots) {
            inner.set(slot, Wire(*backend), 0)?;
        }
        Ok(outer.set(0, &inner, 0)?)
    }
}

impl<const N: usize> Writer<N> for Maps<'_> {
    fn address(&mut self, address: Addr<N>, class: u32) {
        let result = self.sieve("SIEVE", address.sieve());
        self.keep(result);
        self.put(&format!("ADDRESSES_OF_{}", self.family), address, AddressClass { bits: class });
    }
    fn frontend(&mut self, key: FrontendKey<N>, frontend: Frontend) {
        self.put(&format!("FRONTENDS_OF_{}", self.family), key, frontend);
    }
    fn service(&mut self, index: u32, service: Service) {
        let chunk = self.kernel.chunk("SERVICES_OF");
        self.keep(chunk.and_then(|mut chunk| Ok(chunk.set(index, Wire(service), 0)?)));
    }
    fn backends(&mut self, slots: &[Backend<N>]) {
        let result = self.chunk(slots);
        self.keep(result);
    }
    fn endpoint(&mut self, id: u32, generation: u32) {
        let result = self.kernel.write_generation(id, generation);
        self.keep(result);
    }
    fn range(&mut self, service: u32, address: Addr<N>, length: u32) {
        let name = format!("RANGES_{}", self.family);
        let result = (|| {
            let mut map: LpmTrie<_, Wire<SourceRange<N>>, u32> = self.kernel.writable(&name)?;
            Ok(map.insert(&Key::new(32 + length, Wire(SourceRange { service, address })), 1, 0)?)
        })();
        self.keep(result);
    }
    fn device(&mut self, ifindex: u32, device: Device) {
        self.hash("DEVICES", ifindex, device);
    }
}

impl Node for Kernel {
    fn run(&mut self, at: &At, bytes: &[u8], mark: u32) -> Outcome {
        let program = self.ebpf.program_mut(program(at)).expect("the object has the program");
        let program: &mut SchedClassifier = program.try_into().expect("it is a tc program");
        let mut context = [0; CONTEXT];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        context[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&at.ifindex.to_ne_bytes());
        context[SEGMENTS_AT..SEGMENTS_AT + 4].copy_from_slice(&at.segments.to_ne_bytes());
        context[NOTE_AT..NOTE_AT + 4].copy_from_slice(&u32::from(at.note).to_ne_bytes());
        context[FLOODED_AT] = at.flooded.into();
        context[FORWARDED_AT] = at.forwarded.into();
        for (at, device) in (ROUTES_AT..).step_by(4).zip(at.routes) {
            context[at..at + 4].copy_from_slice(&device.to_ne_bytes());
        }
        let size = if at.segments > 0 { SEGMENT } else { 0 };
        context[SEGMENT_SIZE_AT..SEGMENT_SIZE_AT + 4].copy_from_slice(&size.to_ne_bytes());
        let mut answer = [0; CONTEXT];
        let mut out = vec![0; bytes.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(bytes);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut answer);
        let result = program.test_run(options).expect("test run");
        out.truncate(result.data_size_out as usize);
        let action = match result.return_value {
            TC_ACT_UNSPEC => Action::Pass,
            TC_ACT_SHOT => Action::Drop,
            TC_ACT_REDIRECT => match word(&answer, SENT_AT) {
                0 => Action::Reject,
                device => Action::Shortcut(PassedBy { device, peer: word(&answer, SENT_TO_PEER_AT) != 0 }),
            },
            other => unreachable!("a tc program returned {other}"),
        };
        let note = word(&answer, NOTE_AT) as u16;
        Outcome { action, bytes: out, mark: word(&answer, MARK_AT), note }
    }

    fn reset(&mut self) {
        self.forget().expect("empty the maps");
    }

    fn set_config(&mut self, config: Config) {
        self.write_config(config).expect("write the configuration");
    }

    fn set_guard(&mut self, guard: Guard) {
        let mut map: Array<_, Wire<Guard>> = self.writable("GUARD").expect("an array");
        map.set(0, Wire(guard), 0).expect("write the guard");
    }

    fn set_device(&mut self, ifindex: u32, device: Option<Device>) {
        let mut map: HashMap<_, u32, Wire<Device>> = self.writable("DEVICES").expect("a hash");
        match device {
            Some(device) => map.insert(ifindex, Wire(device), 0).expect("write the device"),
            None => map.remove(&ifindex).expect("remove the device"),
        }
        self.tell_news().expect("write the news");
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        self.write_generation(world::endpoint_id(v6), generation).expect("write the endpoint");
        self.tell_news().expect("write the news");
    }

    fn remove(&mut self, address: IpAddr) {
        let taken = match address {
            IpAddr::V4(_) => self.take::<1>("V4", world::addr(address)),
            IpAddr::V6(_) => self.take::<4>("V6", world::addr(address)),
        };
        taken.expect("remove the address");
    }

    fn counts(&mut self) -> Vec<u64> {
        let map: PerCpuArray<_, u64> = self.writable("COUNTERS").expect("a per-CPU array");
        let sum = |reason: &Reason| map.get(&(*reason as u32), 0).expect("read the counter").iter().sum();
        Reason::ALL.iter().map(sum).collect()
    }

    fn flows(&mut self) -> Flows {
        let v4 = self.entries("FLOWS_V4").expect("read the flows");
        Flows::new(v4, self.entries("FLOWS_V6").expect("read the flows"))
    }
}
