//! Programs asked what they make of a packet, by BPF_PROG_TEST_RUN. Asked are copies of those that are attached.

use std::net::SocketAddr;

use proxy_common::abi::{
    Addr, AddressClass, Config, Flow, Frontend, FrontendKey, FrontendKind, Hook, Port, Reason, Run, Service,
    config_flags, device_flags, service_flags,
};
use proxy_common::path::Verdict;

use super::copies::Copies;
use super::error::DatapathError;
use super::probe::{self, Ends};
use super::store::{Net, Wire, failed};
use super::tables::FamilyTables;
use super::{Datapath, loader};
use crate::model::Protocol;
use crate::node::{Edge, EdgeKind};

/// A packet at a hook.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    pub edge: &'a Edge,
    pub hook: Hook,
    pub ends: Ends,
    pub mark: u32,
    pub protocol: Protocol,
    pub asked: &'a Asked,
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

/// Who is dialled, read from the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Index of the service; `None`: nobody is.
    pub service: Option<u32>,
    /// Endpoints that may be chosen for this client.
    pub candidates: Vec<SocketAddr>,
    /// The client is a process of the node's own.
    pub own: bool,
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
        let service = self.tables.services.get(frontend.service).map_err(failed("read", "SERVICES"))?;
        let Some(service) = service.filter(|service| service.flags & service_flags::IN_USE != 0) else {
            return Ok(Asked::default());
        };
        let run = self.list(edge, ends.0, frontend, &service)?;
        let candidates = match ends.1.is_ipv4() {
            true => members(&self.tables.v4, run),
            false => members(&self.tables.v6, run),
        };
        Ok(Asked {
            service: Some(frontend.service),
            candidates: candidates.map_err(failed("read", "SLOTS"))?,
            own: false,
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

    /// What the program at the question's hook makes of its packet. `None`: this agent's program is not there.
    ///
    /// # Errors
    /// The copies cannot be loaded or run.
    pub fn make(&mut self, question: &Question<'_>) -> Result<Option<Made>, DatapathError> {
        let (edge, hook, ends) = (question.edge, question.hook, question.ends);
        if !self.inspect_edge(edge)?[hook as usize].ours {
            return Ok(None);
        }
        // A test run always has an Ethernet header; the other programs differ by its length alone.
        let names = if edge.kind == EdgeKind::CatchAll { loader::CAUGHT } else { loader::ETHERNET };
        let Some(packet) = probe::opening(&edge.address, ends, question.protocol) else { return Ok(None) };
        let mut copies = match self.copies.take() {
            Some(copies) => copies,
            None => Copies::load(&self.pins, &self.recipe, self.programs.make)?,
        };
        copies.meet(&self.tables, &self.pins, question)?;
        let known = copies.service(question)?.is_some();
        let before = copies.counts()?;
        let (action, bytes, mark) = copies.run(names[hook as usize], edge.ifindex, &packet, question.mark)?;
        let after = copies.counts()?;
        let flow = copies.service(question)?;
        self.copies = Some(copies);
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

fn class<const N: usize>(tables: &FamilyTables<N>, at: SocketAddr) -> std::io::Result<u32>
where
    Net: Wire<N>,
{
    let Some(address) = Net::wire(at.ip()) else { return Ok(0) };
    Ok(tables.addresses.table().get(&address)?.map_or(0, |class| class.bits))
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
        && let Some(frontend) = tables.frontends.table().get(&key)?
    {
        return Ok(Some(frontend));
    }
    if bits & AddressClass::NODE_PORT == 0 {
        return Ok(None);
    }
    key.address = Addr::UNSPECIFIED;
    tables.frontends.table().get(&key)
}

fn members<const N: usize>(tables: &FamilyTables<N>, run: Run) -> std::io::Result<Vec<SocketAddr>>
where
    Net: Wire<N>,
{
    let mut members = Vec::new();
    for slot in run.offset()..run.offset() + run.count() {
        let Some(backend) = tables.slots.get(slot)? else { continue };
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
