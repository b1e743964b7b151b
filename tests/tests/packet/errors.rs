//! ICMP errors and redirects about flows (P-14 … P-18).

use proxy_common::abi::Reason;
use sluice_tests::packet::frame::{ETHERNET, Icmp, SYN, icmp, packet, read, unquote};
use sluice_tests::packet::story::{Action, Both, Node};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, PROTOCOLS, plan};

/// Bytes of the offending packet that are quoted: just enough, with the transport checksum, everything.
const QUOTES: [usize; 3] = [8, 20, 400];
const KINDS: [Icmp; 3] = [Icmp::TooBig, Icmp::PortUnreachable, Icmp::TimeExceeded];

/// P-16's matrix: {family} × {protocol} × {direction} × {error} × {quoted length} × {masqueraded or not} × {payload}.
#[test]
fn errors_are_rewritten_outside_and_inside_p14_p15_p16_p17() {
    let mut cases = 0;
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            for masqueraded in [false, true] {
                for payload in [b"".as_slice(), b"odd payload!!"] {
                    let mut node = Both::new().expect("a node to tell the story to");
                    cases += matrix(&mut node, v6, protocol, masqueraded, payload);
                }
            }
        }
    }
    assert!(cases >= 120, "{cases} cases");
}

fn matrix(node: &mut Both, v6: bool, protocol: u8, masqueraded: bool, payload: &[u8]) -> usize {
    let p = plan(v6);
    let backend = (p.backend, BACKEND_PORT);
    let (client, front) = if masqueraded {
        ((p.outside, 40_001), (p.node, NODE_PORT))
    } else {
        ((p.pod, 40_001), (p.vip, PORT))
    };
    let first = node.run(true, &packet(protocol, SYN, client, front, payload), 0);
    let sent = node.run(false, &first.bytes, first.mark);
    let seen = read(&sent.bytes).src;
    let network = if v6 { 40 } else { 20 };
    let mut cases = 0;
    for kind in KINDS {
        for quote in QUOTES {
            // About the request: a router or the backend complains to whom it saw; at the backend's edge, then at the client's.
            for from in [p.router, p.backend] {
                let error = icmp(kind, from, seen.0, &sent.bytes, network + quote);
                let inside = if masqueraded { node.run(true, &error, 0) } else { unchanged(error) };
                let out = node.run(false, &inside.bytes, 0);
                assert_eq!(out.action, Action::Pass);
                let told = read(&out.bytes);
                assert_eq!(told.dst.0, client.0);
                assert_eq!(told.src.0, if from == p.backend { front.0 } else { from }, "a party is renamed");
                check_quote(v6, &told.icmp.expect("an error").2, quote, (client, front));
                cases += 1;
            }
            // About the answer: a router on the client's side complains to the frontend; told to the backend about its own.
            let answer = packet(protocol, SYN, front, client, payload);
            let error = icmp(kind, p.router, front.0, &answer, network + quote);
            let out = node.run(true, &error, 0);
            assert_eq!(out.action, Action::Pass);
            let told = read(&out.bytes);
            assert_eq!(told.dst.0, backend.0);
            check_quote(v6, &told.icmp.expect("an error").2, quote, (backend, client));
            cases += 1;
        }
    }
    assert_eq!(
        node.count(Reason::FlowCreated),
        if masqueraded { 2 } else { 1 },
        "errors make no flows (P-18)"
    );
    cases
}

fn unchanged(bytes: Vec<u8>) -> sluice_tests::packet::story::Outcome {
    sluice_tests::packet::story::Outcome { action: Action::Pass, bytes, mark: 0 }
}

/// The quote names the right ends; quoted whole, its own checksums are right too.
fn check_quote(
    v6: bool,
    quoted: &[u8],
    quote: usize,
    (src, dst): (sluice_tests::packet::frame::End, sluice_tests::packet::frame::End),
) {
    let network = if v6 { 40 } else { 20 };
    let port = |at: usize| u16::from_be_bytes([quoted[network + at], quoted[network + at + 1]]);
    assert_eq!((port(0), port(2)), (src.1, dst.1));
    if quote == QUOTES[2] {
        let inner = read(&unquote(v6, quoted));
        assert_eq!((inner.src, inner.dst), (src, dst));
    }
}

#[test]
fn redirects_about_flows_are_dropped_others_pass_e3() {
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            let p = plan(v6);
            let mut node = Both::new().expect("a node to tell the story to");
            let client = (p.pod, 40_001);
            let first = node.run(true, &packet(protocol, SYN, client, (p.vip, PORT), b"x"), 0);
            let redirect = icmp(Icmp::Redirect, p.masquerade, client.0, &first.bytes, 400);
            assert_eq!(node.run(false, &redirect, 0).action, Action::Drop);
            assert_eq!(node.count(Reason::Redirect), 1);
            let foreign = packet(protocol, SYN, (p.pod, 40_002), (p.outside, 443), b"x");
            let redirect = icmp(Icmp::Redirect, p.masquerade, client.0, &foreign, 400);
            assert_eq!(node.run(false, &redirect, 0).bytes, redirect);
        }
    }
}

#[test]
fn errors_about_nothing_of_ours_pass_or_end_here_p18_p21() {
    for v6 in [false, true] {
        let p = plan(v6);
        let mut node = Both::new().expect("a node to tell the story to");
        let quoted = packet(17, SYN, (p.node, 53), (p.outside, 9), b"x");
        let error = icmp(Icmp::PortUnreachable, p.outside, p.node, &quoted, 400);
        assert_eq!(node.run(true, &error, 0).bytes, error, "the node's own");
        let error = icmp(Icmp::PortUnreachable, p.outside, p.vip, &quoted, 400);
        assert_eq!(
            node.run(true, &error, 0).action,
            Action::Drop,
            "nothing to a Service address is forwarded"
        );
        let ping = icmp(Icmp::Echo, p.pod, p.vip, &quoted, 30);
        assert_eq!(node.run(true, &ping, 0).action, Action::Drop);
        let ping = icmp(Icmp::Echo, p.pod, p.node, &quoted, 30);
        assert_eq!(node.run(true, &ping, 0).bytes[ETHERNET..], ping[ETHERNET..]);
    }
}
