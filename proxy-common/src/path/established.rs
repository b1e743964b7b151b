//! Packets of known flows.

use super::pair::End;
use super::traits::{Entry, Fields, Packet, Tables};
use super::verdict::Verdict;
use super::{lease, pair, reclaim, rewrite, shortcut, time};
use crate::abi::{Flow, FlowKey, Hook, Kind, Reason, device_flags, news, state};
use crate::wire::{Headers, Transport, tcp_flags};

/// What was made of a packet that met an entry.
pub(super) enum Known {
    Verdict(Verdict),
    /// An answer that enters has been rewritten, and is one at the client's edge, too, by the ends that [`shortcut::unmasqueraded`] has
    /// written down.
    Unmasqueraded,
    /// It shows that the flow cannot have its source port.
    Challenge,
    /// The entry belonged to a flow that has ended: it is gone, treat the packet as the first of a new one.
    Ended(End),
}

/// `enters`: at ingress, as `headers` say too; a constant to the compiler.
#[inline(always)]
pub(super) fn pass_known<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
    enters: bool,
) -> Known {
    // The kernel reuses elements at once: this one may be another key's by now.
    let tag = headers.key.tag();
    if entry.tag() != tag {
        return Known::Ended(End::NO_TURN);
    }
    let Some(kind) = entry.get(Flow::kind) else { return Known::Ended(End::NO_TURN) };
    let own = entry.get(|flow| flow.ifindex);
    if packet.ifindex() != own
        && !matches!(kind, Kind::Masquerade)
        && is_astray(tables, packet.ifindex(), own)
    {
        // what is astray is neither translated nor noted.
        let asks = match kind {
            Kind::Translate => headers.opens(),
            // Of a connection straight to the client, whose answers the flow would take.
            _ => is_challenge(headers, entry.state(), kind),
        };
        if asks && makes_way(tables, headers) {
            return Known::Ended(End::NO_TURN);
        }
        if !(matches!(kind, Kind::Unmasquerade) && is_first_answer(tables, headers, packet.ifindex())) {
            return Known::Verdict(Verdict::Drop(Reason::Spoofed));
        }
    }
    let reply = matches!(kind, Kind::Restore | Kind::Unmasquerade);
    let doubtful = headers.is_bare_syn()
        || headers.opens()
            && (has_left(tables, headers, entry, packet.is_caught()) || is_silent(tables, headers, entry));
    if !reply && doubtful {
        let end = tables.ended(headers, packet.is_caught());
        if end != End::NONE {
            return Known::Ended(end);
        }
    }
    if reply && is_challenge(headers, entry.state(), kind) {
        return Known::Challenge;
    }
    let before = entry.state();
    note(packet, tables, headers, &headers.key, entry, reply);
    match kind {
        Kind::Translate if before & state::MARK != 0 => {
            packet.set_mark(packet.mark() | tables.masquerade_mark());
        }
        Kind::Masquerade => packet.set_mark(packet.mark() & !tables.masquerade_mark()),
        _ => {}
    }
    let far = entry.get(|flow| flow.far);
    let ways = if enters && matches!(kind, Kind::Translate) && packet.ifindex() == own {
        shortcut::ways_out(packet, tables, headers, entry, far, shortcut::note::ASKS)
    } else {
        0
    };
    // Or the verifier would follow the rewrite once for each way to here.
    let ways = if enters { tables.unknown(ways) } else { ways };
    let verdict = rewrite::packet(packet, headers, entry);
    // It has become another key's meanwhile.
    if entry.tag() != tag {
        return Known::Verdict(Verdict::Drop(Reason::Rewrite));
    }
    Known::Verdict(match (verdict, kind) {
        (Verdict::Pass, Kind::Translate) if ways != 0 => {
            shortcut::send_request(packet, tables, headers, entry, far, ways)
        }
        (Verdict::Pass, Kind::Unmasquerade) if enters => {
            shortcut::unmasqueraded(tables, headers, entry);
            return Known::Unmasqueraded;
        }
        _ => verdict,
    })
}

/// Whether a packet of a flow comes or goes by a device that cannot be its own: the flow belongs to a pod, and this is not the
/// pod's device, or the other way round. Beside each other NICs may share a flow, and a device that is gone has left its flows
/// to whoever has the address now.
#[inline(never)]
fn is_astray<const N: usize, T: Tables<N>>(tables: &T, here: u32, own: u32) -> bool {
    let (Some(here), Some(own)) = (tables.device_flags(here), tables.device_flags(own)) else { return false };
    (here | own) & device_flags::POD != 0
}

/// Whether a flow that is met astray makes way for the packet that meets it, as it has had no answer. Answers leave by
/// where the stack's routes lead to the client, so a flow that a forged packet has opened stays without any, and whoever the
/// address belongs to may take it.
#[inline(never)]
fn makes_way<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>) -> bool {
    let Some(entry) = tables.flow(&headers.key) else { return true };
    let partner = entry.partner(&headers.key);
    let (kind, own) = (entry.kind(), entry.state());
    let other = tables.flow(&partner).map_or(0, |other| other.state());
    if if pair::is_reply(kind) { own } else { other } & state::SEEN != 0 {
        return false;
    }
    pair::remove(tables, &headers.key, &partner, kind, own | other, false);
    true
}

/// Whether this is the first answer of a masqueraded flow, by another port of a bridge than its first packet left by: the bridge
/// floods all ports with what it knows none for. The endpoint is where its answer comes from, and the pair is that port's from now on.
#[inline(never)]
fn is_first_answer<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>, here: u32) -> bool {
    let Some(entry) = tables.flow(&headers.key) else { return false };
    let is_port = |ifindex| tables.device_flags(ifindex).unwrap_or(0) & device_flags::PORT != 0;
    let first = entry.state() & state::SEEN == 0 && is_port(here) && is_port(entry.get(|flow| flow.ifindex));
    if first {
        entry.set_ifindex(here);
    }
    first
}

/// Ticks for which a backend that has left may be silent while its client sends. Longer than a segment is on its way: a SYN that
/// comes twice must not move a connection.
const SILENCE: u32 = 3;

/// Whether datagrams have been absent for so long that their flow may be over, as conntrack has it.
#[inline(always)]
pub(super) fn is_silent<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
) -> bool {
    matches!(headers.transport, Transport::Udp)
        && time::since(entry.seen(), tables.now()) >= reclaim::SHORTEST
}

/// Whether a packet that may open a flow finds a flow that is over: a TCP connection that has closed (P-42), or whose backend
/// has left and either end has reset it or the backend does not answer (P-40), or a UDP flow whose backend has left (P-52) or whose time
/// is over. What is over is removed here. `headers.key` is that of a pair's forward entry.
#[inline(always)]
pub fn ended<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>, caught: bool) -> End {
    let Some(entry) = tables.flow(&headers.key) else { return End::NO_TURN };
    let serial = entry.serial();
    // At the endpoint's edge the pair at the client's has just translated this packet, and is asked for the answer: where that one has
    // not heard of the end, a reset that was lost in between, it goes on for the new connection.
    let stays = headers.key.hook == Hook::Egress as u8;
    let partner = entry.partner(&headers.key);
    let answer = tables.flow(&partner);
    let goes_on = if headers.is_bare_syn() && pair::is_over(tables, &entry, answer.as_ref()) {
        false
    } else if !has_left(tables, headers, &entry, caught) {
        headers.is_bare_syn() || !reclaim::is_expired(tables, &headers.key, &entry, &partner)
    } else {
        headers.is_bare_syn()
            && answer.is_some_and(|answer| {
                answer.state() & state::SEEN != 0
                    && !pair::closed(entry.state(), answer.state())
                    && entry.seen().saturating_sub(answer.seen()) < SILENCE
            })
    };
    if goes_on {
        return End::NONE;
    }
    if pair::remove(tables, &headers.key, &partner, entry.kind(), entry.state(), stays) {
        End::leaving(serial)
    } else {
        End::NO_TURN
    }
}

/// Whether the backend of a flow is not there any more.
#[inline(always)]
fn has_left<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    entry: &T::Entry,
    caught: bool,
) -> bool {
    // Nobody follows endpoints any more once another proxy has taken over (L-07): datagrams go to that one. What comes by the
    // catch-all device has passed that one's rules, and none but this flow is left to it.
    entry.get(|flow| flow.service) != Flow::<N>::NO_SERVICE
        && (tables.endpoint_generation(entry.get(|flow| flow.endpoint))
            != u32::from(entry.get(|flow| flow.generation))
            || !caught && tables.handed_over() && !headers.is_bare_syn())
}

/// A segment without SYN as the first answer to a SYN: the endpoint has another connection with this five-tuple, opened
/// straight to it before ours, and acknowledges, sends or closes there. That one must live; ours takes another source
/// port.
#[inline(always)]
pub(super) const fn is_challenge<const N: usize>(headers: &Headers<N>, shown: u8, kind: Kind) -> bool {
    use tcp_flags::{RST, SYN};
    matches!(kind, Kind::Restore)
        && shown & state::SEEN == 0
        && matches!(headers.transport, Transport::Connection(flags) if flags & (SYN | RST) == 0)
}

/// Writes down what this packet shows of its direction; `key` is its entry's. Values are written only when they change.
#[inline(always)]
pub(super) fn note<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    entry: &T::Entry,
    reply: bool,
) {
    let before = entry.state();
    let mut seen = before | state::SEEN;
    if let Transport::Connection(mut flags) = headers.transport {
        use tcp_flags::{ACK, FIN, RST, SYN};
        if reply
            && flags & (SYN | ACK) == SYN | ACK
            && let Some(proof) = headers.asks_for(packet)
        {
            entry.set_proof(proof);
        }
        flags &= FIN | SYN | RST;
        seen &= !state::BEGUN;
        if headers.is_bare_syn() {
            // A handshake begins anew: what was before must not end it.
            seen = seen & !(state::FIN | state::RST) | state::BEGUN;
        } else if flags & SYN != 0 && seen & state::FIN != 0 && is_asked(tables, key) {
            seen &= !state::FIN;
        }
        if flags & FIN != 0 {
            seen |= state::FIN;
        }
        // Data after a reset shows that the reset was not believed (P-43).
        if flags & (SYN | RST) == 0 {
            seen &= !state::RST;
            if !reply && before & state::ESTABLISHED == 0 && has_heard(packet, tables, headers, key) {
                seen |= state::ESTABLISHED;
            }
        }
        if flags & RST != 0 {
            seen |= state::RST;
        }
        if flags != 0 {
            lease::begins_or_ends(tables, key, flags, entry);
            let (client, port) = if reply { (&key.dst, key.dport) } else { (&key.src, key.sport) };
            tables.tell_news(news::of_client(client, port));
        }
    }
    if seen != before {
        entry.set_state(seen);
    }
    let now = tables.now();
    if now != entry.seen() {
        entry.set_seen(now);
    }
}

/// Whether a client shows by this segment that it has had the answer. Who has forged its SYN has not, and a pair of a forger's would
/// count as live for a day (P-65).
#[inline(never)]
fn has_heard<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    key: &FlowKey<N>,
) -> bool {
    opposite(tables, key).is_some_and(|answer| {
        answer.state() & state::SEEN != 0 && headers.shows(packet, answer.get(|flow| flow.proof))
    })
}

/// Whether a SYN-ACK answers a SYN of just now. Another one has come late, and must not open again what is closed (P-42).
#[inline(never)]
fn is_asked<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>) -> bool {
    opposite(tables, key).is_some_and(|asking| asking.state() & state::BEGUN != 0)
}

/// The entry of the direction opposite to that of `key`.
#[inline(always)]
fn opposite<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>) -> Option<T::Entry> {
    let entry = tables.flow(key)?;
    tables.flow(&entry.partner(key))
}
