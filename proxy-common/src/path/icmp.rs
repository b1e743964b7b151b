//! ICMP errors and redirects that quote a packet of a known flow.

use super::traits::{Entry, Fields, Packet, Tables};
use super::verdict::{Returned, Verdict};
use super::{lease, pair, rewrite};
use crate::abi::{Addr, Flow, FlowKey, Hook, Kind, Reason, protocol};
use crate::wire::{
    Diff, Headers, Transport, addresses_at, apply, fold, parse_quoted, port_difference, pseudo_header,
};

/// Rewrites an error outside and inside (P-14 … P-17). A redirect must be dropped: one that names a Service address would
/// poison the client's route for 300 s. No entry is made or refreshed, and an error to somebody who did not send the
/// quoted packet is not the flow's (P-18).
///
/// The quoted packet travelled the other way: with its ends swapped it is the key of the entry at `hook`, and
/// what the entry makes of the key's source is right for the quote's destination. `hook` is the number of the packet's own, or of
/// the client's edge for one that [`passes_by`]. [`Verdict::code`], or `u32::MAX`: it is not about a flow of ours.
#[inline(always)]
pub fn quoted<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    hook: u32,
) -> u32 {
    about(packet, tables, headers, hook as u8).map_or(Returned::NONE, Returned::from).code()
}

#[inline(always)]
fn about<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    hook: u8,
) -> Option<Verdict> {
    let redirect = headers.transport == Transport::IcmpRedirect;
    let mut at = headers.l4 + 8;
    if redirect && N == 4 {
        at = redirected(packet, headers.l4)?;
    }
    let verdict = tables.scratch(|scratch| {
        let (key, flow, quoted) = (&mut scratch.reply_key, &mut scratch.flow, &mut scratch.quoted);
        parse_quoted(packet, at, quoted)?;
        *key = quoted.key.mirrored();
        key.hook = hook;
        let entry = tables.flow(key)?;
        entry.read_to(flow);
        if flow.tag != key.tag() {
            return None;
        }
        if redirect {
            return Some(Verdict::Drop(Reason::Redirect));
        }
        if !is_told(packet, headers.l3, &key.dst) {
            return None;
        }
        Some(match rewritten(packet, headers, quoted, key, flow) {
            Some(()) => Verdict::Pass,
            None => Verdict::Drop(Reason::Rewrite),
        })
    });
    verdict.flatten()
}

/// Whether the packet goes to this address by now: at one hook two entries may have their parts in it.
#[inline(always)]
fn is_told<const N: usize, P: Packet>(packet: &P, l3: u32, to: &Addr<N>) -> bool {
    let at = addresses_at::<N>(l3) + 4 * N as u32;
    (0..N).all(|word| packet.load(at + 4 * word as u32) == Some(to.0[word].to_ne_bytes()))
}

/// The ways by which an error that enters passes the stack by, and in the upper half of the word the device: it is about a request that
/// has done so by routes alone. Connection tracking takes an error about what it has not seen for invalid. 0: there are none.
///
/// A subprogram of its own, for the room that routes take.
#[inline(never)]
pub(super) fn passes_by<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> u64 {
    if !lease::are_routes_enough(tables) {
        return 0;
    }
    let way = tables.scratch(|scratch| {
        let (key, quoted) = (&mut scratch.reply_key, &mut scratch.quoted);
        parse_quoted(packet, headers.l4 + 8, quoted)?;
        *key = quoted.key.mirrored();
        key.hook = Hook::Egress as u8;
        let entry = tables.flow(key)?;
        if !pair::is_of(&entry, key, Kind::Restore as u32) {
            return None;
        }
        let ways = lease::ways_back(packet, tables, headers, key, false);
        (ways != 0).then(|| u64::from(entry.get(|flow| flow.ifindex)) << 32 | u64::from(ways))
    });
    way.flatten().unwrap_or(0)
}

/// Where an ICMPv6 redirect quotes the packet: behind the options that precede "redirected header" (RFC 4861
/// sections 4.5 and 4.6.3).
#[inline(always)]
fn redirected<P: Packet>(packet: &P, l4: u32) -> Option<u32> {
    let mut at = l4 + 40;
    for _ in 0..3 {
        let option: [u8; 2] = packet.load(at)?;
        if option[0] == 4 {
            return Some(at + 8);
        }
        // One unit is all that the options before it take; anything longer is not worth following.
        if option[1] != 1 {
            return None;
        }
        at += 8;
    }
    None
}

#[inline(always)]
fn rewritten<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    quoted: &Headers<N>,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> Option<()> {
    let addresses = Diff(flow.address_diff);
    let ports = rewrite::port_diff(key, flow.sport, flow.dport);
    let checksum = if key.protocol == protocol::SCTP {
        Diff(quoted_sctp_checksum(packet, headers, quoted, flow))
    } else {
        quoted_checksum(packet, headers, quoted, addresses, ports)?
    };
    let mut covered = addresses.and(ports).and(checksum);
    rewrite::store_addresses(packet, quoted.l3, &flow.dst, &flow.src)?;
    rewrite::store_ports(packet, quoted.l4, flow.dport, flow.sport)?;
    if N == 1 {
        let before = u16::from_ne_bytes(packet.load(quoted.l3 + 10)?);
        rewrite::header_checksum(packet, quoted.l3, addresses)?;
        covered = covered.and(Diff::half(before, apply(before, addresses)));
    }
    let outside = renamed(packet, headers, key, flow)?;
    if N == 1 {
        rewrite::header_checksum(packet, headers.l3, outside)?;
    } else {
        // The pseudo header of ICMPv6 (RFC 4443 section 2.3).
        covered = covered.and(outside);
    }
    let checksum = u16::from_ne_bytes(packet.load(headers.l4 + 2)?);
    packet.store(headers.l4 + 2, apply(checksum, covered).to_ne_bytes())
}

/// Renames the outer end that this hook renames, as netfilter does: on the way in whom the error is told, on the way
/// out who tells it. The latter may be a router on the way, whose own address would lead the error back through
/// that router, which takes it for a martian; so the flow's party speaks for it. Returns the change.
#[inline(always)]
fn renamed<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    flow: &Flow<N>,
) -> Option<Diff> {
    let outer = &headers.key;
    // The catch-all device's own address is known nowhere else: there both ends change.
    if packet.is_caught() {
        rewrite::store_addresses(packet, headers.l3, &flow.src, &flow.dst)?;
        return Some(Diff::address(&outer.src, &flow.src).and(Diff::address(&outer.dst, &flow.dst)));
    }
    if key.hook == Hook::Ingress as u8 {
        rewrite::store_addresses(packet, headers.l3, &outer.src, &flow.dst)?;
        Some(Diff::address(&outer.dst, &flow.dst))
    } else {
        rewrite::store_addresses(packet, headers.l3, &flow.src, &key.dst)?;
        Some(Diff::address(&outer.src, &flow.src))
    }
}

/// The same of SCTP, as a [`Diff`]'s number. It depends on the packet's length only, so it is right however little has been
/// quoted; that a fragment does not tell.
///
/// A subprogram of its own: with its callers in one frame it would not fit the stack.
#[inline(never)]
fn quoted_sctp_checksum<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    quoted: &Headers<N>,
    flow: &Flow<N>,
) -> u32 {
    let (key, at) = (&quoted.key, quoted.checksum_at());
    let difference = port_difference([key.sport, key.dport], [flow.dport, flow.sport]);
    if difference == 0 || at + 4 > headers.end || quoted.is_fragment() {
        return Diff::NONE.0;
    }
    let Some(before) = packet.load::<4>(at).map(u32::from_le_bytes) else { return Diff::NONE.0 };
    if before == 0 {
        return Diff::NONE.0;
    }
    let after = before ^ packet.crc_difference(difference, quoted.end.wrapping_sub(quoted.l4));
    match packet.store(at, after.to_le_bytes()) {
        Some(()) => Diff::word(before.to_le(), after.to_le()).0,
        None => Diff::NONE.0,
    }
}

/// Updates the quoted transport checksum as far as it was quoted (P-15) and returns what that adds to the outer one. An
/// absent UDP checksum stays absent, one that becomes zero is sent as all ones (P-58). One that the sender left to
/// its device holds the pseudo header's sum, without the ports and not inverted, and stays such a sum.
#[inline(always)]
fn quoted_checksum<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    quoted: &Headers<N>,
    addresses: Diff,
    ports: Diff,
) -> Option<Diff> {
    let at = quoted.checksum_at();
    if at + 2 > headers.end {
        return Some(Diff::NONE);
    }
    let Some(old) = packet.load::<2>(at).map(u16::from_ne_bytes) else { return Some(Diff::NONE) };
    let key = &quoted.key;
    let udp = key.protocol == protocol::UDP;
    if udp && old == 0 {
        return Some(Diff::NONE);
    }
    let length = quoted.end.wrapping_sub(quoted.l4);
    let new = if old == fold(pseudo_header(&key.src, &key.dst, key.protocol, length)) {
        !apply(!old, addresses)
    } else {
        match apply(old, addresses.and(ports)) {
            0 if udp => 0xffff,
            new => new,
        }
    };
    packet.store(at, new.to_ne_bytes())?;
    Some(Diff::half(old, new))
}
