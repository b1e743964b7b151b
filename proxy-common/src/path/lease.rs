//! Leases: which directions of flows may pass the node's stack by, and for how long.
//!
//! A packet of this very direction has just come out of the stack at the device that it leaves by, between the very ends that the
//! flow has there; or the operator says that the stack has nothing against packets, and the routes tell the way. A FIN or a RST ends
//! both leases for good: connection tracking sees how the connection ends.

use core::borrow::Borrow;

use super::pair;
use super::shortcut::{Aligned, NOBODY, frame, made_of, note, send, size, ways, ways_for};
use super::traits::{Entry, Fields, Packet, Tables};
use super::verdict::Returned;
use crate::abi::{Device, Flow, FlowKey, Hook, Kind, config_flags, device_flags, state};
use crate::wire::{Headers, tcp_flags};

/// Ticks that a lease lasts: less than a third of the shortest time after which connection tracking forgets, half a minute.
pub const LEASE: u32 = 4;

/// Whether a direction has a lease now that was granted at this tick.
#[inline(always)]
pub(super) fn is_live<const N: usize, T: Tables<N>>(tables: &T, granted: u32) -> bool {
    // CPUs do not agree about the time to the tick.
    granted != 0 && tables.now().wrapping_sub(granted).cast_signed() < LEASE.cast_signed()
}

/// Whether shortcuts may begin at a device.
#[inline(always)]
fn is_open<const N: usize, T: Tables<N>>(tables: &T, ifindex: u32) -> bool {
    tables.device_flags(ifindex).unwrap_or(0) & device_flags::SHORTCUT != 0
}

/// Whether routes alone give leases.
#[inline(always)]
pub(super) fn are_routes_enough<const N: usize, T: Tables<N>>(tables: &T) -> bool {
    tables.config_flags() & config_flags::SHORTCUT_ALWAYS != 0 && !tables.handed_over()
}

/// A packet that asks for a lease for its direction, the client's, and has been rewritten: the routes may give one.
///
/// Both must lead where the flow says, as strict reverse path filtering asks: to the endpoint, and back to the client.
///
/// A subprogram of its own: few packets ask.
#[inline(never)]
pub(super) fn routed<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Returned {
    let Some(entry) = tables.flow(&headers.key) else { return Returned::NONE };
    if !pair::is_of(&entry, &headers.key, Kind::Translate as u32) {
        return Returned::NONE;
    }
    let own = entry.get(|flow| flow.ifindex);
    let size = size(packet, headers);
    let led = tables.scratch(|room| {
        made_of(headers, &entry, Hook::Ingress, &mut room.reply_key);
        let there = packet.route(&room.reply_key, size)?;
        room.reply_key = room.reply_key.reply();
        Some((there, packet.route(&room.reply_key, 0)?))
    });
    let Some(((far, mtu), (back, _))) = led.flatten() else { return Returned::NONE };
    // Its answers must be able to leave there.
    if packet.ifindex() != own
        || back != own
        || ways(tables.device_flags(own).unwrap_or(0)) & device_flags::NEIGHBOUR == 0
    {
        return Returned::NONE;
    }
    let ways = ways_for(packet, tables, headers, far, size);
    if ways == 0 {
        return Returned::NONE;
    }
    if let Some(restore) = tables.flow(&entry.partner(&headers.key)) {
        restore.set_far(far);
    }
    entry.set_far(far);
    entry.set_size(mtu | Flow::<N>::ROUTED);
    entry.set_lease(tables.now());
    send(packet, tables, headers, far, ways, NOBODY).into()
}

/// The ways back to the client of what answers, or complains about, a request that the routes have given a lease; `key` is that of the
/// answer at the client's edge. Connection tracking takes half a conversation for invalid. `grants`: the answers get a lease, too.
///
/// A subprogram of its own, as above.
#[inline(never)]
pub(super) fn ways_back<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    grants: bool,
) -> u32 {
    let Some(entry) = tables.flow(key) else { return 0 };
    let own = entry.get(|flow| flow.ifindex);
    let size = size(packet, headers);
    let mut ends = Aligned(entry.partner(key));
    let routed =
        tables.flow(&ends.0).is_some_and(|asking| asking.get(|flow| flow.size) & Flow::<N>::ROUTED != 0);
    if !routed {
        return 0;
    }
    // As it leaves: from the frontend.
    made_of(headers, &entry, Hook::Ingress, &mut ends.0);
    let Some((device, mtu)) = packet.route(&ends.0, size) else { return 0 };
    if device != own {
        return 0;
    }
    let ways = ways_for(packet, tables, headers, device, size);
    if ways != 0 && grants {
        entry.set_size(mtu | Flow::<N>::ROUTED);
        entry.set_lease(tables.now());
    }
    ways
}

/// Whether an answer shows which port of a bridge its endpoint is behind: requests do not, as a bridge floods its ports with
/// what it knows no port for.
#[inline(always)]
pub(super) fn is_learnt<const N: usize, T: Tables<N>>(tables: &T, entry: &T::Entry, here: u32) -> bool {
    let is_port = tables
        .device_flags(here)
        .is_some_and(|flags| flags & device_flags::PORT != 0 && ways(flags) & device_flags::PEER != 0);
    if is_port {
        entry.set_far(here);
    }
    is_port
}

/// A packet that asks for a lease has come out of the stack: its direction gets one, if this is where its flow leads.
///
/// A subprogram of its own: few packets ask.
#[inline(never)]
pub(super) fn grant<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) {
    let is_answer = packet.note() == note::ANSWER_ASKS;
    packet.set_note(note::NONE);
    let here = packet.ifindex();
    let flags = tables.device_flags(here).unwrap_or(0);
    let ways = ways(flags);
    if ways == 0 || headers.is_fragment() {
        return;
    }
    tables.scratch(|room| {
        room.reply_key = if is_answer { headers.key } else { headers.key.mirrored() };
        let restore = tables.flow(&room.reply_key)?;
        if !pair::is_of(&restore, &room.reply_key, Kind::Restore as u32) {
            return None;
        }
        let far = restore.get(|flow| flow.far);
        let own = restore.get(|flow| flow.ifindex);
        // Where a packet of this direction comes in.
        let origin = if is_answer { far } else { own };
        if is_answer && own != here
            // A port of a bridge shows itself by an answer.
            || !is_answer && flags & device_flags::PORT != 0 && far != here
            || !is_open(tables, origin)
            || tables.handed_over()
        {
            return None;
        }
        restore.write_partner(&room.reply_key, &mut room.quoted.key);
        let translate = tables.flow(&room.quoted.key)?;
        if !pair::is_of(&translate, &room.quoted.key, Kind::Translate as u32) {
            return None;
        }
        if (restore.state() | translate.state()) & (state::FIN | state::RST) != 0 {
            return None;
        }
        if !is_answer {
            restore.set_far(here);
            translate.set_far(here);
        }
        let entry = if is_answer { restore } else { translate };
        let size = size(packet, headers);
        if size > entry.get(|flow| flow.size) & !Flow::<N>::ROUTED
            || !is_live(tables, entry.get(|flow| flow.lease))
        {
            entry.set_size(size);
        }
        entry.set_lease(tables.now());
        learn(packet, tables, here);
        Some(())
    });
}

/// Writes down which hardware addresses frames have that leave by this device, if it leads into a pod.
#[inline(always)]
pub(super) fn learn<const N: usize, P: Packet, T: Tables<N>>(packet: &P, tables: &T, here: u32) {
    let Some(device) = tables.device(here) else { return };
    if ways(device.borrow().flags) & device_flags::PEER == 0 {
        return;
    }
    let Some(seen) = frame(packet) else { return };
    let known = device.borrow().frames;
    // The destination ends in the middle of the second word.
    let half = u32::from_ne_bytes([0xff, 0xff, 0, 0]);
    if known[0] == 0 {
        tables.set_frames(here, seen);
    } else if known[0] != Device::SEVERAL && (known[0] != seen[0] || (known[1] ^ seen[1]) & half != 0) {
        tables.set_frames(here, [Device::SEVERAL, known[1], known[2]]);
    }
}

/// A segment with SYN, FIN or RST (`flags` has no others) has met its entry, which has this key. The end of a connection ends
/// the leases of both directions; the beginning of another one may ask for new ones.
#[inline(always)]
pub(super) fn begins_or_ends<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    flags: u8,
    entry: &T::Entry,
) {
    if entry.get(|flow| flow.size) & Flow::<N>::ROUTED != 0 {
        return;
    }
    let granted = entry.get(|flow| flow.lease);
    if flags == tcp_flags::SYN {
        if granted == Flow::<N>::NO_LEASE {
            entry.set_lease(0);
        }
    } else if granted != Flow::<N>::NO_LEASE && entry.get(|flow| flow.far) != 0 {
        entry.set_lease(Flow::<N>::NO_LEASE);
        revoke_partner(tables, key);
    }
}

/// Ends the lease of the direction opposite to that of `key`.
#[inline(never)]
fn revoke_partner<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>) {
    let Some(entry) = tables.flow(key) else { return };
    if let Some(partner) = tables.flow(&entry.partner(key)) {
        partner.set_lease(Flow::<N>::NO_LEASE);
    }
}
