//! Programs and maps in the kernel: loaded or adopted, attached without links, read and written.
//!
//! ```text
//! sys.rs     raw system calls; the only unsafe code
//! specs.rs   what the maps look like      pins.rs    where they are kept
//! loader.rs  options → programs, maps     tables.rs  the open maps
//! hooks.rs   what is attached where       attach.rs  attaching, replacing, retiring
//! cleanup.rs taking everything away       store.rs   the maps as `sync` sees them
//! flows.rs   live flows, counters         trace.rs   the packet trace of one address
//! explain.rs questions, and the answers   copies.rs  copies that are asked
//! probe.rs   packets to ask with
//! sockets.rs what is remembered of sockets permission.rs why bpf(2) is refused
//! owner.rs   whose programs and maps are  summed.rs  how a packet's checksum stands
//! inherit.rs maps of another layout      programs.rs the programs in use
//! sieves.rs  who may be somebody          chunks.rs  arrays in chunks
//! growing.rs hashes that grow
//! ```

mod attach;
mod chunks;
mod cleanup;
mod copies;
mod error;
mod explain;
mod flows;
mod growing;
mod hooks;
mod inherit;
mod loader;
mod owner;
mod permission;
mod pins;
mod probe;
mod programs;
mod sieves;
mod sockets;
mod specs;
mod store;
mod summed;
mod sys;
mod tables;
mod trace;

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use proxy_common::abi::{Config, Guard, Port};

pub use attach::{Attached, Change, HookState, Placement, Retired};
pub use cleanup::{Cleaned, Named, cleanup};
pub use error::DatapathError;
pub use explain::{Asked, Made, Question};
pub use flows::{FlowInfo, FlowState, FlowUsage};
pub use loader::Options;
pub use sockets::{Living, Translated};
pub use specs::Sizes;
pub use summed::{Summed, Unsummed};
pub use sys::{share_heap, socket_option, trim_heap};
pub use trace::TraceLog;

use copies::Copies;
use inherit::Inheritance;
use loader::Recipe;
use pins::Pins;
use programs::Programs;
use tables::Tables;
use trace::Tracing;

/// The installed programs and maps. Dropping it changes nothing in the kernel.
#[derive(Debug)]
pub struct Datapath {
    programs: Programs,
    /// Programs that trace, in place of the others while they are here.
    tracing: Option<Tracing>,
    /// Copies of the programs that answer questions, once one was asked.
    copies: Option<Copies>,
    pins: Pins,
    recipe: Recipe,
    tables: Tables,
    cgroup: Option<OwnedFd>,
    inheritance: Inheritance,
    adopted: bool,
    notices: Vec<String>,
    unsummed: Option<String>,
    sizes: Sizes,
    /// Loaded when it is first needed.
    sockets_program: Option<OwnedFd>,
}

impl Datapath {
    /// Loads the programs, with the maps of an earlier agent where there are any. Attaches nothing.
    ///
    /// Maps are found as pins under `<bpffs>/sluice/<LAYOUT>`; without a bpffs, or where nothing is pinned, by the programs
    /// attached to this network namespace's devices and to the cgroup.
    ///
    /// # Errors
    /// One line for an operator. A map that is not what this version expects is never used nor removed; what this call has
    /// pinned goes.
    pub fn load(options: &Options) -> Result<Self, DatapathError> {
        let fresh = options.bpffs.as_deref().filter(|bpffs| !Pins::are_at(bpffs));
        let opened = Self::open(options);
        if let (Err(_), Some(bpffs)) = (&opened, fresh) {
            Pins::abandon(bpffs);
        }
        opened
    }

    fn open(options: &Options) -> Result<Self, DatapathError> {
        let loaded = loader::load(options)?;
        let datapath = Self {
            tables: loaded.tables,
            programs: loaded.programs,
            tracing: None,
            copies: None,
            pins: loaded.pins,
            recipe: loaded.recipe,
            cgroup: loaded.cgroup,
            inheritance: loaded.inheritance,
            adopted: loaded.adopted,
            notices: loaded.notices,
            unsummed: loaded.unsummed,
            sizes: options.sizes,
            sockets_program: None,
        };
        let tables = &datapath.tables;
        tables.sieves.start(&tables.v4, &tables.v6)?;
        Ok(datapath)
    }

    /// The object, to load more programs of. `traced`: packets of this address are told.
    fn object(&self, traced: Option<IpAddr>) -> Result<Ebpf, DatapathError> {
        loader::load_again(&self.pins, &self.recipe, self.programs.make, traced)
    }

    /// Whether maps of an earlier agent are in use.
    #[must_use]
    pub const fn adopted(&self) -> bool {
        self.adopted
    }

    /// Takes over the flows that the programs of an agent of another layout have made since the last call: to be called just
    /// before and just after these programs are replaced (L-22). How many entries.
    ///
    /// # Errors
    /// Names the map.
    pub fn catch_up(&self) -> Result<u64, DatapathError> {
        self.inheritance.catch_up(&self.pins)
    }

    /// Forgets an agent of another layout, once none of its programs is attached. Whether there was one.
    ///
    /// # Errors
    /// Names the pin.
    pub fn forget_other_layouts(&mut self) -> Result<bool, DatapathError> {
        let inheritance = std::mem::take(&mut self.inheritance);
        let was_there = !inheritance.is_empty();
        inheritance.finish().map(|()| was_there)
    }

    /// Lines to log once: settings that could not be applied because content was kept (L-22).
    #[must_use]
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Why programs have checksums made by a kernel helper; `None`: they compute them.
    #[must_use]
    pub fn unsummed(&self) -> Option<&str> {
        self.unsummed.as_deref()
    }

    /// Whether sockets can be translated: a cgroup was given.
    #[must_use]
    pub const fn has_sockets(&self) -> bool {
        self.cgroup.is_some()
    }

    /// The settings in force. All zero before the first [`Datapath::set_config`] of the first agent.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn config(&self) -> Result<Config, DatapathError> {
        let failed = |source| DatapathError::Map { operation: "read", map: "CONFIG", source };
        let found = self.tables.config.get(&0).map_err(failed)?;
        found.ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
    }

    /// Tells the programs that the agent lives, and at which port another proxy would be heard of; `None`: at none.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn beat(&self, health: Option<u16>) -> Result<(), DatapathError> {
        let port = Port::new(health.unwrap_or(0));
        let guard = Guard { beat: flows::ticks(), since: 0, looked: 0, port, pad: 0 };
        let failed = |source| DatapathError::Map { operation: "write", map: "GUARD", source };
        self.tables.guard.set(&0, &guard).map_err(failed)
    }

    /// Puts `config` in force.
    ///
    /// # Errors
    /// If the map cannot be written.
    pub fn set_config(&self, config: &Config) -> Result<(), DatapathError> {
        let failed = |source| DatapathError::Map { operation: "write", map: "CONFIG", source };
        self.tables.config.set(&0, config).map_err(failed)?;
        self.tables.tell_news()
    }
}

/// Cookie of the network namespace that the calling thread is in, for `Config::netns_cookie`.
///
/// # Errors
/// On kernels before 5.14.
pub fn netns_cookie() -> std::io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    sys::netns_cookie(socket.as_fd())
}
