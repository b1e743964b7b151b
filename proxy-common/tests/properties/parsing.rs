//! What etherparse builds we read alike; what nobody has built does no harm.

use std::net::IpAddr;

use etherparse::err::{ip_auth::HeaderError as AuthError, ipv6_exts::HeaderError, packet::SliceError};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::Index;
use proxy_common::abi::{Hook, Port, protocol};
use proxy_common::path::Verdict;
use proxy_common::wire::{Headers, MAX_OFFSET, Transport, load_addresses, parse, parse_quoted};

use crate::packets::{Body, End, body, ends};
use crate::tables::{Frame, Node, addr};

/// Our reading of a frame, and etherparse's.
fn agrees<const N: usize>(bytes: &[u8]) -> Result<(), TestCaseError> {
    let mut headers = Headers::<N>::EMPTY;
    let frame = Frame { bytes: bytes.to_vec(), mark: 0 };
    prop_assert!(!headers.is_parsed());
    prop_assert!(parse(&frame, 14, Hook::Egress, &mut headers).is_some());
    prop_assert!(headers.is_parsed() && !headers.is_fragment());
    let sliced = SlicedPacket::from_ethernet(bytes).expect("etherparse has built it");
    let (src, dst): (IpAddr, IpAddr) = match sliced.net.as_ref() {
        Some(NetSlice::Ipv4(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        Some(NetSlice::Ipv6(ip)) => (ip.header().source_addr().into(), ip.header().destination_addr().into()),
        _ => unreachable!("a network header"),
    };
    prop_assert_eq!((headers.key.src, headers.key.dst), (addr(src), addr(dst)));
    prop_assert_eq!((headers.l3, headers.key.hook), (14, Hook::Egress as u8));
    let (slice, ports, transport) = match sliced.transport.as_ref() {
        Some(TransportSlice::Tcp(tcp)) => {
            (tcp.slice(), (tcp.source_port(), tcp.destination_port()), Transport::Connection(tcp.slice()[13]))
        }
        Some(TransportSlice::Udp(udp)) => {
            (udp.slice(), (udp.source_port(), udp.destination_port()), Transport::Udp)
        }
        _ => unreachable!("a transport header"),
    };
    prop_assert_eq!(headers.transport, transport);
    prop_assert_eq!((headers.key.sport, headers.key.dport), (Port::new(ports.0), Port::new(ports.1)));
    let l4 = slice.as_ptr().addr() - bytes.as_ptr().addr();
    prop_assert_eq!((headers.l4 as usize, headers.end as usize), (l4, l4 + slice.len()));
    let udp = transport == Transport::Udp;
    prop_assert_eq!(headers.key.protocol, if udp { protocol::UDP } else { protocol::TCP });
    prop_assert_eq!(headers.checksum_at() as usize, l4 + if udp { 6 } else { 16 });
    Ok(())
}

/// A datagram's part at this offset in units of eight bytes, with or without more to follow.
fn part(v6: bool, offset: u16, more: bool) -> Vec<u8> {
    let mut bytes = vec![0; 14];
    if v6 {
        bytes.extend([0x60, 0, 0, 0, 0, 16, 44, 64]);
        bytes.extend((1..=32).map(|n| 0xf0 | n));
        let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
        bytes.extend([17, 0, a, b, 0, 0, 0, 9]);
    } else {
        let [a, b] = (offset | u16::from(more) << 13).to_be_bytes();
        bytes.extend([0x45, 0, 0, 28, 0, 9, a, b, 64, 17, 0, 0, 10, 1, 2, 3, 10, 4, 5, 6]);
    }
    bytes.extend([0x9c, 0x41, 0, 53, 0, 8, 0, 0]);
    bytes
}

/// Which part it is, and whose.
fn is_told<const N: usize>(offset: u16, more: bool) {
    let frame = Frame { bytes: part(N == 4, offset, more), mark: 0 };
    let mut headers = Headers::<N>::EMPTY;
    parse(&frame, 14, Hook::Ingress, &mut headers).expect("a packet");
    let is = (headers.is_fragment(), headers.is_first_fragment(), headers.is_later_fragment());
    let (whole, first) = (offset == 0 && !more, offset == 0 && more);
    assert_eq!(is, (!whole, first, offset != 0), "offset {offset}, more to follow: {more}");
    assert_eq!(headers.id != 0, !whole);
    assert_eq!(headers.key.dport, Port::new(if offset == 0 { 53 } else { 0 }));
    let (mut src, mut dst) = (headers.key.dst, headers.key.src);
    load_addresses(&frame, 14, &mut src, &mut dst).expect("addresses");
    assert_eq!((src, dst), (headers.key.src, headers.key.dst));
}

#[test]
fn parts_of_datagrams_are_told_apart_p09() {
    for offset in [0, 1, 185, 0x1fff] {
        for more in [false, true] {
            is_told::<1>(offset, more);
            is_told::<4>(offset, more);
        }
    }
}

#[test]
fn an_ipv4_header_that_contradicts_itself_is_none_p01() {
    let rows = [
        ("as it should be", 0x45, 28, true),
        ("of another version", 0x65, 28, false),
        ("shorter than a header", 0x44, 28, false),
        ("of no length", 0x40, 28, false),
        ("longer than its packet", 0x46, 20, false),
        ("a byte longer than its packet", 0x45, 19, false),
        ("as long as its packet", 0x45, 20, true),
        ("of a packet that was cut", 0x45, 29, false),
    ];
    for (name, first, total, want) in rows {
        let mut bytes = part(false, 0, false);
        (bytes[14], bytes[17]) = (first, total);
        let parsed = parse(&Frame { bytes, mark: 0 }, 14, Hook::Ingress, &mut Headers::<1>::EMPTY.clone());
        assert_eq!(parsed.is_some(), want, "{name}");
    }
}

/// The kernel's shim reads nothing behind that offset.
#[test]
fn a_transport_header_too_far_behind_is_not_read_p03() {
    for (at, want) in [(MAX_OFFSET - 66, Transport::Udp), (MAX_OFFSET - 58, Transport::Malformed)] {
        let options = at as usize - 54;
        let mut bytes = part(true, 0, false);
        bytes[20] = 60;
        bytes.splice(54..62, std::iter::repeat_n(0, options));
        let length = bytes.len() - 54;
        (bytes[18], bytes[19]) = ((length >> 8) as u8, length as u8);
        // Two headers of options: one is too short for the distance.
        let second = 54 + options / 16 * 8;
        (bytes[54], bytes[55]) = (60, ((second - 54) / 8 - 1) as u8);
        (bytes[second], bytes[second + 1]) = (17, ((54 + options - second) / 8 - 1) as u8);
        let mut headers = Headers::<4>::EMPTY;
        parse(&Frame { bytes, mark: 0 }, 14, Hook::Ingress, &mut headers).expect("a packet");
        assert_eq!((headers.l4, headers.transport), (at, want));
    }
}

/// An error about a part without ports is about nobody's flow.
fn is_quoted<const N: usize>(offset: u16, more: bool) {
    let frame = Frame { bytes: part(N == 4, offset, more), mark: 0 };
    let mut headers = Headers::<N>::EMPTY;
    let quoted = parse_quoted(&frame, 14, &mut headers);
    assert_eq!(quoted.is_some(), offset == 0, "offset {offset}, more to follow: {more}");
    if quoted.is_some() {
        assert_eq!((headers.transport, headers.key.dport), (Transport::Udp, Port::new(53)));
    }
}

#[test]
fn of_a_datagrams_parts_only_the_first_is_quoted_with_ports_p15() {
    for (offset, more) in [(0, false), (0, true), (185, true), (185, false)] {
        is_quoted::<1>(offset, more);
        is_quoted::<4>(offset, more);
    }
}

/// Every hook and parser sees the bytes; offsets stay below the bound that the kernel's shim masks with.
fn is_harmless<const N: usize>(bytes: &[u8], [front, backend, own]: [End; 3]) -> Result<(), TestCaseError> {
    let node = Node::<N>::new(front, backend, own.0);
    let frame = Frame { bytes: bytes.to_vec(), mark: 0 };
    let mut headers = Headers::<N>::EMPTY;
    if parse(&frame, 14, Hook::Ingress, &mut headers).is_some() {
        prop_assert!(
            headers.l4 < MAX_OFFSET || headers.transport == Transport::Malformed,
            "l4 at {}",
            headers.l4
        );
        prop_assert!(headers.end as usize <= bytes.len());
    }
    let _ = parse_quoted(&frame, 14, &mut headers);
    for (verdict, out) in [node.ingress(bytes), node.egress(bytes, 0), node.egress(bytes, u32::MAX)] {
        if verdict == Verdict::Pass && out.bytes != bytes {
            prop_assert_eq!(out.bytes.len(), bytes.len());
            prop_assert!(
                is_readable(bytes),
                "translated, and etherparse says {:?}",
                SlicedPacket::from_ethernet(bytes).err()
            );
        }
    }
    Ok(())
}

/// Whether etherparse can read it. Of extension headers it judges more than where they end, as the receiver's stack will:
/// hop-by-hop options that do not stand first, an authentication header without content.
fn is_readable(bytes: &[u8]) -> bool {
    match SlicedPacket::from_ethernet(bytes) {
        Ok(_) => true,
        Err(SliceError::Ipv6Exts(error)) => {
            matches!(error, HeaderError::HopByHopNotAtStart | HeaderError::IpAuth(AuthError::ZeroPayloadLen))
        }
        Err(_) => false,
    }
}

fn harmless(bytes: &[u8], ends: [End; 3]) -> Result<(), TestCaseError> {
    if ends[0].0.is_ipv6() { is_harmless::<4>(bytes, ends) } else { is_harmless::<1>(bytes, ends) }
}

/// A valid frame to the Service, then lies: some bytes of its first headers changed, and perhaps cut.
fn lying(body: &Body, ends: [End; 4], lies: &[(Index, u8)], cut: Option<Index>) -> Vec<u8> {
    let mut bytes = body.build(ends[3], ends[0]);
    for (at, value) in lies {
        let at = 14 + at.index((bytes.len() - 14).min(80));
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(14 + cut.index(bytes.len() - 13));
    }
    bytes
}

/// Lies that matter are rare: more cases than usual, where no number was asked for.
fn many() -> ProptestConfig {
    let usual = ProptestConfig::default();
    ProptestConfig { failure_persistence: None, cases: usual.cases.saturating_mul(20), ..usual }
}

proptest! {
    #![proptest_config(many())]

    #[test]
    fn what_etherparse_builds_parses_to_the_same_fields(body in body(), [src, dst] in ends()) {
        let bytes = body.build(src, dst);
        if src.0.is_ipv6() { agrees::<4>(&bytes)? } else { agrees::<1>(&bytes)? }
    }

    #[test]
    fn no_bytes_do_harm_p01(bytes in vec(any::<u8>(), 0..200), ends in ends()) {
        harmless(&bytes, ends)?;
    }

    #[test]
    fn no_lie_does_harm_p01(
        body in body(),
        ends in ends(),
        lies in vec((any::<Index>(), any::<u8>()), 0..4),
        cut in weighted(0.3, any::<Index>()),
    ) {
        let [front, backend, own, _] = ends;
        harmless(&lying(&body.opening(), ends, &lies, cut), [front, backend, own])?;
    }

    /// A quote has at least the ports; whatever is cut behind them, it is read like the whole.
    #[test]
    fn a_quote_cut_behind_its_ports_is_read_like_the_whole_p15(body in body(), [src, dst] in ends(), keep in any::<Index>()) {
        let bytes = body.build(src, dst);
        fn read<const N: usize>(bytes: &[u8]) -> Headers<N> {
            let mut headers = Headers::EMPTY;
            parse_quoted(&Frame { bytes: bytes.to_vec(), mark: 0 }, 14, &mut headers).expect("a quote");
            headers
        }
        fn same<const N: usize>(bytes: &[u8], keep: Index) -> Result<(), TestCaseError> {
            let whole = read::<N>(bytes);
            let least = whole.l4 as usize + 8;
            let cut = read::<N>(&bytes[..least + keep.index(bytes.len() - least + 1)]);
            prop_assert_eq!((cut.key, cut.l3, cut.l4), (whole.key, whole.l3, whole.l4));
            Ok(())
        }
        if src.0.is_ipv6() { same::<4>(&bytes, keep)? } else { same::<1>(&bytes, keep)? }
    }
}
