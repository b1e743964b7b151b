//! ICMP errors and redirects about flows (P-14 … P-18).

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use proxy_common::abi::{Reason, protocol};
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{ETHERNET, End, Icmp, SYN, icmp, packet, read, unquote};
use sluice_tests::packet::shape::{Shape, finished, shaped};
use sluice_tests::packet::story::{Action, At, Both, Node, Outcome, PassedBy};
use sluice_tests::packet::teller::{family, slug, transport};
use sluice_tests::packet::world::{
    BACKEND_PORT, IFINDEX, NODE_PORT, PODS_IFINDEX, PORT, PROTOCOLS, config, plan,
};

use crate::always::always;

/// Bytes of the offending transport header and payload that are quoted.
const QUOTES: [(&str, usize); 3] =
    [("just the ports", 8), ("the transport checksum", 20), ("everything", 400)];
const KINDS: [(&str, Icmp); 3] = [
    ("too big", Icmp::TooBig),
    ("port unreachable", Icmp::PortUnreachable),
    ("time exceeded", Icmp::TimeExceeded),
];

/// Who complains about what.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Complaint {
    RouterAboutRequest,
    BackendAboutRequest,
    RouterAboutAnswer,
}

const COMPLAINTS: [(&str, Complaint); 3] = [
    ("a router about a request", Complaint::RouterAboutRequest),
    ("the endpoint about a request", Complaint::BackendAboutRequest),
    ("a router about an answer", Complaint::RouterAboutAnswer),
];

/// What the flow's translation changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    AddressAndPort,
    /// The Service's port is the endpoint's.
    Address,
    /// Straight to the endpoint, renumbered beside a Service's flow.
    Port,
    /// Both ends, at two edges.
    Masquerade,
}

const CHANGES: [(&str, Change); 4] = [
    ("", Change::AddressAndPort),
    (" whose address alone changes", Change::Address),
    (" whose port alone changes", Change::Port),
    (" masqueraded", Change::Masquerade),
];

/// What stands in the checksum field of the quoted packet: the right one, none, or what its device would finish.
const CHECKSUMS: [Option<Shape>; 3] = [None, Some(Shape::NoChecksum), Some(Shape::Unfinished)];

/// The checksum of an odd payload ends in half a word.
const PAYLOADS: [&[u8]; 2] = [b"", b"odd payload!!"];

#[derive(Clone, Copy)]
struct Case {
    v6: bool,
    protocol: u8,
    kind: Icmp,
    quote: usize,
    complaint: Complaint,
    change: Change,
    /// The flow's packets pass the stack by, and so does the error.
    past: bool,
}

/// A live flow: who sees whom, and what its quoted packets are like.
struct Flow {
    client: End,
    front: End,
    /// The client as it is seen between the edges, and by the endpoint.
    between: End,
    seen: End,
    payload: &'static [u8],
    checksum: Option<Shape>,
}

/// P-16's matrix, and what is not about a flow.
pub fn stories() -> Vec<Story<Both>> {
    let mut stories = Vec::new();
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            let suffix = format!("{}::{}", family(v6), transport(protocol));
            stories.extend(matrix(v6, protocol, &suffix));
            stories.push(Story::new(
                format!("redirects_about_flows_are_dropped,_others_pass::{suffix}"),
                move |node: &mut Both| redirects(node, v6, protocol),
            ));
            stories.push(Story::new(
                format!("errors_to_somebody_else_are_not_the_flow's_P-18::{suffix}"),
                move |node: &mut Both| misdirected(node, v6, protocol),
            ));
            stories.push(Story::new(
                format!("errors_about_errors_are_nobody's_P-20::{suffix}"),
                move |node: &mut Both| about_an_error(node, v6, protocol),
            ));
            stories.push(Story::new(
                format!("errors_about_nothing_of_ours_pass_or_end_here_P-18_P-21::{suffix}"),
                move |node: &mut Both| foreign(node, v6, protocol),
            ));
        }
    }
    stories
}

fn matrix(v6: bool, protocol: u8, suffix: &str) -> Vec<Story<Both>> {
    let mut stories = Vec::new();
    for (name, kind) in KINDS {
        for (who, complaint) in COMPLAINTS {
            for (part, quote) in QUOTES {
                for (how, change) in CHANGES {
                    let title = format!("{name} from {who}{how}, quoting {part} P-14 P-15 P-16 P-17");
                    let case = Case { v6, protocol, kind, quote, complaint, change, past: false };
                    let name = format!("{}::{suffix}", slug(&title));
                    stories.push(Story::new(name, move |node: &mut Both| case.tell(node)));
                    let by_routes = matches!(change, Change::AddressAndPort | Change::Masquerade);
                    if complaint == Complaint::RouterAboutAnswer || !by_routes || protocol == protocol::SCTP {
                        continue;
                    }
                    let past = Case { past: true, ..case };
                    let name = format!("{}::{suffix}", slug(&format!("always: {title}")));
                    stories.push(Story::new(name, move |node: &mut Both| past.tell(node)));
                }
            }
        }
    }
    stories
}

impl Case {
    fn tell(&self, node: &mut Both) -> Result<()> {
        for checksum in CHECKSUMS {
            if checksum == Some(Shape::NoChecksum) && self.protocol != protocol::UDP {
                continue;
            }
            for payload in PAYLOADS {
                node.reset();
                if self.past {
                    let mut by_routes = config();
                    always(&mut by_routes);
                    node.set_config(by_routes);
                }
                let flow = Flow { payload, checksum, ..self.open(node)? };
                let before = node.flows();
                let complain = match self.complaint {
                    Complaint::RouterAboutAnswer => Self::about_the_answer,
                    _ => Self::about_the_request,
                };
                complain(self, node, &flow).with_context(|| format!("{checksum:?}, {payload:?}"))?;
                ensure!(node.flows() == before, "the flow table has changed (P-18)");
            }
        }
        Ok(())
    }

    fn backend(&self) -> End {
        (plan(self.v6).backend, BACKEND_PORT)
    }

    fn open(&self, node: &mut Both) -> Result<Flow> {
        let p = plan(self.v6);
        let (client, front) = match self.change {
            Change::AddressAndPort => ((p.pod, 40_001), (p.vip, PORT)),
            Change::Address => ((p.pod, 40_001), (p.vip, BACKEND_PORT)),
            Change::Port => ((p.pod, 40_001), self.backend()),
            Change::Masquerade => ((p.outside, 40_001), (p.node, NODE_PORT)),
        };
        let request = |to| packet(self.protocol, SYN, client, to, b"first");
        if self.change == Change::Port {
            node.run(&At::INGRESS, &request((p.vip, PORT)), 0);
        }
        let first = node.run(&At { routes: [PODS_IFINDEX, IFINDEX], ..At::INGRESS }, &request(front), 0);
        let past = matches!(first.action, Action::Shortcut(_));
        ensure!(past == self.past, "{:?}", first.action);
        let far = if past { PODS_IFINDEX } else { IFINDEX };
        let sent = node.run(&At { ifindex: far, ..At::EGRESS }, &first.bytes, first.mark);
        let (between, seen) = (read(&first.bytes).src, read(&sent.bytes).src);
        let renumbered = matches!(self.change, Change::Port | Change::Masquerade);
        ensure!((seen != client) == renumbered, "{client:?} is seen as {seen:?}");
        Ok(Flow { client, front, between, seen, payload: b"", checksum: None })
    }

    fn error(&self, from: IpAddr, flow: &Flow, (src, dst): (End, End)) -> Vec<u8> {
        let about = packet(self.protocol, SYN, src, dst, flow.payload);
        let about = shaped(about, flow.checksum.as_slice());
        icmp(self.kind, from, src.0, &about, self.quote + if self.v6 { 40 } else { 20 })
    }

    /// Told to whom the complainer has seen; at the endpoint's edge first where that is another than the client. The client
    /// hears it from the frontend: it knows nobody else, and a router's own address would lead back through that router.
    fn about_the_request(&self, node: &mut Both, flow: &Flow) -> Result<()> {
        let p = plan(self.v6);
        let from = if self.complaint == Complaint::BackendAboutRequest { p.backend } else { p.router };
        let mut error = self.error(from, flow, (flow.seen, self.backend()));
        if self.past {
            let there = At { ifindex: PODS_IFINDEX, routes: [IFINDEX, 0], ..At::INGRESS };
            let mut out = node.run(&there, &error, 0);
            let way = PassedBy { device: IFINDEX, peer: false };
            ensure!(out.action == Action::Shortcut(way), "{:?}", out.action);
            out.action = Action::Pass;
            return self.is_told(&out, flow, (flow.front.0, flow.client.0), (flow.client, flow.front));
        }
        if self.change == Change::Masquerade {
            let inside = node.run(&At::INGRESS, &error, 0);
            self.is_told(&inside, flow, (from, flow.client.0), (flow.between, self.backend()))?;
            error = inside.bytes;
        }
        let out = node.run(&At::EGRESS, &error, 0);
        self.is_told(&out, flow, (flow.front.0, flow.client.0), (flow.client, flow.front))
    }

    /// A router on the client's side complains to the frontend. The endpoint is told about its own packet, and hears it
    /// from the masquerade address where it knows nobody else.
    fn about_the_answer(&self, node: &mut Both, flow: &Flow) -> Result<()> {
        let router = plan(self.v6).router;
        let error = self.error(router, flow, (flow.front, flow.client));
        let inside = node.run(&At::INGRESS, &error, 0);
        self.is_told(&inside, flow, (router, self.backend().0), (self.backend(), flow.between))?;
        let out = node.run(&At::EGRESS, &inside.bytes, inside.mark);
        let from = if self.change == Change::Masquerade { flow.seen.0 } else { router };
        self.is_told(&out, flow, (from, self.backend().0), (self.backend(), flow.seen))
    }

    /// The error has these ends outside, and names those inside. Quoted whole, the inner checksum is what it was: right,
    /// absent, or to be finished.
    fn is_told(&self, out: &Outcome, flow: &Flow, outer: (IpAddr, IpAddr), inner: (End, End)) -> Result<()> {
        ensure!(out.action == Action::Pass, "{:?}", out.action);
        let told = read(&out.bytes);
        ensure!((told.src.0, told.dst.0) == outer, "from {} to {}", told.src.0, told.dst.0);
        let (_, _, quoted) = told.icmp.unwrap_or_default();
        let network = if self.v6 { 40 } else { 20 };
        let port = |at: usize| u16::from_be_bytes([quoted[network + at], quoted[network + at + 1]]);
        ensure!((port(0), port(2)) == (inner.0.1, inner.1.1), "ports {} and {}", port(0), port(2));
        if self.quote != QUOTES[2].1 {
            return Ok(());
        }
        let mut frame = unquote(self.v6, &quoted);
        match flow.checksum {
            Some(Shape::NoChecksum) => ensure!(port(6) == 0, "the checksum is no longer absent"),
            Some(Shape::Unfinished) => frame = finished(frame, ETHERNET + network, self.protocol),
            _ => {}
        }
        let quote = read(&frame);
        ensure!((quote.src, quote.dst) == inner, "quotes {:?} to {:?}", quote.src, quote.dst);
        Ok(())
    }
}

/// As conntrack sees it, an error is the flow's when it is told to who sent the quoted packet.
fn misdirected(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    node.reset();
    let p = plan(v6);
    let (client, front) = ((p.outside, 40_001), (p.node, NODE_PORT));
    let first = node.run(&At::INGRESS, &packet(protocol, SYN, client, front, b"x"), 0);
    let error = |to, about: &[u8]| icmp(Icmp::TooBig, p.router, to, about, 400);
    let forged = error(p.masquerade, &packet(protocol, SYN, front, client, b"x"));
    ensure!(node.run(&At::INGRESS, &forged, 0).bytes == forged);
    let forged = error(p.pod, &first.bytes);
    ensure!(node.run(&At::EGRESS, &forged, 0).bytes == forged);
    Ok(())
}

/// It quotes an error about the flow, which quotes the flow's packet: translated it would be an error about that packet, and
/// answered it would be one of many.
fn about_an_error(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    node.reset();
    let p = plan(v6);
    let client = (p.pod, 40_001);
    let first = node.run(&At::INGRESS, &packet(protocol, SYN, client, (p.vip, PORT), b"x"), 0);
    let before = node.flows();
    for kind in [Icmp::TooBig, Icmp::TimeExceeded, Icmp::PortUnreachable] {
        let about = icmp(kind, p.router, client.0, &first.bytes, 400);
        let error = icmp(kind, p.backend, p.router, &about, 400);
        for at in [At::INGRESS, At::EGRESS] {
            let out = node.run(&at, &error, 0);
            ensure!(out.action == Action::Pass && out.bytes == error, "{kind:?} {at:?}: {:?}", out.action);
        }
        let to_service = icmp(kind, p.pod, p.vip, &about, 400);
        let out = node.run(&At::INGRESS, &to_service, 0);
        ensure!(out.action == Action::Drop, "{kind:?} to a Service address: {:?}", out.action);
    }
    ensure!(node.count(Reason::Protocol) == 3 && node.flows() == before);
    Ok(())
}

fn redirects(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    node.reset();
    let p = plan(v6);
    let client = (p.pod, 40_001);
    let first = node.run(&At::INGRESS, &packet(protocol, SYN, client, (p.vip, PORT), b"x"), 0);
    let redirect = icmp(Icmp::Redirect, p.masquerade, client.0, &first.bytes, 400);
    ensure!(node.run(&At::EGRESS, &redirect, 0).action == Action::Drop);
    ensure!(node.count(Reason::Redirect) == 1);
    let foreign = packet(protocol, SYN, (p.pod, 40_002), (p.outside, 443), b"x");
    let redirect = icmp(Icmp::Redirect, p.masquerade, client.0, &foreign, 400);
    ensure!(node.run(&At::EGRESS, &redirect, 0).bytes == redirect);
    Ok(())
}

fn foreign(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    node.reset();
    let p = plan(v6);
    let quoted = packet(protocol, SYN, (p.node, 53), (p.outside, 9), b"x");
    let unreachable = |to| icmp(Icmp::PortUnreachable, p.outside, to, &quoted, 400);
    let own = unreachable(p.node);
    ensure!(node.run(&At::INGRESS, &own, 0).bytes == own, "the node's own");
    let lost = node.run(&At::INGRESS, &unreachable(p.vip), 0);
    ensure!(lost.action == Action::Drop, "nothing to a Service address is forwarded");
    ensure!(node.run(&At::INGRESS, &icmp(Icmp::Echo, p.pod, p.vip, &quoted, 30), 0).action == Action::Drop);
    ensure!(node.count(Reason::Protocol) == 2);
    let ping = icmp(Icmp::Echo, p.pod, p.node, &quoted, 30);
    ensure!(node.run(&At::INGRESS, &ping, 0).bytes == ping);
    ensure!(node.flows().is_empty());
    Ok(())
}
