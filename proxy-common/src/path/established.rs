//! Packets of known flows.

use super::traits::{Entry, Packet, Tables, Verdict};
use super::{pair, rewrite, translate};
use crate::abi::{Flow, Kind, Reason, state};
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

/// Whether a packet that may open a flow finds a flow that is over: a TCP connection that has closed (P-42), an
/// unanswered SYN or a UDP flow whose backend has left (P-40, P-52). What is over is removed here.
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
    {
        return false;
    }
    pair::remove(tables, &headers.key, &flow.partner(&headers.key));
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
    if let Transport::Tcp(flags) = headers.transport {
        // A handshake begins anew: a FIN of earlier times must not end it.
        if flags & tcp_flags::SYN != 0 {
            seen &= !state::FIN;
        }
        if flags & tcp_flags::FIN != 0 {
            seen |= state::FIN;
        }
        if flags & tcp_flags::SYN == 0 {
            seen |= state::ESTABLISHED;
        }
        // Data after a reset shows that the reset was not believed (P-43).
        seen = if flags & tcp_flags::RST != 0 { seen | state::RST } else { seen & !state::RST };
    }
    if seen != flow.state {
        entry.set_state(seen);
    }
    let now = tables.now();
    if now != flow.seen {
        entry.set_seen(now);
    }
}
