//! Whose a data plane is: agents of several network namespaces may share a cgroup, and by mistake a bpffs.

use std::collections::HashMap;
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxy_common::abi::{Config, config_flags};

use super::error::DatapathError;
use super::hooks::{self, Known, Ours, SOCKETS};
use super::pins::Pins;
use super::sys::{self, Target};

/// Whether a data plane of this owner is this network namespace's. One without an owner was never in use.
pub fn is_here(here: Option<u64>, owner: Option<u64>) -> bool {
    here.is_none() || matches!(owner, None | Some(0)) || owner == here
}

/// For each map of the programs on a cgroup the network namespace whose sockets they serve. Not every program has the map
/// that tells, but all of an agent's share one.
#[derive(Debug, Default)]
pub struct Owners(HashMap<u32, u64>);

impl Owners {
    /// # Errors
    /// Names the hook.
    pub fn on(cgroup: Target<'_>, known: &Known) -> Result<Self, DatapathError> {
        let mut owners = HashMap::new();
        for (hook, _) in SOCKETS {
            let found = hooks::look(cgroup, hook, known).map_err(|source| {
                DatapathError::of("look for our programs", source, |source| {
                    hooks::attach_error("look for our programs", cgroup, hook, source)
                })
            })?;
            for ours in found.ours {
                let owner = ours.info.maps.iter().find_map(|id| by_id(*id));
                let maps = ours.info.maps.into_iter();
                owners.extend(owner.into_iter().flat_map(|owner| maps.clone().map(move |id| (id, owner))));
            }
        }
        Ok(Self(owners))
    }

    /// `None`: nobody has ever said so, or another layout keeps it elsewhere.
    pub fn of(&self, ours: &Ours) -> Option<u64> {
        ours.info.maps.iter().find_map(|map| self.0.get(map)).copied()
    }
}

/// `None`: this map does not tell, or may not be looked at.
fn by_id(id: u32) -> Option<u64> {
    read(config(id)?.as_fd())
}

/// The map with this id, if it is the settings.
fn config(id: u32) -> Option<OwnedFd> {
    let map = sys::map_by_id(id).ok()?;
    (sys::map_info(map.as_fd()).ok()?.name == CONFIG).then_some(map)
}

fn pinned(pins: &Pins) -> Option<OwnedFd> {
    Pins::open(&pins.map(CONFIG)).ok()?
}

/// The same, for a directory of pins.
pub fn of_pins(pins: &Pins) -> Option<u64> {
    read(pinned(pins)?.as_fd())
}

/// Whether agents of this data plane have made connection tracking liberal.
pub fn made_liberal(ours: &Ours) -> bool {
    ours.info.maps.iter().any(|id| config(*id).is_some_and(|config| reads_made_liberal(config.as_fd())))
}

/// The same, for a directory of pins.
pub fn made_liberal_pins(pins: &Pins) -> bool {
    pinned(pins).is_some_and(|config| reads_made_liberal(config.as_fd()))
}

const CONFIG: &str = "CONFIG";

fn read(config: BorrowedFd<'_>) -> Option<u64> {
    field(config, offset_of!(Config, netns_cookie)).map(u64::from_ne_bytes)
}

fn reads_made_liberal(settings: BorrowedFd<'_>) -> bool {
    let flags = field(settings, offset_of!(Config, flags)).map(u32::from_ne_bytes);
    flags.is_some_and(|flags| flags & config_flags::MADE_LIBERAL != 0)
}

/// Another layout's has its fields at the same places.
fn field<const N: usize>(config: BorrowedFd<'_>, at: usize) -> Option<[u8; N]> {
    sys::first_value(config).ok()?.get(at..)?.first_chunk().copied()
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
