//! Shortcuts: packets of flows that pass the node's stack by.
//!
//! A direction of a flow may do so under a *lease*: a packet of this very direction has just come out of the stack at the
//! device that it leaves by, between the very ends that the flow has there. So whatever drops, renumbers, encrypts or masquerades
//! packets on the way gives no lease, and what begins to do so later is noticed when the lease is over, as one packet then goes by
//! the stack again; likewise for packets that are longer than any that has come out. Such a packet carries a note, which the stack
//! keeps and does not look at.
//!
//! Where the operator says that nothing in the stack has anything against packets, the routes give leases without asking it, to the
//! first packet already.
//!
//! What the stack may treat in a way of its own goes by it always: SYN, FIN, RST, fragments, SCTP, packets whose hops are used up or
//! that do not fit the device. A FIN or a RST ends both leases for good: connection tracking sees how the connection ends.

use super::traits::{Entry, Fields, Packet, Returned, Tables, Verdict};
use super::{pair, rewrite};
use crate::abi::{Flow, FlowKey, Hook, Kind, Reason, config_flags, device_flags, protocol, state};
use crate::wire::{Headers, Transport, tcp_flags};

/// The ways out of a device, bits of [`device_flags`].
const WAYS: u32 = device_flags::PEER | device_flags::NEIGHBOUR;

/// Ticks that a lease lasts: less than a third of the shortest time after which connection tracking forgets, half a minute.
pub const LEASE: u32 = 4;

/// What a packet carries through the stack.
pub mod note {
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Its flow has no lease for its direction, the client's, and asks for one.
    pub const ASKS: u16 = 0x510c;
    /// The same of an answer.
    pub const ANSWER_ASKS: u16 = 0x510d;
    /// It has passed the stack by, and nothing is left to be done.
    pub const DONE: u16 = 0x510e;
}

/// A packet enters: whatever note of ours it carries, its sender has written it, as a pod may.
#[inline(always)]
pub(super) fn forget_note<P: Packet>(packet: &mut P) {
    if matches!(packet.note(), note::ASKS | note::ANSWER_ASKS | note::DONE) {
        packet.set_note(note::NONE);
    }
}

/// Whether a packet that leaves has passed the stack by, with nothing left to be done. It is not known as such any more.
#[inline(always)]
pub(super) fn is_done<P: Packet>(packet: &mut P) -> bool {
    let done = packet.note() == note::DONE;
    if done {
        packet.set_note(note::NONE);
    }
    done
}

/// Whether a packet that leaves asks for a lease.
#[inline(always)]
pub(super) fn is_asked<P: Packet>(packet: &P) -> bool {
    matches!(packet.note(), note::ASKS | note::ANSWER_ASKS)
}

/// Whether flows of this protocol may take shortcuts.
#[inline(always)]
fn is_on<const N: usize, T: Tables<N>>(tables: &T, number: u8) -> bool {
    let bit = match number {
        protocol::TCP => config_flags::SHORTCUT_TCP,
        protocol::UDP => config_flags::SHORTCUT_UDP,
        _ => 0,
    };
    tables.config_flags() & bit != 0
}

/// Has the packet ask for a lease, if it can have any use of one.
#[inline(always)]
pub(super) fn ask<const N: usize, P: Packet, T: Tables<N>>(packet: &mut P, tables: &T, headers: &Headers<N>) {
    if is_on(tables, headers.key.protocol) && !headers.is_fragment() {
        ask_anew(packet, note::ASKS);
    }
}

/// The packet goes by the stack, and shows that this is its way.
#[inline(always)]
fn ask_anew<P: Packet>(packet: &mut P, asks: u16) -> u32 {
    if packet.note() == note::NONE {
        packet.set_note(asks);
    }
    0
}

/// Whether a direction has a lease now that was granted at this tick.
#[inline(always)]
fn is_live<const N: usize, T: Tables<N>>(tables: &T, granted: u32) -> bool {
    // CPUs do not agree about the time to the tick.
    granted != 0 && tables.now().wrapping_sub(granted).cast_signed() < LEASE.cast_signed()
}

/// The ways by which a packet of this direction may leave `device` past the stack; 0: it goes by the stack, and asks for a lease
/// if there is none. The device is asked each time: what has come between it and the stack meanwhile counts at once.
#[inline(always)]
pub(super) fn ways_out<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    flow: &impl Fields<N>,
    device: u32,
    asks: u16,
) -> u32 {
    let granted = flow.get(|flow| flow.lease);
    if granted == Flow::<N>::NO_LEASE || !is_on(tables, headers.key.protocol) || headers.is_fragment() {
        return 0;
    }
    if !is_live(tables, granted) {
        return ask_anew(packet, asks);
    }
    use tcp_flags::{FIN, RST, SYN};
    let longest = flow.get(|flow| flow.size);
    if longest & Flow::<N>::ROUTED == 0
        && matches!(headers.transport, Transport::Connection(flags) if flags & (SYN | FIN | RST) != 0)
    {
        return 0;
    }
    let size = size(packet, headers);
    if size > longest & !Flow::<N>::ROUTED {
        return ask_anew(packet, asks);
    }
    let ways = ways_for(packet, tables, headers, device, size);
    if ways & WAYS == device_flags::NEIGHBOUR && !leads_to(packet, headers, flow, device, size) {
        return ask_anew(packet, asks);
    }
    ways
}

/// Whether the node's routes still lead a packet of this flow to `device`. Into a pod none is needed, and its device goes with it.
///
/// A subprogram of its own, for the room that the ends take.
#[inline(never)]
fn leads_to<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &impl Fields<N>,
    device: u32,
    size: u32,
) -> bool {
    let mut ends = Aligned(headers.key);
    made_of(headers, flow, &mut ends.0);
    packet.route(&ends.0, size).is_some_and(|(way, _)| way == device)
}

/// The ways by which a packet of so many bytes may leave `device` past the stack, whatever leases there are.
#[inline(always)]
fn ways_for<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    device: u32,
    size: u32,
) -> u32 {
    let Some((flags, mtu)) = tables.edge(device) else { return 0 };
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    // What is left to be done is done by the program at the device's egress.
    let ways = ways(flags) & if marked { device_flags::NEIGHBOUR } else { WAYS };
    if ways != 0 && size <= mtu && may_hop::<N, P>(packet, headers.l3) { ways } else { 0 }
}

/// Length in bytes of the packet as its device sends it: of its segments, if it is a super-packet.
#[inline(always)]
fn size<const N: usize, P: Packet>(packet: &P, headers: &Headers<N>) -> u32 {
    let segment = packet.segment();
    if segment == 0 {
        return headers.end - headers.l3;
    }
    let header = if headers.key.protocol == protocol::UDP {
        8
    } else {
        let Some([offset]) = packet.load(headers.l4 + 12) else { return u32::MAX };
        u32::from(offset >> 4) * 4
    };
    headers.l4 - headers.l3 + header + segment
}

/// Whether the packet has a hop to spare for the router that this node is.
#[inline(always)]
fn may_hop<const N: usize, P: Packet>(packet: &P, l3: u32) -> bool {
    packet.load(l3 + if N == 1 { 8 } else { 7 }).is_some_and(|[hops]| hops > 1)
}

/// Sends a packet that has been rewritten out of `device`, past the stack.
#[inline(always)]
pub(super) fn send<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    l3: u32,
    device: u32,
    ways: u32,
) -> Verdict {
    if rewrite::hop::<N, P>(packet, l3).is_none() {
        return Verdict::Drop(Reason::Rewrite);
    }
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    let peer = ways & device_flags::PEER != 0;
    packet.set_note(if marked || peer { note::NONE } else { note::DONE });
    tables.count(Reason::Shortcut);
    packet.send(device, peer);
    Verdict::Shortcut
}

/// A packet that enters and is of no flow by its own ends: of an endpoint, it may be an answer that has its place at the client's
/// edge. `None`: it goes on as it is.
#[inline(always)]
pub(super) fn answered<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Option<Verdict> {
    if !is_on(tables, headers.key.protocol)
        || tables.is_stranger(&headers.key.src)
        || !matches!(headers.transport, Transport::Connection(_) | Transport::Udp)
    {
        return None;
    }
    let answered = tables.scratch(|room| {
        let key = &mut room.reply_key;
        *key = headers.key;
        key.hook = Hook::Egress as u8;
        answer(packet, tables, headers, key)
    });
    answered.and_then(Returned::verdict)
}

/// The same of an answer that has just been unmasqueraded by `entry`.
#[inline(always)]
pub(super) fn unmasqueraded<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
) -> Verdict {
    if !is_on(tables, headers.key.protocol) {
        return Verdict::Pass;
    }
    let answered = tables.scratch(|room| {
        let key = &mut room.reply_key;
        made_of(headers, entry, key);
        key.hook = Hook::Egress as u8;
        answer(packet, tables, headers, key)
    });
    answered.and_then(Returned::verdict).unwrap_or(Verdict::Pass)
}

/// Two words of it are read at once, which the verifier allows at such a place of the stack only.
#[repr(align(8))]
struct Aligned<const N: usize>(FlowKey<N>);

/// The ends that the flow gives a packet.
#[inline(always)]
fn made_of<const N: usize>(headers: &Headers<N>, flow: &impl Fields<N>, key: &mut FlowKey<N>) {
    flow.get(|flow| {
        key.src = flow.src;
        key.dst = flow.dst;
        key.sport = flow.sport;
        key.dport = flow.dport;
    });
    key.protocol = headers.key.protocol;
    key.hook = Hook::Ingress as u8;
    key.pad = 0;
}

/// A packet that has the ends of `key`: what would be done at the client's edge is done here, if the answers of the flow have a
/// lease.
///
/// A subprogram of its own: few packets are answers.
#[inline(never)]
fn answer<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
) -> Returned {
    let Some(entry) = tables.flow(key) else { return Returned::NONE };
    if !pair::is_of(&entry, key, Kind::Restore as u32) {
        return Returned::NONE;
    }
    let here = packet.ifindex();
    // By another device than requests leave: the stack may have something against it.
    if entry.get(|flow| flow.far) != here && !is_learnt(tables, &entry, here) {
        return Returned::NONE;
    }
    let device = entry.get(|flow| flow.ifindex);
    let mut ways = ways_out(packet, tables, headers, &entry, device, note::ANSWER_ASKS);
    if ways == 0 && packet.note() == note::ANSWER_ASKS && are_routes_enough(tables) {
        ways = ways_back(packet, tables, headers, &entry);
    }
    if ways == 0 {
        return Returned::NONE;
    }
    // Nothing else is to be noted: an answer has been seen before, and this one begins and ends nothing.
    let now = tables.now();
    if now != entry.seen() {
        entry.set_seen(now);
    }
    let verdict = rewrite::packet_of(packet, headers, key, &entry);
    let verdict = if verdict == Verdict::Pass && entry.tag() == key.tag() {
        send(packet, tables, headers.l3, device, ways)
    } else {
        Verdict::Drop(Reason::Rewrite)
    };
    if let Verdict::Drop(reason) = verdict {
        tables.count(reason);
    }
    verdict.into()
}

/// Whether shortcuts may begin at a device.
#[inline(always)]
fn is_open<const N: usize, T: Tables<N>>(tables: &T, ifindex: u32) -> bool {
    tables.device_flags(ifindex).unwrap_or(0) & device_flags::SHORTCUT != 0
}

/// Whether routes alone give leases.
#[inline(always)]
fn are_routes_enough<const N: usize, T: Tables<N>>(tables: &T) -> bool {
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
    if packet.note() != note::ASKS || !are_routes_enough(tables) {
        return Returned::NONE;
    }
    let Some(entry) = tables.flow(&headers.key) else { return Returned::NONE };
    if !pair::is_of(&entry, &headers.key, Kind::Translate as u32) {
        return Returned::NONE;
    }
    let own = entry.get(|flow| flow.ifindex);
    let size = size(packet, headers);
    let led = tables.scratch(|room| {
        made_of(headers, &entry, &mut room.reply_key);
        let there = packet.route(&room.reply_key, size)?;
        room.reply_key = room.reply_key.reply();
        Some((there, packet.route(&room.reply_key, 0)?))
    });
    let Some(((far, mtu), (back, _))) = led.flatten() else { return Returned::NONE };
    let ways = ways_for(packet, tables, headers, far, size);
    if ways == 0 || packet.ifindex() != own || back != own || !is_open(tables, own) {
        return Returned::NONE;
    }
    if let Some(restore) = tables.flow(&entry.partner(&headers.key)) {
        restore.set_far(far);
    }
    entry.set_far(far);
    entry.set_size(mtu | Flow::<N>::ROUTED);
    entry.set_lease(tables.now());
    send(packet, tables, headers.l3, far, ways).into()
}

/// The ways back to the client, of an answer that asks for a lease: the routes may give one.
///
/// A subprogram of its own, as above.
#[inline(never)]
fn ways_back<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
) -> u32 {
    let own = entry.get(|flow| flow.ifindex);
    let size = size(packet, headers);
    // As it leaves: from the frontend.
    let mut ends = Aligned(headers.key);
    made_of(headers, entry, &mut ends.0);
    let Some((device, mtu)) = packet.route(&ends.0, size) else { return 0 };
    let ways = ways_for(packet, tables, headers, device, size);
    if device != own || ways == 0 {
        return 0;
    }
    entry.set_size(mtu | Flow::<N>::ROUTED);
    entry.set_lease(tables.now());
    ways
}

/// Whether an answer shows which port of a bridge its endpoint is behind: requests do not, as a bridge floods its ports with
/// what it knows no port for.
#[inline(always)]
fn is_learnt<const N: usize, T: Tables<N>>(tables: &T, entry: &T::Entry, here: u32) -> bool {
    let is_port = tables.device_flags(here).is_some_and(|flags| ways(flags) == device_flags::PEER);
    if is_port {
        entry.set_far(here);
    }
    is_port
}

/// The ways out of a device with these [`device_flags`].
#[inline(always)]
const fn ways(flags: u32) -> u32 {
    if flags & device_flags::SHORTCUT == 0 { 0 } else { flags & WAYS }
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
    let ways = ways(tables.device_flags(here).unwrap_or(0));
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
            || !is_answer && ways & device_flags::NEIGHBOUR == 0 && far != here
            || !is_open(tables, origin)
            || tables.handed_over()
        {
            return None;
        }
        room.quoted.key = restore.partner(&room.reply_key);
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
        Some(())
    });
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
