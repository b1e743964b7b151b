use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};

use super::*;

const A: [u8; 4] = [192, 0, 2, 9];
const B: [u8; 4] = [10, 244, 1, 5];
const A6: [u8; 16] = [0xfd, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const B6: [u8; 16] = [0xfd, 0, 0, 16, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const FULL: Offload = Offload { unfinished: None };
/// What is left to do is not looked at for TCP and UDP: the field's content tells.
const PARTIAL: Offload = Offload { unfinished: Some(Unfinished { start: 34, field: 16 }) };
/// In the datagram that [`icmp`] quotes.
const QUOTED: Offload = Offload { unfinished: Some(Unfinished { start: 34 + 8 + 20, field: 6 }) };
const BEYOND: Offload = Offload { unfinished: Some(Unfinished { start: 34, field: u16::MAX }) };
/// Offsets in an Ethernet frame with IPv4 without options.
const L4: usize = 34;
const L4_V6: usize = 54;

fn tcp(v6: bool) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 { eth.ipv6(A6, B6, 64) } else { eth.ipv4(A, B, 64) };
    let mut out = Vec::new();
    ip.tcp(40_001, 8_080, 7, 512).write(&mut out, b"odd payload").unwrap();
    out
}

fn udp(v6: bool) -> Vec<u8> {
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let ip = if v6 { eth.ipv6(A6, B6, 64) } else { eth.ipv4(A, B, 64) };
    let mut out = Vec::new();
    ip.udp(40_002, 53).write(&mut out, b"datagram").unwrap();
    out
}

fn icmp(v6: bool) -> Vec<u8> {
    let quoted = &udp(v6)[14..];
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut out = Vec::new();
    if v6 {
        let kind =
            etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
        eth.ipv6(B6, A6, 64).icmpv6(kind).write(&mut out, quoted).unwrap();
    } else {
        let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
        eth.ipv4(B, A, 64).icmpv4(kind).write(&mut out, quoted).unwrap();
    }
    out
}

/// A packet whose checksum field holds the pseudo header's sum only.
fn unfinished(mut frame: Vec<u8>, at: usize, ends: (IpAddr, IpAddr), protocol: u8) -> Vec<u8> {
    let length = frame.len() - at;
    let seed = !u16::from_be(pseudo(ends, protocol, length).ones_complement());
    let field = at + if protocol == TCP { 16 } else { 6 };
    frame[field..field + 2].copy_from_slice(&seed.to_be_bytes());
    frame
}

fn flipped(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    frame[at] ^= 0x40;
    frame
}

fn without_checksum(mut frame: Vec<u8>, at: usize) -> Vec<u8> {
    frame[at + 6..at + 8].fill(0);
    frame
}

#[test]
fn good_packets_pass_and_each_damage_is_named() {
    let ends = (IpAddr::from(A), IpAddr::from(B));
    let ends6 = (IpAddr::from(A6), IpAddr::from(B6));
    let other = (IpAddr::from(B), IpAddr::from(B));
    let cases: Vec<(&str, Vec<u8>, Offload, &[&str])> = vec![
        ("tcp v4", tcp(false), FULL, &[]),
        ("tcp v6", tcp(true), FULL, &[]),
        ("udp v4", udp(false), FULL, &[]),
        ("udp v6", udp(true), FULL, &[]),
        ("icmp error v4", icmp(false), FULL, &[]),
        ("icmp error v6", icmp(true), FULL, &[]),
        ("udp v4 may have no checksum", without_checksum(udp(false), L4), FULL, &[]),
        ("udp v6 may not", without_checksum(udp(true), L4_V6), FULL, &["UDP checksum missing in IPv6"]),
        (
            "ttl changed without the header checksum",
            flipped(tcp(false), 22),
            FULL,
            &["IPv4 header checksum wrong"],
        ),
        (
            "v4 source changed without checksums",
            flipped(tcp(false), 27),
            FULL,
            &["IPv4 header checksum wrong", "TCP checksum wrong"],
        ),
        ("v6 source changed", flipped(tcp(true), 30), FULL, &["TCP checksum wrong"]),
        ("tcp port changed", flipped(tcp(false), L4 + 1), FULL, &["TCP checksum wrong"]),
        ("udp port changed, v6", flipped(udp(true), L4_V6 + 1), FULL, &["UDP checksum wrong"]),
        ("unfinished tcp", unfinished(tcp(false), L4, ends, TCP), PARTIAL, &[]),
        ("unfinished udp v6", unfinished(udp(true), L4_V6, ends6, UDP), PARTIAL, &[]),
        (
            "unfinished, but nobody will finish it",
            unfinished(tcp(false), L4, ends, TCP),
            FULL,
            &["TCP checksum wrong"],
        ),
        (
            "finished twice",
            tcp(false),
            PARTIAL,
            &["TCP checksum to be finished starts from the wrong pseudo header"],
        ),
        (
            "unfinished with another address",
            unfinished(tcp(false), L4, other, TCP),
            PARTIAL,
            &["TCP checksum to be finished starts from the wrong pseudo header"],
        ),
        ("icmp type changed", flipped(icmp(false), L4 + 1), FULL, &["ICMP checksum wrong"]),
        (
            "quoted source changed, v4",
            flipped(icmp(false), L4 + 8 + 13),
            FULL,
            &["ICMP checksum wrong", "quoted IPv4 header checksum wrong", "quoted UDP checksum wrong"],
        ),
        (
            "quoted port changed, v6",
            flipped(icmp(true), L4_V6 + 8 + 40),
            FULL,
            &["ICMPv6 checksum wrong", "quoted UDP checksum wrong"],
        ),
        (
            "quoted datagram still to be finished, which breaks what is around it",
            icmp(false),
            QUOTED,
            &["ICMP checksum wrong once finished"],
        ),
        ("nothing there to be finished", icmp(false), BEYOND, &[]),
        ("total length beyond the frame", flipped(tcp(false), 16), FULL, &["headers cannot be parsed"]),
    ];
    for (name, bytes, offload, want) in cases {
        let found = frame(&bytes, offload);
        assert_eq!(found.len(), want.len(), "{name}: {found:?}");
        for (fault, want) in found.iter().zip(want) {
            assert!(fault.starts_with(want), "{name}: {fault:?} is not {want:?}");
        }
    }
}

/// Every single byte of a TCP packet and of an ICMP error that a checksum covers: damage is seen.
#[test]
fn every_covered_byte_is_covered() {
    // The Ethernet header (14 bytes) has no checksum; IPv6's header is covered as far as the pseudo header goes.
    let cases =
        [("tcp v4", tcp(false), 14..65), ("icmp v4", icmp(false), 14..78), ("tcp v6", tcp(true), 22..85)];
    for (name, bytes, range) in cases {
        assert_eq!(range.end, bytes.len(), "{name}: the case covers the whole packet");
        for at in range {
            assert!(!frame(&flipped(bytes.clone(), at), FULL).is_empty(), "{name}: byte {at} is not covered");
        }
    }
}
