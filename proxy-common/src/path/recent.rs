//! A packet of a flow whose last one has just passed the stack by: the same is done again. Nothing is asked about the flow, nor about the
//! device it leads to: where flows are many, their entries are in no cache that is near.
//!
//! The record that says so holds for a moment, and as long as neither the agent nor a packet of this client's has news: then the
//! packet goes the usual way and leaves a new record. So nothing is written down of packets in between, and what they could
//! change goes the usual way always: SYN, FIN, RST, fragments, what is marked, what is longer than the last one.

use core::borrow::{Borrow, BorrowMut};

use super::rewrite::{self, Ends};
use super::shortcut::{self, Out, note};
use super::traits::{Packet, Tables};
use super::verdict::Verdict;
use crate::abi::{Addr, FlowKey, Port, Reason, Recent, news};
use crate::wire::{Diff, Headers, Transport, load_addresses, tcp_flags};

impl<const N: usize> Ends<N> for Recent<N> {
    #[inline(always)]
    fn src(&self) -> Addr<N> {
        self.src
    }
    #[inline(always)]
    fn dst(&self) -> Addr<N> {
        self.dst
    }
    #[inline(always)]
    fn sport(&self) -> Port {
        self.sport
    }
    #[inline(always)]
    fn dport(&self) -> Port {
        self.dport
    }
    #[inline(always)]
    fn address_diff(&self) -> u32 {
        self.address_diff
    }
}

/// Whether packets like this one change nothing of their flow.
#[inline(always)]
fn is_plain<const N: usize>(headers: &Headers<N>) -> bool {
    use tcp_flags::{FIN, RST, SYN};
    !headers.is_fragment()
        && match headers.transport {
            Transport::Connection(flags) => flags & (SYN | FIN | RST) == 0,
            transport => matches!(transport, Transport::Udp),
        }
}

/// What becomes of a packet if the record of the last one holds for it. `None`: it does not, nothing has been done.
#[inline(always)]
pub(super) fn again<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> Option<Verdict> {
    if packet.is_caught()
        || !shortcut::is_on(tables, headers.key.protocol)
        || !is_plain(headers)
        || packet.mark() & tables.masquerade_mark() != 0
    {
        return None;
    }
    let last = tables.recent(Recent::place(&headers.key))?;
    let last: &Recent<N> = last.borrow();
    if !is_same(&last.key, &headers.key)
        || last.ifindex != packet.ifindex()
        || last.moment != tables.time() as u32
        || last.news != [tables.news(news::OF_AGENT), tables.news(last.client)]
    {
        return None;
    }
    let size = shortcut::size(packet, headers);
    if size > last.size || !shortcut::may_hop::<N, P>(packet, headers.l3) {
        return None;
    }
    let peer = shortcut::address(packet, last.frame);
    if !peer && !shortcut::leads_to(packet, headers, last, last.device, size) {
        return None;
    }
    let verdict = rewrite::packet(packet, headers, last);
    if verdict != Verdict::Pass {
        return Some(verdict);
    }
    if rewrite::hop::<N, P>(packet, headers.l3).is_none() {
        return Some(Verdict::Drop(Reason::Rewrite));
    }
    if !peer {
        packet.set_note(note::DONE);
    }
    tables.count(Reason::Shortcut);
    packet.send(last.device, if peer { Out::Peer } else { Out::NextHop });
    Some(Verdict::Shortcut)
}

/// Whether these are the same ends.
#[inline(always)]
fn is_same<const N: usize>(one: &FlowKey<N>, other: &FlowKey<N>) -> bool {
    let mut difference = u32::from(one.sport.0 ^ other.sport.0)
        | u32::from(one.dport.0 ^ other.dport.0)
        | u32::from(one.protocol ^ other.protocol)
        | u32::from(one.hook ^ other.hook);
    let mut word = 0;
    while word < N {
        difference |= one.src.0[word] ^ other.src.0[word] | one.dst.0[word] ^ other.dst.0[word];
        word += 1;
    }
    difference == 0
}

/// Writes down a packet that had these headers, has been rewritten and leaves by `device`: straight into the pod if `peer` is not zero, else
/// to the next hop. `client`: its place, [`news::of_client`].
///
/// A place is one flow's for a moment: flows that share it would only take it from each other.
///
/// A function of its own: few packets of a flow are written down.
#[inline(always)]
pub fn remember<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    device: u32,
    peer: u32,
    client: u32,
) -> Option<()> {
    if !is_plain(headers) {
        return None;
    }
    let now = tables.time() as u32;
    let mut place = tables.recent(Recent::place(&headers.key))?;
    let last: &mut Recent<N> = place.borrow_mut();
    if last.moment == now && !is_same(&last.key, &headers.key) {
        return None;
    }
    let [a, b, c, d] = packet.load(headers.l4)?;
    load_addresses(packet, headers.l3, &mut last.src, &mut last.dst)?;
    last.key = headers.key;
    last.sport = Port(u16::from_ne_bytes([a, b]));
    last.dport = Port(u16::from_ne_bytes([c, d]));
    let (src, dst) = (&headers.key.src, &headers.key.dst);
    last.address_diff = Diff::address(src, &last.src).and(Diff::address(dst, &last.dst)).0;
    last.ifindex = packet.ifindex();
    last.device = device;
    last.size = shortcut::size(packet, headers);
    last.frame = if peer == 0 { [0; 3] } else { shortcut::frame(packet)? };
    last.client = client;
    last.news = [tables.news(news::OF_AGENT), tables.news(client)];
    last.moment = now;
    Some(())
}
