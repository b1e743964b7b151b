//! ICMP errors and redirects about flows (P-14 … P-18).

use anyhow::{Result, ensure};
use proxy_common::abi::Reason;
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{End, Icmp, SYN, icmp, packet, read, unquote};
use sluice_tests::packet::story::{Action, At, Both, Node, Outcome};
use sluice_tests::packet::teller::{family, slug, transport};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, PROTOCOLS, plan};

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

#[derive(Clone, Copy)]
struct Case {
    v6: bool,
    protocol: u8,
    kind: Icmp,
    quote: usize,
    complaint: Complaint,
    masqueraded: bool,
}

/// P-16's matrix, and what is not about a flow.
pub fn stories() -> Vec<Story<Both>> {
    let mut stories = Vec::new();
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            let suffix = format!("{}::{}", family(v6), transport(protocol));
            stories.extend(matrix(v6, protocol, &suffix));
            stories.push(Story::new(
                format!("redirects_about_flows_are_dropped,_others_pass_E3::{suffix}"),
                move |node: &mut Both| redirects(node, v6, protocol),
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
                for masqueraded in [false, true] {
                    let how = if masqueraded { " masqueraded" } else { "" };
                    let title = format!("{name} from {who}{how}, quoting {part} P-14 P-15 P-16 P-17");
                    let case = Case { v6, protocol, kind, quote, complaint, masqueraded };
                    let name = format!("{}::{suffix}", slug(&title));
                    stories.push(Story::new(name, move |node: &mut Both| {
                        // The checksum of an odd payload ends in half a word.
                        [b"".as_slice(), b"odd payload!!"]
                            .into_iter()
                            .try_for_each(|load| case.tell(node, load))
                    }));
                }
            }
        }
    }
    stories
}

impl Case {
    fn tell(&self, node: &mut Both, payload: &[u8]) -> Result<()> {
        node.reset();
        let p = plan(self.v6);
        let backend = (p.backend, BACKEND_PORT);
        let (client, front) = if self.masqueraded {
            ((p.outside, 40_001), (p.node, NODE_PORT))
        } else {
            ((p.pod, 40_001), (p.vip, PORT))
        };
        let first = node.run(&At::INGRESS, &packet(self.protocol, SYN, client, front, payload), 0);
        let sent = node.run(&At::EGRESS, &first.bytes, first.mark);
        let (between, seen) = (read(&first.bytes).src, read(&sent.bytes).src);
        let keep = if self.v6 { 40 } else { 20 } + self.quote;
        let flows = node.flows();
        if self.complaint == Complaint::RouterAboutAnswer {
            // Told to the endpoint about its own packet.
            let answer = packet(self.protocol, SYN, front, client, payload);
            let out = node.run(&At::INGRESS, &icmp(self.kind, p.router, front.0, &answer, keep), 0);
            self.is_told(&out, (p.router, backend.0), (backend, between))?;
        } else {
            let from = if self.complaint == Complaint::BackendAboutRequest { p.backend } else { p.router };
            let error = icmp(self.kind, from, seen.0, &sent.bytes, keep);
            let inside = if self.masqueraded { node.run(&At::INGRESS, &error, 0).bytes } else { error };
            let out = node.run(&At::EGRESS, &inside, 0);
            // A party of the flow is renamed, a router is not.
            let from = if from == p.backend { front.0 } else { from };
            self.is_told(&out, (from, client.0), (client, front))?;
        }
        ensure!(node.flows() == flows, "the flow table has changed (P-18)");
        Ok(())
    }

    /// The error has these ends outside, and names those inside; quoted whole, its inner checksums are right too.
    fn is_told(
        &self,
        out: &Outcome,
        outer: (std::net::IpAddr, std::net::IpAddr),
        inner: (End, End),
    ) -> Result<()> {
        ensure!(out.action == Action::Pass, "{:?}", out.action);
        let told = read(&out.bytes);
        ensure!((told.src.0, told.dst.0) == outer, "from {} to {}", told.src.0, told.dst.0);
        let (_, _, quoted) = told.icmp.unwrap_or_default();
        let network = if self.v6 { 40 } else { 20 };
        let port = |at: usize| u16::from_be_bytes([quoted[network + at], quoted[network + at + 1]]);
        ensure!((port(0), port(2)) == (inner.0.1, inner.1.1), "ports {} and {}", port(0), port(2));
        if self.quote == QUOTES[2].1 {
            let quote = read(&unquote(self.v6, &quoted));
            ensure!((quote.src, quote.dst) == inner, "quotes {:?} to {:?}", quote.src, quote.dst);
        }
        Ok(())
    }
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
