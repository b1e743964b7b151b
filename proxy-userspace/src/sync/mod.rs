//! From what should be installed to ordered map writes, and what is installed read back.
//!
//! ```text
//! store.rs   the maps: reads, and writes as steps       runs.rs, ids.rs  what is free
//! classes.rs what each address is                        port.rs   one installed port, read back
//! change.rs  one port's change: what it takes, writes    lists.rs  its endpoint lists, and how it is switched to them
//! syncer.rs  adopt, apply, replace, tick, recover         by_address.rs a map that classes are kept in
//! ```
//!
//! Everything but [`Store::write`] is pure. The cost of a change is that of its own entries.

mod by_address;
mod change;
mod classes;
mod ids;
mod lists;
mod port;
mod runs;
mod store;
mod strays;
mod syncer;
#[cfg(test)]
mod tests;

use std::ops::{Index, IndexMut};

pub use port::{InstalledFrontend, InstalledPort};
pub use store::{Capacity, Dialled, EndpointId, Slot, Step, Store, Word};
pub use syncer::{Failed, NodeAddresses, Refused, Report, Settings, Syncer};

pub use change::Lack;

use crate::model::Family;

/// One value for each IP family.
#[derive(Clone, Debug, Default)]
struct PerFamily<T> {
    v4: T,
    v6: T,
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;

    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}
