//! Fragments: the first one has the ports and goes the way of any packet; what became of its addresses is remembered, and
//! the others, which have no ports, are treated likewise (P-09, J2).
//!
//! Each hook remembers on its own: between two of them the stack may put a datagram together and cut it anew. What has been
//! left alone is remembered as well, so that fragments which come before their first are told from others: to Services they
//! are dropped, else they are the stack's, and either is counted (P-10).

use super::rewrite;
use super::traits::{Packet, Tables};
use super::verdict::{Returned, Verdict};
use crate::abi::{Addr, FlowKey, Fragment, Hook, Port, Reason, protocol};
use crate::wire::{Diff, Headers, load_addresses};

/// Ticks after which an id may be another datagram's (P-11): as long as the kernel keeps parts of one.
const LIFETIME: u32 = 30;

/// After the verdict about a first fragment: notes what has become of it.
#[inline(always)]
pub(super) fn remember<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    verdict: Verdict,
) -> Verdict {
    if headers.is_first_fragment() && verdict == Verdict::Pass {
        note(packet, tables, headers);
    }
    verdict
}

/// A subprogram of its own: with its callers in one frame it would not fit the stack.
#[inline(never)]
fn note<const N: usize, P: Packet, T: Tables<N>>(packet: &P, tables: &T, headers: &Headers<N>) {
    tables.scratch(|room| {
        let (key, fragment) = (&mut room.reply_key, &mut room.fragment);
        write_key(headers, key);
        if load_addresses(packet, headers.l3, &mut fragment.src, &mut fragment.dst).is_none() {
            return;
        }
        let stranger =
            tables.is_stranger(&key.dst) && (key.hook == Hook::Ingress as u8 || tables.is_stranger(&key.src));
        if stranger && is_as_before(key, fragment) {
            // Nobody will ask; and an id of a translated datagram may have come back with one that is not.
            tables.remove_fragment(key);
            return;
        }
        fragment.mark = packet.mark() & tables.masquerade_mark();
        fragment.seen = tables.now();
        fragment.tag = key.tag();
        tables.set_fragment(key, fragment);
    });
}

/// Counts a later fragment that [`later`] did not know, unless it is `dropped`, which is counted as such.
#[inline(always)]
pub(super) fn count_early<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>, dropped: bool) {
    if headers.is_later_fragment() && !dropped {
        tables.count(Reason::EarlyFragment);
    }
}

/// Whether the first fragment has kept its addresses.
#[inline(always)]
const fn is_as_before<const N: usize>(key: &FlowKey<N>, fragment: &Fragment<N>) -> bool {
    fragment.src.same(&key.src) && fragment.dst.same(&key.dst)
}

/// A later fragment. [`Returned::NONE`]: its first one has not been seen.
#[inline(never)]
pub(super) fn later<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Returned {
    let found = tables.scratch(|room| {
        let (key, fragment) = (&mut room.reply_key, &mut room.fragment);
        write_key(headers, key);
        // An element may be another key's by now.
        if !tables.fragment(key, fragment) || fragment.tag != key.tag() {
            return Returned::NONE;
        }
        if tables.now().wrapping_sub(fragment.seen) > LIFETIME {
            return Returned::NONE;
        }
        if is_as_before(key, fragment) {
            return Verdict::Pass.into();
        }
        packet.set_mark(packet.mark() & !tables.masquerade_mark() | fragment.mark);
        let moved = Diff::address(&key.src, &fragment.src).and(Diff::address(&key.dst, &fragment.dst));
        match translate(packet, headers.l3, &fragment.src, &fragment.dst, moved) {
            Some(()) => Verdict::Pass.into(),
            None => Verdict::Drop(Reason::Rewrite).into(),
        }
    });
    found.unwrap_or(Returned::NONE)
}

/// The transport checksum lies in the first fragment, and has been made right for all of them.
#[inline(always)]
fn translate<const N: usize, P: Packet>(
    packet: &mut P,
    l3: u32,
    src: &Addr<N>,
    dst: &Addr<N>,
    moved: Diff,
) -> Option<()> {
    rewrite::store_addresses(packet, l3, src, dst)?;
    if N == 1 {
        rewrite::header_checksum(packet, l3, moved)
    } else {
        packet.shift_sum(moved);
        Some(())
    }
}

/// The datagram's id stands where ports do. IPv6 gives ids to whole datagrams, whatever is in them, and only the first
/// fragment tells that (RFC 8200 section 4.5).
#[inline(always)]
fn write_key<const N: usize>(headers: &Headers<N>, key: &mut FlowKey<N>) {
    key.src = headers.key.src;
    key.dst = headers.key.dst;
    key.sport = Port((headers.id >> 16) as u16);
    key.dport = Port(headers.id as u16);
    key.protocol = if N == 1 { headers.key.protocol } else { protocol::FRAGMENT };
    key.hook = headers.key.hook;
    key.pad = 0;
}
