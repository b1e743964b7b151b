//! Taking away what agents left in the kernel: attachments and pins, nothing else.

use std::os::fd::AsFd;
use std::path::Path;

use super::error::DatapathError;
use super::hooks::{self, Known, Ours, SOCKETS, TC_EGRESS, TC_INGRESS};
use super::loader::{self, Options};
use super::netns_cookie;
use super::owner::{self, Owners};
use super::pins::Pins;
use super::sys::{self, Target};

/// Places that the operator has named: what an agent of another network namespace has left goes there, too, unless it runs. Elsewhere
/// what belongs to one stays in any case: many share the root of cgroup v2 and the usual bpffs.
#[derive(Clone, Copy, Debug)]
pub struct Named {
    pub cgroup: bool,
    pub bpffs: bool,
}

impl Named {
    pub const ALL: Self = Self { cgroup: true, bpffs: true };
}

/// What was taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    /// Devices of this network namespace that carried our programs.
    pub devices: Vec<String>,
    /// Programs on the cgroup.
    pub sockets: usize,
    /// Pins and directories of pins, of every layout.
    pub pins: usize,
    /// Agents have made connection tracking liberal, which it was not.
    pub made_liberal: bool,
    /// What was left because it is another agent's, with what to do about it.
    pub left: Vec<String>,
}

/// Detaches every program of ours from this network namespace's devices and from the cgroup, and removes all pins.
/// A second call finds nothing. Maps go with the last program that uses them.
///
/// # Errors
/// Names what could not be taken away; everything before it is gone.
pub fn cleanup(options: &Options, named: Named) -> Result<Cleaned, DatapathError> {
    let mut cleaned = Cleaned::default();
    // Kernels without cookies cannot tell: everything counts as this namespace's.
    let here = netns_cookie().ok();
    let mut layouts = match &options.bpffs {
        Some(bpffs) => Pins::layouts(bpffs)?,
        None => Vec::new(),
    };
    let found = layouts.len();
    layouts
        .retain(|pins| owner::is_here(here, owner::of_pins(pins)) || named.bpffs && !owner::is_alive(pins));
    if let (Some(bpffs), true) = (&options.bpffs, layouts.len() < found) {
        cleaned.left.push(left("pins", bpffs, "--bpffs", named.bpffs));
    }
    let mut known = Known::new();
    for pins in &layouts {
        for (path, fd) in pins.programs()? {
            let failed = |source| DatapathError::File { operation: "read pin", path, source };
            known.insert(sys::program_info(fd.as_fd()).map_err(failed)?.id, fd);
        }
    }
    hooks::check_sight(&known)?;
    for (name, ifindex) in hooks::devices()? {
        let mut removed = 0;
        for hook in [TC_INGRESS, TC_EGRESS] {
            let (taken, _) = hooks::clear_some(Target::Device(ifindex), hook, &known, |ours| {
                cleaned.made_liberal |= owner::made_liberal(ours);
                true
            })?;
            removed += taken;
        }
        if removed > 0 {
            cleaned.devices.push(name);
        }
    }
    if let Some(path) = &options.cgroup {
        let cgroup = loader::open_cgroup(path)?;
        let target = Target::Cgroup(cgroup.as_fd());
        let owners = Owners::on(target, &known)?;
        let mine = |ours: &Ours| {
            known.contains_key(&ours.info.id)
                || owner::is_here(here, owners.of(ours))
                || named.cgroup && !owners.is_alive(ours)
        };
        let mut others = 0;
        for (hook, _) in SOCKETS {
            let (taken, kept) = hooks::clear_some(target, hook, &known, mine)?;
            cleaned.sockets += taken;
            others += kept;
        }
        if others > 0 {
            cleaned.left.push(left("socket programs", path, "--cgroup", named.cgroup));
        }
    }
    for pins in layouts {
        cleaned.made_liberal |= owner::made_liberal_pins(&pins);
        cleaned.pins += pins.remove()?.len();
    }
    Ok(cleaned)
}

/// `named`: the operator has named the place, and so the agent runs.
fn left(what: &str, place: &Path, flag: &str, named: bool) -> String {
    let place = place.display();
    if named {
        return format!(
            "{what} at {place}, of an agent that runs in another network namespace: clean up there"
        );
    }
    format!(
        "{what} at {place}, of an agent in another network namespace: clean up there, or with `{flag} {place}` if it is gone"
    )
}
