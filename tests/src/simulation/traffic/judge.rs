//! What a hook has made of a client's or a server's packet, held against what the client may expect.

use proxy_common::abi::Reason;
use proxy_common::path::Worth;

use super::super::conn::{Token, opens_anew};
use super::super::events::Event;
use super::{Done, Traffic, gone};
use crate::packet::frame::{End, Read, SYN};

impl<const N: usize> Traffic<N> {
    /// A packet has come to a host.
    pub(super) fn arrive(&mut self, packet: &Read, token: Token) -> Done {
        if token.from_server { self.hear(packet, token) } else { self.serve(packet, token.conn) }
    }

    /// A client's packet has passed its edge. False: it goes nowhere.
    pub(super) fn translated(&mut self, id: usize, before: &Read, after: &Read) -> Result<bool, String> {
        let now = self.now;
        let conn = &mut self.conns[id];
        let Some(list) = conn.list else {
            // A late SYN, after another's has taken the five-tuple that this one has at the server: what follows goes by another port.
            let elsewhere = conn.tuple.is_some_and(|(_, client)| client != after.src);
            conn.crossed |= before.flags == SYN && after.src != before.src && elsewhere;
            return Ok(true);
        };
        if conn.is_ending() {
            return Ok(true);
        }
        if before.flags.rst {
            // The flow is over; a SYN begins another.
            let former = conn.backend.take();
            self.leave(id, former);
            return Ok(true);
        }
        if after.dst == before.dst {
            let established = conn.is_established() && !conn.forgotten;
            if established || (self.cluster.serves(list, now) && before.flags.syn) {
                return Err(format!("a packet to {:?} of {conn:?} was not translated", before.dst));
            }
            self.close(id);
            return Ok(false);
        }
        let backend = after.dst;
        let same = conn.backend == Some(backend);
        let haunted = conn.is_tcp() && conn.haunted;
        let found = haunted && conn.backend.is_none();
        if let Some(old) = conn.backend
            && !same
        {
            // What it has found may be of before the endpoint had left and come back, and closed since.
            if conn.is_established() || (!haunted && self.cluster.has_stayed(list, old, conn.since, now)) {
                return Err(format!("{conn:?} has been moved to {backend:?}"));
            }
            conn.haunted = false;
            self.events.note(Event::Moved);
        }
        if !found && (!same || !conn.is_tcp()) && !self.cluster.may_get(list, backend, now) {
            let lists = self.cluster.describe(list);
            return Err(format!("{backend:?} is not the Service's, and was given to {conn:?}; {lists}"));
        }
        if !same {
            conn.since = self.step;
            let former = conn.backend.replace(backend);
            self.leave(id, former);
        }
        Ok(true)
    }

    /// The flow has another endpoint now, or none: its old place is another's to take.
    fn leave(&mut self, id: usize, former: Option<End>) {
        let conn = &mut self.conns[id];
        let Some(former) = former else { return };
        conn.former.push(former);
        conn.tuple = None;
        self.servers.retain(|_, holder| *holder != id);
    }

    /// What a hook has removed for other flows' sake: nothing that lives, and what is worth little begins anew. A flow's own packet
    /// may find that it is over.
    pub(super) fn forget(&mut self, number: u8, ingress: bool, packet: &Read) -> Done {
        for pair in gone(&self.cluster.kernel.maps) {
            let id = self.sockets.get(&(pair.protocol, pair.ends.0, pair.ends.1)).copied();
            if ingress && (pair.protocol, pair.ends) == (number, (packet.src, packet.dst)) {
                continue;
            }
            self.events.note(if pair.worth == Worth::Expired { Event::Expired } else { Event::Pressed });
            if pair.at_client && pair.worth == Worth::Live {
                return Err(format!("a live flow of {:?} was forgotten at {packet:?}", pair.ends));
            }
            if let Some(id) = id {
                self.conns[id].forgotten = true;
                let former = self.conns[id].backend.take();
                self.leave(id, former);
            }
        }
        Ok(())
    }

    pub(super) fn refused(&mut self, token: Token, reason: Reason) -> Done {
        let conn = &self.conns[token.conn];
        if conn.is_ending() || token.from_server {
            return Ok(());
        }
        let served = conn.list.is_some_and(|list| self.cluster.serves(list, self.now));
        if conn.is_established() && !conn.forgotten || (served && reason != Reason::NoFlow) {
            return Err(format!("refused for {}: {conn:?}", reason.name()));
        }
        self.events.note(Event::Refused);
        self.close(token.conn);
        Ok(())
    }

    pub(super) fn dropped(&mut self, token: Token, packet: &Read, reason: Reason) -> Done {
        match reason {
            Reason::ChallengeAck => self.events.note(Event::Renumbered),
            Reason::FlowTableFull => self.events.note(Event::TableFull),
            _ => {}
        }
        let conn = &self.conns[token.conn];
        if conn.is_ending() {
            return Ok(());
        }
        let opens = !conn.is_tcp() || packet.flags == SYN;
        let fine = match reason {
            Reason::ChallengeAck => token.from_server,
            Reason::FlowTableFull | Reason::PortsExhausted => {
                conn.forgotten || opens && !conn.is_established()
            }
            Reason::NoLocalEndpoint => {
                opens && !conn.list.is_some_and(|list| self.cluster.serves(list, self.now))
            }
            Reason::NoFlow => packet.flags.rst,
            _ => false,
        };
        if fine && !conn.is_tcp() && opens_anew(reason) {
            let former = self.conns[token.conn].backend.take();
            self.leave(token.conn, former);
            return Ok(());
        }
        if fine { Ok(()) } else { Err(format!("dropped for {}: {conn:?}", reason.name())) }
    }
}
