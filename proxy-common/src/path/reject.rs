//! Answering instead of forwarding: a reset for TCP, port unreachable for UDP and SCTP (B17, P-23).
//!
//! The packet is turned into the answer in place and sent back out of the device it came in by.

use super::rewrite;
use super::traits::{Packet, Tables};
use super::verdict::Verdict;
use crate::abi::{Addr, Reason, protocol};
use crate::wire::{Diff, Headers, Transport, apply, fold, pseudo_header, tcp_flags};

/// Hop limit of answers, Linux's default.
const TTL: u8 = 64;

/// Words of the offending packet that an ICMP answer may quote: its network header and what [`quoted_behind`] says.
const QUOTED_WORDS: u32 = 32;

/// Turns the packet into a refusal for `reason`. A reset is not answered, and what cannot be answered is dropped.
#[inline(always)]
pub(super) fn answer<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    reason: Reason,
) -> Verdict {
    if tables.refuse(packet, headers) == REFUSED { Verdict::Reject(reason) } else { Verdict::Drop(reason) }
}

/// The packet has been turned into its refusal.
const REFUSED: u32 = 1;

/// Turns the packet into its refusal. [`REFUSED`], or it is one that is not answered.
#[inline(always)]
pub fn refuse<const N: usize, P: Packet>(packet: &mut P, headers: &Headers<N>) -> u32 {
    let done = match headers.transport {
        Transport::Connection(flags) if flags & tcp_flags::RST != 0 => None,
        Transport::Connection(flags) if headers.key.protocol == protocol::TCP => {
            // Its network header, which the answer would keep, says that more follows.
            if headers.is_first_fragment() { None } else { reset(packet, headers, flags) }
        }
        _ => unreachable(packet, headers),
    };
    if done.and_then(|()| turn_frame(packet, headers.l3)).is_some() { REFUSED } else { 0 }
}

/// Swaps the frame's Ethernet addresses.
#[inline(always)]
fn turn_frame<P: Packet>(packet: &mut P, l3: u32) -> Option<()> {
    if l3 < 14 {
        return Some(());
    }
    let at = l3 - 14;
    let dst: [u8; 6] = packet.load(at)?;
    let src: [u8; 6] = packet.load(at + 6)?;
    packet.store(at, src)?;
    packet.store(at + 6, dst)
}

/// RFC 9293 section 3.5.2: a segment with ACK is reset at that number, another one is acknowledged.
#[inline(always)]
fn reset<const N: usize, P: Packet>(packet: &mut P, headers: &Headers<N>, flags: u8) -> Option<()> {
    let tcp: [u8; 20] = packet.load(headers.l4)?;
    let length = headers.end - headers.l4;
    let data = length - u32::from(tcp[12] >> 4) * 4;
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
    let (seq, ack, flags) = if flags & tcp_flags::ACK != 0 {
        (ack, 0, tcp_flags::RST)
    } else {
        let taken = data + u32::from(flags >> 1 & 1) + u32::from(flags & 1);
        (0, seq.wrapping_add(taken), tcp_flags::RST | tcp_flags::ACK)
    };
    let key = &headers.key;
    // A sender on this machine leaves the sum over the pseudo header for the device to finish. Such a packet must
    // stay so: whoever finishes it adds the rest (P-80).
    let partial = packet.is_unfinished().unwrap_or_else(|| {
        u16::from_ne_bytes([tcp[16], tcp[17]])
            == fold(pseudo_header(&key.src, &key.dst, key.protocol, length))
    });
    packet.resize(headers.l4 + 20)?;
    let mut answer = [0; 20];
    [answer[0], answer[1]] = key.dport.0.to_ne_bytes();
    [answer[2], answer[3]] = key.sport.0.to_ne_bytes();
    [answer[4], answer[5], answer[6], answer[7]] = seq.to_be_bytes();
    [answer[8], answer[9], answer[10], answer[11]] = ack.to_be_bytes();
    answer[12] = 5 << 4;
    answer[13] = flags;
    let header = fold(pseudo_header(&key.src, &key.dst, key.protocol, 20));
    let checksum = if partial { header } else { !fold(u64::from(header) + sum(&answer)) };
    [answer[16], answer[17]] = checksum.to_ne_bytes();
    packet.store(headers.l4, answer)?;
    rewrite::store_addresses(packet, headers.l3, &key.dst, &key.src)?;
    shortened::<N, P>(packet, headers.l3, headers.l4 + 20 - headers.l3)
}

/// Writes the new length and a fresh hop limit into the network header at `l3`.
#[inline(always)]
fn shortened<const N: usize, P: Packet>(packet: &mut P, l3: u32, length: u32) -> Option<()> {
    if N == 4 {
        packet.store(l3 + 4, ((length - 40) as u16).to_be_bytes())?;
        return packet.store(l3 + 7, [TTL]);
    }
    let old: [u8; 2] = packet.load(l3 + 2)?;
    let new = (length as u16).to_be_bytes();
    let [ttl, protocol] = packet.load(l3 + 8)?;
    packet.store(l3 + 2, new)?;
    packet.store(l3 + 8, [TTL])?;
    let diff = Diff::half(u16::from_ne_bytes(old), u16::from_ne_bytes(new))
        .and(Diff::half(u16::from_ne_bytes([ttl, protocol]), u16::from_ne_bytes([TTL, protocol])));
    rewrite::header_checksum(packet, l3, diff)
}

/// Bytes that are quoted behind the network header: 8, of SCTP also its verification tag and that which an INIT proposes, or
/// nobody would believe the answer (RFC 9260 section 10, ICMP6).
#[inline(always)]
const fn quoted_behind<const N: usize>(headers: &Headers<N>) -> u32 {
    let there = headers.end - headers.l4;
    match headers.key.protocol {
        protocol::SCTP if there < 20 => 16,
        protocol::SCTP => 20,
        _ => 8,
    }
}

/// Destination unreachable, port unreachable (RFC 792; RFC 4443 section 3.1), quoting the network header and the beginning
/// of what is behind it.
#[inline(always)]
fn unreachable<const N: usize, P: Packet>(packet: &mut P, headers: &Headers<N>) -> Option<()> {
    let l3 = headers.l3;
    let quoted = (headers.l4 + quoted_behind(headers) - l3).min(QUOTED_WORDS * 4);
    if quoted < headers.l4 + 8 - l3 {
        return None;
    }
    let network = if N == 1 { 20 } else { 40 };
    packet.resize(l3 + quoted)?;
    packet.make_room(l3, network + 8)?;
    let key = &headers.key;
    if N == 1 {
        let mut header = [0; 20];
        header[0] = 0x45;
        [header[2], header[3]] = ((28 + quoted) as u16).to_be_bytes();
        header[8] = TTL;
        header[9] = protocol::ICMP;
        packet.store(l3, header)?;
        rewrite::store_addresses(packet, l3, &key.dst, &key.src)?;
        let covered =
            Diff::address(&Addr::UNSPECIFIED, &key.dst).and(Diff::address(&Addr::UNSPECIFIED, &key.src));
        packet.store(l3 + 10, apply(!fold(sum(&header)), covered).to_ne_bytes())?;
    } else {
        let mut header = [0; 8];
        header[0] = 0x60;
        [header[4], header[5]] = ((8 + quoted) as u16).to_be_bytes();
        header[6] = protocol::ICMPV6;
        header[7] = TTL;
        packet.store(l3, header)?;
        rewrite::store_addresses(packet, l3, &key.dst, &key.src)?;
    }
    let icmp: [u8; 2] = if N == 1 { [3, 3] } else { [1, 4] };
    let at = l3 + network;
    packet.store(at, [icmp[0], icmp[1], 0, 0, 0, 0, 0, 0])?;
    // Of SCTP's packets only those of this machine's own sockets are so, and the answer goes back there without being finished.
    if headers.key.protocol == protocol::UDP {
        stand_still(packet, headers, at + quoted)?;
    }
    let mut total = u64::from(u16::from_ne_bytes(icmp));
    if N == 4 {
        total += pseudo_header(&key.src, &key.dst, protocol::ICMPV6, 8 + quoted);
    }
    for word in 0..QUOTED_WORDS {
        if word * 4 >= quoted {
            break;
        }
        total += u64::from(u32::from_ne_bytes(packet.load(at + 8 + word * 4)?));
    }
    packet.store(at + 2, (!fold(total)).to_ne_bytes())
}

/// A datagram whose checksum the sender has left to its device is still marked so, and what the device wrote into the
/// quote would break the checksum around it (P-80). Gives the UDP header, now at `udp`, a checksum that the device will
/// not change.
///
/// The device writes the inverted sum S + P over that header, S standing in the field and P being the rest: it writes S
/// again when 2 S + P is zero, and halving in this arithmetic is a rotation.
#[inline(always)]
fn stand_still<const N: usize, P: Packet>(packet: &mut P, headers: &Headers<N>, udp: u32) -> Option<()> {
    let key = &headers.key;
    let seed = fold(pseudo_header(&key.src, &key.dst, key.protocol, headers.end - headers.l4));
    if packet.load(udp + 6)? != seed.to_ne_bytes() {
        return Some(());
    }
    let ports = u32::from_ne_bytes(packet.load(udp)?);
    let length = u16::from_ne_bytes(packet.load(udp + 4)?);
    let still = (!fold(u64::from(ports) + u64::from(length))).rotate_right(1);
    packet.store(udp + 6, still.to_ne_bytes())
}

/// Ones' complement sum of a header.
#[inline(always)]
fn sum<const K: usize>(bytes: &[u8; K]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i + 1 < K {
        sum += u16::from_ne_bytes([bytes[i], bytes[i + 1]]) as u64;
        i += 2;
    }
    sum
}
