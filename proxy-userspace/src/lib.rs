//! The agent of Sluice.
//!
//! One object's way: a source ([`cluster`]) → `model` (compact state, pure) → plan → `sync` (difference to what
//! is installed) → `datapath` (ordered map writes).

pub mod agent;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod datapath;
pub mod http;
pub mod metrics;
pub mod model;
pub mod node;
mod sorted;
pub mod status;
pub mod sync;

/// The BPF object, as built by build.rs: programs and map definitions.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice.o"));
