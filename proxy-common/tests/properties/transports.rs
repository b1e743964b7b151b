//! What stands behind the network header, by its protocol: who it is for, what it does, and when it lies about its length.

use proxy_common::abi::{Hook, protocol};
use proxy_common::wire::{Headers, Transport, parse, tcp_flags};

use crate::tables::Frame;

/// A packet whose network header says that `length` bytes of `body` are its own; the rest is padding.
fn of_length(v6: bool, protocol: u8, body: &[u8], length: usize) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    if v6 {
        bytes.extend([0x60, 0, 0, 0, 0, length as u8, protocol, 64]);
        bytes.extend((1..=32).map(|n| 0xf0 | n));
    } else {
        bytes.extend([0x45, 0, 0, 20 + length as u8, 0, 9, 0, 0, 64, protocol, 0, 0]);
        bytes.extend([10, 1, 2, 3, 10, 4, 5, 6]);
    }
    bytes.extend(body);
    bytes
}

fn reads<const N: usize>(bytes: Vec<u8>) -> Transport {
    let mut headers = Headers::<N>::EMPTY;
    parse(&Frame { bytes, mark: 0 }, 14, Hook::Ingress, &mut headers).expect("a packet");
    headers.transport
}

/// In both families.
fn is_read(what: &str, protocol: u8, body: &[u8], length: usize, want: Transport) {
    let of = |v6| of_length(v6, protocol, body, length);
    assert_eq!(reads::<1>(of(false)), want, "{what}, IPv4");
    assert_eq!(reads::<4>(of(true)), want, "{what}, IPv6");
}

/// A packet of SCTP with a chunk of this type that says that it is so long, and four bytes more.
fn chunk(kind: u8, length: u8) -> Vec<u8> {
    [&[0x9c, 0x41, 0, 53, 1, 2, 3, 4, 5, 6, 7, 8, kind, 0, 0, length][..], &[0; 4]].concat()
}

#[test]
fn a_first_chunk_tells_what_becomes_of_the_association_p90() {
    use tcp_flags::{ACK, FIN, RST, SYN};
    let rows = [
        ("DATA", 0, ACK),
        ("INIT", 1, SYN),
        ("INIT ACK", 2, SYN | ACK),
        ("SACK", 3, ACK),
        ("HEARTBEAT", 4, ACK),
        ("ABORT", 6, RST),
        ("SHUTDOWN", 7, FIN | ACK),
        ("SHUTDOWN ACK", 8, FIN | ACK),
        ("ERROR", 9, ACK),
        ("COOKIE ECHO", 10, ACK),
        ("SHUTDOWN COMPLETE", 14, FIN | ACK),
        ("unknown", 255, ACK),
    ];
    for (name, kind, flags) in rows {
        is_read(name, protocol::SCTP, &chunk(kind, 8), 20, Transport::Connection(flags));
    }
}

#[test]
fn lengths_that_lie_are_malformed_p01() {
    let init = Transport::Connection(tcp_flags::SYN);
    let rows = [
        ("a chunk to the packet's end", 8, 20, init),
        ("a chunk without content", 4, 20, init),
        ("a chunk shorter than its header", 3, 20, Transport::Malformed),
        ("a chunk a byte longer than the packet", 9, 20, Transport::Malformed),
        ("a packet that ends with the chunk's header", 4, 16, init),
        ("a packet that ends before it", 4, 15, Transport::Malformed),
    ];
    for (name, chunk_length, length, want) in rows {
        is_read(name, protocol::SCTP, &chunk(1, chunk_length), length, want);
    }
    let datagram = |length| [&[0x9c, 0x41, 0, 53, 0, length, 0, 0][..], &[0; 4]].concat();
    let rows = [
        ("a datagram to the packet's end", 12, 12, Transport::Udp),
        ("a datagram with something behind it", 9, 12, Transport::Udp),
        ("a datagram without content", 8, 8, Transport::Udp),
        ("a datagram shorter than its header", 7, 12, Transport::Malformed),
        ("a datagram a byte longer than the packet", 13, 12, Transport::Malformed),
        ("a packet that ends within the header", 8, 7, Transport::Malformed),
    ];
    for (name, says, length, want) in rows {
        is_read(name, protocol::UDP, &datagram(says), length, want);
    }
    let segment = |words: u8| {
        let mut bytes = vec![0; 28];
        (bytes[12], bytes[13]) = (words << 4, tcp_flags::SYN);
        bytes
    };
    let rows = [
        ("a segment without options", 5, 20, init),
        ("options to the packet's end", 7, 28, init),
        ("options beyond the packet", 7, 27, Transport::Malformed),
        ("a header of four words", 4, 28, Transport::Malformed),
    ];
    for (name, words, length, want) in rows {
        is_read(name, protocol::TCP, &segment(words), length, want);
    }
}

/// Its length is the whole datagram's; its own bytes must reach over the header.
#[test]
fn a_first_fragment_without_its_header_is_malformed_p11() {
    let init = Transport::Connection(tcp_flags::SYN);
    let mut segment = vec![0; 20];
    (segment[12], segment[13]) = (5 << 4, tcp_flags::SYN);
    let rows = [
        (protocol::UDP, vec![0x9c, 0x41, 0, 53, 5, 220, 0, 0], Transport::Udp),
        (protocol::TCP, segment, init),
        (protocol::SCTP, chunk(1, 200)[..16].to_vec(), init),
    ];
    for (number, body, want) in rows {
        for (length, want) in [(body.len(), want), (body.len() - 1, Transport::Malformed)] {
            let mut bytes = of_length(false, number, &body, length);
            bytes[20] = 0x20;
            assert_eq!(reads::<1>(bytes), want, "protocol {number}, {length} bytes");
        }
    }
}

/// Each family has its own ICMP; the other's is a protocol like any other.
#[test]
fn errors_and_redirects_are_told_from_other_messages_p20() {
    use Transport::{IcmpError, IcmpRedirect, Other};
    let message = |v6, protocol, kind| of_length(v6, protocol, &[kind, 0, 0, 0, 0, 0, 0, 0], 8);
    for kind in 0..=u8::MAX {
        let want = match kind {
            3 | 4 | 11 | 12 => IcmpError,
            5 => IcmpRedirect,
            _ => Other,
        };
        assert_eq!(reads::<1>(message(false, protocol::ICMP, kind)), want, "type {kind}");
        let want = match kind {
            1..=4 => IcmpError,
            137 => IcmpRedirect,
            _ => Other,
        };
        assert_eq!(reads::<4>(message(true, protocol::ICMPV6, kind)), want, "type {kind} of ICMPv6");
        assert_eq!(reads::<1>(message(false, protocol::ICMPV6, kind)), Other, "ICMPv6 in IPv4");
        assert_eq!(reads::<4>(message(true, protocol::ICMP, kind)), Other, "ICMP in IPv6");
    }
}
