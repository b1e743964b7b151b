//! What comes out of a hook is, byte for byte, what etherparse would have built between the new ends. So every checksum is
//! right, nothing else has changed, and a rewrite and its inverse restore the bytes.

use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4};
use proptest::prelude::*;
use proptest::sample::Index;
use proxy_common::abi::Hook;
use proxy_common::path::{Packet, Verdict};
use proxy_common::wire::{Headers, fold, parse, pseudo_header};

use crate::packets::{Body, End, body, ends};
use crate::tables::{Frame, MARK, Node};

/// The source port of a frame without options or extensions between network and transport header is not assumed: etherparse
/// finds it.
fn source_port(frame: &[u8]) -> u16 {
    match SlicedPacket::from_ethernet(frame).expect("a frame").transport.expect("a transport header") {
        TransportSlice::Tcp(tcp) => tcp.source_port(),
        TransportSlice::Udp(udp) => udp.source_port(),
        _ => unreachable!("TCP or UDP"),
    }
}

/// Request and answer through all four rewrites.
fn all_four<const N: usize>(
    request: &Body,
    answer: &Body,
    [client, front, backend, own]: [End; 4],
) -> Result<(), TestCaseError> {
    let node = Node::<N>::new(front, backend, own.0);
    let pass = |(verdict, frame): (Verdict, Frame)| {
        prop_assert_eq!(verdict, Verdict::Pass);
        Ok(frame)
    };
    let translated = pass(node.ingress(&request.build(client, front)))?;
    // A masqueraded flow has a port of its own between the edges.
    let between = (client.0, source_port(&translated.bytes));
    prop_assert_eq!(&translated.bytes, &request.build(between, backend), "translate");
    prop_assert_eq!(translated.mark, MARK);
    let masqueraded = pass(node.egress(&translated.bytes, translated.mark))?;
    let shown = (own.0, source_port(&masqueraded.bytes));
    prop_assert_eq!(&masqueraded.bytes, &request.build(shown, backend), "masquerade");
    prop_assert_eq!(masqueraded.mark, 0);
    let unmasqueraded = pass(node.ingress(&answer.build(backend, shown)))?;
    prop_assert_eq!(&unmasqueraded.bytes, &answer.build(backend, between), "unmasquerade");
    let restored = pass(node.egress(&unmasqueraded.bytes, 0))?;
    prop_assert_eq!(&restored.bytes, &answer.build(front, client), "restore");
    Ok(())
}

/// An error about the translated request, as a router sends it to the client.
fn complaint(router: End, client: End, quoted: &[u8]) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let mut bytes = Vec::new();
    match (router.0, client.0) {
        (std::net::IpAddr::V4(router), std::net::IpAddr::V4(client)) => {
            let unreachable = icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1300 };
            let builder = builder.ipv4(router.octets(), client.octets(), 60);
            builder.icmpv4(Icmpv4Type::DestinationUnreachable(unreachable)).write(&mut bytes, quoted)
        }
        (std::net::IpAddr::V6(router), std::net::IpAddr::V6(client)) => {
            let builder = builder.ipv6(router.octets(), client.octets(), 60);
            builder.icmpv6(Icmpv6Type::PacketTooBig { mtu: 1300 }).write(&mut bytes, quoted)
        }
        _ => unreachable!("a packet has one family"),
    }
    .expect("a vector takes every byte");
    bytes
}

/// One in 65,536 checksums looks like one that its device is to finish, and is treated as such where it is quoted.
fn seems_unfinished<const N: usize>(frame: &Frame) -> bool {
    let mut headers = Headers::<N>::EMPTY;
    parse(frame, 14, Hook::Ingress, &mut headers).expect("a packet");
    let (key, length) = (headers.key, headers.end - headers.l4);
    let seed = fold(pseudo_header(&key.src, &key.dst, key.protocol, length));
    frame.load(headers.checksum_at()) == Some(seed.to_ne_bytes())
}

/// An error that quotes the translated request becomes the error that quotes the request.
fn error<const N: usize>(
    request: &Body,
    [client, front, backend, router]: [End; 4],
    (own, keep): (bool, Index),
) -> Result<(), TestCaseError> {
    let node = Node::<N>::new(front, backend, router.0);
    let (_, translated) = node.ingress(&request.build(client, front));
    let sent = &translated.bytes[14..];
    let original = &request.build(client, front)[14..];
    // At least the ports, at most all; never half a word, which checksums do not like.
    let least = sent.len() - request.payload.len();
    let keep = (least + keep.index(sent.len() - least + 1)) / 2 * 2;
    prop_assume!(!seems_unfinished::<N>(&translated));
    // Whoever complains: the client hears it from the frontend.
    let from = if own { backend } else { router };
    let (verdict, out) = node.egress(&complaint(from, client, &sent[..keep]), 0);
    prop_assert_eq!(verdict, Verdict::Pass);
    prop_assert_eq!(out.bytes, complaint(front, client, &original[..keep]));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_of_the_four_rewrites_is_what_etherparse_would_have_built_p08(
        request in body(),
        answer in body(),
        ends in ends(),
    ) {
        let request = request.opening();
        let mut answer = answer;
        answer.tcp = if request.tcp.is_some() { answer.tcp.or(request.tcp.clone()) } else { None };
        if let Some(tcp) = &mut answer.tcp {
            // A bare ACK as the first answer is a sign of another connection.
            tcp.flags[0] = true;
        }
        if ends[0].0.is_ipv6() { all_four::<4>(&request, &answer, ends)? } else { all_four::<1>(&request, &answer, ends)? }
    }

    #[test]
    fn an_error_is_rewritten_into_what_etherparse_would_have_built_p16(
        request in body(),
        ends in ends(),
        how in any::<(bool, Index)>(),
    ) {
        let request = request.opening();
        if ends[0].0.is_ipv6() { error::<4>(&request, ends, how)? } else { error::<1>(&request, ends, how)? }
    }
}
