//! The two hooks of an edge.

use super::established::{Known, pass_known};
use super::pair::End;
use super::traits::{Packet, Tables};
use super::verdict::{Returned, Verdict};
use super::{
    catch_all, fragment, frontend, icmp, lease, masquerade, recent, reject, shortcut, translate, unserved,
};
use crate::abi::{AddressClass, Hook, Reason, device_flags};
use crate::wire::{Headers, Transport, parse};

/// A packet enters the node's stack. `l3` is where its network header starts: 14 behind Ethernet, else 0.
///
/// A packet to an address that has never been anything to us costs no look-up, one of a known flow one. `room` is where
/// the headers are written down; what it holds before does not matter.
#[inline(always)]
pub fn ingress<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    room: &mut Headers<N>,
    l3: u32,
) -> Verdict {
    shortcut::forget_note(packet);
    if is_for_others(packet, tables) {
        room.clear();
        return Verdict::Pass;
    }
    let mut verdict = enters(packet, tables, room, l3);
    if verdict == Verdict::Pass
        && (packet.note() == shortcut::note::ASKS && lease::are_routes_enough(tables)
            || room.is_parsed() && room.transport == Transport::IcmpError)
    {
        verdict = counted(tables, Verdict::from_code(tables.passes_by(packet, room)));
    }
    let verdict = fragment::remember(packet, tables, room, verdict);
    if packet.is_caught() { catch_all::guard(packet, tables, room, verdict) } else { verdict }
}

/// Whether a frame that enters is for somebody else on the link, or for everybody: a switch floods what it has not learnt, and each
/// node sees it. The stack forwards none of them. An answer would tell the switch that the other's hardware address is here.
#[inline(always)]
fn is_for_others<const N: usize, P: Packet, T: Tables<N>>(packet: &P, tables: &T) -> bool {
    !packet.is_for_host()
        && tables.device_flags(packet.ifindex()).is_none_or(|flags| flags & device_flags::PORT == 0)
}

#[inline(always)]
fn enters<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    room: &mut Headers<N>,
    l3: u32,
) -> Verdict {
    if parse(packet, l3, Hook::Ingress, room).is_none() {
        return Verdict::Pass;
    }
    let headers = &*room;
    // The stack takes such for martians unless kube-proxy, once, has set route_localnet: neither that nor a loopback address
    // that serves NodePorts may open the node's own sockets to its neighbours.
    if headers.key.dst.is_loopback() || headers.key.src.is_loopback() {
        return counted(tables, Verdict::Drop(Reason::Loopback));
    }
    let to_stranger = tables.is_stranger(&headers.key.dst);
    if to_stranger && tables.is_stranger(&headers.key.src) {
        return Verdict::Pass;
    }
    if let Some(verdict) = recent::again(packet, tables, headers) {
        return counted(tables, verdict);
    }
    let met = if to_stranger { Met::ended(End::NO_TURN) } else { Met(tables.meets_flow(packet, headers)) };
    if let Some(verdict) = met.verdict() {
        return counted(tables, verdict);
    }
    if met.is(Met::CHALLENGE) {
        return challenged(tables, headers);
    }
    let unmasqueraded = met.is(Met::UNMASQUERADED);
    if let Some(verdict) = shortcut::answered(packet, tables, headers, unmasqueraded) {
        return counted(tables, verdict);
    }
    if to_stranger || unmasqueraded {
        return Verdict::Pass;
    }
    counted(tables, Verdict::from_code(tables.enters_without_flow(packet, headers, End(met.0))))
}

/// What a packet that enters has met: how a flow of its has ended, if anything, as [`End`], or something that [`End`] has no number for. A plain
/// number, since it crosses a call.
#[derive(Clone, Copy)]
struct Met(u64);

impl Met {
    /// A verdict; below, its code.
    const VERDICT: u64 = 3 << 32;
    /// [`Known::Unmasqueraded`].
    const UNMASQUERADED: u64 = 4 << 32;
    /// [`Known::Challenge`].
    const CHALLENGE: u64 = 5 << 32;

    const fn ended(end: End) -> Self {
        Self(end.0)
    }

    #[inline(always)]
    const fn is(self, what: u64) -> bool {
        self.0 >> 32 == what >> 32
    }

    #[inline(always)]
    fn verdict(self) -> Option<Verdict> {
        self.is(Self::VERDICT).then(|| Verdict::from_code(self.0 as u32))
    }
}

impl From<Known> for Met {
    #[inline(always)]
    fn from(known: Known) -> Self {
        Self(match known {
            Known::Verdict(verdict) => Self::VERDICT | u64::from(verdict.code()),
            Known::Unmasqueraded => Self::UNMASQUERADED,
            Known::Challenge => Self::CHALLENGE,
            Known::Ended(end) => end.0,
        })
    }
}

/// A packet that enters, to an address that may be somebody: a number, what it has met.
///
/// A function of its own: what has no record is looked at once by the verifier, and not once for each kind of packet.
#[inline(always)]
pub fn meets_flow<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> u64 {
    // Before the address is asked about: a connection outlives its Service, as it does with conntrack.
    match headers.transport {
        Transport::Connection(_) | Transport::Udp => Met::from(known(packet, tables, headers, true)).0,
        _ => End::NO_TURN.0,
    }
}

/// A packet that enters, to an address that may be somebody, and of no known flow: [`Verdict::code`]. `before`: how a flow of its
/// has just ended.
///
/// A function of its own: most packets need none of this, and so no frame for it.
#[inline(always)]
pub fn enters_without_flow<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    before: End,
) -> u32 {
    ask_on_entry(packet, tables, headers, before).code()
}

#[inline(always)]
fn ask_on_entry<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    before: End,
) -> Verdict {
    if headers.is_later_fragment()
        && let Some(verdict) = fragment::later(packet, tables, headers).verdict()
    {
        return verdict;
    }
    let key = &headers.key;
    // A SYN asks for the exact frontend first: where it finds one, the address is a Service's, and need not be asked about.
    let exact =
        if headers.is_bare_syn() { frontend::exact(tables, &key.dst, key.dport, key.protocol) } else { None };
    let class = match exact {
        Some(_) => AddressClass { bits: AddressClass::SERVICE },
        None => tables.address_class(&key.dst),
    };
    match headers.transport {
        Transport::Connection(_) | Transport::Udp => {}
        Transport::IcmpError | Transport::IcmpRedirect => {
            return match quoted(packet, tables, headers, Hook::Ingress) {
                Some(verdict) => verdict,
                None => unserved::verdict(packet, tables, headers, class, Reason::Protocol),
            };
        }
        Transport::Fragment => {
            let verdict = unserved::verdict(packet, tables, headers, class, Reason::Fragment);
            fragment::count_early(tables, headers, verdict != Verdict::Pass);
            return verdict;
        }
        Transport::Malformed => {
            return unserved::verdict(packet, tables, headers, class, Reason::Malformed);
        }
        Transport::Other => {
            return unserved::verdict(packet, tables, headers, class, Reason::Protocol);
        }
    }
    // L-07: what is begun from now on is another proxy's.
    if class.any(AddressClass::SERVICE | AddressClass::NODE_PORT) && tables.look_for_heir() {
        return Verdict::Pass;
    }
    let dialled = exact.or_else(|| frontend::find(tables, class, &key.dst, key.dport, key.protocol));
    match dialled {
        Some(frontend) => translate::open(packet, tables, headers, frontend, before),
        None if unserved::ends_here(packet, tables, headers, class) => {
            reject::answer(packet, tables, headers, Reason::Unlisted)
        }
        // Whatever it is now, it may have been an endpoint, with flows whose answers a new connection would get.
        None if headers.opens() => translate::open_direct(packet, tables, headers, before),
        None => Verdict::Pass,
    }
}

/// A packet leaves the node's stack by an edge; arguments as for [`ingress`].
#[inline(always)]
pub fn egress<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    room: &mut Headers<N>,
    l3: u32,
) -> Verdict {
    if shortcut::is_done(packet, tables) {
        room.clear();
        return Verdict::Pass;
    }
    let verdict = leaves(packet, tables, room, l3);
    fragment::remember(packet, tables, room, verdict)
}

/// A verdict, once what it ends has been counted.
#[inline(always)]
fn counted<const N: usize, T: Tables<N>>(tables: &T, verdict: Verdict) -> Verdict {
    if let Verdict::Drop(reason) | Verdict::Reject(reason) = verdict {
        tables.count(reason);
    }
    verdict
}

#[inline(always)]
fn leaves<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    room: &mut Headers<N>,
    l3: u32,
) -> Verdict {
    if parse(packet, l3, Hook::Egress, room).is_none() {
        return Verdict::Pass;
    }
    let headers = &*room;
    // Whatever is assigned has been translated by now, by us or by another proxy: the rest would circle between routers.
    if tables.is_service_range(&headers.key.dst) {
        return counted(tables, Verdict::Drop(Reason::Unassigned));
    }
    if shortcut::is_asked(packet) {
        lease::grant(packet, tables, headers);
    }
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    let mut before = End::NO_TURN;
    match headers.transport {
        Transport::Malformed | Transport::Other => return Verdict::Pass,
        // About a flow, perhaps, whoever tells it.
        Transport::IcmpError | Transport::IcmpRedirect => {}
        // Restored flows come from an endpoint, masqueraded ones go to one.
        _ if !marked && tables.is_stranger(&headers.key.src) && tables.is_stranger(&headers.key.dst) => {
            return Verdict::Pass;
        }
        Transport::Fragment => {}
        Transport::Connection(_) | Transport::Udp => match known(packet, tables, headers, false) {
            Known::Verdict(verdict) => return counted(tables, verdict),
            Known::Challenge => return challenged(tables, headers),
            Known::Ended(end) => before = end,
            // Of packets that enter.
            Known::Unmasqueraded => return Verdict::Pass,
        },
    }
    counted(tables, Verdict::from_code(tables.leaves_without_flow(packet, headers, before)))
}

/// A packet that leaves, marked or with an address that may be somebody, and of no known flow; as [`enters_without_flow`].
#[inline(always)]
pub fn leaves_without_flow<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    before: End,
) -> u32 {
    ask_on_leaving(packet, tables, headers, before).code()
}

#[inline(always)]
fn ask_on_leaving<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    before: End,
) -> Verdict {
    match headers.transport {
        Transport::Connection(_) | Transport::Udp => {}
        Transport::Fragment => {
            if headers.is_later_fragment()
                && let Some(verdict) = fragment::later(packet, tables, headers).verdict()
            {
                return verdict;
            }
            fragment::count_early(tables, headers, false);
            return Verdict::Pass;
        }
        _ => return quoted(packet, tables, headers, Hook::Egress).unwrap_or(Verdict::Pass),
    }
    let marked = packet.mark() & tables.masquerade_mark() != 0;
    let own = if marked || masquerade::shadowed(tables, headers) {
        false
    } else if masquerade::resembles_frontend(packet, tables, headers)
        || masquerade::is_anothers(packet, tables, headers)
    {
        true
    } else {
        return Verdict::Pass;
    };
    match masquerade::open(packet, tables, headers, own, before) {
        // What is another's goes on where there is no room to write it down: who it goes to may be no endpoint at all.
        Verdict::Drop(Reason::FlowTableFull) if own && !packet.is_own() => Verdict::Pass,
        verdict => verdict,
    }
}

/// A packet of a known flow. [`Known::Ended`] also if there is none.
#[inline(always)]
fn known<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    enters: bool,
) -> Known {
    match tables.flow(&headers.key) {
        Some(entry) => pass_known(packet, tables, headers, &entry, enters),
        None => Known::Ended(End::NO_TURN),
    }
}

/// A packet that shows that its flow cannot have its source port.
#[inline(always)]
fn challenged<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>) -> Verdict {
    translate::renumber(tables, headers);
    counted(tables, Verdict::Drop(Reason::ChallengeAck))
}

/// An ICMP error or redirect; `hook` as for [`icmp::quoted`]. `None`: not about a flow of ours.
#[inline(always)]
fn quoted<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    hook: Hook,
) -> Option<Verdict> {
    Returned::from_code(tables.quoted(packet, headers, hook as u32)).verdict()
}

/// A packet that has entered, and would go on by the stack, asks for a lease or is an ICMP error: whether it passes the stack by.
/// [`Verdict::code`].
///
/// A function of its own: few packets are such.
#[inline(always)]
pub fn passes_by<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> u32 {
    let sent = if headers.transport == Transport::IcmpError {
        complains(packet, tables, headers)
    } else {
        lease::routed(packet, tables, headers)
    };
    sent.verdict().unwrap_or(Verdict::Pass).code()
}

/// An ICMP error that enters about a request which has passed the stack by does so, too: what would be done at the client's edge is done
/// here.
#[inline(always)]
fn complains<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Returned {
    let way = icmp::passes_by(packet, tables, headers);
    let (device, ways) = ((way >> 32) as u32, way as u32);
    if ways == 0 {
        return Returned::NONE;
    }
    match quoted(packet, tables, headers, Hook::Egress) {
        Some(Verdict::Pass) => shortcut::send(packet, tables, headers, device, ways, shortcut::NOBODY).into(),
        Some(verdict) => verdict.into(),
        None => Returned::NONE,
    }
}
