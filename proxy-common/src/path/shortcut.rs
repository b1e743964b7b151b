//! Shortcuts: packets of flows that pass the node's stack by.
//!
//! A direction of a flow may do so under a *lease*, see [`super::lease`]. So whatever drops, renumbers, encrypts or masquerades
//! packets on the way gives no lease, and what begins to do so later is noticed when the lease is over, as one packet then goes by
//! the stack again; likewise for packets that are longer than any that has come out. Such a packet carries a note, which the stack
//! keeps and does not look at.
//!
//! What the stack may treat in a way of its own goes by it always: SYN, FIN, RST, fragments, SCTP, packets whose hops are used up or
//! that do not fit the device. Where routes give the lease, only the last three do.

use core::borrow::Borrow;

use super::established::{self, is_challenge};
use super::lease::{are_routes_enough, is_learnt, is_live, learn, ways_back};
use super::rewrite::Ends;
use super::traits::{Entry, Fields, Packet, Tables};
use super::verdict::{Returned, Verdict};
use super::{pair, rewrite};
use crate::abi::{
    Device, Flow, FlowKey, Hook, Kind, Reason, config_flags, device_flags, news, protocol, state,
};
use crate::wire::{Headers, Transport, tcp_flags};

/// The ways out of a device, bits of [`device_flags`].
const WAYS: u32 = device_flags::PEER | device_flags::NEIGHBOUR;

/// Beside the ways: the routes have just been asked, and lead this way.
const TOLD: u32 = 1 << 31;
/// It would go straight into the pod, were it masqueraded by now.
const MARKED: u32 = 1 << 30;
/// It would, were the pod's hardware address known.
const UNLEARNT: u32 = 1 << 29;
/// What [`masquerade`] tells of a packet that has not become what it should.
const FAILED: u32 = 1 << 28;
/// No client's place in the news.
pub(super) const NOBODY: u32 = news::OF_AGENT;

/// How a packet leaves by a device past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Out {
    /// Straight into the namespace at the device's other end.
    Peer,
    /// By the device's egress, to the neighbour whom the routes by it name.
    Neighbour,
    /// The same, to the one whom [`Packet::next_hop`] has just found: routes are not asked twice, and its hardware address, if that is known,
    /// is not looked for again.
    NextHop,
}

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
    /// The same, and has been addressed to the pod behind the device that it leaves by.
    pub const SHOWS_POD: u16 = 0x510f;
}

/// A packet enters: whatever note of ours it carries, its sender has written it, as a pod may.
#[inline(always)]
pub(super) fn forget_note<P: Packet>(packet: &mut P) {
    if matches!(packet.note(), note::ASKS | note::ANSWER_ASKS | note::DONE | note::SHOWS_POD) {
        packet.set_note(note::NONE);
    }
}

/// Whether a packet that leaves has passed the stack by, with nothing left to be done but to learn from it. It is not known as such any more.
#[inline(always)]
pub(super) fn is_done<const N: usize, P: Packet, T: Tables<N>>(packet: &mut P, tables: &T) -> bool {
    let note = packet.note();
    let done = matches!(note, note::DONE | note::SHOWS_POD);
    if done {
        packet.set_note(note::NONE);
    }
    // The neighbours have been asked about it: the next one may go straight into the pod.
    if note == note::SHOWS_POD {
        learn(packet, tables, packet.ifindex());
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
pub(super) fn is_on<const N: usize, T: Tables<N>>(tables: &T, number: u8) -> bool {
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
    if ways == 0 || ways & device_flags::PEER != 0 {
        return ways;
    }
    if leads_to(packet, headers, flow, device, size) { ways | TOLD } else { ask_anew(packet, asks) }
}

/// Whether the node's routes still lead a packet of this flow to `device`. Into a pod none is needed, and its device goes with it.
///
/// A subprogram of its own, for the room that the ends take.
#[inline(never)]
pub(super) fn leads_to<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &impl Ends<N>,
    device: u32,
    size: u32,
) -> bool {
    let mut ends = Aligned(headers.key);
    made_of(headers, flow, Hook::Ingress, &mut ends.0);
    packet.next_hop(&ends.0, size) == Some(device)
}

/// The ways by which a packet of so many bytes may leave `device` past the stack, whatever leases there are. If it may go straight
/// into the pod behind it, the frame is addressed to that.
#[inline(always)]
pub(super) fn ways_for<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    device: u32,
    size: u32,
) -> u32 {
    let Some(device) = tables.device(device) else { return 0 };
    let Device { flags, mtu, frames, .. } = *device.borrow();
    let ways = ways(flags);
    if ways == 0 || size > mtu || !may_hop::<N, P>(packet, headers.l3) {
        return 0;
    }
    if ways & device_flags::PEER == 0 {
        return ways;
    }
    let neighbour = ways & !device_flags::PEER;
    // What is left to be done is done by the program at the device's egress.
    if packet.mark() & tables.masquerade_mark() != 0 {
        return if neighbour == 0 { 0 } else { neighbour | MARKED };
    }
    match (address(packet, frames), neighbour) {
        (true, _) => ways,
        (false, 0) => 0,
        (false, _) => neighbour | UNLEARNT,
    }
}

/// Gives the frame the hardware addresses of [`Device::frames`], if they are known.
#[inline(always)]
pub(super) fn address<P: Packet>(packet: &mut P, frames: [u32; 3]) -> bool {
    if matches!(frames[0], 0 | Device::SEVERAL) {
        return false;
    }
    let [[a, b, c, d], [e, f, g, h], [i, j, k, l]] = frames.map(u32::to_ne_bytes);
    packet.store(0, [a, b, c, d, e, f, g, h, i, j, k, l]).is_some()
}

/// The hardware addresses of the frame, as [`Device::frames`].
#[inline(always)]
pub(super) fn frame<P: Packet>(packet: &P) -> Option<[u32; 3]> {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = packet.load(0)?;
    Some([[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes))
}

/// Length in bytes of the packet as its device sends it: of its segments, if it is a super-packet.
#[inline(always)]
pub(super) fn size<const N: usize, P: Packet>(packet: &P, headers: &Headers<N>) -> u32 {
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
pub(super) fn may_hop<const N: usize, P: Packet>(packet: &P, l3: u32) -> bool {
    packet.load(l3 + if N == 1 { 8 } else { 7 }).is_some_and(|[hops]| hops > 1)
}

/// Sends a packet that has been rewritten out of `device`, past the stack. `client`: its place in the news, where the next packets may do the
/// same without being asked, else [`NOBODY`].
#[inline(always)]
pub(super) fn send<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    device: u32,
    ways: u32,
    client: u32,
) -> Verdict {
    if rewrite::hop::<N, P>(packet, headers.l3).is_none() {
        return Verdict::Drop(Reason::Rewrite);
    }
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    let peer = ways & device_flags::PEER != 0;
    packet.set_note(match (marked || peer, ways & UNLEARNT != 0) {
        (true, _) => note::NONE,
        (false, true) => note::SHOWS_POD,
        (false, false) => note::DONE,
    });
    tables.count(Reason::Shortcut);
    let out = match (peer, ways & TOLD != 0) {
        (true, _) => Out::Peer,
        (false, true) => Out::NextHop,
        (false, false) => Out::Neighbour,
    };
    if client != NOBODY && !marked && ways & UNLEARNT == 0 && out != Out::Neighbour {
        tables.remember(packet, headers, device, peer.into(), client);
    }
    packet.send(device, out);
    Verdict::Shortcut
}

/// A packet that enters and is of no flow by its own ends: of an endpoint, it may be an answer that has its place at the client's
/// edge. `None`: it goes on as it is. `unmasqueraded`: it has just become one, with the ends that [`unmasqueraded`] has written down.
#[inline(always)]
pub(super) fn answered<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    unmasqueraded: bool,
) -> Option<Verdict> {
    if !is_on(tables, headers.key.protocol)
        || !unmasqueraded && tables.is_stranger(&headers.key.src)
        || !matches!(headers.transport, Transport::Connection(_) | Transport::Udp)
    {
        return None;
    }
    let answered = tables.scratch(|room| {
        let key = &mut room.reply_key;
        if !unmasqueraded {
            *key = headers.key;
            key.hook = Hook::Egress as u8;
        }
        Returned::from_code(tables.answer(packet, headers, key))
    });
    answered.and_then(Returned::verdict)
}

/// Writes down the ends that `entry` has given an answer, for [`answered`].
#[inline(always)]
pub(super) fn unmasqueraded<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
) {
    tables.scratch(|room| made_of(headers, entry, Hook::Egress, &mut room.reply_key));
}

/// Sends a request past the stack that `entry` has rewritten. One that is to be masqueraded is so at once, where the pair at the endpoint's edge is
/// known already; else it leaves by its device's egress, where the program does it.
#[inline(always)]
pub(super) fn send_request<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
    device: u32,
    mut ways: u32,
) -> Verdict {
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    // Until a client has shown that it hears, each packet is looked at; what somebody else has marked is no rule for the next one.
    let remembers = (entry.state() & state::ESTABLISHED != 0 || headers.key.protocol == protocol::UDP)
        && marked == (entry.state() & state::MARK != 0);
    if marked {
        let told = tables.scratch(|room| {
            let key = &mut room.reply_key;
            made_of(headers, entry, Hook::Egress, key);
            tables.masquerade(packet, headers, key, device, ways)
        });
        ways = told.unwrap_or(ways);
        if ways == FAILED {
            return Verdict::Drop(Reason::Rewrite);
        }
    }
    let client = if remembers { news::of_client(&headers.key.src, headers.key.sport) } else { NOBODY };
    send(packet, tables, headers, device, ways, client)
}

/// A marked packet that has the ends of `key`, those of a masquerade entry, and leaves by `device` past the stack, by one of `ways`: what the program
/// there would do is done here. The ways that it has then.
#[inline(always)]
pub fn masquerade<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    device: u32,
    ways: u32,
) -> u32 {
    let Some(entry) = tables.flow(key) else { return ways };
    if !pair::is_of(&entry, key, Kind::Masquerade as u32)
        || entry.get(|flow| flow.ifindex) != device
        // What may end the pair meets it where it is.
        || headers.is_bare_syn()
        || established::is_silent(tables, headers, &entry)
    {
        return ways;
    }
    established::note(packet, tables, headers, key, &entry, false);
    packet.set_mark(packet.mark() & !tables.masquerade_mark());
    let verdict = rewrite::packet_of(packet, headers, key, &entry);
    if verdict != Verdict::Pass || entry.tag() != key.tag() {
        return FAILED;
    }
    if ways & MARKED == 0 {
        return ways;
    }
    // The device may have closed meanwhile; by its egress it is left all the same.
    match ways_for(packet, tables, headers, device, size(packet, headers)) {
        0 => ways,
        better => better | ways & TOLD,
    }
}

/// Two words of it are read at once, which the verifier allows at such a place of the stack only.
#[repr(align(8))]
pub(super) struct Aligned<const N: usize>(pub(super) FlowKey<N>);

/// The ends that the flow gives a packet, as `hook` sees it.
#[inline(always)]
pub(super) fn made_of<const N: usize>(
    headers: &Headers<N>,
    flow: &impl Ends<N>,
    hook: Hook,
    key: &mut FlowKey<N>,
) {
    key.src = flow.src();
    key.dst = flow.dst();
    key.sport = flow.sport();
    key.dport = flow.dport();
    key.protocol = headers.key.protocol;
    key.hook = hook as u8;
    key.pad = 0;
}

/// A packet that has the ends of `key`: what would be done at the client's edge is done here, if the answers of the flow have a
/// lease. [`Verdict::code`], or `u32::MAX`: it goes on as it is.
#[inline(always)]
pub fn answer<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
) -> u32 {
    restored(packet, tables, headers, key).code()
}

#[inline(always)]
fn restored<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
) -> Returned {
    let Some(entry) = tables.flow(key) else { return Returned::NONE };
    // A challenge is dealt with at the client's edge.
    if !pair::is_of(&entry, key, Kind::Restore as u32) || is_challenge(headers, entry.state(), Kind::Restore)
    {
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
        ways = ways_back(packet, tables, headers, key, true);
    }
    if ways == 0 {
        return Returned::NONE;
    }
    // Or the verifier would follow what is below once for each way to here.
    let ways = tables.unknown(ways);
    // By routes alone the first answer comes by here, and the last.
    established::note(packet, tables, headers, key, &entry, true);
    let verdict = rewrite::packet_of(packet, headers, key, &entry);
    if verdict == Verdict::Pass && entry.tag() == key.tag() {
        send(packet, tables, headers, device, ways, news::of_client(&key.dst, key.dport)).into()
    } else {
        Verdict::Drop(Reason::Rewrite).into()
    }
}

/// The ways out of a device with these [`device_flags`].
#[inline(always)]
pub(super) const fn ways(flags: u32) -> u32 {
    if flags & device_flags::SHORTCUT == 0 { 0 } else { flags & WAYS }
}
