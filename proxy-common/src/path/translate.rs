//! The first packet of a flow, at the client's edge.

use super::choice;
use super::pair::End;
use super::traits::{Entry, Fields, Packet, Tables};
use super::verdict::Verdict;
use super::{catch_all, pair, reject, rewrite, shortcut};
use crate::abi::{Addr, AddressClass, Frontend, Kind, Port, Reason, Run, protocol, state};
use crate::wire::Headers;

/// A packet to a frontend, without a flow.
#[inline(always)]
pub(super) fn open<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    dialled: Frontend,
    before: End,
) -> Verdict {
    let (caught, ifindex) = (packet.is_caught(), packet.ifindex());
    let opened = tables.scratch(|room| {
        room.before = before;
        room.asked.key.client = if caught { Addr::UNSPECIFIED } else { headers.key.src };
        let silent = match tables.prepare(headers, dialled, ifindex, room) {
            choice::STRAY => return Ok(stray(packet, tables, headers)),
            choice::CLOSED => return Err(Reason::SourceRange),
            choice::SILENT => true,
            choice::LOUD => false,
            _ => return Ok(reject::answer(packet, tables, headers, Reason::Unlisted)),
        };
        if !choice::take(tables, room) {
            return if silent {
                Err(Reason::NoLocalEndpoint)
            } else {
                Ok(reject::answer(packet, tables, headers, Reason::NoEndpoint))
            };
        }
        if caught
            && let Verdict::Drop(reason) =
                catch_all::take_source(packet, tables, headers, &mut room.flow).into()
        {
            return Err(reason);
        }
        let marked = room.flow.state & state::MARK != 0;
        // Nothing but the catch-all device has its source: no direct connection can be in the way.
        let keep_port = caught || !(marked && has_edge(tables, &room.flow.dst));
        pair::open(tables, &headers.key, room, keep_port, Port(0))?;
        // As the pair says, which may be another CPU's.
        if room.flow.state & state::MARK != 0 {
            packet.set_mark(packet.mark() | tables.masquerade_mark());
        }
        shortcut::ask(packet, tables, headers);
        Ok(rewrite::packet(packet, headers, &room.flow))
    });
    pair::verdict(opened)
}

/// A packet that opens a flow straight to an endpoint. Its answer must not meet another flow's restore entry: a closed one
/// goes, beside a live one the direct flow takes another source port (P-60, P-61).
///
/// An endpoint answers an INIT whatever association it has with that client and port, and so shows no clash: a direct association
/// to it is written down, so that Services' flows keep off its answers.
#[inline(always)]
pub(super) fn open_direct<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    before: End,
) -> Verdict {
    let opened = tables.scratch(|scratch| {
        scratch.before = before;
        let (key, ifindex) = (&headers.key, packet.ifindex());
        scratch.reply_key = key.reply();
        let written_down = key.protocol == protocol::SCTP && tables.may_be_endpoint(&key.dst);
        if pair::remove_if_closed(tables, scratch) && !written_down {
            return Ok(Verdict::Pass);
        }
        pair::start(&mut scratch.flow, &key.src, Kind::Translate, ifindex);
        scratch.flow.dst = key.dst;
        scratch.flow.dport = key.dport;
        pair::open(tables, &headers.key, scratch, written_down, Port(0))?;
        Ok(rewrite::packet(packet, headers, &scratch.flow))
    });
    pair::verdict(opened)
}

/// Gives an unanswered flow another source port; the client's next SYN uses it. `headers` are those of the answer that
/// showed the clash.
#[inline(never)]
pub(super) fn renumber<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>) {
    let Some(entry) = tables.flow(&headers.key) else { return };
    let own = &headers.key;
    let key = entry.partner(own);
    let state = tables.flow(&key).map_or(0, |entry| entry.state()) & !state::INHERITS;
    // A failure leaves no entry: the next SYN opens the flow afresh.
    let _ = tables.scratch(|scratch| {
        pair::start(&mut scratch.flow, &own.dst, Kind::Translate, entry.get(|flow| flow.ifindex));
        scratch.flow.dst = own.src;
        scratch.flow.dport = own.sport;
        scratch.flow.state = state;
        scratch.flow.service = entry.get(|flow| flow.service);
        scratch.flow.endpoint = entry.get(|flow| flow.endpoint);
        scratch.flow.generation = entry.get(|flow| flow.generation);
        scratch.before = End::NO_TURN;
        pair::remove(tables, own, &key, entry.kind(), state, false);
        // Of a masqueraded flow the port that has failed was the first candidate, and would be again.
        pair::open(tables, &key, scratch, false, own.dport)
    });
}

/// The slot for a new flow: a uniform draw, since a seeded hash would pin a client's retries to a dead endpoint.
#[inline(always)]
pub(super) fn draw<const N: usize, T: Tables<N>>(tables: &T, run: Run) -> u32 {
    let drawn = (u64::from(tables.random()) * u64::from(run.count())) >> 32;
    run.offset().wrapping_add(drawn as u32)
}

/// Whether packets to this backend leave the stack by an edge, where they are masqueraded; the node's own do not.
///
/// A masqueraded flow does not keep the client's port between the edges. C → B with that port may be a connection that
/// the client has opened straight to B, and nothing would show the clash: B answers both, one of them to M. The backend
/// sees a port of M's either way (P-60).
#[inline(always)]
fn has_edge<const N: usize, T: Tables<N>>(tables: &T, backend: &Addr<N>) -> bool {
    !tables.address_class(backend).any(AddressClass::LOCAL)
}

/// A segment to a frontend, not a SYN, without a flow; the same of SCTP, not an INIT. On the node's own addresses the stack answers; on a Service's
/// it is refused, never given a random backend (P-41, P-45). A reset is not answered. Where kube-proxy has been before,
/// connections of its time are the stack's (L-07).
#[inline(always)]
fn stray<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Verdict {
    if tables.strays_pass() || tables.address_class(&headers.key.dst).any(AddressClass::LOCAL) {
        return Verdict::Pass;
    }
    reject::answer(packet, tables, headers, Reason::NoFlow)
}
