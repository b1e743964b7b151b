//! Programs asked what they make of a packet, by BPF_PROG_TEST_RUN. Asked are copies of those that are attached: the same
//! object with the same Services, endpoints, devices and settings, but with flows, rings and counters of their own, so
//! that the answer changes nothing. Flows that the packet would meet are copied for it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use proxy_common::abi::{Addr, AddressClass};
use proxy_common::abi::{
    Config, Flow, FlowKey, Frontend, FrontendKey, FrontendKind, Hook, Port, Reason, Run, Service,
    config_flags, device_flags, service_flags,
};
use proxy_common::path::Verdict;

use super::error::DatapathError;
use super::probe::{self, Ends};
use super::store::{Net, Wire};
use super::sys::Table;
use super::tables::FamilyTables;
use super::{Datapath, loader};
use crate::model::Protocol;
use crate::node::{Edge, EdgeKind};
use crate::sync::Store;

/// The copies, loaded at the first question.
#[derive(Debug)]
pub struct Explainer {
    ebpf: Ebpf,
    v4: Table<FlowKey<1>, Flow<1>>,
    v6: Table<FlowKey<4>, Flow<4>>,
    counters: Table<u32, u64>,
}

/// What a program made of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    pub verdict: Verdict,
    /// The packet as it left; as it came unless the verdict lets it go on.
    pub ends: Ends,
    pub mark: u32,
    /// Index of the service whose flow it belongs to.
    pub service: Option<u32>,
    /// A flow that was there before.
    pub known: bool,
}

/// Offset of the mark and of the device in `__sk_buff`, and its size.
const MARK_AT: usize = 8;
const IFINDEX_AT: usize = 40;
const CONTEXT: usize = 192;

fn failed(operation: &'static str, map: &'static str) -> impl Fn(std::io::Error) -> DatapathError {
    move |source| DatapathError::Map { operation, map, source }
}

fn own<K: proxy_common::abi::Abi, V: proxy_common::abi::Abi>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<Table<K, V>, DatapathError> {
    let missing = || DatapathError::NoProgram { program: name };
    let data: &MapData = match ebpf.map(name).ok_or_else(missing)? {
        Map::HashMap(data) | Map::PerCpuArray(data) => data,
        _ => return Err(missing()),
    };
    let fd: OwnedFd = data.fd().as_fd().try_clone_to_owned().map_err(failed("open", name))?;
    Table::new(fd).map_err(failed("open", name))
}

impl Explainer {
    fn load(datapath: &Datapath) -> Result<Self, DatapathError> {
        let mut ebpf = loader::load_copy(&datapath.pins, &datapath.recipe)?;
        Ok(Self {
            v4: own(&mut ebpf, "FLOWS_V4")?,
            v6: own(&mut ebpf, "FLOWS_V6")?,
            counters: own(&mut ebpf, "COUNTERS")?,
            ebpf,
        })
    }

    fn counts(&self) -> Result<Vec<u64>, DatapathError> {
        let count =
            |reason: Reason| self.counters.get_per_cpu(&(reason as u32)).map(|cpus| cpus.iter().sum());
        Reason::ALL.into_iter().map(count).collect::<Result<_, _>>().map_err(failed("read", "COUNTERS"))
    }

    /// Runs one program on `packet`: return value, packet, mark.
    fn run(
        &mut self,
        name: &'static str,
        ifindex: u32,
        packet: &[u8],
        mark: u32,
    ) -> Result<(u32, Vec<u8>, u32), DatapathError> {
        loader::load_programs(&mut self.ebpf, &[name])?;
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
            source: std::io::Error::other(error),
        })?;
        out.truncate(result.data_size_out as usize);
        let [a, b, c, d] = [0, 1, 2, 3].map(|byte| after[MARK_AT + byte]);
        Ok((result.return_value, out, u32::from_ne_bytes([a, b, c, d])))
    }
}

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

/// Copies what the node's table says of these keys, pairs whole, in place of everything that was copied before.
fn copy<const N: usize>(
    from: &FamilyTables<N>,
    to: &Table<FlowKey<N>, Flow<N>>,
    keys: impl Iterator<Item = FlowKey<N>>,
) -> std::io::Result<()> {
    for (key, _) in to.dump()? {
        to.remove(&key)?;
    }
    for key in keys {
        let Some(flow) = from.flows.get(&key)? else { continue };
        to.set(&key, &flow)?;
        let partner = flow.partner(&key);
        if let Some(flow) = from.flows.get(&partner)? {
            to.set(&partner, &flow)?;
        }
    }
    Ok(())
}

fn meets<const N: usize>(ends: Ends, candidates: &[SocketAddr], protocol: Protocol) -> Vec<FlowKey<N>>
where
    Net: Wire<N>,
{
    let (client, dialled) = ends;
    let with = |other: SocketAddr| {
        [(client, other, Hook::Ingress), (client, other, Hook::Egress), (other, client, Hook::Egress)]
    };
    let all = std::iter::once(dialled).chain(candidates.iter().copied()).flat_map(with);
    all.filter_map(|(src, dst, hook)| key((src, dst), protocol, hook)).collect()
}

/// Who is dialled, read from the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Index of the service; `None`: nobody is.
    pub service: Option<u32>,
    /// Endpoints that may be chosen for this client.
    pub candidates: Vec<SocketAddr>,
}

impl Datapath {
    /// Who a client behind `edge` dials, and which endpoints may be chosen: what the programs look up, for people.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn asked(&self, edge: &Edge, ends: Ends, protocol: Protocol) -> Result<Asked, DatapathError> {
        let found = match ends.1.is_ipv4() {
            true => find(&self.tables.v4, ends.1, protocol),
            false => find(&self.tables.v6, ends.1, protocol),
        };
        let Some(frontend) = found.map_err(failed("read", "FRONTENDS"))? else { return Ok(Asked::default()) };
        let services = Store::services(self);
        let Some((_, service)) = services.iter().find(|(index, _)| *index == frontend.service) else {
            return Ok(Asked::default());
        };
        let run = self.list(edge, ends.0, frontend, service)?;
        let candidates = match ends.1.is_ipv4() {
            true => members(&self.tables.v4, run),
            false => members(&self.tables.v6, run),
        };
        Ok(Asked {
            service: Some(frontend.service),
            candidates: candidates.map_err(failed("read", "SLOTS"))?,
        })
    }

    /// The endpoints for a client (see `path::frontend::list`).
    fn list(
        &self,
        edge: &Edge,
        client: SocketAddr,
        frontend: Frontend,
        service: &Service,
    ) -> Result<Run, DatapathError> {
        if frontend.kind() == Some(FrontendKind::ClusterIp) {
            return Ok(service.internal);
        }
        if service.flags & service_flags::LOCAL_EXTERNAL == 0 {
            return Ok(service.external);
        }
        let config = self.config()?;
        let local = match client.is_ipv4() {
            true => class(&self.tables.v4, client),
            false => class(&self.tables.v6, client),
        };
        let local = local.map_err(failed("read", "ADDRESSES"))? & AddressClass::LOCAL != 0;
        let device = self.tables.devices.get(&edge.ifindex).map_err(failed("read", "DEVICES"))?;
        let detected = device.is_some_and(|device| device.flags & device_flags::DETECTED != 0);
        let inside = local || is_pod(&config, detected, client);
        Ok(if inside { service.cluster } else { service.external })
    }

    /// What the program at `hook` of `edge` makes of a packet between these ends. `candidates`: whose flows it may meet.
    /// `None`: this agent's program is not there.
    ///
    /// # Errors
    /// The copies cannot be loaded or run.
    pub fn make(
        &mut self,
        edge: &Edge,
        hook: Hook,
        (ends, mark): (Ends, u32),
        protocol: Protocol,
        candidates: &[SocketAddr],
    ) -> Result<Option<Made>, DatapathError> {
        let at = hook as usize;
        if !self.inspect_edge(edge)?[at].ours {
            return Ok(None);
        }
        // A test run always has an Ethernet header; the other programs differ by its length alone.
        let names = if edge.kind == EdgeKind::CatchAll { loader::CAUGHT } else { loader::ETHERNET };
        let Some(mut packet) = probe::opening(ends, protocol) else { return Ok(None) };
        let mut explainer = match self.explainer.take() {
            Some(explainer) => explainer,
            None => Explainer::load(self)?,
        };
        let copied = match ends.0.is_ipv4() {
            true => copy(&self.tables.v4, &explainer.v4, meets(ends, candidates, protocol).into_iter()),
            false => copy(&self.tables.v6, &explainer.v6, meets(ends, candidates, protocol).into_iter()),
        };
        copied.map_err(failed("copy", "FLOWS"))?;
        let service = |explainer: &Explainer| -> std::io::Result<Option<u32>> {
            Ok(match ends.0.is_ipv4() {
                true => served(&explainer.v4, key(ends, protocol, hook))?,
                false => served(&explainer.v6, key(ends, protocol, hook))?,
            })
        };
        let known = service(&explainer).map_err(failed("read", "FLOWS"))?.is_some();
        let before = explainer.counts()?;
        // As if sent to this device: frames for others are left alone. The kernel compares six bytes, whatever addresses devices have.
        let to = edge.address.iter().copied().chain(std::iter::repeat(0));
        packet.iter_mut().take(6).zip(to).for_each(|(byte, own)| *byte = own);
        let (action, bytes, mark) = explainer.run(names[at], edge.ifindex, &packet, mark)?;
        let after = explainer.counts()?;
        let flow = service(&explainer).map_err(failed("read", "FLOWS"))?;
        self.explainer = Some(explainer);
        let verdict = verdict(action, &before, &after);
        let goes_on = matches!(verdict, Verdict::Pass | Verdict::Shortcut);
        let ends = if goes_on { probe::ends(&bytes).unwrap_or(ends) } else { ends };
        Ok(Some(Made {
            verdict,
            ends,
            mark,
            known,
            service: flow.filter(|index| *index != Flow::<1>::NO_SERVICE),
        }))
    }
}

/// From a tc program's return value and what it has counted.
fn verdict(action: u32, before: &[u64], after: &[u64]) -> Verdict {
    const SHOT: u32 = 2;
    const REDIRECT: u32 = 7;
    let counted = Reason::ALL.into_iter().zip(before.iter().zip(after));
    let counted: Vec<_> =
        counted.filter(|(_, (before, after))| before < after).map(|(reason, _)| reason).collect();
    let reason = counted.iter().copied().find(|reason| reason.is_end()).unwrap_or(Reason::Rewrite);
    match action {
        SHOT => Verdict::Drop(reason),
        REDIRECT if counted.contains(&Reason::Shortcut) => Verdict::Shortcut,
        REDIRECT => Verdict::Reject(reason),
        _ => Verdict::Pass,
    }
}

fn served<const N: usize>(
    flows: &Table<FlowKey<N>, Flow<N>>,
    key: Option<FlowKey<N>>,
) -> std::io::Result<Option<u32>> {
    let Some(key) = key else { return Ok(None) };
    Ok(flows.get(&key)?.map(|flow| flow.service))
}

fn class<const N: usize>(tables: &FamilyTables<N>, at: SocketAddr) -> std::io::Result<u32>
where
    Net: Wire<N>,
{
    let Some(address) = Net::wire(at.ip()) else { return Ok(0) };
    Ok(tables.addresses.get(&address)?.map_or(0, |class| class.bits))
}

fn find<const N: usize>(
    tables: &FamilyTables<N>,
    at: SocketAddr,
    protocol: Protocol,
) -> std::io::Result<Option<Frontend>>
where
    Net: Wire<N>,
{
    let Some(address) = Net::wire(at.ip()) else { return Ok(None) };
    let bits = class(tables, at)?;
    let mut key = FrontendKey { address, port: Port::new(at.port()), protocol: protocol.number(), pad: 0 };
    if bits & AddressClass::SERVICE != 0
        && let Some(frontend) = tables.frontends.get(&key)?
    {
        return Ok(Some(frontend));
    }
    if bits & AddressClass::NODE_PORT == 0 {
        return Ok(None);
    }
    key.address = Addr::UNSPECIFIED;
    tables.frontends.get(&key)
}

fn members<const N: usize>(tables: &FamilyTables<N>, run: Run) -> std::io::Result<Vec<SocketAddr>>
where
    Net: Wire<N>,
{
    let mut members = Vec::new();
    for slot in run.offset()..run.offset() + run.count() {
        let chunk = tables.chunks.get((slot / proxy_common::abi::CHUNK) as usize);
        let Some(backend) =
            chunk.map(|chunk| chunk.get(&(slot % proxy_common::abi::CHUNK))).transpose()?.flatten()
        else {
            continue;
        };
        members.push(SocketAddr::new(Net::ip(backend.address), backend.port.number()));
    }
    Ok(members)
}

fn is_pod(config: &Config, detected: bool, client: SocketAddr) -> bool {
    if config.flags & config_flags::DETECT_DEVICE != 0 {
        return detected;
    }
    match (Net::wire(client.ip()), Net::wire(client.ip())) {
        (Some(address), _) => {
            config.flags & config_flags::DETECT_V4 != 0 && config.cluster_v4.contains(&address)
        }
        (_, Some(address)) => {
            config.flags & config_flags::DETECT_V6 != 0 && config.cluster_v6.contains(&address)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_the_action_and_what_was_counted() {
        let nothing = vec![0; Reason::ALL.len()];
        let counted = |reasons: &[Reason]| {
            let mut counts = nothing.clone();
            reasons.iter().for_each(|reason| counts[*reason as usize] += 1);
            counts
        };
        let cases = [
            ("passed on", u32::MAX, vec![], Verdict::Pass),
            ("a flow was made", u32::MAX, vec![Reason::FlowCreated], Verdict::Pass),
            ("refused", 7, vec![Reason::NoEndpoint], Verdict::Reject(Reason::NoEndpoint)),
            ("sent past the stack", 7, vec![Reason::FlowCreated, Reason::Shortcut], Verdict::Shortcut),
            ("dropped", 2, vec![Reason::FlowCreated, Reason::Rewrite], Verdict::Drop(Reason::Rewrite)),
        ];
        for (what, action, reasons, want) in cases {
            assert_eq!(verdict(action, &nothing, &counted(&reasons)), want, "{what}");
        }
    }
}
