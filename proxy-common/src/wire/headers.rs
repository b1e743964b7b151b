//! The parser: from a frame to addresses, transport and ports.

use super::extensions::{self, is_extension};
use crate::abi::{Addr, FlowKey, Hook, Port, protocol};
use crate::path::Packet;

/// No header position of a packet that can be read reaches this offset.
pub const MAX_OFFSET: u32 = 0x800;

/// Bytes of an IPv4 header without options, and of IPv6's.
pub const IPV4: usize = 20;
/// See [`IPV4`].
pub const IPV6: usize = 40;

/// TCP flag bits (RFC 9293 section 3.1). What a packet of SCTP does to its association is said in them too.
pub mod tcp_flags {
    /// FIN.
    pub const FIN: u8 = 1;
    /// SYN.
    pub const SYN: u8 = 2;
    /// RST.
    pub const RST: u8 = 4;
    /// ACK.
    pub const ACK: u8 = 16;
}

/// Bytes that a TCP server may send before its SYN-ACK is acknowledged (RFC 7413): no window of before is larger.
const FIRST_WINDOW: u32 = 0xffff;

/// Types of SCTP's chunks (RFC 9260 section 3.2).
mod chunk {
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// What follows the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, or SCTP, with these [`tcp_flags`]; ports are in the key.
    Connection(u8),
    /// UDP; ports are in the key.
    Udp,
    /// An ICMP or ICMPv6 error that quotes a packet; the quote starts 8 bytes further.
    IcmpError,
    /// An ICMP redirect (type 5 or 137).
    IcmpRedirect,
    /// A later fragment, or the first one of another protocol: no transport header to act on.
    Fragment,
    /// Transport headers that lie about their length (P-01), or an extension chain that is too long.
    Malformed,
    /// Anything else.
    Other,
}

/// A parsed packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers<const N: usize> {
    /// Addresses and, where the protocol has them, ports. The hook is the caller's.
    pub key: FlowKey<N>,
    /// Start of the network header.
    pub l3: u32,
    /// Start of the transport header; 0: the packet could not be parsed.
    pub l4: u32,
    /// End of the packet according to the network header.
    pub end: u32,
    /// What was found at `l4`.
    pub transport: Transport,
    /// Whether this is a part of a datagram, and which: a value of [`part`].
    pub part: u32,
    /// The datagram's id as it stands on the wire; 0 for whole ones.
    pub id: u32,
}

/// Parts of a datagram.
pub mod part {
    /// All of it.
    pub const WHOLE: u32 = 0;
    /// The beginning, with the transport header; more follows.
    pub const FIRST: u32 = 1;
    /// Anything else.
    pub const LATER: u32 = 2;
}

impl<const N: usize> Headers<N> {
    /// What opens a connection: SYN and nothing that contradicts it, or INIT.
    #[must_use]
    #[inline(always)]
    pub const fn is_bare_syn(&self) -> bool {
        use tcp_flags::{ACK, FIN, RST, SYN};
        matches!(self.transport, Transport::Connection(flags) if flags & (SYN | ACK | RST | FIN) == SYN)
    }

    /// Whether these are a packet's headers: after a failed [`parse`] they are not.
    #[must_use]
    #[inline(always)]
    pub const fn is_parsed(&self) -> bool {
        self.l4 != 0
    }

    /// These are no packet's headers any more.
    #[inline(always)]
    pub const fn clear(&mut self) {
        self.l4 = 0;
        self.part = part::WHOLE;
    }

    /// Whether this is the beginning of a datagram, of which more follows.
    #[must_use]
    #[inline(always)]
    pub const fn is_first_fragment(&self) -> bool {
        self.part == part::FIRST
    }

    /// Whether this is any part of a datagram.
    #[must_use]
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.part != part::WHOLE
    }

    /// Whether this is a part of a datagram other than its beginning.
    #[must_use]
    #[inline(always)]
    pub const fn is_later_fragment(&self) -> bool {
        self.part == part::LATER
    }

    /// A packet that may open a flow.
    #[must_use]
    #[inline(always)]
    pub const fn opens(&self) -> bool {
        matches!(self.transport, Transport::Udp) || self.is_bare_syn()
    }

    /// What a SYN-ACK or INIT-ACK asks a client for: TCP's next acknowledgement, the tag of SCTP's packets.
    #[must_use]
    #[inline(always)]
    pub fn asks_for<P: Packet>(&self, packet: &P) -> Option<u32> {
        let at = self.l4 + if self.key.protocol == protocol::SCTP { 16 } else { 4 };
        let told = u32::from_be_bytes(packet.load(at)?);
        Some(if self.key.protocol == protocol::SCTP { told } else { told.wrapping_add(1) })
    }

    /// Whether a client's segment has what was asked for; 0: nothing is known to have been.
    ///
    /// TCP: the first segments may have been lost on their way here, and others acknowledge data as well, of which there is a first
    /// window at most.
    #[must_use]
    #[inline(always)]
    pub fn shows<P: Packet>(&self, packet: &P, proof: u32) -> bool {
        let Transport::Connection(flags) = self.transport else { return false };
        let sctp = self.key.protocol == protocol::SCTP;
        let Some(field) = packet.load(self.l4 + if sctp { 4 } else { 8 }) else { return false };
        let shown = u32::from_be_bytes(field);
        let within = if sctp { 0 } else { FIRST_WINDOW };
        flags & tcp_flags::ACK != 0 && (proof == 0 || shown.wrapping_sub(proof) <= within)
    }

    /// Offset of the transport checksum.
    #[must_use]
    #[inline(always)]
    pub const fn checksum_at(&self) -> u32 {
        self.l4
            + match self.key.protocol {
                protocol::UDP => 6,
                protocol::SCTP => 8,
                _ => 16,
            }
    }
}

impl<const N: usize> Headers<N> {
    /// Nothing parsed yet.
    pub const EMPTY: Self = Self {
        key: FlowKey {
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: Port(0),
            dport: Port(0),
            protocol: 0,
            hook: 0,
            pad: 0,
        },
        l3: 0,
        l4: 0,
        end: 0,
        transport: Transport::Other,
        part: part::WHOLE,
        id: 0,
    };
}

/// Parses the packet whose network header starts at `l3` into `headers`. `None`: not a packet that this family's path
/// can read, leave it to the kernel.
///
/// The result is written in place: the kernel's stack has no room for copies.
#[inline(always)]
pub fn parse<const N: usize, P: Packet>(
    packet: &P,
    l3: u32,
    hook: Hook,
    headers: &mut Headers<N>,
) -> Option<()> {
    headers.key.hook = hook as u8;
    let readable = network(packet, l3, headers)?;
    if headers.end > packet.len() {
        return None;
    }
    headers.transport = transport(packet, readable, headers);
    Some(())
}

/// Parses the packet quoted by an ICMP error: cut short as a rule, with at least the first 8 bytes behind the network
/// header.
#[inline(always)]
pub fn parse_quoted<const N: usize, P: Packet>(packet: &P, l3: u32, headers: &mut Headers<N>) -> Option<()> {
    let readable = network(packet, l3, headers)?;
    headers.transport = match headers.key.protocol {
        _ if headers.part == part::LATER || !readable => return None,
        protocol::TCP | protocol::SCTP => Transport::Connection(0),
        protocol::UDP => Transport::Udp,
        _ => return None,
    };
    let ports: [u8; 4] = packet.load(headers.l4)?;
    set_ports(headers, ports);
    Some(())
}

#[inline(always)]
const fn set_ports<const N: usize>(headers: &mut Headers<N>, [a, b, c, d]: [u8; 4]) {
    headers.key.sport = Port(u16::from_ne_bytes([a, b]));
    headers.key.dport = Port(u16::from_ne_bytes([c, d]));
}

/// Where the addresses of a network header at `l3` begin.
#[must_use]
#[inline(always)]
pub const fn addresses_at<const N: usize>(l3: u32) -> u32 {
    l3 + if N == 1 { 12 } else { 8 }
}

/// Reads both addresses of the network header at `l3`.
#[inline(always)]
pub fn load_addresses<const N: usize, P: Packet>(
    packet: &P,
    l3: u32,
    src: &mut Addr<N>,
    dst: &mut Addr<N>,
) -> Option<()> {
    if N == 1 {
        addresses(packet.window::<IPV4>(l3)?, src, dst)
    } else {
        addresses(packet.window::<IPV6>(l3)?, src, dst)
    }
}

/// Both addresses of this network header.
#[inline(always)]
fn addresses<const N: usize>(header: &[u8], src: &mut Addr<N>, dst: &mut Addr<N>) -> Option<()> {
    let at = addresses_at::<N>(0) as usize;
    let mut word = 0;
    while word < N {
        src.0[word] = u32::from_ne_bytes(field(header, at + 4 * word)?);
        word += 1;
    }
    word = 0;
    while word < N {
        dst.0[word] = u32::from_ne_bytes(field(header, at + 4 * (N + word))?);
        word += 1;
    }
    Some(())
}

/// `K` bytes of a header, in one load.
#[inline(always)]
fn field<const K: usize>(header: &[u8], at: usize) -> Option<[u8; K]> {
    header.get(at..)?.first_chunk().copied()
}

/// Everything up to the transport header, and whether that can be read.
#[inline(always)]
fn network<const N: usize, P: Packet>(packet: &P, l3: u32, headers: &mut Headers<N>) -> Option<bool> {
    headers.l3 = l3;
    headers.l4 = 0;
    headers.key.sport = Port(0);
    headers.key.dport = Port(0);
    headers.key.pad = 0;
    headers.part = part::WHOLE;
    headers.id = 0;
    if N == 1 { network_v4(packet, l3, headers) } else { network_v6(packet, l3, headers) }
}

/// IPv4 with options (RFC 791, P-02).
#[inline(always)]
fn network_v4<const N: usize, P: Packet>(packet: &P, l3: u32, headers: &mut Headers<N>) -> Option<bool> {
    let header: &[u8; IPV4] = packet.window(l3)?;
    let length = u32::from(header[0] & 0xf) * 4;
    let total = u32::from(u16::from_be_bytes(field(header, 2)?));
    if header[0] >> 4 != 4 || length < 20 || total < length && !is_big(packet, total) {
        return None;
    }
    headers.key.protocol = header[9];
    headers.l4 = l3 + length;
    headers.end = end(packet, l3, total);
    addresses(header, &mut headers.key.src, &mut headers.key.dst)?;
    let word = u16::from_be_bytes(field(header, 6)?);
    headers.part = part_of(word & 0x1fff, word & 0x2000);
    if headers.part != part::WHOLE {
        headers.id = u32::from(u16::from_ne_bytes(field(header, 4)?));
    }
    Some(true)
}

/// Whether this is the length of a super-packet that is too long for the field (BIG TCP; `iph_totlen` in include/linux/ip.h).
#[inline(always)]
fn is_big<P: Packet>(packet: &P, length: u32) -> bool {
    length == 0 && packet.segment() != 0
}

/// Where a packet ends that says of itself that it has so many bytes from `start` on.
#[inline(always)]
fn end<P: Packet>(packet: &P, start: u32, length: u32) -> u32 {
    if is_big(packet, length) { packet.len() } else { start + length }
}

/// Which part of a datagram begins at this offset, with or without more to follow.
#[inline(always)]
pub(super) const fn part_of(offset: u16, more: u16) -> u32 {
    match (offset, more) {
        (0, 0) => part::WHOLE,
        (0, _) => part::FIRST,
        _ => part::LATER,
    }
}

/// IPv6 with extension headers (RFC 8200, P-03). A routing header with segments left means that the destination is
/// not final: not ours.
#[inline(always)]
fn network_v6<const N: usize, P: Packet>(packet: &P, l3: u32, headers: &mut Headers<N>) -> Option<bool> {
    let header: &[u8; IPV6] = packet.window(l3)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    addresses(header, &mut headers.key.src, &mut headers.key.dst)?;
    headers.end = end(packet, l3 + 40, u16::from_be_bytes(field(header, 4)?).into());
    headers.key.protocol = header[6];
    headers.l4 = l3 + 40;
    if !is_extension(header[6]) {
        return Some(true);
    }
    match packet.extensions(headers) {
        extensions::LEFT => None,
        chain => Some(chain == extensions::WALKED),
    }
}

#[inline(always)]
fn transport<const N: usize, P: Packet>(packet: &P, readable: bool, headers: &mut Headers<N>) -> Transport {
    if headers.part == part::LATER {
        return Transport::Fragment;
    }
    if !readable {
        return Transport::Malformed;
    }
    let (l4, end) = (headers.l4, headers.end);
    match headers.key.protocol {
        protocol::UDP => {
            let Some(h) = packet.load::<8>(l4) else { return Transport::Malformed };
            let length = u32::from(u16::from_be_bytes([h[4], h[5]]));
            // The length is the datagram's, of which a first fragment has a part only.
            let outside = headers.part == part::WHOLE && l4 + length > end;
            if l4 + 8 > end || length < 8 || outside {
                return Transport::Malformed;
            }
            set_ports(headers, [h[0], h[1], h[2], h[3]]);
            Transport::Udp
        }
        protocol::TCP => {
            let Some(h) = packet.load::<20>(l4) else { return Transport::Malformed };
            let length = u32::from(h[12] >> 4) * 4;
            if length < 20 || l4 + length > end {
                return Transport::Malformed;
            }
            set_ports(headers, [h[0], h[1], h[2], h[3]]);
            Transport::Connection(h[13])
        }
        protocol::SCTP => {
            let Some(h) = packet.load::<16>(l4) else { return Transport::Malformed };
            let chunk = u32::from(u16::from_be_bytes([h[14], h[15]]));
            let outside = headers.part == part::WHOLE && l4 + 12 + chunk > end;
            if l4 + 16 > end || chunk < 4 || outside {
                return Transport::Malformed;
            }
            set_ports(headers, [h[0], h[1], h[2], h[3]]);
            Transport::Connection(shown_by(h[12]))
        }
        _ if headers.part == part::FIRST => Transport::Fragment,
        protocol::ICMP if N == 1 => match icmp_type(packet, l4) {
            Some(3 | 4 | 11 | 12) => Transport::IcmpError,
            Some(5) => Transport::IcmpRedirect,
            _ => Transport::Other,
        },
        protocol::ICMPV6 if N == 4 => match icmp_type(packet, l4) {
            Some(1..=4) => Transport::IcmpError,
            Some(137) => Transport::IcmpRedirect,
            _ => Transport::Other,
        },
        _ => Transport::Other,
    }
}

/// What a packet of SCTP that begins with a chunk of this type does to its association (RFC 9260 sections 3.2 and 9). What
/// begins or ends one stands first or alone, but for an ABORT behind other control chunks: an association that ends
/// unnoticed is forgotten as an idle one is.
#[inline(always)]
const fn shown_by(chunk: u8) -> u8 {
    use tcp_flags::{ACK, FIN, RST, SYN};
    match chunk {
        chunk::INIT => SYN,
        chunk::INIT_ACK => SYN | ACK,
        chunk::ABORT => RST,
        chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE => FIN | ACK,
        _ => ACK,
    }
}

#[inline(always)]
fn icmp_type<P: Packet>(packet: &P, l4: u32) -> Option<u8> {
    packet.load::<8>(l4).map(|header| header[0])
}
