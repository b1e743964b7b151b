//! The packet trace: the same programs, loaded anew with one address in their globals, take the place of those that are
//! attached, and give it back afterwards. Off, nothing of it is in the kernel.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya_log::EbpfLogger;
use proxy_common::abi::TraceRecord;

use super::attach::edge_programs;
use super::error::DatapathError;
use super::programs::{Kept, load_and_pin};
use super::{Datapath, pins};
use crate::node::Edge;

/// The programs that trace: sockets are not traced.
#[derive(Debug)]
pub struct Tracing(Vec<Kept>);

impl Tracing {
    /// The id of one of them.
    pub fn program(&self, name: &str) -> Option<u32> {
        self.0.iter().find(|kept| kept.name == name).map(|kept| kept.id)
    }
}

/// What the tracing programs tell.
pub struct TraceLog {
    logger: EbpfLogger<Collector>,
    told: Arc<Mutex<Vec<TraceRecord>>>,
}

impl TraceLog {
    fn new(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let logger = EbpfLogger::init_with_logger(ebpf, Collector(told.clone())).map_err(|error| {
            let source = std::io::Error::other(error);
            DatapathError::Map { operation: "read", map: "AYA_LOGS", source }
        })?;
        Ok(Self { logger, told })
    }

    /// All that has been told since the last call.
    pub fn read(&mut self) -> Vec<TraceRecord> {
        self.logger.flush();
        std::mem::take(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Takes aya-log's lines, each one record in hexadecimal, apart again.
struct Collector(Arc<Mutex<Vec<TraceRecord>>>);

impl log::Log for Collector {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, line: &log::Record<'_>) {
        if let Some(record) = record(&line.args().to_string()) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        }
    }

    fn flush(&self) {}
}

fn record(line: &str) -> Option<TraceRecord> {
    let mut bytes = [0; TraceRecord::SIZE];
    if line.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(line.get(at..at + 2)?, 16).ok()?;
    }
    Some(TraceRecord::from_bytes(&bytes))
}

impl Datapath {
    /// Puts programs that trace `address` on `edges` in place of the others. Each is replaced at once: no packet is
    /// missed, none served twice.
    ///
    /// # Errors
    /// The kernel refuses the programs or an attachment. Then the others have their places again.
    pub fn trace(&mut self, address: IpAddr, edges: &[Edge]) -> Result<TraceLog, DatapathError> {
        self.end_trace(edges)?;
        let mut ebpf = self.object(Some(address))?;
        let log = TraceLog::new(&mut ebpf)?;
        let names = edge_programs(edges);
        let Tracing(kept) = self.tracing.insert(Tracing(Vec::new()));
        let loaded = load_and_pin(&mut ebpf, &names, &self.pins, None, &mut self.programs.known, kept);
        match loaded.and_then(|()| self.attach_all(edges)) {
            Ok(()) => Ok(log),
            Err(error) => {
                self.end_trace(edges)?;
                Err(error)
            }
        }
    }

    /// Gives the programs that do not trace their places back. Nothing where there is no trace.
    ///
    /// # Errors
    /// An edge keeps its tracing program.
    pub fn end_trace(&mut self, edges: &[Edge]) -> Result<(), DatapathError> {
        let Some(Tracing(kept)) = self.tracing.take() else { return Ok(()) };
        // Known until all are replaced: an agent without CAP_SYS_ADMIN cannot open them by id.
        let replaced = self.attach_all(edges);
        for Kept { id, pin, .. } in kept {
            self.programs.known.remove(&id);
            pins::unlink(&pin)?;
        }
        replaced
    }

    /// Tries every edge; the first failure.
    fn attach_all(&mut self, edges: &[Edge]) -> Result<(), DatapathError> {
        let mut result = Ok(());
        for edge in edges {
            match self.attach_edge(edge) {
                Err(error) if !error.is_gone() => result = result.and(Err(error)),
                _ => {}
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_the_log_and_nonsense_does_no_harm() {
        let line = "0102".repeat(TraceRecord::SIZE / 2);
        let record = record(&line).unwrap();
        assert_eq!(record.src, [u32::from_ne_bytes([1, 2, 1, 2]); 4]);
        assert_eq!(record.service, u32::from_ne_bytes([1, 2, 1, 2]));
        assert_eq!((record.protocol, record.hook, record.kind, record.pad), (1, 2, 1, 2));
        for nonsense in ["", "zz", &line[2..], &"é".repeat(TraceRecord::SIZE)] {
            assert_eq!(super::record(nonsense), None, "{nonsense}");
        }
    }
}
