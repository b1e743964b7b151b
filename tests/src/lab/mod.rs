//! The bed: nodes, pods and an outside client as network namespaces of this machine.
//!
//! ```text
//!            cl 198.51.100.9, fd00:c::9
//!             |
//!            rt (router; default route of everybody)
//!           /  \
//!  n1 192.0.2.11  n2 192.0.3.12        n1 runs the agent, n2 is a plain router
//!  pa pb pc       pd                   pods 10.244.1.5 .6 .7 and 10.244.2.5
//! ```
//!
//! Everything is dual stack. Pods of n1 are wired `routed` (one /32 and /128 route a pod) or `bridged` (ports of one
//! bridge, hairpin mode off). [`Bed`] owns it all and takes it away when dropped; [`cleanup`] does so on signals and
//! for runs that died.

pub mod agent;
pub mod app;
pub mod bed;
pub mod cgroup;
pub mod cleanup;
pub mod command;
pub mod control;
pub mod loaded;
pub mod manifests;
pub mod namespace;
mod parts;
pub mod place;
pub mod plan;
pub mod sockets;
pub mod trace;
pub mod wiring;

pub use crate::sys::deny_bpf;
pub use agent::Agent;
pub use app::{App, Backend};
pub use bed::{Bed, BedConfig};
pub use manifests::Manifests;
pub use place::Place;
pub use plan::{Family, Who, Wiring};

/// To be called first in every binary that builds beds: the laboratory starts its own executable again as helper.
/// Does not return in a helper. In the main process it removes what dead runs have left and arranges for clean-up
/// on SIGINT and SIGTERM.
///
/// # Errors
/// The signal thread cannot be started.
pub fn enter() -> anyhow::Result<()> {
    sockets::serve_if_asked();
    cleanup::leftovers();
    cleanup::on_signals()
}
