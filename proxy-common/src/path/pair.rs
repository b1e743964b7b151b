//! The two halves of a flow, made together, removed together; and the two pairs of a masqueraded flow, removed together.

use super::scratch::Scratch;
use super::traits::{Entry, Insert, Tables};
use super::verdict::Verdict;
use super::{reclaim, time};
use crate::abi::{Addr, Flow, FlowKey, FrontendKey, Hook, Kind, Port, Reason, news, protocol, state};
use crate::wire::{Diff, Headers};

/// Source ports tried before a flow is refused (P-62).
const PORT_TRIES: u32 = 8;

/// Removes both halves, and the pair at the other edge if the flow is masqueraded: what one pair alone still translates is
/// translated half, and names to one end what only the other knows (P-67). `kind` is that of the entry at `key`, `state` what both
/// halves have shown. Not that of the client's edge, if it `stays` there. Whether there was an entry at `key`.
#[inline(always)]
pub(super) fn remove<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    partner: &FlowKey<N>,
    kind: u8,
    state: u8,
    stays: bool,
) -> bool {
    let at_backend = kind >= Kind::Masquerade as u8;
    let egress = if key.hook == Hook::Egress as u8 { key } else { partner };
    // The backend's edge first, so that no answer is unmasqueraded that nobody restores.
    if !at_backend && state & state::MARK != 0 {
        tables.remove_beyond(egress, Kind::Masquerade as u32);
    }
    tables.remove_flow(partner);
    let was_there = tables.remove_flow(key);
    if at_backend && !stays {
        tables.remove_beyond(egress, Kind::Restore as u32);
    }
    let forth = if is_reply(kind) { partner } else { key };
    tables.tell_news(news::of_client(&forth.src, forth.sport));
    was_there
}

/// Whether a pair has ended, and whether it leaves its turn to the one that takes its place under the same key: that one then needs no
/// turn of its own, and room has been made. Whoever has removed the forward entry has the turn to leave, and leaves it within the
/// same run of a program: the ring keeps it once without a pair.
///
/// A plain number, since it crosses calls.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End(pub u64);

impl End {
    /// It has not ended.
    pub const NONE: Self = Self(0);
    /// There is none, or somebody else has its turn.
    pub const NO_TURN: Self = Self(1 << 32);

    /// It leaves the turn of the pair with this [`Flow::serial`].
    #[inline(always)]
    pub(super) const fn leaving(serial: u32) -> Self {
        Self(2 << 32 | serial as u64)
    }

    /// The turn that is left, as [`Flow::serial`] of the next pair.
    #[inline(always)]
    const fn left(self) -> Option<u32> {
        if self.0 >> 32 == 2 { Some(self.0 as u32) } else { None }
    }
}

/// Keys of the pair at the other edge.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Beyond<const N: usize> {
    egress: FlowKey<N>,
    ingress: FlowKey<N>,
}

impl<const N: usize> Beyond<N> {
    /// Holds nothing yet.
    pub const EMPTY: Self = {
        let key = Headers::<N>::EMPTY.key;
        Self { egress: key, ingress: key }
    };
}

/// Removes a masqueraded flow's pair at the other edge, whose egress entry is of this kind; `egress` is this edge's egress
/// key. What `room` holds before does not matter.
#[inline(always)]
pub fn remove_beyond<const N: usize, T: Tables<N>>(
    tables: &T,
    egress: &FlowKey<N>,
    kind: u32,
    room: &mut Beyond<N>,
) {
    room.egress = egress.mirrored();
    let Some(entry) = tables.flow(&room.egress) else { return };
    if !is_of(&entry, &room.egress, kind) {
        return;
    }
    entry.write_partner(&room.egress, &mut room.ingress);
    tables.remove_flow(&room.ingress);
    tables.remove_flow(&room.egress);
}

/// Whether what was found under `key` is an entry of this kind: two pods that serve each other have other kinds there.
#[inline(always)]
pub(super) fn is_of<const N: usize, E: Entry<N>>(entry: &E, key: &FlowKey<N>, kind: u32) -> bool {
    entry.kind() as u32 == kind && entry.tag() == key.tag()
}

/// Removes the pair of the reply's key when its TCP connection is over, as [`is_over`] says. Whether there is none now.
/// Overwrites `scratch.turn`.
#[inline(never)]
pub(super) fn remove_if_closed<const N: usize, T: Tables<N>>(tables: &T, scratch: &mut Scratch<N>) -> bool {
    // The stack has no room for another key.
    let (key, partner) = (&scratch.reply_key, &mut scratch.turn.key);
    let Some(entry) = tables.flow(key) else { return true };
    if entry.tag() != key.tag() {
        return true;
    }
    entry.write_partner(key, partner);
    let other = tables.flow(partner);
    if !is_over(tables, &entry, other.as_ref()) {
        return false;
    }
    let state = entry.state() | other.map_or(0, |other| other.state());
    remove(tables, key, partner, entry.kind(), state, false);
    true
}

/// Whether both sides of a connection have sent FIN, or one has reset, or half of its pair is lost. `other`: the entry that is the
/// partner of `entry`.
///
/// A client's reset alone is believed after [`reclaim::DOUBT`], as whoever knows the ports can forge it: a new connection of its
/// own goes on by the same pair meanwhile (P-43). In one that has not lasted for so long it is believed at once: who resets each of its
/// connections and dials again by the same port would stay with one endpoint.
#[inline(always)]
pub(super) fn is_over<const N: usize, T: Tables<N>>(
    tables: &T,
    entry: &T::Entry,
    other: Option<&T::Entry>,
) -> bool {
    let Some(other) = other else { return true };
    let now = tables.now();
    let idle = time::since(entry.seen(), now).min(time::since(other.seen(), now));
    let (forth, back) = if is_reply(entry.kind()) { (other, entry) } else { (entry, other) };
    let (forth, back) = (forth.state(), back.state());
    let doubted = idle < reclaim::DOUBT
        && time::age(entry.created(), now) >= reclaim::DOUBT
        && !closed(forth & !state::RST, back);
    closed(forth, back) && !doubted
}

/// Whether an entry of this [`Kind`] is that of the answers.
#[inline(always)]
pub(super) const fn is_reply(kind: u8) -> bool {
    kind == Kind::Restore as u8 || kind == Kind::Unmasquerade as u8
}

/// Starts the forward half in the scratch room: the packet will come from `src`. Where it goes is the caller's to say, the rest is written by
/// [`insert_pair`].
#[inline(always)]
pub(super) fn start<const N: usize>(flow: &mut Flow<N>, src: &Addr<N>, kind: Kind, ifindex: u32) {
    flow.src = *src;
    flow.kind = kind as u8;
    flow.ifindex = ifindex;
    flow.state = state::SEEN;
    flow.service = Flow::<N>::NO_SERVICE;
    flow.endpoint = 0;
    flow.generation = 0;
    flow.proof = 0;
    flow.lease = 0;
    flow.far = 0;
}

/// The verdict of a hook that has tried to open a flow.
pub(super) fn verdict(opened: Option<Result<Verdict, Reason>>) -> Verdict {
    match opened {
        Some(Ok(verdict)) => verdict,
        Some(Err(reason)) => Verdict::Drop(reason),
        None => Verdict::Drop(Reason::Rewrite),
    }
}

/// Whether a connection whose two directions have shown `a` and `b` is over.
#[inline(always)]
pub(super) const fn closed(a: u8, b: u8) -> bool {
    (a | b) & state::RST != 0 || a & b & state::FIN != 0
}

/// Source port number `attempt` of a flow whose forward half is of this [`Kind`]: first from below 30,000, which ephemeral sockets do not use,
/// nor kernel MASQUERADE unless it draws ports as kube-proxy's does (`--random-fully`), then from the rest.
///
/// What a client has between the edges and what the node has towards the backend come from different halves. The client may be another
/// node, whose masqueraded flows come straight to a backend here: by one port with a flow of its own processes, which has its port from this
/// node, they would be taken for that (P-60).
#[inline(always)]
pub(super) const fn candidate(secret: u32, attempt: u32, kind: u8) -> Port {
    const HALF: u64 = 14_488;
    let mut hash = (secret ^ attempt.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 15;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^= hash >> 13;
    let (first, count) = match attempt < PORT_TRIES - 2 {
        true if kind == Kind::Masquerade as u8 => (1024 + HALF, HALF),
        true => (1024, HALF),
        false => (30_000, 35_536),
    };
    Port::new((first + ((hash as u64 * count) >> 32)) as u16)
}

/// Source ports that the packet with this key may get in place of its own, from a pair whose forward half is of this kind, in the order in
/// which they are tried while there is no [storm](reclaim::is_storm).
pub fn other_ports<const N: usize>(
    seed: u32,
    key: &FlowKey<N>,
    kind: Kind,
) -> impl Iterator<Item = Port> + use<N> {
    let secret = seed ^ key.tag();
    (0..PORT_TRIES).map(move |attempt| candidate(secret, attempt, kind as u8))
}

/// Opens a flow, as [`insert_pair`] says: a drop's reason if that fails.
#[inline(always)]
pub(super) fn open<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    scratch: &mut Scratch<N>,
    keep_port: bool,
    avoid: Port,
) -> Result<(), Reason> {
    match Verdict::from_code(tables.insert_pair(key, scratch, keep_port, avoid)) {
        Verdict::Drop(reason) => Err(reason),
        _ => Ok(()),
    }
}

/// [`Verdict::code`] where a source port is taken.
const TAKEN: u32 = Verdict::Drop(Reason::PortsExhausted).code();
/// Where there is no room.
const FULL: u32 = Verdict::Drop(Reason::FlowTableFull).code();

/// Inserts the pair of a new flow with the first source port that it can have: [`Verdict::code`] of a pass, or of a drop that says why
/// there is none. `scratch.flow` is the forward half without source port, times and tag. The reply's key is exclusive: when a live flow
/// owns it, this one takes another source port; without `keep_port` it does so in any case, but not `avoid`. What has been
/// [`before`](Scratch::before) may leave it its turn.
#[inline(always)]
pub fn insert_pair<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    scratch: &mut Scratch<N>,
    keep_port: bool,
    avoid: Port,
) -> u32 {
    let (flow, now) = (&mut scratch.flow, tables.time());
    flow.created = now as u32;
    flow.seen = time::tick(now);
    flow.serial = match scratch.before.left() {
        Some(serial) => {
            flow.state |= state::INHERITS;
            serial
        }
        None => tables.random(),
    };
    flow.tag = key.tag();
    flow.address_diff = Diff::address(&key.src, &flow.src).and(Diff::address(&key.dst, &flow.dst)).0;
    // Here and not in `start`: four words of zeros in a row would be written by memset, byte by byte.
    flow.size = 0;
    if scratch.before.left().is_none() && !reclaim::is_at_ease(tables) && !tables.make_room() {
        return FULL;
    }
    let secret = tables.seed() ^ scratch.flow.tag;
    // Between the edges an endpoint that dials itself by its own port would be its own answer.
    let own = if scratch.flow.src.same(&scratch.flow.dst) { scratch.flow.dport } else { Port(0) };
    // A flood leaves the backend with halves of connections for as long as it goes on answering them. Who draws such a port waits for a
    // second: those of calm times are kept free of them (P-65).
    let is_masqueraded = scratch.flow.kind == Kind::Masquerade as u8;
    let storms = is_masqueraded && key.protocol == protocol::TCP && reclaim::is_storm(tables);
    let first = if storms { PORT_TRIES - 2 } else { 0 };
    for attempt in 0..PORT_TRIES {
        let keeps = keep_port && attempt == 0;
        let port = if keeps { key.sport } else { candidate(secret, first + attempt, scratch.flow.kind) };
        if port == own || port == avoid {
            continue;
        }
        scratch.flow.sport = port;
        // A connection that has just closed lives on at the endpoint, in TIME_WAIT: to another client's SYN from its port it answers
        // with an ACK, which costs that client a second. Its own client's next one is taken for what it is.
        let takes_closed = attempt >= PORT_TRIES - 2 || keeps;
        let code = tables.attempt(key, scratch, keeps, takes_closed);
        if code != TAKEN {
            return code;
        }
    }
    TAKEN
}

/// Whether nobody else has the source port of a forward half whose packets have this key. What leaves with an address of the node must not
/// take a NodePort, nor a port that a socket of its own has towards the backend (P-64).
#[inline(always)]
fn is_free<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>, flow: &Flow<N>) -> bool {
    if flow.kind != Kind::Masquerade as u8 {
        return true;
    }
    let frontend =
        FrontendKey { address: Addr::UNSPECIFIED, port: flow.sport, protocol: key.protocol, pad: 0 };
    tables.frontend(&frontend).is_none() && !tables.local_socket(key, &flow.src, flow.sport)
}

/// Inserts the pair with the source port that `scratch.flow` has, and gives it its turn: [`Verdict::code`] of a pass, or of a drop:
/// there is no room, or the port is taken ([`Reason::PortsExhausted`]). `keeps`: it is the packet's own. `takes_closed`: a pair whose
/// connection is over makes way. All else is as [`insert_pair`] has left it.
#[inline(always)]
pub fn attempt<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    scratch: &mut Scratch<N>,
    keeps: bool,
    takes_closed: bool,
) -> u32 {
    if !keeps && !is_free(tables, key, &scratch.flow) {
        return TAKEN;
    }
    match insert_halves(tables, key, scratch, takes_closed) {
        Insert::Done if scratch.before.left().is_some() || reclaim::queue(tables, key, scratch) => {
            tables.count(Reason::FlowCreated);
            return Verdict::Pass.code();
        }
        Insert::Done => {
            tables.remove_flow(&scratch.reply_key);
            tables.remove_flow(key);
        }
        Insert::Exists if adopt(tables, key, scratch) => return Verdict::Pass.code(),
        Insert::Exists => return TAKEN,
        Insert::Full => {}
    }
    FULL
}

/// Whether another CPU has opened the same flow meanwhile, for a packet that came at the same time: its pair is this one's as well, whatever
/// backend was drawn here.
///
/// A subprogram of its own: it is rare.
#[inline(never)]
fn adopt<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>, scratch: &mut Scratch<N>) -> bool {
    let Some(entry) = tables.flow(key) else { return false };
    if !is_of(&entry, key, scratch.flow.kind.into()) {
        return false;
    }
    entry.read_to(&mut scratch.flow);
    true
}

/// Whether another CPU is about to insert the other half of the pair whose reply's half is there.
///
/// A subprogram of its own: it is rare.
#[inline(never)]
fn is_half_made<const N: usize, T: Tables<N>>(tables: &T, scratch: &mut Scratch<N>) -> bool {
    let Some(entry) = tables.flow(&scratch.reply_key) else { return false };
    entry.write_partner(&scratch.reply_key, &mut scratch.turn.key);
    time::age(entry.created(), tables.now()) <= 1 && tables.flow(&scratch.turn.key).is_none()
}

/// The reply's half first: without it an answer would reach the client unrestored.
#[inline(always)]
fn insert_halves<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    scratch: &mut Scratch<N>,
    takes_closed: bool,
) -> Insert {
    scratch.flow.write_partner(key, &mut scratch.reply_key);
    // Field by field: a whole value would be built on the stack first.
    let (flow, reply) = (&scratch.flow, &mut scratch.reply);
    reply.src = key.dst;
    reply.dst = key.src;
    reply.sport = key.dport;
    reply.dport = key.sport;
    reply.address_diff = !flow.address_diff;
    reply.seen = flow.seen;
    reply.created = flow.created;
    reply.service = flow.service;
    reply.endpoint = flow.endpoint;
    reply.ifindex = flow.ifindex;
    reply.serial = flow.serial;
    reply.generation = flow.generation;
    reply.kind = flow.kind + 1;
    reply.state = 0;
    reply.proof = 0;
    reply.tag = scratch.reply_key.tag();
    reply.lease = 0;
    reply.far = 0;
    // Zero; see `insert_pair`.
    reply.size = flow.size;
    let mut inserted = tables.insert_flow(&scratch.reply_key, &scratch.reply);
    if inserted == Insert::Exists
        && takes_closed
        && !is_half_made(tables, scratch)
        && remove_if_closed(tables, scratch)
    {
        inserted = tables.insert_flow(&scratch.reply_key, &scratch.reply);
    }
    if inserted != Insert::Done {
        return inserted;
    }
    match tables.insert_flow(key, &scratch.flow) {
        Insert::Done => Insert::Done,
        other => {
            tables.remove_flow(&scratch.reply_key);
            other
        }
    }
}
