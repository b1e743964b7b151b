//! Packets that lie or end early (P-01), on host and kernel alike.

use anyhow::{Result, ensure};
use etherparse::SlicedPacket;
use etherparse::err::ipv6_exts::HeaderError;
use etherparse::err::packet::SliceError;
use proxy_common::abi::Reason;
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{ACK, ETHERNET, Icmp, SYN, SYN_ACK, icmp, packet, read};
use sluice_tests::packet::shape::{Shape, shaped};
use sluice_tests::packet::story::{Action, At, Both, Node};
use sluice_tests::packet::teller::{family, slug};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, plan};

/// A valid packet that mutations start from.
#[derive(Clone)]
struct Template {
    name: &'static str,
    at: At,
    frame: Vec<u8>,
}

/// Requests and answers over TCP and UDP; plain, with options or extension headers, as fragment; other protocols; errors
/// and a redirect that quote them.
fn templates(v6: bool) -> Vec<Template> {
    let p = plan(v6);
    let (client, vip, backend) = ((p.pod, 40_001), (p.vip, PORT), (p.backend, BACKEND_PORT));
    let request = packet(6, SYN, client, vip, b"payload");
    let datagram = packet(17, SYN, (p.pod, 40_002), (p.node, NODE_PORT), b"payload");
    let answer = packet(6, ACK, backend, client, b"payload");
    let long: &[Shape] = if v6 {
        &[Shape::HopByHop(1), Shape::Destination(2), Shape::Routing(0), Shape::Authentication]
    } else {
        &[Shape::Options(10)]
    };
    let dressed = shaped(request.clone(), long);
    let (first, atomic) = ([Shape::Fragment(0, true)], [Shape::Fragment(0, false)]);
    let templates = [
        ("a TCP request", At::INGRESS, request.clone()),
        ("a UDP request", At::INGRESS, datagram.clone()),
        ("a TCP answer", At::EGRESS, answer.clone()),
        ("a UDP answer", At::EGRESS, packet(17, ACK, backend, client, b"payload")),
        ("a TCP request with options or extension headers", At::INGRESS, dressed.clone()),
        ("a UDP request with options or extension headers", At::INGRESS, shaped(datagram.clone(), long)),
        ("a TCP answer with options or extension headers", At::EGRESS, shaped(answer, long)),
        ("a first fragment", At::INGRESS, shaped(request.clone(), &first)),
        ("an atomic fragment", At::INGRESS, shaped(datagram.clone(), &atomic)),
        ("SCTP", At::INGRESS, shaped(request.clone(), &[Shape::Protocol(132)])),
        ("a ping", At::INGRESS, icmp(Icmp::Echo, p.pod, p.vip, &request, 60)),
        ("an error about a request", At::EGRESS, icmp(Icmp::TooBig, p.router, p.pod, &request, 400)),
        ("an error about an answer", At::INGRESS, icmp(Icmp::TooBig, p.router, p.vip, &request, 400)),
        (
            "an error about a datagram",
            At::EGRESS,
            icmp(Icmp::PortUnreachable, p.router, p.pod, &datagram, 400),
        ),
        (
            "an error about a request with options or extension headers",
            At::EGRESS,
            icmp(Icmp::TooBig, p.router, p.pod, &dressed, 400),
        ),
        ("a redirect", At::EGRESS, icmp(Icmp::Redirect, p.masquerade, p.pod, &request, 400)),
    ];
    templates.into_iter().map(|(name, at, frame)| Template { name, at, frame }).collect()
}

pub fn stories() -> Vec<Story<Both>> {
    let mut stories = Vec::new();
    for v6 in [false, true] {
        for template in templates(v6) {
            let name = slug(&format!("{} cut at every length P-01::{}", template.name, family(v6)));
            let own = template.clone();
            stories.push(Story::new(name, move |node: &mut Both| own.cut(node, v6)));
            let name =
                slug(&format!("{} with every header byte flipped P-01::{}", template.name, family(v6)));
            stories.push(Story::new(name, move |node: &mut Both| template.flip(node, v6)));
        }
    }
    stories
}

/// A node that knows the flows which answers and errors belong to.
fn prepare(node: &mut dyn Node, v6: bool) {
    node.reset();
    let p = plan(v6);
    let (client, vip, backend) = ((p.pod, 40_001), (p.vip, PORT), (p.backend, BACKEND_PORT));
    for protocol in [6, 17] {
        node.run(&At::INGRESS, &packet(protocol, SYN, client, vip, b""), 0);
        node.run(&At::EGRESS, &packet(protocol, SYN_ACK, backend, client, b""), 0);
    }
}

impl Template {
    /// A packet cut short is left alone or dropped with a reason, and leaves no trace.
    fn cut(&self, node: &mut Both, v6: bool) -> Result<()> {
        let mut host = Both::host_only();
        prepare(node, v6);
        prepare(&mut host, v6);
        // The kernel does not test-run a frame that ends within its network header.
        let testable = ETHERNET + if v6 { 40 } else { 20 };
        for length in ETHERNET..self.frame.len() {
            let cut = &self.frame[..length];
            let teller = if length < testable { &mut host } else { &mut *node };
            let before = (teller.counts(), teller.flows());
            let out = teller.run(&self.at, cut, 0x1337);
            let dropped = drops(&teller.counts()) - drops(&before.0);
            match out.action {
                Action::Drop => ensure!(dropped == 1, "cut to {length}: dropped without a reason"),
                Action::Pass => {
                    ensure!(out.bytes == cut, "cut to {length}: bytes have changed");
                    ensure!(dropped == 0 && out.mark == 0x1337, "cut to {length}: passed, but not untouched");
                }
                other => anyhow::bail!("cut to {length}: {other:?}"),
            }
            ensure!(teller.flows() == before.1, "cut to {length}: the flow table has changed");
        }
        Ok(())
    }

    /// With one byte of its headers changed a packet is treated alike on host and kernel, which [`Both`] compares. What
    /// changes on its way is a packet that somebody else can read too, and stays as long as it was.
    fn flip(&self, node: &mut Both, v6: bool) -> Result<()> {
        for at in ETHERNET..self.frame.len() {
            prepare(node, v6);
            for flip in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff, 0x0f] {
                let mut lying = self.frame.clone();
                lying[at] ^= flip;
                let before = drops(&node.counts());
                let out = node.run(&self.at, &lying, 0);
                let dropped = drops(&node.counts()) - before;
                let about = || format!("byte {at} flipped by {flip:#x}");
                ensure!((out.action == Action::Pass) == (dropped == 0), "{}: no reason", about());
                if out.action == Action::Pass && out.bytes != lying {
                    ensure!(out.bytes.len() == lying.len(), "{}: another length", about());
                    ensure!(readable(&lying), "{}: translated, and nobody else can read it", about());
                }
                if out.action == Action::Reject {
                    // Its checksums are right whatever was wrong with the packet.
                    let _ = read(&out.bytes);
                }
            }
            node.flows();
        }
        Ok(())
    }
}

/// Whether etherparse can read the frame. It refuses hop-by-hop options that do not stand first; so does the stack, behind
/// us.
fn readable(frame: &[u8]) -> bool {
    match SlicedPacket::from_ethernet(frame) {
        Ok(_) | Err(SliceError::Ipv6Exts(HeaderError::HopByHopNotAtStart)) => true,
        Err(_) => false,
    }
}

/// Everything counted that ended a packet.
fn drops(counts: &[u64]) -> u64 {
    Reason::ALL.iter().zip(counts).filter(|(reason, _)| reason.is_end()).map(|(_, count)| count).sum()
}
