//! The bits by which programs tell who may be somebody.

use std::sync::atomic::Ordering;

use proxy_common::abi::Addr;

use super::error::DatapathError;
use super::store::failed;
use super::sys::{Table, Window};
use super::tables::FamilyTables;

/// Who may be somebody.
#[derive(Debug)]
pub struct Sieves {
    /// See [`Addr::sieve`]. Bits are never cleared: a stale one costs look-ups, and flows outlive addresses.
    all: Window,
    /// See [`Addr::endpoint_sieve`]. A stale bit may cost flow entries: each start forgets them.
    endpoints: Window,
}

impl Sieves {
    /// Shares their memory.
    pub fn open(all: Table<u32, u64>, endpoints: Table<u32, u64>) -> Result<Self, DatapathError> {
        Ok(Self { all: share(&all, "SIEVE")?, endpoints: share(&endpoints, "ENDPOINT_SIEVE")? })
    }

    /// What this does not let through is not looked up.
    pub fn let_through<const N: usize>(&self, address: &Addr<N>) {
        set(&self.all, address.sieve());
    }

    pub fn note_endpoint<const N: usize>(&self, address: &Addr<N>) {
        set(&self.endpoints, address.endpoint_sieve());
        self.let_through(address);
    }

    /// Lets through what is in the maps already, perhaps by a version without these sieves, and forgets who is no endpoint any more.
    pub fn start(&self, v4: &FamilyTables<1>, v6: &FamilyTables<4>) -> Result<(), DatapathError> {
        let mut words = vec![0; self.endpoints.words().len()];
        self.start_family(v4, &mut words)?;
        self.start_family(v6, &mut words)?;
        // Word by word, so that nobody's bit who stays is off meanwhile.
        let both = self.endpoints.words().iter().zip(words);
        both.for_each(|(word, bits)| word.store(bits, Ordering::Release));
        Ok(())
    }

    /// `words`: the endpoints' sieve in the making.
    fn start_family<const N: usize>(
        &self,
        tables: &FamilyTables<N>,
        words: &mut [u64],
    ) -> Result<(), DatapathError> {
        let addresses = tables.addresses.table().dump().map_err(failed("read", "ADDRESSES"))?;
        addresses.iter().for_each(|(address, _)| self.let_through(address));
        for chunk in tables.slots.chunks() {
            let slots = chunk.dump().map_err(failed("read", "SLOTS"))?;
            let used = slots.iter().map(|(_, backend)| backend.address).filter(|ip| *ip != Addr::UNSPECIFIED);
            for address in used {
                self.let_through(&address);
                let (word, bit) = address.endpoint_sieve();
                words.get_mut(word as usize).into_iter().for_each(|word| *word |= bit);
            }
        }
        Ok(())
    }
}

fn set(sieve: &Window, (word, bit): (u32, u64)) {
    if let Some(word) = sieve.word(word as usize) {
        word.fetch_or(bit, Ordering::Release);
    }
}

fn share(sieve: &Table<u32, u64>, map: &'static str) -> Result<Window, DatapathError> {
    Window::open(sieve.fd(), 0..sieve.max_entries() as usize).map_err(failed("share memory of", map))
}
