//! Copies of the attached programs, to be asked: the same object with the same Services, endpoints, devices and settings, but with
//! maps of their own for what programs write, so that an answer changes nothing. What a question's packet would meet in the
//! node's is put there first: its flows, the record of its client's affinity, and how full the flow table is.

use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues, Queue};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, Pod};
use proxy_common::abi::{
    Abi, Addr, Affinity, AffinityKey, Flow, FlowKey, Hook, Kind, Port, Reason, Turn, state,
};
use proxy_common::path::other_ports;

use super::error::DatapathError;
use super::explain::Question;
use super::loader::{self, Recipe};
use super::pins::Pins;
use super::probe::Ends;
use super::programs::{Make, load_programs};
use super::specs::{self, RingUsed};
use super::store::{Net, Wire, failed, put};
use super::sys::Table;
use super::tables::{FamilyTables, Tables};
use crate::model::Protocol;
use crate::node::EdgeKind;

/// The copies, loaded at the first question.
#[derive(Debug)]
pub struct Copies {
    ebpf: Ebpf,
    v4: FamilyCopies<1>,
    v6: FamilyCopies<4>,
    counters: Table<u32, u64>,
    ring_used: Table<u32, RingUsed>,
}

/// Maps that the copies write, of one family.
#[derive(Debug)]
struct FamilyCopies<const N: usize> {
    flows: Table<FlowKey<N>, Flow<N>>,
    /// At 0: the map of affinity records, as in the node's.
    affinity: Table<u32, u32>,
}

/// Offset of the mark and of the device in `__sk_buff`, and its size.
const MARK_AT: usize = 8;
const IFINDEX_AT: usize = 40;
const CONTEXT: usize = 192;

/// Both families' rings, in the order of their counts.
const RINGS: [u32; 2] = [0, 1];

fn own<K: Abi, V: Abi>(ebpf: &mut Ebpf, name: &'static str) -> Result<Table<K, V>, DatapathError> {
    let missing = || DatapathError::NoProgram { program: name };
    let data: &MapData = match ebpf.map(name).ok_or_else(missing)? {
        Map::HashMap(data) | Map::PerCpuArray(data) | Map::Array(data) | Map::ArrayOfMaps(data) => data,
        _ => return Err(missing()),
    };
    let fd: OwnedFd = data.fd().as_fd().try_clone_to_owned().map_err(failed("open", name))?;
    Table::new(fd).map_err(failed("open", name))
}

type Records<const N: usize> = Table<AffinityKey<N>, Affinity<N>>;

/// The node's affinity records. An agent that may not open them does without: an endpoint is drawn.
fn records<const N: usize>(node: &FamilyTables<N>, pins: &Pins) -> Result<Option<Records<N>>, DatapathError> {
    let name = specs::affinity::<N>().name;
    let read = failed("read", name);
    let Some(id) = node.affinity.get(&0).map_err(&read)? else { return Ok(None) };
    match pins.inner(id, &pins.chunk(name, 0))? {
        Ok(fd) => Table::new(fd).map(Some).map_err(read),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(read(error)),
    }
}

/// Takes everything out of a ring.
fn drain<T: Pod>(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DatapathError> {
    let missing = || DatapathError::NoProgram { program: name };
    let emptied = Queue::<_, T>::try_from(ebpf.map_mut(name).ok_or_else(missing)?).and_then(|mut ring| {
        loop {
            match ring.pop(0) {
                Ok(_) => {}
                Err(MapError::ElementNotFound) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    });
    emptied.map_err(Error::other).map_err(failed("empty", name))
}

impl Copies {
    pub fn load(pins: &Pins, recipe: &Recipe, make: Make) -> Result<Self, DatapathError> {
        let mut ebpf = loader::load_copy(pins, recipe, make)?;
        Ok(Self {
            v4: FamilyCopies { flows: own(&mut ebpf, "FLOWS_V4")?, affinity: own(&mut ebpf, "AFFINITY_V4")? },
            v6: FamilyCopies { flows: own(&mut ebpf, "FLOWS_V6")?, affinity: own(&mut ebpf, "AFFINITY_V6")? },
            counters: own(&mut ebpf, "COUNTERS")?,
            ring_used: own(&mut ebpf, "RING_USED")?,
            ebpf,
        })
    }

    /// What has been counted, in the order of [`Reason::ALL`].
    pub fn counts(&self) -> Result<Vec<u64>, DatapathError> {
        let count =
            |reason: Reason| self.counters.get_per_cpu(&(reason as u32)).map(|cpus| cpus.iter().sum());
        Reason::ALL.into_iter().map(count).collect::<Result<_, _>>().map_err(failed("read", "COUNTERS"))
    }

    /// Puts what the packet would meet in place of everything that the last one has met or made.
    pub fn meet(&mut self, node: &Tables, pins: &Pins, question: &Question<'_>) -> Result<(), DatapathError> {
        self.fill_rings(node)?;
        let seed = node.config.get(&0).map_err(failed("read", "CONFIG"))?.map_or(0, |config| config.seed);
        match question.ends.0.is_ipv4() {
            true => {
                let records = records(&node.v4, pins)?;
                self.v4.meet(&node.v4, records, question, seed)
            }
            false => {
                let records = records(&node.v6, pins)?;
                self.v6.meet(&node.v6, records, question, seed)
            }
        }
    }

    /// The rings count as many turns as the node's, but have none: a table without room is taken for full of live flows, as it is
    /// after a whole round of the hand.
    fn fill_rings(&mut self, node: &Tables) -> Result<(), DatapathError> {
        drain::<[u8; size_of::<Turn<1>>()]>(&mut self.ebpf, "RING_V4")?;
        drain::<[u8; size_of::<Turn<4>>()]>(&mut self.ebpf, "RING_V6")?;
        let pending = "RING_PENDING";
        let missing = || DatapathError::NoProgram { program: pending };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| failed("write", pending)(error))?;
        let mut own: PerCpuArray<_, u32> = self
            .ebpf
            .map_mut(pending)
            .ok_or_else(missing)?
            .try_into()
            .map_err(Error::other)
            .map_err(failed("open", pending))?;
        for ring in RINGS {
            let none = PerCpuValues::try_from(vec![0; cpus]).map_err(failed("write", pending))?;
            own.set(ring, none, 0).map_err(Error::other).map_err(failed("write", pending))?;
            let turns = node.turns(ring)?;
            self.ring_used.set(&ring, &[0, turns]).map_err(failed("write", "RING_USED"))?;
        }
        Ok(())
    }

    /// The service of the flow that the packet belongs to. `None`: there is no such flow.
    pub fn service(&self, question: &Question<'_>) -> Result<Option<u32>, DatapathError> {
        let (ends, protocol, hook) = (question.ends, question.protocol, question.hook);
        let found = match ends.0.is_ipv4() {
            true => self.v4.service(key(ends, protocol, hook)),
            false => self.v6.service(key(ends, protocol, hook)),
        };
        found.map_err(failed("read", "FLOWS"))
    }

    /// Runs one program on `packet`: return value, packet, mark.
    pub fn run(
        &mut self,
        name: &'static str,
        ifindex: u32,
        packet: &[u8],
        mark: u32,
    ) -> Result<(u32, Vec<u8>, u32), DatapathError> {
        load_programs(&mut self.ebpf, &[name])?;
        let missing = || DatapathError::NoProgram { program: name };
        let program = self.ebpf.program_mut(name).ok_or_else(missing)?;
        let program: &mut SchedClassifier = program.try_into().map_err(|_| missing())?;
        let mut context = [0; CONTEXT];
        context[MARK_AT..MARK_AT + 4].copy_from_slice(&mark.to_ne_bytes());
        context[IFINDEX_AT..IFINDEX_AT + 4].copy_from_slice(&ifindex.to_ne_bytes());
        let (mut after, mut out) = ([0; CONTEXT], vec![0; packet.len() + 256]);
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        options.ctx_in = Some(&context);
        options.ctx_out = Some(&mut after);
        let result = program.test_run(options).map_err(|error| DatapathError::Map {
            operation: "test-run a program with",
            map: name,
            source: Error::other(error),
        })?;
        out.truncate(result.data_size_out as usize);
        let [a, b, c, d] = [0, 1, 2, 3].map(|byte| after[MARK_AT + byte]);
        Ok((result.return_value, out, u32::from_ne_bytes([a, b, c, d])))
    }
}

impl<const N: usize> FamilyCopies<N>
where
    Net: Wire<N>,
{
    fn meet(
        &self,
        node: &FamilyTables<N>,
        records: Option<Records<N>>,
        question: &Question<'_>,
        seed: u32,
    ) -> Result<(), DatapathError> {
        self.copy_flows(node, meets(question, seed)).map_err(failed("copy", "FLOWS"))?;
        self.copy_record(records, question).map_err(failed("copy", "AFFINITY"))
    }

    /// Copies what the node's table says of these keys, pairs whole.
    fn copy_flows(&self, node: &FamilyTables<N>, keys: Vec<FlowKey<N>>) -> IoResult<()> {
        for (key, _) in self.flows.dump()? {
            self.flows.remove(&key)?;
        }
        for key in keys {
            let Some(flow) = self.copy_pair(node, &key)? else { continue };
            // What passes the stack by is masqueraded at the client's edge.
            if flow.kind() == Some(Kind::Translate) && flow.state & state::MARK != 0 {
                let Flow { src, dst, sport, dport, .. } = flow;
                let hook = Hook::Egress as u8;
                self.copy_pair(node, &FlowKey { src, dst, sport, dport, hook, ..key })?;
            }
        }
        Ok(())
    }

    /// The flow of this key, copied with its other direction.
    fn copy_pair(&self, node: &FamilyTables<N>, key: &FlowKey<N>) -> IoResult<Option<Flow<N>>> {
        let Some(flow) = node.flows.get(key)? else { return Ok(None) };
        self.flows.set(key, &flow)?;
        let partner = flow.partner(key);
        if let Some(flow) = node.flows.get(&partner)? {
            self.flows.set(&partner, &flow)?;
        }
        Ok(Some(flow))
    }

    /// Copies where the client's last connection to the Service went.
    fn copy_record(&self, records: Option<Records<N>>, question: &Question<'_>) -> IoResult<()> {
        let Some(service) = question.asked.service else { return Ok(()) };
        let Some(records) = records else { return Ok(()) };
        let Some(client) = Net::wire(question.ends.0.ip()) else { return Ok(()) };
        let caught = question.edge.kind == EdgeKind::CatchAll;
        let key = |own| AffinityKey { client: if own { Addr::UNSPECIFIED } else { client }, service };
        let spec = specs::affinity::<N>();
        // Empty: the last question's record goes with its map.
        let fresh = spec.make(spec.name, ASKED_RECORDS)?;
        put(&self.affinity, &[0], &[fresh.as_fd()])?;
        let fresh = Table::new(fresh)?;
        match records.get(&key(caught || question.asked.own))? {
            Some(record) => fresh.set(&key(caught), &record),
            None => Ok(()),
        }
    }

    fn service(&self, key: Option<FlowKey<N>>) -> IoResult<Option<u32>> {
        let Some(key) = key else { return Ok(None) };
        Ok(self.flows.get(&key)?.map(|flow| flow.service))
    }
}

/// Records for one question: an LRU map of fewer elements has none for some CPU.
const ASKED_RECORDS: u32 = 1_024;

/// The key under which a packet between these ends is known at `hook`.
fn key<const N: usize>((src, dst): Ends, protocol: Protocol, hook: Hook) -> Option<FlowKey<N>>
where
    Net: Wire<N>,
{
    Some(FlowKey {
        src: Net::wire(src.ip())?,
        dst: Net::wire(dst.ip())?,
        sport: Port::new(src.port()),
        dport: Port::new(dst.port()),
        protocol: protocol.number(),
        hook: hook as u8,
        pad: 0,
    })
}

/// Keys of all flows that the packet may belong to, and of those whose answers are taken for its own if it gets the
/// source that they have.
fn meets<const N: usize>(question: &Question<'_>, seed: u32) -> Vec<FlowKey<N>>
where
    Net: Wire<N>,
{
    let Question { edge, hook, ends, protocol, asked, .. } = *question;
    let (client, dialled) = ends;
    let back = if hook == Hook::Ingress { Hook::Egress } else { Hook::Ingress };
    let masquerade = match client.is_ipv4() {
        true => edge.masquerade_v4.map(IpAddr::from),
        false => edge.masquerade_v6.map(IpAddr::from),
    };
    let kind = if hook == Hook::Ingress { Kind::Translate } else { Kind::Masquerade };
    let tried = key::<N>(ends, protocol, hook).into_iter().flat_map(|key| other_ports(seed, &key, kind));
    let ports: Vec<u16> = std::iter::once(client.port()).chain(tried.map(Port::number)).collect();
    let sources: Vec<SocketAddr> = std::iter::once(client.ip())
        .chain(masquerade)
        .flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)))
        .collect();
    let mut met = Vec::new();
    for other in std::iter::once(dialled).chain(asked.candidates.iter().copied()) {
        met.extend([hook, back].map(|hook| ((client, other), hook)));
        met.extend(sources.iter().map(|source| ((other, *source), back)));
    }
    met.into_iter().filter_map(|(ends, hook)| key(ends, protocol, hook)).collect()
}
