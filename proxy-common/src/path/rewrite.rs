//! The bytes of a rewrite.

use super::traits::{Fields, Packet};
use super::verdict::{Returned, Verdict};
use crate::abi::{Addr, FlowKey, Port, Reason, protocol};
use crate::wire::{Diff, Headers, IPV4, IPV6, addresses_at, apply, port_difference};

/// The ends that a packet gets.
pub(super) trait Ends<const N: usize> {
    /// New source address.
    fn src(&self) -> Addr<N>;
    /// New destination address.
    fn dst(&self) -> Addr<N>;
    /// New source port.
    fn sport(&self) -> Port;
    /// New destination port.
    fn dport(&self) -> Port;
    /// [`Flow::address_diff`](crate::abi::Flow::address_diff).
    fn address_diff(&self) -> u32;
}

impl<const N: usize, T: Fields<N>> Ends<N> for T {
    #[inline(always)]
    fn src(&self) -> Addr<N> {
        self.get(|flow| flow.src)
    }
    #[inline(always)]
    fn dst(&self) -> Addr<N> {
        self.get(|flow| flow.dst)
    }
    #[inline(always)]
    fn sport(&self) -> Port {
        self.get(|flow| flow.sport)
    }
    #[inline(always)]
    fn dport(&self) -> Port {
        self.get(|flow| flow.dport)
    }
    #[inline(always)]
    fn address_diff(&self) -> u32 {
        self.get(|flow| flow.address_diff)
    }
}

/// Gives the packet the flow's addresses and ports. The checksum goes first: its helper may move packet memory.
#[inline(always)]
pub(super) fn packet<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &impl Ends<N>,
) -> Verdict {
    packet_of(packet, headers, &headers.key, flow)
}

/// The same of a packet that has the ends of `key` by now, and not those of `headers`.
#[inline(always)]
pub(super) fn packet_of<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    flow: &impl Ends<N>,
) -> Verdict {
    let (sport, dport) = (flow.sport(), flow.dport());
    if headers.key.protocol == protocol::SCTP {
        if let Some(verdict) = Returned::from_code(packet.sctp_checksum(headers, sport, dport)).verdict() {
            return verdict;
        }
    } else if checksum(packet, headers, key, flow, sport, dport).is_none() {
        return Verdict::Drop(Reason::Rewrite);
    }
    match ends(packet, headers, flow, sport, dport) {
        Some(()) => Verdict::Pass,
        None => Verdict::Drop(Reason::Rewrite),
    }
}

/// TCP's or UDP's.
#[inline(always)]
fn checksum<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    key: &FlowKey<N>,
    flow: &impl Ends<N>,
    sport: Port,
    dport: Port,
) -> Option<()> {
    let addresses = Diff(flow.address_diff());
    let ports = port_diff(key, sport, dport);
    let udp = headers.key.protocol == protocol::UDP;
    packet.l4_checksum(headers.checksum_at(), addresses, ports, udp, N == 4)
}

/// SCTP's, which covers no address. [`Verdict::code`] if it cannot be had, else `u32::MAX`.
///
/// A step of its own: few packets are of SCTP, and of these few change ports.
#[inline(always)]
pub fn sctp_checksum<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    sport: Port,
    dport: Port,
) -> u32 {
    sctp(packet, headers, sport, dport).code()
}

#[inline(always)]
fn sctp<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    sport: Port,
    dport: Port,
) -> Returned {
    let at = headers.checksum_at();
    let difference = port_difference([headers.key.sport, headers.key.dport], [sport, dport]);
    let Some(field) = packet.load::<4>(at) else { return Verdict::Drop(Reason::Rewrite).into() };
    let before = u32::from_le_bytes(field);
    // Zero: a device is to finish it, or there is none (RFC 9653).
    if difference == 0 || before == 0 {
        return Returned::NONE;
    }
    // It depends on the length of the whole, which only the last fragment tells.
    if headers.is_first_fragment() {
        return Verdict::Drop(Reason::Fragment).into();
    }
    let after = before ^ packet.crc_difference(difference, headers.end - headers.l4);
    match packet.store(at, after.to_le_bytes()) {
        Some(()) => Returned::NONE,
        None => Verdict::Drop(Reason::Rewrite).into(),
    }
}

#[inline(always)]
fn ends<const N: usize, P: Packet>(
    packet: &mut P,
    headers: &Headers<N>,
    flow: &impl Ends<N>,
    sport: Port,
    dport: Port,
) -> Option<()> {
    store_ports(packet, headers.l4, sport, dport)?;
    network_header(packet, headers.l3, flow, Diff(flow.address_diff()))
}

/// Gives the network header at `l3` the flow's addresses, and IPv4's checksum their change.
#[inline(always)]
fn network_header<const N: usize, P: Packet>(
    packet: &mut P,
    l3: u32,
    flow: &impl Ends<N>,
    change: Diff,
) -> Option<()> {
    let (src, dst) = (flow.src(), flow.dst());
    if N == 1 {
        let header: &mut [u8; IPV4] = packet.window_mut(l3)?;
        update_header(header, change)?;
        put_both(header, &src, &dst)
    } else {
        store_addresses(packet, l3, &src, &dst)
    }
}

/// Takes a hop away, as a router does, which has seen that there is one to spare.
#[inline(always)]
pub(super) fn hop<const N: usize, P: Packet>(packet: &mut P, l3: u32) -> Option<()> {
    if N == 1 {
        let header: &mut [u8; IPV4] = packet.window_mut(l3)?;
        let (hops, protocol) = (header[8], header[9]);
        header[8] = hops.wrapping_sub(1);
        let [before, after] = [[hops, protocol], [header[8], protocol]].map(u16::from_ne_bytes);
        update_header(header, Diff::half(before, after))
    } else {
        let header: &mut [u8; 8] = packet.window_mut(l3)?;
        let (next, hops) = (header[6], header[7]);
        header[7] = hops.wrapping_sub(1);
        let [before, after] = [[next, hops], [next, header[7]]].map(u16::from_ne_bytes);
        packet.shift_sum(Diff::half(before, after));
        Some(())
    }
}

/// What these ports add to a checksum that covered those of `key`.
#[inline(always)]
pub(super) const fn port_diff<const N: usize>(key: &FlowKey<N>, sport: Port, dport: Port) -> Diff {
    Diff::port(key.sport, sport).and(Diff::port(key.dport, dport))
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
    if N == 1 {
        put_both(packet.window_mut::<IPV4>(l3)?, src, dst)
    } else {
        put_both(packet.window_mut::<IPV6>(l3)?, src, dst)
    }
}

/// Writes both addresses into a network header.
#[inline(always)]
fn put_both<const N: usize>(header: &mut [u8], src: &Addr<N>, dst: &Addr<N>) -> Option<()> {
    let at = addresses_at::<N>(0) as usize;
    put(header, at, src)?;
    put(header, at + 4 * N, dst)
}

/// Writes an address into a header.
#[inline(always)]
fn put<const N: usize>(header: &mut [u8], at: usize, address: &Addr<N>) -> Option<()> {
    let mut word = 0;
    while word < N {
        *header.get_mut(at + 4 * word..)?.first_chunk_mut()? = address.0[word].to_ne_bytes();
        word += 1;
    }
    Some(())
}

/// Updates the IPv4 header's own checksum.
#[inline(always)]
pub(super) fn header_checksum<P: Packet>(packet: &mut P, l3: u32, diff: Diff) -> Option<()> {
    update_header(packet.window_mut(l3)?, diff)
}

#[inline(always)]
fn update_header(header: &mut [u8; IPV4], diff: Diff) -> Option<()> {
    let field: &mut [u8; 2] = header.get_mut(10..)?.first_chunk_mut()?;
    *field = apply(u16::from_ne_bytes(*field), diff).to_ne_bytes();
    Some(())
}
