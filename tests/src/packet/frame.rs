//! Building and reading frames. The reader and its checksums are etherparse's, not ours: a second opinion.

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;

use etherparse::{
    IcmpEchoHeader, Icmpv4Type, Icmpv6Type, Ipv4HeaderSlice, NetSlice, PacketBuilder, SlicedPacket,
    TransportSlice, icmpv4, icmpv6,
};
use proxy_common::abi::protocol;

use super::sctp;
use super::shape::finish_header;

/// An address and a port.
pub type End = (IpAddr, u16);

pub(super) const CLIENT_MAC: [u8; 6] = [0x02, 0x11, 0x22, 0x33, 0x44, 0x55];
pub(super) const NODE_MAC: [u8; 6] = [0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee];
/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// TCP flags that stories speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    pub syn: bool,
    pub ack: bool,
    pub fin: bool,
    pub rst: bool,
}

pub const SYN: Flags = Flags { syn: true, ack: false, fin: false, rst: false };
pub const SYN_ACK: Flags = Flags { syn: true, ack: true, fin: false, rst: false };
pub const ACK: Flags = Flags { syn: false, ack: true, fin: false, rst: false };
pub const FIN: Flags = Flags { syn: false, ack: true, fin: true, rst: false };
pub const RST: Flags = Flags { syn: false, ack: false, fin: false, rst: true };

/// Numbers of a TCP segment: its own and, where it has the flag, the acknowledged one.
pub type Numbers = (u32, u32);

/// What segments of stories acknowledge. Likewise the tag of packets of SCTP.
pub const ACKNOWLEDGED: u32 = 0x0a0b_0c0d;

/// A TCP segment or packet of SCTP (`flags` apply) or a UDP datagram from `src` to `dst`.
#[must_use]
pub fn packet(protocol: u8, flags: Flags, src: End, dst: End, payload: &[u8]) -> Vec<u8> {
    // A SYN-ACK stands right before what all others acknowledge.
    let sequence = if flags == SYN_ACK { ACKNOWLEDGED - 1 } else { 0x0102_0304 };
    numbered(protocol, flags, (sequence, ACKNOWLEDGED), src, dst, payload)
}

/// Like [`packet`], a segment with these numbers.
#[must_use]
pub fn numbered(
    protocol: u8,
    flags: Flags,
    (sequence, acknowledged): Numbers,
    src: End,
    dst: End,
    payload: &[u8],
) -> Vec<u8> {
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, NODE_MAC);
    let ip = match (src.0, dst.0) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ethernet.ipv4(src.octets(), dst.octets(), 61),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ethernet.ipv6(src.octets(), dst.octets(), 61),
        _ => unreachable!("a packet has one family"),
    };
    let mut bytes = Vec::new();
    if protocol == protocol::UDP {
        ip.udp(src.1, dst.1).write(&mut bytes, payload).expect("a vector takes every byte");
        return bytes;
    }
    if protocol == protocol::SCTP {
        let packet = sctp::spoken(flags, (src.1, dst.1), payload);
        ip.write(&mut bytes, sctp::NUMBER, &packet).expect("a vector takes every byte");
        return bytes;
    }
    let mut tcp = ip.tcp(src.1, dst.1, sequence, 4000);
    if flags.syn {
        tcp = tcp.syn();
    }
    if flags.ack {
        tcp = tcp.ack(acknowledged);
    }
    if flags.fin {
        tcp = tcp.fin();
    }
    if flags.rst {
        tcp = tcp.rst();
    }
    tcp.write(&mut bytes, payload).expect("a vector takes every byte");
    bytes
}

/// Which ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Icmp {
    /// "Fragmentation needed" or "packet too big" (P-14).
    TooBig,
    /// Port unreachable (P-17).
    PortUnreachable,
    /// Time exceeded.
    TimeExceeded,
    /// A redirect (experiment 3).
    Redirect,
    /// An echo request.
    Echo,
}

/// An ICMP message from `src` to `dst` that quotes `quoted` (a frame) up to `keep` bytes of its network packet.
#[must_use]
pub fn icmp(kind: Icmp, src: IpAddr, dst: IpAddr, quoted: &[u8], keep: usize) -> Vec<u8> {
    let packet = &quoted[ETHERNET..];
    let mut payload = packet[..packet.len().min(keep)].to_vec();
    let mut bytes = Vec::new();
    let ethernet = PacketBuilder::ethernet2(CLIENT_MAC, NODE_MAC);
    let echo = IcmpEchoHeader { id: 7, seq: 1 };
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let kind =
                match kind {
                    Icmp::TooBig => Icmpv4Type::DestinationUnreachable(
                        icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1300 },
                    ),
                    Icmp::PortUnreachable => {
                        Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port)
                    }
                    Icmp::TimeExceeded => {
                        Icmpv4Type::TimeExceeded(icmpv4::TimeExceededCode::TtlExceededInTransit)
                    }
                    Icmp::Redirect => Icmpv4Type::Redirect(icmpv4::RedirectHeader {
                        code: icmpv4::RedirectCode::RedirectForHost,
                        gateway_internet_address: [10, 9, 1, 3],
                    }),
                    Icmp::Echo => Icmpv4Type::EchoRequest(echo),
                };
            let builder = ethernet.ipv4(src.octets(), dst.octets(), 64).icmpv4(kind);
            builder.write(&mut bytes, &payload).expect("a vector takes every byte");
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kind = match kind {
                Icmp::TooBig => Icmpv6Type::PacketTooBig { mtu: 1300 },
                Icmp::PortUnreachable => {
                    Icmpv6Type::DestinationUnreachable(icmpv6::DestUnreachableCode::Port)
                }
                Icmp::TimeExceeded => Icmpv6Type::TimeExceeded(icmpv6::TimeExceededCode::HopLimitExceeded),
                Icmp::Redirect => {
                    payload = redirect_options(&payload);
                    Icmpv6Type::Unknown { type_u8: 137, code_u8: 0, bytes5to8: [0; 4] }
                }
                Icmp::Echo => Icmpv6Type::EchoRequest(echo),
            };
            let builder = ethernet.ipv6(src.octets(), dst.octets(), 64).icmpv6(kind);
            builder.write(&mut bytes, &payload).expect("a vector takes every byte");
        }
        _ => unreachable!("a packet has one family"),
    }
    bytes
}

/// Target, destination, a link layer option and the redirected header (RFC 4861 section 4.5).
fn redirect_options(packet: &[u8]) -> Vec<u8> {
    let mut body = vec![0xfe; 32];
    body.extend([2, 1, 2, 0, 0, 0, 0, 9]);
    let padded = packet.len().div_ceil(8) * 8;
    body.extend([4, u8::try_from(1 + padded / 8).unwrap_or(u8::MAX), 0, 0, 0, 0, 0, 0]);
    body.extend(packet);
    body.resize(48 + padded, 0);
    body
}

/// What a frame says, and whether its checksums are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub src: End,
    pub dst: End,
    /// Of a TCP segment or a packet of SCTP.
    pub flags: Flags,
    /// Of a TCP segment.
    pub numbers: Numbers,
    /// Of an ICMP message: type, code and the quoted packet as far as it is there.
    pub icmp: Option<(u8, u8, Vec<u8>)>,
    /// Where the transport header starts in the frame.
    pub l4: usize,
    /// Where the transport checksum stands in it.
    pub checksum: Range<usize>,
}

/// The frame of a super-packet that is too long for its length field, with the length of what there is.
fn with_length(frame: &[u8]) -> Cow<'_, [u8]> {
    let v6 = frame[ETHERNET] >> 4 == 6;
    let at = ETHERNET + if v6 { 4 } else { 2 };
    if frame[at..at + 2] != [0, 0] {
        return frame.into();
    }
    let length = frame.len() - ETHERNET - if v6 { 40 } else { 0 };
    let mut frame = frame.to_vec();
    if !v6 {
        let header = Ipv4HeaderSlice::from_slice(&frame[ETHERNET..]).expect("a header").to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
    }
    frame[at..at + 2].copy_from_slice(&u16::try_from(length).expect("a story's packet").to_be_bytes());
    if !v6 {
        finish_header(&mut frame);
    }
    frame.into()
}

/// Reads a frame and panics, with the reason, when a checksum in it is wrong: this is the wire oracle of failures.md 0.
#[must_use]
pub fn read(frame: &[u8]) -> Read {
    let frame = &*with_length(frame);
    let sliced = SlicedPacket::from_ethernet(frame).expect("the frame can be read");
    let (src, dst): (IpAddr, IpAddr) = match sliced.net.as_ref().expect("the frame has a network header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        NetSlice::Ipv6(ip) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        NetSlice::Arp(_) => unreachable!("stories have no ARP"),
    };
    let Some(transport) = sliced.transport.as_ref() else {
        let payload =
            sliced.net.as_ref().and_then(NetSlice::ip_payload_ref).expect("the frame has a payload");
        assert_eq!(payload.ip_number, sctp::NUMBER, "no transport header");
        let l4 = payload.payload.as_ptr().addr() - frame.as_ptr().addr();
        return read_sctp((src, dst), l4, payload.payload);
    };
    let slice = match transport {
        TransportSlice::Tcp(tcp) => tcp.slice(),
        TransportSlice::Udp(udp) => udp.slice(),
        TransportSlice::Icmpv4(icmp) => icmp.slice(),
        TransportSlice::Icmpv6(icmp) => icmp.slice(),
        TransportSlice::Igmp(_) => unreachable!("stories have no IGMP"),
    };
    let l4 = slice.as_ptr().addr() - frame.as_ptr().addr();
    let checksum = l4 + if matches!(transport, TransportSlice::Udp(_)) { 6 } else { 16 };
    let checksum = checksum..checksum + 2;
    let (flags, numbers) = (Flags::default(), (0, 0));
    let mut read = Read { src: (src, 0), dst: (dst, 0), flags, numbers, icmp: None, l4, checksum };
    match transport {
        TransportSlice::Tcp(tcp) => {
            let expected = match (src, dst) {
                (IpAddr::V4(a), IpAddr::V4(b)) => tcp.calc_checksum_ipv4(a.octets(), b.octets()),
                (IpAddr::V6(a), IpAddr::V6(b)) => tcp.calc_checksum_ipv6(a.octets(), b.octets()),
                _ => unreachable!("a packet has one family"),
            };
            assert_eq!(tcp.checksum(), expected.expect("a small segment"), "TCP checksum");
            read.flags = Flags { syn: tcp.syn(), ack: tcp.ack(), fin: tcp.fin(), rst: tcp.rst() };
            read.numbers = (tcp.sequence_number(), tcp.acknowledgment_number());
            (read.src.1, read.dst.1) = (tcp.source_port(), tcp.destination_port());
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let expected = match (src, dst) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), udp.payload())
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), udp.payload())
                }
                _ => unreachable!("a packet has one family"),
            };
            if header.checksum != 0 {
                assert_eq!(header.checksum, expected.expect("a small datagram"), "UDP checksum");
            }
            (read.src.1, read.dst.1) = (udp.source_port(), udp.destination_port());
        }
        TransportSlice::Icmpv4(icmp) => {
            let header = icmp.header();
            assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()), "ICMP checksum");
            read.icmp = Some((icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec()));
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (src, dst) else { unreachable!("a packet has one family") };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()), "ICMPv6 checksum");
            read.icmp = Some((icmp.type_u8(), icmp.code_u8(), icmp.payload().to_vec()));
        }
        TransportSlice::Igmp(_) => unreachable!("stories have no IGMP"),
    }
    read
}

fn read_sctp((src, dst): (IpAddr, IpAddr), l4: usize, packet: &[u8]) -> Read {
    let written = sctp::written(packet);
    assert!(written == [0; 4] || written == sctp::checksum(packet), "SCTP checksum");
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    Read {
        src: (src, port(0)),
        dst: (dst, port(2)),
        flags: sctp::flags(packet),
        numbers: (0, 0),
        icmp: None,
        l4,
        checksum: l4 + 8..l4 + 12,
    }
}

/// The quoted packet of an ICMP error as a frame that [`read`] understands; it must be quoted whole.
#[must_use]
pub fn unquote(v6: bool, quoted: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
    frame.extend(quoted);
    frame
}
