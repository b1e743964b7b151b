//! Packets that lie or end early (P-01), on host and kernel alike.

use sluice_tests::packet::frame::{ACK, ETHERNET, Icmp, SYN, icmp, packet};
use sluice_tests::packet::story::{Action, Both, Node};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, plan};

/// Valid packets that the mutations start from.
fn templates(v6: bool) -> Vec<(&'static str, bool, Vec<u8>)> {
    let p = plan(v6);
    let (client, vip, backend) = ((p.pod, 40_001), (p.vip, PORT), (p.backend, BACKEND_PORT));
    let request = packet(6, SYN, client, vip, b"payload");
    vec![
        ("tcp request", true, request.clone()),
        ("udp request", true, packet(17, SYN, client, (p.node, NODE_PORT), b"payload")),
        ("tcp answer", false, packet(6, ACK, backend, client, b"payload")),
        ("udp answer", false, packet(17, ACK, backend, client, b"payload")),
        ("error about a request", false, icmp(Icmp::TooBig, p.router, p.pod, &request, 400)),
        ("error about an answer", true, icmp(Icmp::TooBig, p.router, p.vip, &request, 400)),
    ]
}

/// A packet cut short is left alone or dropped, and makes no difference to what comes after.
#[test]
fn every_template_cut_at_every_length_p01() {
    for v6 in [false, true] {
        for (name, ingress, frame) in templates(v6) {
            let mut node = Both::new().expect("a node to tell the story to");
            let mut host = Both::host_only();
            // The kernel does not test-run a frame that ends within its network header.
            let testable = ETHERNET + if v6 { 40 } else { 20 };
            for length in ETHERNET..frame.len() {
                let cut = &frame[..length];
                let teller = if length < testable { &mut host } else { &mut node };
                let out = teller.run(ingress, cut, 0);
                assert!(out.action == Action::Drop || out.bytes == cut, "{name}, v6 {v6}, cut to {length}");
            }
        }
    }
}

/// With any one byte of its headers changed a packet is treated the same on host and kernel, which [`Both`] compares.
#[test]
fn every_header_byte_flipped_p01() {
    for v6 in [false, true] {
        for (_, ingress, frame) in templates(v6) {
            let mut node = Both::new().expect("a node to tell the story to");
            let headers = frame.len().min(ETHERNET + 100);
            for at in ETHERNET..headers {
                for flip in [0x01, 0x80, 0xff, 0x0f] {
                    let mut lying = frame.clone();
                    lying[at] ^= flip;
                    node.run(ingress, &lying, 0);
                }
            }
        }
    }
}
