//! The node's kernel: maps, clock and dice, and the faults that can be planted in them.

use std::borrow::BorrowMut;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;
use proxy_common::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey,
    Hook, Kind, MOMENTS, Port, Reason, Recent, Service, Turn, news, state,
};
use proxy_common::path::{self, Entry, Insert, Looked, Scratch, Tables, Verdict, Worth, repeatable_draw};
use proxy_common::wire::{Headers, Transport, parse, tcp_flags};
use proxy_userspace::sync::Step;

use super::store::Shadow;
use crate::packet::frame::{ETHERNET, End};
use crate::packet::host::Frame;
use crate::packet::maps::{Held, Maps};
use crate::packet::world::{self, IFINDEX, Writer, addr};

/// A segment with these flags answers a SYN.
const SYN_ACK: u8 = tcp_flags::SYN | tcp_flags::ACK;

/// A bug on purpose, to show that it would be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Now and then a removal does not happen: one half of a flow outlives the other.
    HalfLost,
    /// Slots are used again at once.
    EarlyReuse,
    /// An insert takes a key that another flow owns: a port is given twice.
    PortTwice,
}

pub struct Kernel<const N: usize> {
    pub maps: Maps<N>,
    /// The same contents as an agent would read them back.
    pub real: Shadow,
    /// Services as they were lately, and until when: a program that runs meanwhile still has such a value in hand, for far
    /// less time than the agent's grace period.
    before: HashMap<u32, Vec<(Service, u32)>>,
    fault: Fault,
    calls: Cell<u32>,
    /// Reads that gave what had been there before.
    pub old_values: Cell<u64>,
}

impl<const N: usize> Kernel<N> {
    pub fn new(pairs: u32, config: Config, device: Device, fault: Fault) -> Self {
        let mut maps = Maps::empty(pairs, config);
        Writer::device(&mut maps, IFINDEX, device);
        maps.journal = Some(RefCell::default());
        let real = Shadow::default();
        Self { maps, real, before: HashMap::new(), fault, calls: Cell::new(0), old_values: Cell::new(0) }
    }

    /// One map write of the agent.
    pub fn write(&mut self, step: &Step) {
        self.real.apply(step);
        let now = self.maps.now();
        match step {
            Step::Chunks(..) | Step::Affinity(_) => {}
            Step::Endpoints(list) => {
                list.iter().for_each(|endpoint| self.maps.endpoint(endpoint.id, endpoint.generation.into()));
                self.maps.tell_news(news::OF_AGENT);
            }
            Step::Slots(_, list) => self.maps.set_slots(list.iter().map(|(at, slot)| {
                let (address, port) = (addr(slot.address.ip()), Port::new(slot.address.port()));
                let (id, generation) = (slot.endpoint.id, slot.endpoint.generation);
                (*at, Backend { address, port, generation, id })
            })),
            Step::Services(list) => {
                for &(index, word) in list {
                    let old = self.maps.services.get(&index).copied().unwrap_or(Service::FREE);
                    let mut new = old;
                    word.put(&mut new);
                    let before = self.before.entry(index).or_default();
                    before.retain(|(_, until)| now <= until + 1);
                    before.push((old, now));
                    self.maps.services.insert(index, new);
                }
            }
            Step::Frontends(list) => {
                self.maps.frontends.extend(list.iter().map(|(key, to)| (frontend_key(key), *to)));
            }
            Step::RemoveFrontends(list) => {
                list.iter().for_each(|key| _ = self.maps.frontends.remove(&frontend_key(key)));
            }
            Step::Ranges(list) => {
                let range = |(service, net): &(u32, IpNet)| {
                    self.maps.range(*service, addr(net.addr()), u32::from(net.prefix_len()));
                };
                list.iter().for_each(range);
            }
            Step::RemoveRanges(list) => list.iter().for_each(|(service, net)| {
                let gone = (*service, addr(net.addr()), u32::from(net.prefix_len()));
                self.maps.ranges.retain(|range| *range != gone);
            }),
            Step::Addresses(list) => list.iter().for_each(|(ip, bits)| self.maps.address(addr(*ip), *bits)),
            Step::RemoveAddresses(list) => {
                list.iter().for_each(|ip: &IpAddr| _ = self.maps.addresses.remove(&addr(*ip)));
            }
        }
    }

    /// Runs one hook, and sees to it that the packet has not opened again what was closed: by FINs from both sides for good, and
    /// by a reset for a SYN-ACK, which may be one from before.
    pub fn run_watched(
        &self,
        ingress: bool,
        bytes: Vec<u8>,
        mark: u32,
        note: u16,
    ) -> Result<(Verdict, Frame), String> {
        let frame = Frame::new(bytes, mark, IFINDEX);
        let (mut room, hook) = (Headers::EMPTY, if ingress { Hook::Ingress } else { Hook::Egress });
        let _ = parse(&frame, ETHERNET as u32, hook, &mut room);
        let ends = if matches!(room.transport, Transport::Connection(flags) if flags & SYN_ACK == SYN_ACK) {
            state::FIN | state::RST
        } else {
            state::FIN
        };
        let before = self.ends(&room.key, ends);
        let ran = self.run(ingress, Frame { note, unfinished: Some(false), routes: [IFINDEX; 2], ..frame });
        match (before, self.ends(&room.key, ends)) {
            (Some((flow, true)), Some((now, false))) if flow.is(&now) => {
                Err(format!("a closed flow has been opened again: {:?}", room.key))
            }
            _ => Ok(ran),
        }
    }

    /// The flow with this key, and whether these bits of its state say that it is closed.
    fn ends(&self, key: &FlowKey<N>, bits: u8) -> Option<(Held<N>, bool)> {
        let entry = self.maps.flow(key)?;
        let partner = self.maps.flow(&entry.partner(key))?;
        let (a, b) = (entry.state() & bits, partner.state() & bits);
        Some((entry, (a | b) & state::RST != 0 || a & b & state::FIN != 0))
    }

    /// Runs one hook.
    pub fn run(&self, ingress: bool, mut frame: Frame) -> (Verdict, Frame) {
        let mut room = Headers::EMPTY;
        let l3 = ETHERNET as u32;
        let verdict = if ingress {
            path::ingress(&mut frame, self, &mut room, l3)
        } else {
            path::egress(&mut frame, self, &mut room, l3)
        };
        (verdict, frame)
    }

    /// An agent starts, which takes far longer than a program runs: nobody holds old values any more.
    pub fn let_go(&mut self) {
        self.before.clear();
    }

    pub fn set_clock(&self, tick: u32) {
        self.maps.config.set(Config { test_clock: tick, ..self.maps.config.get() });
    }

    /// Once in `n` calls.
    fn once_in(&self, n: u32) -> bool {
        let call = self.calls.get();
        self.calls.set(call.wrapping_add(1));
        repeatable_draw(self.maps.seed() ^ 0xfa17, call).is_multiple_of(n)
    }
}

fn frontend_key<const N: usize>(key: &proxy_userspace::sync::Dialled) -> FrontendKey<N> {
    FrontendKey {
        address: addr(key.address),
        port: Port::new(key.port),
        protocol: key.protocol.number(),
        pad: 0,
    }
}

impl<const N: usize> Tables<N> for Kernel<N> {
    type Entry = Held<N>;

    fn service(&self, index: u32) -> Option<Service> {
        let in_hand = |(_, until): &&(Service, u32)| self.now() <= until + 1;
        let before: Vec<_> = self.before.get(&index).into_iter().flatten().filter(in_hand).collect();
        if before.is_empty() || !self.once_in(4) {
            return self.maps.service(index);
        }
        self.old_values.set(self.old_values.get() + 1);
        let drawn = repeatable_draw(self.maps.seed() ^ 0x01d, self.calls.get());
        Some(before[drawn as usize % before.len()].0)
    }
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert {
        match self.maps.insert_flow(key, flow) {
            Insert::Exists if self.fault == Fault::PortTwice && self.once_in(5) => {
                self.maps.remove_flow(key);
                self.maps.insert_flow(key, flow)
            }
            other => other,
        }
    }
    fn remove_flow(&self, key: &FlowKey<N>) -> bool {
        let keeps = self.fault == Fault::HalfLost && self.once_in(200);
        if keeps { self.maps.flow(key).is_some() } else { self.maps.remove_flow(key) }
    }

    // The rest is the maps' own.
    fn is_stranger(&self, address: &Addr<N>) -> bool {
        self.maps.is_stranger(address)
    }
    fn may_be_endpoint(&self, address: &Addr<N>) -> bool {
        self.maps.may_be_endpoint(address)
    }
    fn address_class(&self, address: &Addr<N>) -> AddressClass {
        self.maps.address_class(address)
    }
    fn frontend(&self, key: &FrontendKey<N>) -> Option<Frontend> {
        self.maps.frontend(key)
    }
    fn backend(&self, slot: u32) -> Option<Backend<N>> {
        self.maps.backend(slot)
    }
    fn is_source_allowed(&self, service: u32, source: &Addr<N>) -> bool {
        self.maps.is_source_allowed(service, source)
    }
    fn affinity(&self, key: &AffinityKey<N>, into: &mut Affinity<N>) -> bool {
        self.maps.affinity(key, into)
    }
    fn set_affinity(&self, key: &AffinityKey<N>, record: &Affinity<N>) {
        self.maps.set_affinity(key, record);
    }
    fn endpoint_generation(&self, id: u32) -> u32 {
        self.maps.endpoint_generation(id)
    }
    fn masquerade_address(&self, ifindex: u32) -> Option<Addr<N>> {
        self.maps.masquerade_address(ifindex)
    }
    fn device(&self, ifindex: u32) -> Option<impl std::borrow::Borrow<Device>> {
        self.maps.device(ifindex)
    }
    fn set_frames(&self, ifindex: u32, frames: [u32; 3]) {
        self.maps.set_frames(ifindex, frames);
    }
    fn config_flags(&self) -> u32 {
        self.maps.config_flags()
    }
    fn local_socket(&self, key: &FlowKey<N>, address: &Addr<N>, port: Port) -> bool {
        self.maps.local_socket(key, address, port)
    }
    fn recent(&self, place: u32) -> Option<impl BorrowMut<Recent<N>>> {
        self.maps.recent(place)
    }
    fn news(&self, place: u32) -> u32 {
        self.maps.news(place)
    }
    fn tell_news(&self, place: u32) {
        self.maps.tell_news(place);
    }
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R> {
        self.maps.scratch(work)
    }
    fn flow(&self, key: &FlowKey<N>) -> Option<Held<N>> {
        self.maps.flow(key)
    }
    fn ring_size(&self) -> u32 {
        self.maps.ring_size()
    }
    fn ring_used(&self) -> u32 {
        self.maps.ring_used()
    }
    fn ring_add(&self, change: u32) {
        self.maps.ring_add(change);
    }
    fn storm(&self) -> u32 {
        self.maps.storm()
    }
    fn set_storm(&self, moment: u32) {
        self.maps.set_storm(moment);
    }
    fn ring_push(&self, turn: &Turn<N>) -> bool {
        self.maps.ring_push(turn)
    }
    fn ring_pop(&self, turn: &mut Turn<N>) -> bool {
        self.maps.ring_pop(turn)
    }
    fn make_room(&self) -> bool {
        path::make_room(self, &mut Looked::EMPTY.clone())
    }
    fn is_pod(&self, ifindex: u32, source: &Addr<N>) -> Option<bool> {
        self.maps.is_pod(ifindex, source)
    }
    fn masquerade_all(&self) -> bool {
        self.maps.masquerade_all()
    }
    fn masquerade_mark(&self) -> u32 {
        self.maps.masquerade_mark()
    }
    fn seed(&self) -> u32 {
        self.maps.seed()
    }
    fn now(&self) -> u32 {
        self.maps.now()
    }
    fn random(&self) -> u32 {
        self.maps.random()
    }
    fn count(&self, reason: Reason) {
        self.maps.count(reason);
    }
}

/// A pair that a hook has removed.
pub struct Gone {
    pub protocol: u8,
    /// The client's end, and what it has dialled.
    pub ends: (End, End),
    /// It was one at the client's edge; the other follows it, whatever it has seen.
    pub at_client: bool,
    pub worth: Worth,
}

/// The pairs that a hook has removed, by its journal of the flow table.
pub fn gone<const N: usize>(maps: &Maps<N>) -> Vec<Gone> {
    let Some(journal) = &maps.journal else { return Vec::new() };
    let (journal, now) = (journal.borrow(), maps.now());
    let removed = |wanted: &FlowKey<N>| journal.iter().find_map(|(key, flow)| flow.filter(|_| key == wanted));
    let judged = |(key, flow): &(FlowKey<N>, Option<Flow<N>>)| {
        let flow = flow.filter(|_| maps.flow(key).is_none())?;
        let kind = flow.kind().filter(|kind| matches!(kind, Kind::Translate | Kind::Masquerade))?;
        let partner = flow.partner(key);
        let back = removed(&partner)?;
        let seen = flow.seen.max(back.seen);
        let (idle, lasted) = (now.saturating_sub(seen), seen - flow.created / MOMENTS);
        // What has ended it may have been lost between the edges.
        let beyond = partner.mirrored();
        let ended = removed(&beyond).is_some_and(|forth| {
            let back = removed(&forth.partner(&beyond)).map_or(0, |back| back.state);
            (forth.state | back) & state::RST != 0 || forth.state & back & state::FIN != 0
        });
        let worth = match path::worth(key.protocol, flow.state, back.state, idle, lasted) {
            Worth::Live if ended => Worth::Closed,
            worth => worth,
        };
        let ends = ((ip(&key.src), key.sport.number()), (ip(&key.dst), key.dport.number()));
        Some(Gone { protocol: key.protocol, ends, at_client: kind == Kind::Translate, worth })
    };
    journal.iter().filter_map(judged).collect()
}

fn ip<const N: usize>(address: &Addr<N>) -> IpAddr {
    let bytes: Vec<u8> = address.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match <[u8; 16]>::try_from(&bytes[..]) {
        Ok(v6) => v6.into(),
        Err(_) => <[u8; 4]>::try_from(&bytes[..]).map_or(IpAddr::V4(0.into()), IpAddr::from),
    }
}

/// What a hook has done to the flow table breaks no pair: the two halves of a flow live and die together.
pub fn check_pairs<const N: usize>(maps: &Maps<N>) -> Result<(), String> {
    let Some(journal) = &maps.journal else { return Ok(()) };
    for (key, removed) in journal.borrow_mut().drain(..) {
        match (maps.flow(&key), removed) {
            (Some(entry), _) => is_paired(maps, &key, &entry)?,
            (None, Some(flow)) => {
                let partner = flow.partner(&key);
                if maps.flow(&partner).is_some_and(|entry| entry.partner(&partner) == key) {
                    return Err(format!("a flow has lost one half, {partner:?} is left"));
                }
            }
            (None, None) => {}
        }
    }
    Ok(())
}

fn is_paired<const N: usize>(maps: &Maps<N>, key: &FlowKey<N>, entry: &Held<N>) -> Result<(), String> {
    let partner = entry.partner(key);
    match maps.flow(&partner) {
        None => Err(format!("a flow has only one half, {key:?}")),
        Some(other) if other.partner(&partner) != *key => {
            Err(format!("the other half of {key:?} belongs to another flow"))
        }
        Some(_) => Ok(()),
    }
}

/// The whole table: every entry has its other half, and every pair is in the ring, or it would never be forgotten.
pub fn check_table<const N: usize>(maps: &Maps<N>) -> Result<(), String> {
    let of = |serial| serial & !Turn::<N>::MISSED;
    let turns: HashSet<(FlowKey<N>, u32)> =
        maps.ring.borrow().iter().map(|turn| (turn.key, of(turn.serial))).collect();
    for (key, flow) in maps.flows.borrow().iter() {
        is_paired(maps, key, &maps.flow(key).ok_or("an entry that is not there")?)?;
        let flow = flow.get();
        let serial = of(flow.serial);
        let known = turns.contains(&(*key, serial)) || turns.contains(&(flow.partner(key), serial));
        if !known {
            return Err(format!("no ring knows {key:?}: it would never be forgotten"));
        }
    }
    Ok(())
}

/// kube-proxy's mark, and whose address is masqueraded with.
pub fn device(own: IpAddr) -> Device {
    let (v4, v6) = match own {
        IpAddr::V4(_) => (addr(own), Addr::UNSPECIFIED),
        IpAddr::V6(_) => (Addr::UNSPECIFIED, addr(own)),
    };
    Device { masquerade_v4: v4, masquerade_v6: v6, ..world::device() }
}
