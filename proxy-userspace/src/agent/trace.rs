//! The packet trace of one address: switched on for a while, told in the agent's log.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::net::if_::if_indextoname;
use proxy_common::abi::{Addr, Hook, Kind, Port, Reason, TraceRecord, protocol};
use proxy_common::path::Verdict;
use tokio::task::JoinHandle;
use tracing::{error, info};

use super::edges::State;
use super::worker::Worker;
use crate::datapath::TraceLog;
use crate::node::Edge;
use crate::status::{TraceView, Trouble, story};

/// A running trace.
pub struct Trace {
    address: IpAddr,
    /// On the worker's clock.
    until: Duration,
    names: Names,
    reader: JoinHandle<()>,
}

/// Services by index, as the trace's reader sees them.
type Names = Arc<Mutex<HashMap<u32, String>>>;

impl Drop for Trace {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Worker {
    /// Traces `address` for so long; `None` ends the trace.
    pub fn set_trace(
        &mut self,
        address: Option<IpAddr>,
        length: Duration,
    ) -> Result<Option<TraceView>, Trouble> {
        self.end_trace()?;
        let Some(address) = address else { return Ok(None) };
        let log = self.datapath.trace(address, &self.attached()).map_err(|error| {
            Trouble::new("the packet trace", story(&error), "the programs without a trace are in place")
        })?;
        let names = Names::default();
        let reader = self.runtime.spawn(read(log, names.clone()));
        let until = self.clock.now() + length;
        self.trace = Some(Trace { address, until, names, reader });
        self.name_trace();
        info!(%address, seconds = length.as_secs(), "packets are traced");
        Ok(self.traced())
    }

    /// The running trace.
    pub fn traced(&self) -> Option<TraceView> {
        let trace = self.trace.as_ref()?;
        let left = trace.until.saturating_sub(self.clock.now());
        Some(TraceView { address: trace.address, seconds: left.as_secs() })
    }

    /// Ends the trace when its time is over.
    pub fn tend_trace(&mut self) {
        let over = self.trace.as_ref().is_some_and(|trace| trace.until <= self.clock.now());
        if over && let Err(trouble) = self.end_trace() {
            error!("{trouble}");
            self.latest.note(&trouble);
        }
    }

    /// Services may have come or gone.
    pub fn name_trace(&self) {
        let Some(trace) = &self.trace else { return };
        let names = self.syncer.names().into_iter().map(|(index, id)| (index, id.to_string())).collect();
        *trace.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
    }

    fn end_trace(&mut self) -> Result<(), Trouble> {
        let Some(trace) = self.trace.take() else { return Ok(()) };
        let ended = self.datapath.end_trace(&self.attached());
        info!(address = %trace.address, "packets are not traced any more");
        let next = "it is tried again every minute";
        ended.map_err(|error| Trouble::new("the packet trace", story(&error), next))
    }

    fn attached(&self) -> Vec<Edge> {
        let attached = self.edges.values().filter(|served| matches!(served.state, State::Attached { .. }));
        attached.map(|served| served.edge.clone()).collect()
    }
}

/// How often what the programs told is looked at: their buffer holds some 500 packets.
const LOOK: Duration = Duration::from_millis(20);

/// Tells what is traced until aborted.
async fn read(mut log: TraceLog, names: Names) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        for record in log.read() {
            let service = {
                let names = names.lock().unwrap_or_else(PoisonError::into_inner);
                names.get(&record.service).cloned()
            };
            let device = if_indextoname(record.ifindex).ok().and_then(|name| name.into_string().ok());
            info!("trace: {}", Line { record: &record, device, service });
        }
    }
}

/// A record for people.
struct Line<'a> {
    record: &'a TraceRecord,
    device: Option<String>,
    service: Option<String>,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record;
        let hook = if record.hook == Hook::Egress as u8 { "egress" } else { "ingress" };
        let device = self.device.clone().unwrap_or_else(|| format!("device {}", record.ifindex));
        let protocol = match record.protocol {
            protocol::TCP => "tcp".to_owned(),
            protocol::UDP => "udp".to_owned(),
            protocol::SCTP => "sctp".to_owned(),
            protocol::ICMP | protocol::ICMPV6 => "icmp".to_owned(),
            other => format!("protocol {other}"),
        };
        let before = (socket(record.src, record.sport), socket(record.dst, record.dport));
        let after = (socket(record.new_src, record.new_sport), socket(record.new_dst, record.new_dport));
        write!(
            f,
            "{hook} {device}: {protocol} {} > {}: {}",
            before.0,
            before.1,
            self.decision(before == after)
        )?;
        if let Some(service) = &self.service {
            write!(f, ", {service}")?;
        }
        if matches!(Verdict::from_code(record.verdict), Verdict::Pass | Verdict::Shortcut) && before != after
        {
            write!(f, ", now {} > {}", after.0, after.1)?;
        }
        if record.mark != 0 {
            write!(f, ", mark {:#x}", record.mark)?;
        }
        Ok(())
    }
}

impl Line<'_> {
    fn decision(&self, unchanged: bool) -> String {
        const KINDS: [(Kind, &str); 4] = [
            (Kind::Translate, "translate"),
            (Kind::Restore, "restore"),
            (Kind::Masquerade, "masquerade"),
            (Kind::Unmasquerade, "unmasquerade"),
        ];
        let told = |word, reason: Reason| format!("{word} ({})", reason.name());
        match Verdict::from_code(self.record.verdict) {
            Verdict::Drop(reason) => told("drop", reason),
            Verdict::Reject(reason) => told("reject", reason),
            Verdict::Shortcut => "shortcut".to_owned(),
            Verdict::Pass if unchanged => "pass".to_owned(),
            Verdict::Pass => {
                let kind = KINDS.iter().find(|(kind, _)| *kind as u8 == self.record.kind);
                kind.map_or("rewrite", |(_, word)| word).to_owned()
            }
        }
    }
}

fn socket(address: [u32; 4], port: Port) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(Addr(address).octets()).to_canonical(), port.number())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(last: u8) -> [u32; 4] {
        Addr::v6(std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets()).0
    }

    fn record() -> TraceRecord {
        TraceRecord {
            src: mapped(1),
            dst: mapped(2),
            new_src: mapped(1),
            new_dst: mapped(3),
            sport: Port::new(4000),
            dport: Port::new(80),
            new_sport: Port::new(4000),
            new_dport: Port::new(8080),
            ifindex: 7,
            mark: 0,
            verdict: 0,
            service: 3,
            protocol: protocol::TCP,
            hook: Hook::Ingress as u8,
            kind: Kind::Translate as u8,
            pad: 0,
        }
    }

    #[test]
    fn lines_name_hook_tuple_and_decision() {
        let same = TraceRecord { new_dst: mapped(2), new_dport: Port::new(80), ..record() };
        let cases = [
            (
                TraceRecord { mark: 0x4000, ..record() },
                "ingress eth0: tcp 10.0.0.1:4000 > 10.0.0.2:80: translate, lab/app:http, now 10.0.0.1:4000 > \
                 10.0.0.3:8080, mark 0x4000",
            ),
            (
                TraceRecord { hook: Hook::Egress as u8, protocol: protocol::UDP, kind: 0, ..same },
                "egress eth0: udp 10.0.0.1:4000 > 10.0.0.2:80: pass, lab/app:http",
            ),
            (
                TraceRecord { verdict: Verdict::Reject(Reason::NoEndpoint).code(), ..record() },
                "ingress eth0: tcp 10.0.0.1:4000 > 10.0.0.2:80: reject (no_endpoint), lab/app:http",
            ),
            (
                TraceRecord { verdict: Verdict::Drop(Reason::FlowTableFull).code(), kind: 0, ..same },
                "ingress eth0: tcp 10.0.0.1:4000 > 10.0.0.2:80: drop (flow_table_full), lab/app:http",
            ),
        ];
        for (record, want) in cases {
            let (device, service) = (Some("eth0".to_owned()), Some("lab/app:http".to_owned()));
            assert_eq!(Line { record: &record, device, service }.to_string(), want);
        }
        let bare = Line { record: &record(), device: None, service: None }.to_string();
        assert!(bare.starts_with("ingress device 7: tcp"), "{bare}");
    }
}
