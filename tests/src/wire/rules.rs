//! Rules over a namespace's traffic: what a packet may be, given what was sent before.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::check::{self, Offload};
use super::packet::{Packet, Tuple};

/// What the oracle knows about the laboratory. Fixed for a bed's life.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// Prefixes of Service addresses (ClusterIPs, external and LoadBalancer addresses): address and length.
    pub service_prefixes: Vec<(IpAddr, u8)>,
}

impl Knowledge {
    /// Whether `address` is a Service's.
    #[must_use]
    pub fn is_service(&self, address: IpAddr) -> bool {
        self.service_prefixes.iter().any(|(prefix, length)| match (prefix, address) {
            (IpAddr::V4(p), IpAddr::V4(a)) => {
                (p.to_bits() ^ a.to_bits()).checked_shr(32 - u32::from(*length)).is_none_or(|d| d == 0)
            }
            (IpAddr::V6(p), IpAddr::V6(a)) => {
                (p.to_bits() ^ a.to_bits()).checked_shr(128 - u32::from(*length)).is_none_or(|d| d == 0)
            }
            _ => false,
        })
    }
}

/// One captured packet.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub frame: &'a [u8],
    /// Leaving the namespace, as opposed to entering it.
    pub outgoing: bool,
    /// For somebody else's hardware address: what a bridge floods. The namespace does not take it.
    pub foreign: bool,
    /// The device's hardware address, where frames have some.
    pub own: Option<[u8; 6]>,
    pub offload: Offload,
}

/// A broken rule, with what is needed to understand it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub place: String,
    pub device: String,
    pub outgoing: bool,
    pub rule: String,
    pub packet: Option<Packet>,
    /// The frame's beginning.
    pub bytes: Vec<u8>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = if self.outgoing { "out of" } else { "into" };
        writeln!(f, "{} ({way} {} at {})", self.rule, self.place, self.device)?;
        if let Some(packet) = &self.packet {
            writeln!(f, "    {packet:?}")?;
        }
        for line in self.bytes.chunks(32) {
            write!(f, "   ")?;
            for pair in line.chunks(2) {
                write!(f, " ")?;
                pair.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What kind of end a namespace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Pod or outside client: knows nothing of translation, so answers must come from whom it wrote to.
    Host,
    /// A node: Service addresses must not leave by its uplink.
    Node,
    /// A router between nodes: sees what uplinks emit.
    Router,
}

/// The rules of one namespace with their memory.
#[derive(Debug)]
pub struct Rules {
    place: String,
    end: End,
    uplink: &'static str,
    knowledge: Arc<Knowledge>,
    sent: HashSet<Tuple>,
}

impl Rules {
    #[must_use]
    pub fn new(place: &str, end: End, knowledge: Arc<Knowledge>) -> Self {
        Self { place: place.into(), end, uplink: "eth0", knowledge, sent: HashSet::new() }
    }

    /// The namespace's short name.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Judges one packet and remembers it.
    pub fn judge(&mut self, device: &str, seen: Seen<'_>) -> Vec<Violation> {
        let mut broken = check::frame(seen.frame, seen.offload);
        broken.extend(self.hardware(device, seen));
        let packet = match Packet::parse(seen.frame) {
            Ok(packet) => Some(packet),
            Err(_) if !broken.is_empty() => None,
            Err(why) => {
                broken.push(format!("cannot be parsed: {why}"));
                None
            }
        };
        if let Some(packet) = packet {
            broken.extend(self.addresses(device, seen.outgoing, &packet));
            if self.end == End::Host && !seen.foreign {
                broken.extend(self.memory(seen.outgoing, &packet));
            }
        }
        broken
            .into_iter()
            .map(|rule| Violation {
                place: self.place.clone(),
                device: device.into(),
                outgoing: seen.outgoing,
                rule,
                packet,
                bytes: seen.frame[..seen.frame.len().min(160)].to_vec(),
            })
            .collect()
    }

    /// What leaves a node comes from its own hardware address: a switch learns where that is from it.
    fn hardware(&self, device: &str, seen: Seen<'_>) -> Option<String> {
        let (from, own) = (seen.frame.get(6..12)?, seen.own?);
        let leaves = seen.outgoing && self.end == End::Node && device == self.uplink;
        (leaves && from != own).then(|| "leaves a node with somebody else's hardware address".into())
    }

    /// P-24: no packet with a Service address as destination leaves an uplink.
    fn addresses(&self, device: &str, outgoing: bool, packet: &Packet) -> Option<String> {
        let leaves = self.end == End::Node && outgoing && device == self.uplink;
        let to = packet.destination().filter(|to| leaves && self.knowledge.is_service(*to))?;
        Some(format!("a packet to the Service address {to} leaves the node"))
    }

    /// Answers come from whom this end wrote to, and errors complain about what it wrote.
    fn memory(&mut self, outgoing: bool, packet: &Packet) -> Option<String> {
        match *packet {
            Packet::Flow { tuple, .. } if outgoing => {
                self.sent.insert(tuple);
                None
            }
            Packet::Flow { tuple: (transport, from, to), syn, .. } => {
                let answered = self.sent.contains(&(transport, to, from));
                // An opening packet, or one to a server's port, is no answer.
                let asks = syn || is_server(to);
                (!answered && !asks).then(|| format!("an answer from {from}, to whom {to} never wrote"))
            }
            Packet::Error { redirect, quote, .. } if !outgoing => {
                let (_, from, to) = quote.tuple;
                let what = if redirect { "redirect" } else { "error" };
                (!self.sent.contains(&quote.tuple))
                    .then(|| format!("an ICMP {what} about {from} to {to}, which was never sent"))
            }
            _ => None,
        }
    }
}

/// The laboratory's servers listen below 10,000, clients write from above.
fn is_server(address: SocketAddr) -> bool {
    address.port() < FIRST_CLIENT_PORT
}

/// Lowest port number that laboratory clients write from.
pub const FIRST_CLIENT_PORT: u16 = 10_000;

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
