//! Taking away what agents left in the kernel: attachments and pins, nothing else.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use proxy_common::abi::Config;

use super::error::DatapathError;
use super::hooks::{self, Known, Ours, SOCKETS, TC_EGRESS, TC_INGRESS};
use super::loader::{self, Options};
use super::netns_cookie;
use super::pins::Pins;
use super::sys::{self, Table, Target};

/// Places that the operator has named: whatever is ours goes there. Elsewhere what belongs to an agent in another network
/// namespace stays: many share the root of cgroup v2 and the usual bpffs.
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
    if !named.bpffs {
        layouts.retain(|pins| is_here(here, owner_of_pins(pins)));
    }
    if let (Some(bpffs), true) = (&options.bpffs, layouts.len() < found) {
        cleaned.left.push(left("pins", bpffs, "--bpffs"));
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
            removed += hooks::clear(Target::Device(ifindex), hook, &known)?;
        }
        if removed > 0 {
            cleaned.devices.push(name);
        }
    }
    if let Some(path) = &options.cgroup {
        let cgroup = loader::open_cgroup(path)?;
        let target = Target::Cgroup(cgroup.as_fd());
        let owners = owners_of_maps(target, &known)?;
        let mine = |ours: &Ours| {
            let owner = ours.info.maps.iter().find_map(|map| owners.get(map)).copied();
            named.cgroup || known.contains_key(&ours.info.id) || is_here(here, owner)
        };
        let mut others = 0;
        for (hook, _) in SOCKETS {
            let (taken, kept) = hooks::clear_some(target, hook, &known, mine)?;
            cleaned.sockets += taken;
            others += kept;
        }
        if others > 0 {
            cleaned.left.push(left("socket programs", path, "--cgroup"));
        }
    }
    for pins in layouts {
        cleaned.pins += pins.remove()?.len();
    }
    Ok(cleaned)
}

fn left(what: &str, place: &Path, flag: &str) -> String {
    let place = place.display();
    format!(
        "{what} at {place}, of an agent in another network namespace: clean up there, or with `{flag} {place}` if it is gone"
    )
}

/// Whether a data plane of this owner is this network namespace's. One without an owner was never in use.
fn is_here(here: Option<u64>, owner: Option<u64>) -> bool {
    here.is_none() || matches!(owner, None | Some(0)) || owner == here
}

/// The network namespace for whose sockets each map of the programs on a cgroup serves. Not every program has the map that
/// tells, but all of an agent's share one.
fn owners_of_maps(cgroup: Target<'_>, known: &Known) -> Result<HashMap<u32, u64>, DatapathError> {
    let mut owners = HashMap::new();
    for (hook, _) in SOCKETS {
        let found = hooks::look(cgroup, hook, known)
            .map_err(|source| hooks::attach_error("look for our programs", cgroup, hook, source))?;
        for ours in found.ours {
            let owner = ours.info.maps.iter().find_map(|id| owner_by_id(*id));
            owners.extend(
                owner.into_iter().flat_map(|owner| ours.info.maps.iter().map(move |id| (*id, owner))),
            );
        }
    }
    Ok(owners)
}

/// `None`: this map does not tell, or may not be looked at.
fn owner_by_id(id: u32) -> Option<u64> {
    let map = sys::map_by_id(id).ok()?;
    (sys::map_info(map.as_fd()).ok()?.name == CONFIG).then(|| owner(map.as_fd())).flatten()
}

/// The same, for a directory of pins.
fn owner_of_pins(pins: &Pins) -> Option<u64> {
    owner(Pins::open(&pins.map(CONFIG)).ok()??.as_fd())
}

const CONFIG: &str = "CONFIG";

fn owner(config: BorrowedFd<'_>) -> Option<u64> {
    // Another layout's cannot be read.
    let table = Table::<u32, Config>::new(config.try_clone_to_owned().ok()?).ok()?;
    Some(table.get(&0).ok()??.netns_cookie)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_told_to_be_anothers_is_ours() {
        let cases = [
            ("ours", Some(7), Some(7), true),
            ("another namespace's", Some(7), Some(8), false),
            ("never configured", Some(7), Some(0), true),
            ("of another layout", Some(7), None, true),
            ("a kernel that does not tell namespaces apart", None, Some(8), true),
        ];
        for (name, here, owner, want) in cases {
            assert_eq!(is_here(here, owner), want, "{name}");
        }
    }
}
