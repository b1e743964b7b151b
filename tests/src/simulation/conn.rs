//! Connections as their two ends know them.

use proxy_common::abi::{Reason, protocol};

use super::cluster::List;
use crate::packet::frame::{End, Flags, Numbers, Read};

/// Ticks after which a TCP connection without packets is given up by both ends; well below what the path keeps.
const ESTABLISHED: u32 = 70_000;
/// The same for what was never answered, and for UDP.
const UNANSWERED: u32 = 20;
/// Ticks after which a server that never heard of the end gives up.
const LINGER: u32 = 30;
/// Sequence numbers that one direction of a connection may use.
const SPAN: u32 = 1 << 17;
/// Bytes of a segment.
const BYTES: u32 = 8;

#[derive(Clone, Debug)]
pub struct Conn {
    pub protocol: u8,
    pub client: End,
    /// What the client has dialled, and expects answers from.
    pub remote: End,
    /// The Service's list; `None`: dialled straight.
    pub list: Option<List>,
    /// Whom the flow has been given.
    pub backend: Option<End>,
    /// Step in which that happened.
    pub since: u64,
    /// Whom it had before. What that one sent last may come too late to be restored: kube-proxy deletes conntrack's entry
    /// likewise.
    pub former: Vec<End>,
    /// The same client has dialled so before and has given up without a word.
    pub haunted: bool,
    /// Opened straight to an endpoint, and a late SYN or SYN-ACK of it was taken for the first of another's, whose five-tuple was the
    /// same there: what follows goes astray, as no entry tells the two apart. A limit of the path's, which knows no numbers; who
    /// dials both from one port at one moment loses one of them, as the endpoint resets it.
    pub crossed: bool,
    /// A segment of the handshake has come so late that the FIN before it was forgotten: the flow does not know that it is over.
    pub begun_again: bool,
    /// The path has forgotten the flow, as there was little room and it was worth little.
    pub forgotten: bool,
    /// Segments sent by client and server.
    pub sent: [u32; 2],
    /// The server's end and, as it sees it, the client's.
    pub tuple: Option<(End, End)>,
    /// The client has heard from the server.
    pub answered: bool,
    /// Client and server have sent FIN.
    pub fins: [bool; 2],
    /// The server has heard the client's FIN.
    pub client_fin: bool,
    /// The client has heard the server's FIN.
    pub server_fin: bool,
    /// The server has heard the client's ACK.
    pub ready: bool,
    /// The server knows that it is over.
    pub server_done: bool,
    /// When a packet last came all the way.
    pub heard: u32,
    /// The client has nothing to do with it any more, since then.
    pub closed: Option<u32>,
}

impl Conn {
    pub const fn is_tcp(&self) -> bool {
        self.protocol == protocol::TCP
    }

    pub const fn is_live(&self) -> bool {
        self.closed.is_none()
    }

    /// Nothing is owed to it any more: it is over, or both ends have sent FIN. To the path that is closed, and makes way for
    /// others, though the last FIN may have been lost behind the hook that saw it.
    pub const fn is_ending(&self) -> bool {
        !self.is_live() || self.fins[0] && self.fins[1]
    }

    /// A TCP connection that both ends have seen and not both have ended.
    pub const fn is_established(&self) -> bool {
        self.is_tcp() && self.answered && !self.is_ending()
    }

    /// Both ends give up on it.
    pub const fn is_stale(&self, now: u32) -> bool {
        let limit = if self.is_tcp() && self.answered { ESTABLISHED } else { UNANSWERED };
        now - self.heard > limit
    }

    /// Whether the server will let another connection have the tuple.
    pub fn is_over_for_server(&self, now: u32) -> bool {
        if self.forgotten && !self.is_tcp() {
            // A late datagram shows nothing of where its flow is now.
            return true;
        }
        match self.closed {
            Some(at) => !self.is_tcp() || self.server_done || now > at + LINGER,
            None => self.is_stale(now),
        }
    }
}

/// The first sequence number of a connection's direction. All that it may use are far from any other's, as with RFC 6528.
const fn first_number(conn: usize, from_server: bool) -> u32 {
    let first = (conn as u32).wrapping_mul(2 * SPAN);
    if from_server { first.wrapping_add(SPAN) } else { first }
}

/// Whether a number is one that this direction of this connection may use: all that TCP knows of whose a segment is.
pub const fn is_number_of(number: u32, conn: usize, from_server: bool) -> bool {
    number.wrapping_sub(first_number(conn, from_server)) < SPAN
}

/// Whether a segment's numbers are of this connection, as only the numbers tell.
pub const fn bears_numbers_of(packet: &Read, conn: usize, from_server: bool) -> bool {
    let (own, acknowledged) = packet.numbers;
    let answers = !packet.flags.ack || is_number_of(acknowledged, conn, !from_server);
    is_number_of(own, conn, from_server) && answers
}

/// Numbers of the direction's next segment, after `sent` others.
pub const fn numbers(conn: usize, from_server: bool, flags: Flags, sent: u32) -> Numbers {
    let first = first_number(conn, from_server);
    let own = if flags.syn { first } else { first.wrapping_add(1 + BYTES * sent % (SPAN - BYTES)) };
    (own, first_number(conn, !from_server).wrapping_add(1))
}

/// What a packet carries: whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    pub conn: usize,
    pub from_server: bool,
    /// An acknowledgement that answers a SYN of somebody else.
    pub challenge: bool,
}

impl Token {
    pub fn bytes(self) -> [u8; 8] {
        let [a, b, c, d] = (self.conn as u32).to_le_bytes();
        [a, b, c, d, self.from_server.into(), self.challenge.into(), 0, 0]
    }

    /// The token at the end of a frame.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let [.., a, b, c, d, from_server, challenge, _, _] = *frame else { return None };
        Some(Self {
            conn: u32::from_le_bytes([a, b, c, d]) as usize,
            from_server: from_server == 1,
            challenge: challenge == 1,
        })
    }
}

/// Dropped because there was no room for a new flow: an old one, if there was one, has ended.
pub const fn opens_anew(reason: Reason) -> bool {
    matches!(reason, Reason::FlowTableFull | Reason::PortsExhausted | Reason::NoLocalEndpoint)
}
