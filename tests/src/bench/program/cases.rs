//! What is measured: packets, and what must have happened before.

use proxy_common::abi::protocol;

use super::driver::{Drive, End, FIRST_PORT};
use super::node::{BACKEND_PORT, Net, SERVICE_PORT, ip, words};
use crate::bench::report::Aim;
use crate::packet::frame::{self, Flags};
use crate::packet::world::MARK;

/// A pass of a driver over flows `0..count`.
#[derive(Clone, Debug)]
pub struct Pass {
    pub ingress: bool,
    pub drive: Drive,
    pub packet: Vec<u8>,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Case {
    pub what: String,
    /// Made before each round: every flow in turn.
    pub before: Vec<Pass>,
    pub measured: Pass,
    /// Each repetition opens a flow: the table is emptied before each round.
    pub opens: bool,
    /// With `opens`: the table is not empty but full of closed flows.
    pub full: bool,
    pub aims: Vec<Aim>,
}

/// Direction and place of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// C → F at the client's edge.
    ToService(Net),
    /// B → C at the client's edge.
    FromBackend,
    /// C → B at the backend's edge, marked.
    ToBackend,
    /// To and from nobody that we know.
    ToStranger,
}

/// A family, a protocol and a block of clients of its own.
#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    protocol: u8,
    flows: u32,
    services: u32,
    /// First client: cases do not share flows.
    clients: u32,
}

fn pass(kind: Kind, way: Way, flags: Flags) -> Pass {
    let Kind { v6, protocol, flows, services, clients } = kind;
    // Offsets of source and destination address, source and destination port, behind Ethernet.
    let [src, dst, sport, dport] = if v6 { [22, 38, 54, 56] } else { [26, 30, 34, 36] };
    let (net, service_port) = match way {
        Way::ToService(net) => (net, SERVICE_PORT),
        Way::FromBackend | Way::ToBackend => (Net::Backends, BACKEND_PORT),
        Way::ToStranger => (Net::Strangers, SERVICE_PORT),
    };
    let backwards = way == Way::FromBackend;
    let (client_at, service_at) =
        if backwards { ((dst, dport), (src, sport)) } else { ((src, sport), (dst, dport)) };
    let client = End { at: client_at.0, address: words(v6, Net::Clients, clients), port_at: client_at.1 };
    let service = End { at: service_at.0, address: words(v6, net, 0), port_at: service_at.1 };
    let ends = ((ip(v6, Net::Clients, clients), FIRST_PORT), (ip(v6, net, 0), service_port));
    let (from, to) = if backwards { (ends.1, ends.0) } else { ends };
    let mut packet = frame::packet(protocol, flags, from, to, &[0x5a; 64]);
    // The loopback device's, on which test runs are.
    packet[..6].fill(0);
    Pass {
        ingress: matches!(way, Way::ToService(_) | Way::ToStranger),
        drive: Drive {
            v6,
            flows,
            client,
            services,
            service,
            service_port,
            mark: if way == Way::ToBackend { MARK } else { 0 },
        },
        packet,
    }
}

/// The cases in the order of the table.
#[must_use]
pub fn all() -> Vec<Case> {
    let (tcp, udp) = (protocol::TCP, protocol::UDP);
    let mut clients = 0;
    let mut kind = |v6, protocol, flows, services| {
        clients += 256;
        Kind { v6, protocol, flows, services, clients }
    };
    let few = 1024;
    vec![
        established("tcp v4, 1,024 flows", kind(false, tcp, few, few), &[Aim::AtMost(60.0)]),
        established("tcp v4, 16,384 flows", kind(false, tcp, 16_384, few), &[]),
        established("udp v4, 1,024 flows", kind(false, udp, few, few), &[]),
        established("tcp v6, 1,024 flows", kind(true, tcp, few, few), &[]),
        established("udp v6, 1,024 flows", kind(true, udp, few, few), &[]),
        restored("tcp v4, 1,024 flows", kind(false, tcp, few, few)),
        restored("tcp v6, 1,024 flows", kind(true, tcp, few, few)),
        masqueraded("tcp v4, 1,024 flows", kind(false, tcp, few, few)),
        stranger("v4", kind(false, tcp, few, few)),
        stranger("v6", kind(true, tcp, few, few)),
        new("tcp v4, 1 Service", kind(false, tcp, 1 << 24, 1), false, &[Aim::AtMost(700.0)]),
        new("tcp v4, 8,192 Services", kind(false, tcp, 1 << 24, 8192), false, &[]),
        new("tcp v4, 1 Service, table full of closed flows", kind(false, tcp, 1 << 24, 1), true, &[]),
        new("udp v4, 1 Service", kind(false, udp, 1 << 24, 1), false, &[]),
        new("tcp v6, 1 Service", kind(true, tcp, 1 << 24, 1), false, &[]),
    ]
}

fn opening(kind: Kind) -> Flags {
    if kind.protocol == protocol::TCP { frame::SYN } else { frame::ACK }
}

fn established(what: &str, kind: Kind, aims: &[Aim]) -> Case {
    let way = Way::ToService(Net::Services);
    Case {
        what: format!("established, ingress, {what}"),
        before: vec![pass(kind, way, opening(kind)), pass(kind, Way::FromBackend, frame::SYN_ACK)],
        measured: pass(kind, way, frame::ACK),
        opens: false,
        full: false,
        aims: aims.to_vec(),
    }
}

fn restored(what: &str, kind: Kind) -> Case {
    let mut case = established(what, kind, &[]);
    case.what = format!("established, egress (restore), {what}");
    case.measured = pass(kind, Way::FromBackend, frame::ACK);
    case
}

fn masqueraded(what: &str, kind: Kind) -> Case {
    Case {
        what: format!("established, egress (masquerade), {what}"),
        before: vec![pass(kind, Way::ToBackend, opening(kind))],
        measured: pass(kind, Way::ToBackend, frame::ACK),
        opens: false,
        full: false,
        aims: Vec::new(),
    }
}

fn stranger(what: &str, kind: Kind) -> Case {
    Case {
        what: format!("not for a Service, ingress, tcp {what}"),
        before: Vec::new(),
        measured: pass(kind, Way::ToStranger, frame::ACK),
        opens: false,
        full: false,
        aims: Vec::new(),
    }
}

fn new(what: &str, kind: Kind, full: bool, aims: &[Aim]) -> Case {
    let way = Way::ToService(Net::Wide);
    Case {
        what: format!("new flow, {what}"),
        before: if full {
            vec![pass(kind, way, frame::SYN), pass(kind, way, frame::RST)]
        } else {
            Vec::new()
        },
        measured: pass(kind, way, opening(kind)),
        opens: true,
        full,
        aims: aims.to_vec(),
    }
}
