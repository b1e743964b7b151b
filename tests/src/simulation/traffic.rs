//! Clients, servers, and the way between them.

mod judge;

use std::collections::{HashMap, HashSet};

use proxy_common::abi::{Port, protocol};
use proxy_common::path::Verdict;
use proxy_common::path::socket::{self, Dial};

use super::cluster::{BACKENDS, Cluster, Kind, LOCAL_POLICY, SERVICES};
use super::conn::{Conn, Token, bears_numbers_of, is_number_of, numbers};
use super::dice::Dice;
use super::events::{Event, Events};
use super::kernel::{check_pairs, gone};
use crate::packet::frame::{ACK, End, FIN, Flags, Numbers, RST, Read, SYN, SYN_ACK, numbered, read};
use crate::packet::world::addr;

/// Ticks that a packet may be on its way.
const ON_THE_WAY: u32 = 2;
/// Ticks that a client's port rests when its connection is over.
const REST: u32 = 3;

/// A packet between two hooks.
#[derive(Clone)]
struct Flying {
    frame: Vec<u8>,
    mark: u32,
    /// What it carries through the stack.
    note: u16,
    ingress: bool,
    born: u32,
}

pub struct Traffic<const N: usize> {
    pub cluster: Cluster<N>,
    pub dice: Dice,
    pub step: u64,
    pub now: u32,
    pub events: Events,
    conns: Vec<Conn>,
    live: Vec<usize>,
    /// The clients' sockets: protocol, own end, other end.
    sockets: HashMap<(u8, End, End), usize>,
    /// The servers': protocol, own end, other end.
    servers: HashMap<(u8, End, End), usize>,
    flying: Vec<Flying>,
    resting: HashMap<End, u32>,
    /// Sockets that clients have abandoned without a word. Whoever dials so again may find the old flow, as with conntrack.
    haunted: HashSet<(u8, End, End)>,
}

type Done = Result<(), String>;

impl<const N: usize> Traffic<N> {
    pub fn new(cluster: Cluster<N>, dice: Dice) -> Self {
        Self {
            cluster,
            dice,
            step: 0,
            now: 1000,
            events: Events::default(),
            conns: Vec::new(),
            live: Vec::new(),
            sockets: HashMap::new(),
            servers: HashMap::new(),
            flying: Vec::new(),
            resting: HashMap::new(),
            haunted: HashSet::new(),
        }
    }

    /// Time goes on. What was on its way for long is lost.
    pub fn wait(&mut self, ticks: u32) {
        self.now += ticks;
        self.cluster.kernel.set_clock(self.now);
        let now = self.now;
        self.flying.retain(|packet| packet.born + ON_THE_WAY >= now);
    }

    /// Somebody dials.
    pub fn open(&mut self) -> Done {
        let number = if self.dice.chance(500) { protocol::TCP } else { protocol::UDP };
        let plan = &self.cluster.plan;
        let clients = [&plan.pods[..3], &plan.outside[..], &[plan.node]].concat();
        let Some(ip) = self.dice.pick(&clients) else { return Ok(()) };
        let from_node = ip == plan.node;
        let straight = !from_node && self.dice.chance(200);
        let (mut remote, mut list) = (plan.backend(self.dice.below(BACKENDS)), None);
        if !straight {
            let n = self.dice.below(SERVICES);
            let fronts = plan.frontends(n);
            let Some((front, external)) = self.dice.pick(&fronts) else { return Ok(()) };
            let kind = match external {
                false => Kind::Internal,
                true if n != LOCAL_POLICY || plan.outside.contains(&ip) => Kind::External,
                true => Kind::Cluster,
            };
            (remote, list) = (front, Some((n, kind)));
        }
        let port = if from_node { self.own_port(number) } else { 30_000 + self.dice.below(6) as u16 };
        // A flow of datagrams straight to an endpoint leaves no trace that could keep it apart from a Service's.
        let client = (ip, if straight && number == protocol::UDP { port + 20_000 } else { port });
        if from_node {
            let Dial::To(backend) =
                socket::dial(&self.cluster.kernel, &addr(remote.0), Port::new(remote.1), number, true)
            else {
                return Ok(());
            };
            let ends = (0..BACKENDS).map(|n| self.cluster.plan.backend(n));
            let chosen = ends.into_iter().find(|end| addr::<N>(end.0) == backend.address);
            remote = chosen.ok_or("a socket was sent to nobody")?;
            if list.take().is_some_and(|list| !self.cluster.may_get(list, remote, self.now)) {
                return Err(format!("a socket was sent to {remote:?}, which the Service does not have"));
            }
        }
        let rests = self.resting.get(&client).is_some_and(|until| *until > self.now);
        // What stays within one host passes no edge.
        if rests || client.0 == remote.0 || self.sockets.contains_key(&(number, client, remote)) {
            return Ok(());
        }
        let own = (number, addr(ip), Port::new(client.1));
        if from_node && !self.cluster.kernel.maps.sockets.borrow_mut().insert(own) {
            return Ok(());
        }
        if from_node {
            self.events.note(Event::SocketDialled);
        }
        let id = self.conns.len();
        self.sockets.insert((number, client, remote), id);
        self.live.push(id);
        self.conns.push(Conn {
            protocol: number,
            client,
            remote,
            list,
            backend: None,
            since: self.step,
            former: Vec::new(),
            haunted: self.haunted.remove(&(number, client, remote)),
            crossed: false,
            begun_again: false,
            forgotten: false,
            sent: [0; 2],
            tuple: None,
            answered: false,
            fins: [false; 2],
            client_fin: false,
            server_fin: false,
            ready: false,
            server_done: false,
            heard: self.now,
            closed: None,
        });
        self.send(id, SYN);
        Ok(())
    }

    /// A port for a socket of the node; often one that a masqueraded flow has or had.
    fn own_port(&mut self, number: u8) -> u16 {
        let own = addr(self.cluster.plan.node);
        let flows = self.cluster.kernel.maps.flows.borrow();
        let mut taken: Vec<u16> = flows
            .keys()
            .filter(|key| key.dst == own && key.protocol == number && key.hook == 0)
            .map(|key| key.dport.number())
            .filter(|port| (1024..30_000).contains(port))
            .collect();
        taken.sort_unstable();
        drop(flows);
        let other = 1024 + self.dice.below(28_000) as u16;
        if self.dice.chance(500) { self.dice.pick(&taken).unwrap_or(other) } else { other }
    }

    fn close(&mut self, id: usize) {
        let conn = &mut self.conns[id];
        if conn.closed.is_some() {
            return;
        }
        conn.closed = Some(self.now);
        if conn.begun_again {
            self.haunted.insert((conn.protocol, conn.client, conn.remote));
        }
        self.sockets.remove(&(conn.protocol, conn.client, conn.remote));
        self.resting.insert(conn.client, self.now + REST);
        let own = (conn.protocol, addr(conn.client.0), Port::new(conn.client.1));
        self.cluster.kernel.maps.sockets.borrow_mut().remove(&own);
    }

    /// Like [`Self::close`], and not everybody may have heard of it.
    fn abandon(&mut self, id: usize) {
        let conn = &self.conns[id];
        self.haunted.insert((conn.protocol, conn.client, conn.remote));
        self.close(id);
    }

    /// The client sends.
    fn send(&mut self, id: usize, flags: Flags) {
        let token = Token { conn: id, from_server: false, challenge: false };
        let conn = &mut self.conns[id];
        conn.fins[0] |= flags.fin;
        let (number, from, to) = (conn.protocol, conn.client, conn.remote);
        self.emit(number, flags, from, to, token);
        if flags.rst {
            self.events.note(Event::Reset);
            self.abandon(id);
        }
    }

    fn emit(&mut self, number: u8, flags: Flags, from: End, to: End, token: Token) {
        let sent = &mut self.conns[token.conn].sent[usize::from(token.from_server)];
        let numbers = numbers(token.conn, token.from_server, flags, *sent);
        *sent += 1;
        self.emit_numbered(number, flags, numbers, (from, to), token);
    }

    fn emit_numbered(
        &mut self,
        number: u8,
        flags: Flags,
        numbers: Numbers,
        (from, to): (End, End),
        token: Token,
    ) {
        let frame = numbered(number, flags, numbers, from, to, &token.bytes());
        // The node's own packets pass no edge on their way into its stack.
        let ingress = from.0 != self.cluster.plan.node;
        self.flying.push(Flying { frame, mark: 0, note: 0, ingress, born: self.now });
    }

    /// A connection does something.
    pub fn act(&mut self) -> Done {
        if self.live.is_empty() {
            return self.open();
        }
        let place = self.dice.below(self.live.len());
        let id = self.live[place];
        if self.conns[id].is_live() && self.conns[id].is_stale(self.now) {
            self.abandon(id);
        }
        let conn = &self.conns[id];
        if !conn.is_live() {
            self.live.swap_remove(place);
            return Ok(());
        }
        if !conn.is_tcp() {
            if self.dice.chance(30) { self.close(id) } else { self.send(id, ACK) }
        } else if !conn.answered {
            self.send(id, SYN);
        } else if conn.is_ending() && self.dice.chance(300) {
            self.abandon(id);
        } else {
            let (ready, fin) = (conn.ready, conn.client_fin);
            match self.dice.below(100) {
                0..60 => self.send(id, ACK),
                60..85 if ready => self.reply(id, ACK),
                85..93 if !fin => self.send(id, FIN),
                93..98 if ready => self.reply(id, FIN),
                98 => self.send(id, RST),
                99 if ready => self.reply(id, RST),
                _ => {}
            }
        }
        Ok(())
    }

    /// The server of a connection sends.
    fn reply(&mut self, id: usize, flags: Flags) {
        let Some((own, other)) = self.conns[id].tuple else { return };
        let conn = &mut self.conns[id];
        conn.server_done |= flags.rst;
        conn.fins[1] |= flags.fin;
        let number = conn.protocol;
        self.emit(number, flags, own, other, Token { conn: id, from_server: true, challenge: false });
        if flags.rst {
            self.abandon(id);
        }
    }

    /// Some packet under way comes to its next hook, or is lost, or doubled.
    pub fn deliver(&mut self) -> Done {
        if self.flying.is_empty() {
            return self.act();
        }
        let place = self.dice.below(self.flying.len().min(16));
        if self.flying[..place].iter().any(|earlier| earlier.born < self.flying[place].born) {
            self.events.note(Event::Overtook);
        }
        let flying = self.flying.swap_remove(place);
        if self.dice.chance(30) {
            self.events.note(Event::Lost);
            return Ok(());
        }
        if self.dice.chance(10) {
            self.events.note(Event::Doubled);
            self.flying.push(flying.clone());
        }
        if !self.cluster.is_idle() {
            self.events.note(Event::AmidWrites);
        }
        let before = read(&flying.frame);
        let token = Token::of(&flying.frame).ok_or("a frame without token")?;
        // The node's own sockets have no edge.
        if !flying.ingress && before.dst.0 == self.cluster.plan.node {
            return self.arrive(&before, token);
        }
        let (verdict, out) =
            self.cluster.kernel.run_watched(flying.ingress, flying.frame, flying.mark, flying.note)?;
        self.forget(self.conns[token.conn].protocol, flying.ingress, &before)?;
        check_pairs(&self.cluster.kernel.maps)?;
        // The handshake begins anew where the flow is not closed yet, though one side has sent FIN.
        self.conns[token.conn].begun_again |= before.flags.syn && self.conns[token.conn].fins != [false; 2];
        match verdict {
            Verdict::Drop(reason) => self.dropped(token, &before, reason),
            Verdict::Reject(reason) => {
                let answer = read(&out.bytes);
                if (answer.src.0, answer.dst.0) != (before.dst.0, before.src.0) {
                    return Err("a refusal goes to somebody else".into());
                }
                self.refused(token, reason)
            }
            Verdict::Pass | Verdict::Shortcut => {
                let after = read(&out.bytes);
                if verdict == Verdict::Shortcut {
                    self.events.note(Event::PassedBy);
                }
                if !flying.ingress {
                    return self.arrive(&after, token);
                }
                if !token.from_server && !self.translated(token.conn, &before, &after)? {
                    return Ok(());
                }
                // Past the stack, too, a packet meets the programs at the device's egress.
                let (frame, mark, note) = (out.bytes, out.mark, out.note);
                self.flying.push(Flying { frame, mark, note, ingress: false, born: flying.born });
                Ok(())
            }
        }
    }

    /// A client hears.
    fn hear(&mut self, packet: &Read, token: Token) -> Done {
        let (id, now) = (token.conn, self.now);
        let socket = self.sockets.get(&(self.conns[id].protocol, packet.dst, packet.src)).copied();
        // A segment that answers another connection's SYN, as the numbers in it show: the client's RST ends that one at the
        // server, if it is half open there.
        let foreign = token.challenge || packet.flags == SYN_ACK;
        if let Some(other) = socket
            && other != id
            && (foreign || self.conns[id].crossed)
            && !self.conns[other].answered
        {
            // Two opened with one five-tuple at the same moment: the next SYN will know.
            self.conns[id].crossed |= self.conns[id].list.is_none() && packet.flags == SYN_ACK;
            let token = Token { conn: other, from_server: false, challenge: true };
            let (_, acknowledged) = packet.numbers;
            let ends = (packet.dst, packet.src);
            self.emit_numbered(protocol::TCP, RST, (acknowledged, 0), ends, token);
            return Ok(());
        }
        let conn = &mut self.conns[id];
        if !conn.is_live() {
            return Ok(());
        }
        if socket != Some(id) {
            // Forgotten in the middle of its handshake: what the server has heard by another port it answers to that port. The old
            // place of a flow of datagrams may be another's by now.
            let moved = conn.forgotten
                || match conn.is_tcp() {
                    true => conn.former.contains(&packet.src),
                    false => !conn.former.is_empty() || self.cluster.made_anew(conn, now),
                };
            conn.crossed |= conn.list.is_none() && packet.flags == SYN_ACK;
            if moved || conn.crossed || packet.flags == SYN_ACK || conn.is_ending() {
                return Ok(());
            }
            return Err(format!("an answer to {conn:?} comes from {:?} to {:?}", packet.src, packet.dst));
        }
        if conn.is_tcp() && !bears_numbers_of(packet, id, true) {
            return Err(format!("an answer to {conn:?} has the numbers {:?}", packet.numbers));
        }
        if conn.is_tcp() && !conn.answered {
            self.events.note(Event::Established);
        }
        (conn.heard, conn.answered) = (now, true);
        conn.server_fin |= conn.is_tcp() && packet.flags.fin;
        if conn.is_tcp() && (packet.flags.rst || conn.client_fin && conn.server_fin) {
            self.events.note(if packet.flags.rst { Event::Reset } else { Event::Closed });
            self.close(id);
        } else if packet.flags == SYN_ACK {
            self.send(id, ACK);
        }
        Ok(())
    }

    /// A server hears.
    fn serve(&mut self, packet: &Read, id: usize) -> Done {
        let (own, other, now) = (packet.dst, packet.src, self.now);
        let number = self.conns[id].protocol;
        let key = (number, own, other);
        let holder = self.servers.get(&key).copied();
        let held = holder.filter(|holder| *holder != id).filter(|holder| {
            let holder = &self.conns[*holder];
            !holder.is_over_for_server(now) && (holder.is_tcp() || !self.cluster.made_anew(holder, now))
        });
        let conn = &mut self.conns[id];
        if packet.flags.rst && held.is_none() && !bears_numbers_of(packet, id, false) {
            // It answers a segment of another connection, which was here.
            return Ok(());
        }
        if !conn.is_live() || (conn.is_ending() && holder != Some(id)) {
            conn.server_done |= packet.flags.rst || packet.flags.fin;
            return Ok(());
        }
        if (0..BACKENDS).all(|n| self.cluster.plan.backend(n) != own) {
            return Err(format!("a packet of {conn:?} arrives at {own:?}"));
        }
        if conn.former.contains(&own) && conn.backend != Some(own) {
            // Too late: the flow has been moved.
            return Ok(());
        }
        if let Some(holder) = held {
            if packet.flags == SYN && conn.is_tcp() {
                let token = Token { conn: holder, from_server: true, challenge: true };
                self.emit(number, ACK, own, other, token);
                return Ok(());
            }
            let conn = &mut self.conns[holder];
            let here = conn.tuple == Some((own, other));
            let to_lose = conn.is_ending() || !conn.ready || !here || conn.crossed;
            if packet.flags.rst && to_lose && is_number_of(packet.numbers.0, holder, false) {
                if here {
                    conn.server_done = true;
                    conn.tuple = None;
                }
                self.servers.remove(&key);
                return Ok(());
            }
            let (conn, holder) = (&self.conns[id], &self.conns[holder]);
            if (conn.forgotten || conn.crossed) && conn.is_tcp() {
                // Its own port is another's there by now, which sees by the numbers that this is not for it.
                return Ok(());
            }
            let flags = packet.flags;
            return Err(format!(
                "{other:?} at {own:?} is {holder:?}, and brings bytes of {conn:?}: {flags:?}"
            ));
        }
        if holder != Some(id) && packet.flags.rst {
            return Ok(());
        }
        if holder != Some(id) && conn.is_tcp() && packet.flags != SYN {
            if conn.former.contains(&own) || conn.crossed {
                // A reset has ended it here, while the SYN-ACK from before was still on its way, or it is elsewhere.
                self.emit(number, RST, own, other, Token { conn: id, from_server: true, challenge: false });
                return Ok(());
            }
            if conn.forgotten {
                // As it was before the flow had another port.
                return Ok(());
            }
            return Err(format!(
                "a segment of {conn:?} comes to {own:?} as {other:?}, which it has not opened"
            ));
        }
        if conn.is_tcp() && !bears_numbers_of(packet, id, false) {
            return Err(format!("{own:?} hears the numbers {:?} of {conn:?}", packet.numbers));
        }
        conn.heard = now;
        if conn.list.is_some() && other.0 == self.cluster.plan.node && other.0 != conn.client.0 {
            self.events.note(Event::Masqueraded);
        }
        // A SYN that comes late, by the port that the flow had before, is another half-open connection to the server.
        let late = conn.ready && packet.flags == SYN;
        if !late
            && let Some((own, other)) = conn.tuple.replace((own, other))
            && !conn.is_tcp()
        {
            self.servers.remove(&(number, own, other));
        }
        self.servers.insert(key, id);
        let conn = &mut self.conns[id];
        if !conn.is_tcp() {
            if self.dice.chance(700) {
                self.emit(number, ACK, own, other, Token { conn: id, from_server: true, challenge: false });
            }
        } else if packet.flags == SYN {
            self.emit(number, SYN_ACK, own, other, Token { conn: id, from_server: true, challenge: false });
        } else {
            conn.ready = true;
            conn.client_fin |= packet.flags.fin;
            conn.server_done |= packet.flags.rst || conn.client_fin && conn.server_fin;
            if conn.client_fin && conn.server_fin {
                self.events.note(Event::Closed);
                self.close(id);
            }
        }
        Ok(())
    }
}
