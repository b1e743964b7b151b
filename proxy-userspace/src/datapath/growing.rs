//! Hashes that have as much room as is needed: of one with room for all that a cluster may have, the buckets alone would take
//! megabytes on every node.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use proxy_common::abi::Abi;

use super::error::DatapathError;
use super::pins::{Pins, unlink};
use super::specs::Spec;
use super::store::{failed, put, set_all};
use super::sys::{self, Table};

/// A hash in the one place of an outer map. Where it has no room, a larger one with the same elements takes the place, in one step:
/// programs see the one or the other. It never shrinks.
#[derive(Debug)]
pub struct Growing<K, V> {
    spec: Spec,
    /// At 0: the hash. Read back, it gives its id.
    place: Table<u32, u32>,
    table: Table<K, V>,
    /// The most elements that it may come to have.
    most: u32,
}

/// Room of the first one, 256 KiB of buckets: most clusters never need another.
const FIRST: u32 = 16_384;

impl<K: Abi + Sync, V: Abi + Sync> Growing<K, V> {
    /// Opens what is in the place; what an agent has pinned that knew no place; or an empty one. `spec`: of the hash.
    pub fn open(place: Table<u32, u32>, spec: Spec, most: u32, pins: &Pins) -> Result<Self, DatapathError> {
        let (path, grown) = (pins.map(spec.name), pins.grown(spec.name));
        let pinned = Pins::open(&path)?.and_then(|fd| Some((sys::map_info(fd.as_fd()).ok()?, fd)));
        let put =
            |fd: &OwnedFd| put(&place, &[0], &[fd.as_fd()]).map_err(failed("put in its place", spec.name));
        let fd = match (place.get(&0).map_err(failed("read", spec.name))?, pinned) {
            (Some(id), Some((info, fd))) if info.id == id => fd,
            // An agent has been killed before it could give the larger one its name.
            (Some(id), _) if let Ok(fd) = pins.inner(id, &grown)? => {
                pins.keep(fd.as_fd(), &path)?;
                fd
            }
            (None, Some((info, fd))) if spec.conflict(&info).is_none() => {
                put(&fd)?;
                fd
            }
            // Or its pin is lost, and only CAP_SYS_ADMIN would open it.
            _ => {
                let fd = spec.make(spec.name, FIRST.min(most)).map_err(failed("create", spec.name))?;
                // The pin first: whoever is killed in between has lost nothing.
                pins.keep(fd.as_fd(), &path)?;
                put(&fd)?;
                fd
            }
        };
        unlink(&grown)?;
        let table = Table::new(fd).map_err(failed("open", spec.name))?;
        Ok(Self { spec, place, table, most })
    }

    /// The hash as it is now.
    pub const fn table(&self) -> &Table<K, V> {
        &self.table
    }

    /// The most elements that it may come to have.
    pub fn most(&self) -> u32 {
        self.most.max(self.table.max_entries())
    }

    /// Writes elements, and makes room for them.
    pub fn set_all(&mut self, keys: &[K], values: &[V], pins: &Pins) -> Result<(), DatapathError> {
        let written = failed("write", self.spec.name);
        if keys.len() > self.table.max_entries() as usize {
            self.grow(keys.len(), pins)?;
        }
        loop {
            match set_all(&self.table, keys, values) {
                Err(error) if is_full(&error) && self.table.max_entries() < self.most => {
                    self.grow(keys.len(), pins)?;
                }
                result => return result.map_err(written),
            }
        }
    }

    /// Puts one with room for `more` elements beside those of the present one in its place.
    fn grow(&mut self, more: usize, pins: &Pins) -> Result<(), DatapathError> {
        let failed = failed("enlarge", self.spec.name);
        let wanted = (self.table.max_entries() as usize + more).next_power_of_two();
        let room = u32::try_from(wanted).unwrap_or(u32::MAX).min(self.most);
        let fd = self.spec.make(self.spec.name, room).map_err(&failed)?;
        let (path, grown) = (pins.map(self.spec.name), pins.grown(self.spec.name));
        pins.keep(fd.as_fd(), &grown)?;
        let larger = Table::new(fd).map_err(&failed)?;
        let copied = self.table.dump().and_then(|elements| {
            let (keys, values): (Vec<K>, Vec<V>) = elements.into_iter().unzip();
            set_all(&larger, &keys, &values)?;
            put(&self.place, &[0], &[larger.fd()])
        });
        if let Err(error) = copied {
            unlink(&grown)?;
            return Err(failed(error));
        }
        self.table = larger;
        pins.keep(self.table.fd(), &path)?;
        unlink(&grown)
    }
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::E2BIG)
}
