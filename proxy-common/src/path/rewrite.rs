//! The bytes of a rewrite.

use super::traits::{Packet, Verdict};
use crate::abi::{Addr, Flow, FlowKey, Port, Reason, protocol};
use crate::wire::{Diff, Headers, addresses_at, apply};

/// Gives the packet the flow's addresses and ports. The checksum goes first: its helper may move packet memory.
#[inline(always)]
pub(super) fn packet<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &Flow<N>,
) -> Verdict {
    if tuple(packet, headers, flow).is_some() { Verdict::Pass } else { Verdict::Drop(Reason::Rewrite) }
}

#[inline(always)]
fn tuple<const N: usize, P: Packet>(packet: &mut P, headers: &Headers<N>, flow: &Flow<N>) -> Option<()> {
    let ports = port_diff(&headers.key, flow);
    let addresses = Diff(flow.address_diff);
    let udp = headers.key.protocol == protocol::UDP;
    packet.l4_checksum(headers.checksum_at(), addresses, ports, udp, N == 4)?;
    store_ports(packet, headers.l4, flow.sport, flow.dport)?;
    store_addresses(packet, headers.l3, &flow.src, &flow.dst)?;
    if N == 1 { header_checksum(packet, headers.l3, addresses) } else { Some(()) }
}

/// What the flow's ports add to a checksum that covered those of `key`, its own.
#[inline(always)]
pub(super) const fn port_diff<const N: usize>(key: &FlowKey<N>, flow: &Flow<N>) -> Diff {
    Diff::port(key.sport, flow.sport).and(Diff::port(key.dport, flow.dport))
}

/// Writes both ports.
#[inline(always)]
pub(super) fn store_ports<P: Packet>(packet: &mut P, l4: u32, sport: Port, dport: Port) -> Option<()> {
    let [a, b] = sport.0.to_ne_bytes();
    let [c, d] = dport.0.to_ne_bytes();
    packet.store(l4, [a, b, c, d])
}

/// Writes both addresses of the network header at `l3`.
#[inline(always)]
pub(super) fn store_addresses<const N: usize, P: Packet>(
    packet: &mut P,
    l3: u32,
    src: &Addr<N>,
    dst: &Addr<N>,
) -> Option<()> {
    let at = addresses_at::<N>(l3);
    let size = 4 * N as u32;
    let mut word = 0;
    while word < N {
        let offset = at + 4 * word as u32;
        packet.store(offset, src.0[word].to_ne_bytes())?;
        packet.store(offset + size, dst.0[word].to_ne_bytes())?;
        word += 1;
    }
    Some(())
}

/// Updates the IPv4 header's own checksum.
#[inline(always)]
pub(super) fn header_checksum<P: Packet>(packet: &mut P, l3: u32, diff: Diff) -> Option<()> {
    let old = u16::from_ne_bytes(packet.load(l3 + 10)?);
    packet.store(l3 + 10, apply(old, diff).to_ne_bytes())
}
