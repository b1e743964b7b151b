//! Session affinity: a client's new connections go where its last one went (D1 … D9).

use core::cmp::Ordering;

use super::scratch::Asked;
use super::traits::Tables;
use super::translate::draw;
use crate::abi::{Affinity, Backend, Run};

/// Probes of a binary search that find any slot of a list. 64 bits wide: a narrower counter shares its place on the stack
/// with others, and the verifier loses count.
const PROBES: u64 = 15;

/// The endpoint for a new connection of the client in `asked`.
#[inline(always)]
pub(super) fn choose<const N: usize, T: Tables<N>>(tables: &T, asked: &mut Asked<N>) -> Option<Backend<N>> {
    if asked.run.count() == 0 {
        return None;
    }
    let slot = if asked.timeout == 0 { draw(tables, asked.run) } else { tables.sticky(asked, tables.now()) };
    tables.backend(tables.unknown(slot))
}

/// Where the client's last connection went, if that is in the list still (D3) and not too long ago, else a draw. Either is
/// written down: each new connection refreshes (D2). `now` in ticks.
#[inline(always)]
pub fn sticky<const N: usize, T: Tables<N>>(tables: &T, asked: &mut Asked<N>, now: u32) -> u32 {
    let (run, epoch) = (asked.run, asked.epoch as u16);
    let mut slot = NONE;
    if tables.affinity(&asked.key, &mut asked.last)
        && asked.last.epoch == epoch
        && is_fresh(now.wrapping_sub(asked.last.seen), asked.timeout)
    {
        slot = find(tables, run, &asked.last);
        if slot != NONE && asked.last.seen == now {
            return slot;
        }
    }
    if slot == NONE {
        slot = draw(tables, run);
    }
    if let Some(backend) = tables.backend(slot) {
        asked.last.address = backend.address;
        asked.last.port = backend.port;
        asked.last.epoch = epoch;
        asked.last.seen = now;
        tables.set_affinity(&asked.key, &asked.last);
    }
    slot
}

const NONE: u32 = u32::MAX;

/// Whether `ticks` are not more than `seconds`. Both ends of the time were cut down to ticks: the one that may be too many
/// does not count.
#[inline(always)]
const fn is_fresh(ticks: u32, seconds: u32) -> bool {
    (ticks.saturating_sub(1) as u64) << 30 <= seconds as u64 * 1_000_000_000
}

/// The slot of an endpoint in a list, which is sorted by address and port; [`NONE`]: not there.
#[inline(always)]
fn find<const N: usize, T: Tables<N>>(tables: &T, run: Run, wanted: &Affinity<N>) -> u32 {
    let (mut low, mut high) = (0, run.count());
    for _ in 0..PROBES {
        if low >= high {
            break;
        }
        (low, high) = (tables.unknown(low), tables.unknown(high));
        let middle = low.wrapping_add(high.wrapping_sub(low) >> 1);
        let slot = run.offset().wrapping_add(middle);
        let Some(backend) = tables.backend(slot) else { break };
        match order(&backend, wanted) {
            Ordering::Equal => return slot,
            Ordering::Less => low = middle.wrapping_add(1),
            Ordering::Greater => high = middle,
        }
    }
    NONE
}

/// Where a slot's endpoint stands in the list, seen from the wanted one.
#[inline(always)]
fn order<const N: usize>(backend: &Backend<N>, wanted: &Affinity<N>) -> Ordering {
    let mut word = 0;
    while word < N {
        let (is, want) = (u32::from_be(backend.address.0[word]), u32::from_be(wanted.address.0[word]));
        if is != want {
            return is.cmp(&want);
        }
        word += 1;
    }
    backend.port.number().cmp(&wanted.port.number())
}

#[cfg(test)]
mod tests {
    use super::is_fresh;

    #[test]
    fn d2_a_timeout_is_never_shorter_than_asked_for() {
        for (ticks, seconds, want) in [
            (0, 1, true),
            (1, 1, true),
            (2, 1, false),
            (3, 3, true),
            (4, 3, false),
            (80_467, 86_400, true),
            (u32::MAX, 86_400, false),
        ] {
            assert_eq!(is_fresh(ticks, seconds), want, "{ticks} ticks, {seconds} s");
        }
    }
}
