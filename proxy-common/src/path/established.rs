//! Packets of known flows.

use super::traits::{Entry, Packet, Tables, Verdict};
use super::{pair, rewrite, translate};
use crate::abi::{Flow, Kind, Reason, device_flags, state};
use crate::wire::{Headers, Transport, tcp_flags};

/// What was made of a packet that met an entry.
pub(super) enum Known {
    Verdict(Verdict),
    /// The entry belonged to a flow that has ended: it is gone, treat the packet as the first of a new one.
    Ended,
}

#[inline(always)]
pub(super) fn pass_known<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
) -> Known {
    let flow = entry.read();
    // The kernel reuses elements at once: this one may be another key's by now.
    if flow.tag != headers.key.tag() {
        return Known::Ended;
    }
    let Some(kind) = flow.kind() else { return Known::Ended };
    if packet.ifindex() != flow.ifindex
        && kind as u8 != Kind::Masquerade as u8
        && is_astray(tables, packet.ifindex(), flow.ifindex)
    {
        return strayed(tables, headers, &flow, kind);
    }
    let reply = matches!(kind, Kind::Restore | Kind::Unmasquerade);
    if !reply && headers.opens() && ended(tables, headers, entry, &flow) {
        return Known::Ended;
    }
    if reply && is_challenge(headers, &flow, kind) {
        translate::renumber(tables, headers, &flow);
        return Known::Verdict(Verdict::Drop(Reason::ChallengeAck));
    }
    note(tables, headers, entry, &flow);
    let mark = tables.masquerade_mark();
    match kind {
        Kind::Translate if flow.state & state::MARK != 0 => packet.set_mark(packet.mark() | mark),
        Kind::Masquerade if packet.mark() & mark != 0 => packet.set_mark(packet.mark() & !mark),
        _ => {}
    }
    Known::Verdict(rewrite::packet(packet, headers, &flow))
}

/// Whether a packet of a flow comes or goes by a device that cannot be its own: the flow belongs to a pod, and this is not the
/// pod's device, or the other way round. Beside each other NICs may share a flow, and a device that is gone has left its flows
/// to whoever has the address now.
#[inline(never)]
fn is_astray<const N: usize, T: Tables<N>>(tables: &T, here: u32, own: u32) -> bool {
    let (Some(here), Some(own)) = (tables.device_flags(here), tables.device_flags(own)) else { return false };
    (here | own) & device_flags::POD != 0
}

/// what is astray is neither translated nor noted. Answers leave by where the stack's routes lead to the client, so a
/// flow that a forged packet has opened stays without any, and whoever the address belongs to may take it.
#[inline(always)]
fn strayed<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    flow: &Flow<N>,
    kind: Kind,
) -> Known {
    let partner = flow.partner(&headers.key);
    if matches!(kind, Kind::Translate)
        && headers.opens()
        && tables.flow(&partner).is_none_or(|answer| answer.state() & state::SEEN == 0)
    {
        pair::remove(tables, &headers.key, &partner, flow.kind, flow.state);
        return Known::Ended;
    }
    Known::Verdict(Verdict::Drop(Reason::Spoofed))
}

/// Ticks for which a backend that has left may be silent while its client sends. Longer than a segment is on its way: a SYN that
/// comes twice must not move a connection.
const SILENCE: u32 = 3;

/// Whether a packet that may open a flow finds a flow that is over: a TCP connection that has closed (P-42), or whose backend
/// has left and does not answer (P-40), or a UDP flow whose backend has left (P-52). What is over is removed here.
#[inline(always)]
fn ended<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
    flow: &Flow<N>,
) -> bool {
    if headers.is_bare_syn() && pair::remove_if_closed(tables, &headers.key, entry) {
        return true;
    }
    // Nobody follows endpoints any more once another proxy has taken over (L-07): datagrams go to that one.
    let left = || tables.handed_over() && !headers.is_bare_syn();
    if flow.service == Flow::<N>::NO_SERVICE
        || (tables.endpoint_generation(flow.endpoint) == u32::from(flow.generation) && !left())
    {
        return false;
    }
    if headers.is_bare_syn()
        && let Some(answer) = tables.flow(&flow.partner(&headers.key))
        && answer.state() & state::SEEN != 0
        && flow.seen.saturating_sub(answer.seen()) < SILENCE
    {
        return false;
    }
    pair::remove(tables, &headers.key, &flow.partner(&headers.key), flow.kind, flow.state);
    true
}

/// A segment without SYN as the first answer to a SYN: the endpoint has another connection with this five-tuple, opened
/// straight to it before ours, and acknowledges, sends or closes there. That one must live; ours takes another source
/// port.
#[inline(always)]
const fn is_challenge<const N: usize>(headers: &Headers<N>, flow: &Flow<N>, kind: Kind) -> bool {
    use tcp_flags::{RST, SYN};
    matches!(kind, Kind::Restore)
        && flow.state & state::SEEN == 0
        && matches!(headers.transport, Transport::Tcp(flags) if flags & (SYN | RST) == 0)
}

/// Writes down what this packet shows of its direction. Values are written only when they change.
#[inline(always)]
fn note<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>, entry: &T::Entry, flow: &Flow<N>) {
    let mut seen = flow.state | state::SEEN;
    if let Transport::Tcp(mut flags) = headers.transport {
        use tcp_flags::{FIN, RST, SYN};
        flags &= FIN | SYN | RST;
        seen &= !state::BEGUN;
        if headers.is_bare_syn() {
            // A handshake begins anew: what was before must not end it.
            seen = seen & !(state::FIN | state::RST) | state::BEGUN;
        } else if flags & SYN != 0 && seen & state::FIN != 0 && is_asked(tables, headers, flow) {
            seen &= !state::FIN;
        }
        if flags & FIN != 0 {
            seen |= state::FIN;
        }
        // Data after a reset shows that the reset was not believed (P-43).
        if flags & (SYN | RST) == 0 {
            seen = seen & !state::RST | state::ESTABLISHED;
        }
        if flags & RST != 0 {
            seen |= state::RST;
        }
    }
    if seen != flow.state {
        entry.set_state(seen);
    }
    let now = tables.now();
    if now != flow.seen {
        entry.set_seen(now);
    }
}

/// Whether a SYN-ACK answers a SYN of just now. Another one has come late, and must not open again what is closed (P-42).
#[inline(never)]
fn is_asked<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>, flow: &Flow<N>) -> bool {
    tables.flow(&flow.partner(&headers.key)).is_some_and(|asking| asking.state() & state::BEGUN != 0)
}
