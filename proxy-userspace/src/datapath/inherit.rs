//! Maps of another layout: an upgrade loses no flow, nor does the way back (L-22).
//!
//! Neither version knows the other's types. What makes it possible is the rule of [`proxy_common::abi::LAYOUT`]: keys stay as
//! they are, values only grow at their end, and zero there means what was before. So a map of the same shape is the same map
//! and goes on being used by both generations of programs; one whose values are longer or shorter is copied, each value cut
//! off or filled up with zeros.
//!
//! ```text
//! 1. the other's maps are pinned or copied into a directory that is not in use yet     killed: it is thrown away
//! 2. programs are loaded over them, and the directory gets its name
//! 3. programs replace the other's, hook by hook                                        killed: goes on with 3
//! 4. the other's pins go                                                               killed: goes on with 3
//! ```
//!
//! Flows that the other's programs have made meanwhile are copied just before 3 and just after it. Replacing a program takes
//! the kernel microseconds: in those, a connection's first answer may meet a program that does not know it yet, and the client
//! has to ask again.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use super::error::DatapathError;
use super::pins::Pins;
use super::specs::{Spec, kind};
use super::sys::{self, MapInfo, Overwrite};

/// A map whose values have another size.
#[derive(Debug)]
struct Other {
    spec: Spec,
    fd: OwnedFd,
    info: MapInfo,
}

/// What an agent of another layout has left.
#[derive(Debug, Default)]
pub struct Inheritance {
    maps: Vec<Other>,
    /// Where it was pinned.
    dirs: Vec<Pins>,
}

/// Only these are written by programs, and change while programs of both layouts are attached.
const FLOWS: [&str; 2] = ["FLOWS_V4", "FLOWS_V6"];

impl Inheritance {
    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty() && self.dirs.is_empty()
    }

    /// Takes what is pinned in the directories of other layouts. `pins` gets maps of the same shape, if it is new.
    pub fn of_pins(pins: &Pins, others: Vec<Pins>, wanted: &[Spec]) -> Result<Self, DatapathError> {
        let mut inheritance = Self::default();
        for other in others {
            for spec in wanted {
                let Some(fd) = Pins::open(&other.map(spec.name))? else { continue };
                if inheritance.take(spec, &fd)? || !pins.is_unfinished() {
                    continue;
                }
                Pins::put(fd.as_fd(), &pins.map(spec.name))?;
            }
            if pins.is_unfinished() {
                other.share_inner(pins)?;
            }
            inheritance.dirs.push(other);
        }
        Ok(inheritance)
    }

    /// Keeps a map if it is to be copied.
    pub fn take(&mut self, spec: &Spec, fd: &OwnedFd) -> Result<bool, DatapathError> {
        let failed = |source| DatapathError::Map { operation: "describe", map: spec.name, source };
        let info = sys::map_info(fd.as_fd()).map_err(failed)?;
        let other = is_convertible(spec, &info);
        if other && self.maps.iter().all(|known| known.info.id != info.id) {
            let fd = fd.try_clone().map_err(failed)?;
            self.maps.push(Other { spec: *spec, fd, info });
        }
        Ok(other)
    }

    /// Programs that are pinned there: they are to be replaced.
    pub fn programs(&self) -> Result<Vec<(PathBuf, OwnedFd)>, DatapathError> {
        let found: Result<Vec<_>, _> = self.dirs.iter().map(Pins::programs).collect();
        Ok(found?.into_iter().flatten().collect())
    }

    /// Makes the maps that are not `found` as large as those that they are copied from.
    pub fn resize(&self, wanted: &mut [Spec], found: &mut HashMap<&'static str, u32>) -> Vec<&'static str> {
        let mut fresh = Vec::new();
        for Other { spec, info, .. } in &self.maps {
            if found.contains_key(spec.name) {
                continue;
            }
            fresh.push(spec.name);
            found.insert(spec.name, info.max_entries);
            for spec in wanted.iter_mut().filter(|wanted| wanted.name == spec.name) {
                spec.entries = spec.entries.map(|_| info.max_entries);
            }
        }
        fresh
    }

    /// Copies into maps that have just been made.
    pub fn fill(&self, pins: &Pins, fresh: &[&str]) -> Result<(), DatapathError> {
        let mut fresh = self.maps.iter().filter(|other| fresh.contains(&other.spec.name));
        fresh.try_for_each(|other| other.copy(pins, Overwrite::Always).map(drop))
    }

    /// Copies the flows that the other layout's programs have made since. How many entries.
    pub fn catch_up(&self, pins: &Pins) -> Result<u64, DatapathError> {
        let flows = self.maps.iter().filter(|other| FLOWS.contains(&other.spec.name));
        flows.map(|other| other.copy(pins, Overwrite::Never)).sum()
    }

    /// Once no program of the other layout is attached any more: takes its pins away.
    pub fn finish(self) -> Result<(), DatapathError> {
        self.dirs.into_iter().try_for_each(|dir| dir.remove().map(drop))
    }
}

impl Other {
    fn copy(&self, pins: &Pins, overwrite: Overwrite) -> Result<u64, DatapathError> {
        let name = self.spec.name;
        let failed = |source| DatapathError::Map { operation: "copy from another layout", map: name, source };
        let own = Pins::open(&pins.map(name))?.ok_or(DatapathError::NoProgram { program: name })?;
        let writer = sys::Writer::new(own.as_fd(), overwrite).map_err(failed)?;
        let (mut value, mut copied) = (writer.value(), 0);
        sys::elements(self.fd.as_fd(), |key, theirs| {
            convert(theirs, &mut value);
            copied += u64::from(writer.put(key, &value)?);
            Ok(())
        })
        .map_err(failed)?;
        Ok(copied)
    }
}

/// Whether a map differs from ours in the size of its values alone, and can be copied.
fn is_convertible(spec: &Spec, found: &MapInfo) -> bool {
    let same = (spec.kind, spec.key, spec.flags) == (found.kind, found.key_size, found.flags);
    same && spec.value != found.value_size && [kind::HASH, kind::ARRAY, kind::LPM_TRIE].contains(&spec.kind)
}

/// Fields are only ever added at the end.
fn convert(theirs: &[u8], ours: &mut [u8]) {
    let common = theirs.len().min(ours.len());
    let (head, tail) = ours.split_at_mut(common);
    head.copy_from_slice(&theirs[..common]);
    tail.fill(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l22_values_are_filled_up_or_cut_off() {
        let cases: [(&str, &[u8], &[u8]); 4] = [
            ("upgrade", &[1, 2], &[1, 2, 0, 0]),
            ("downgrade", &[1, 2, 3, 4, 5], &[1, 2, 3, 4]),
            ("the same", &[1, 2, 3, 4], &[1, 2, 3, 4]),
            ("nothing", &[], &[0, 0, 0, 0]),
        ];
        for (name, theirs, want) in cases {
            let mut ours = [9; 4];
            convert(theirs, &mut ours);
            assert_eq!(ours, want, "{name}");
        }
    }

    #[test]
    fn l22_maps_are_copied_if_their_values_have_another_size_and_nothing_else_differs() {
        let spec =
            Spec { name: "FLOWS_V4", kind: kind::HASH, key: 16, value: 48, flags: 0, entries: Some(9) };
        let map = |kind, key_size, value_size, flags| MapInfo {
            kind,
            id: 1,
            key_size,
            value_size,
            max_entries: 7,
            flags,
            name: "FLOWS_V4".into(),
        };
        let cases = [
            ("longer", map(kind::HASH, 16, 56, 0), true),
            ("shorter", map(kind::HASH, 16, 40, 0), true),
            ("the same map", map(kind::HASH, 16, 48, 0), false),
            ("another key", map(kind::HASH, 20, 56, 0), false),
            ("another kind", map(kind::LRU_HASH, 16, 56, 0), false),
            ("other flags", map(kind::HASH, 16, 56, 1), false),
        ];
        for (name, found, want) in cases {
            assert_eq!(is_convertible(&spec, &found), want, "{name}");
        }
        let queue = Spec { kind: kind::QUEUE, ..spec };
        assert!(!is_convertible(&queue, &map(kind::QUEUE, 16, 56, 0)), "nobody can look into a queue");
    }
}
