//! Whose a data plane is: agents of several network namespaces may share a cgroup, and by mistake a bpffs.

use std::collections::{HashMap, HashSet};
use std::mem::offset_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxy_common::abi::{Config, Guard, config_flags};

use super::error::DatapathError;
use super::flows::ticks;
use super::hooks::{self, Known, Ours, SOCKETS};
use super::pins::Pins;
use super::sys::{self, Target};

/// Whether a data plane of this owner is this network namespace's. One without an owner was never in use.
pub fn is_here(here: Option<u64>, owner: Option<u64>) -> bool {
    here.is_none() || matches!(owner, None | Some(0)) || owner == here
}

/// For each map of the programs on a cgroup the network namespace whose sockets they serve, and whether their agent runs. Not every
/// program has the maps that tell, but all of an agent's share one.
#[derive(Debug, Default)]
pub struct Owners {
    namespaces: HashMap<u32, u64>,
    alive: HashSet<u32>,
}

impl Owners {
    /// # Errors
    /// Names the hook.
    pub fn on(cgroup: Target<'_>, known: &Known) -> Result<Self, DatapathError> {
        let mut owners = Self::default();
        for (hook, _) in SOCKETS {
            let found = hooks::look(cgroup, hook, known).map_err(|source| {
                DatapathError::of("look for our programs", source, |source| {
                    hooks::attach_error("look for our programs", cgroup, hook, source)
                })
            })?;
            for ours in found.ours {
                let maps = ours.info.maps;
                if let Some(owner) = maps.iter().find_map(|id| by_id(*id)) {
                    owners.namespaces.extend(maps.iter().map(|id| (*id, owner)));
                }
                if maps.iter().filter_map(|id| named(*id, GUARD)).any(|guard| beats(guard.as_fd())) {
                    owners.alive.extend(maps);
                }
            }
        }
        Ok(owners)
    }

    /// `None`: nobody has ever said so, or another layout keeps it elsewhere.
    pub fn of(&self, ours: &Ours) -> Option<u64> {
        ours.info.maps.iter().find_map(|map| self.namespaces.get(map)).copied()
    }

    /// Whether the agent of these programs has shown life just now.
    pub fn is_alive(&self, ours: &Ours) -> bool {
        ours.info.maps.iter().any(|map| self.alive.contains(map))
    }
}

/// `None`: this map does not tell, or may not be looked at.
fn by_id(id: u32) -> Option<u64> {
    read(named(id, CONFIG)?.as_fd())
}

/// The map with this id, if it has this name.
fn named(id: u32, name: &str) -> Option<OwnedFd> {
    let map = sys::map_by_id(id).ok()?;
    (sys::map_info(map.as_fd()).ok()?.name == name).then_some(map)
}

fn pinned(pins: &Pins, name: &str) -> Option<OwnedFd> {
    Pins::open(&pins.map(name)).ok()?
}

/// The same, for a directory of pins.
pub fn of_pins(pins: &Pins) -> Option<u64> {
    read(pinned(pins, CONFIG)?.as_fd())
}

/// Whether the agent of these pins has shown life just now.
pub fn is_alive(pins: &Pins) -> bool {
    pinned(pins, GUARD).is_some_and(|guard| beats(guard.as_fd()))
}

/// Whether agents of this data plane have made connection tracking liberal.
pub fn made_liberal(ours: &Ours) -> bool {
    ours.info
        .maps
        .iter()
        .any(|id| named(*id, CONFIG).is_some_and(|config| reads_made_liberal(config.as_fd())))
}

/// The same, for a directory of pins.
pub fn made_liberal_pins(pins: &Pins) -> bool {
    pinned(pins, CONFIG).is_some_and(|config| reads_made_liberal(config.as_fd()))
}

const CONFIG: &str = "CONFIG";
const GUARD: &str = "GUARD";

fn beats(guard: BorrowedFd<'_>) -> bool {
    let beat = field(guard, offset_of!(Guard, beat)).map(u32::from_ne_bytes);
    beat.is_some_and(|beat| beat != 0 && ticks().wrapping_sub(beat) < Guard::AWAY)
}

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
