//! One Service with one endpoint, on a node with one device.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use proxy_common::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, Device, Flow, FlowKey, Frontend, FrontendKey,
    FrontendKind, Port, Reason, Run, Service, Turn, service_flags,
};
use proxy_common::path::{self, Entry, Fields, Insert, Out, Packet, Scratch, Tables, Verdict, note};
use proxy_common::wire::{Diff, Headers, apply};

use crate::packets::End;

pub const MARK: u32 = 0x4000;

/// A frame in a vector.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub mark: u32,
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        self.bytes.len() as u32
    }
    fn window<const K: usize>(&self, at: u32) -> Option<&[u8; K]> {
        self.bytes.get(at as usize..at as usize + K)?.try_into().ok()
    }
    fn window_mut<const K: usize>(&mut self, at: u32) -> Option<&mut [u8; K]> {
        self.bytes.get_mut(at as usize..at as usize + K)?.try_into().ok()
    }
    fn l4_checksum(&mut self, at: u32, addresses: Diff, ports: Diff, udp: bool, _v6: bool) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(at)?);
        if udp && old == 0 {
            return Some(());
        }
        match apply(old, addresses.and(ports)) {
            0 if udp => self.store(at, [0xff, 0xff]),
            new => self.store(at, new.to_ne_bytes()),
        }
    }
    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }
    fn make_room(&mut self, l3: u32, bytes: u32) -> Option<()> {
        self.bytes.splice(l3 as usize..l3 as usize, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }
    fn mark(&self) -> u32 {
        self.mark
    }
    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }
    fn ifindex(&self) -> u32 {
        1
    }
    fn is_for_host(&self) -> bool {
        true
    }
    fn note(&self) -> u16 {
        note::NONE
    }
    fn set_note(&mut self, note: u16) {
        unreachable!("note {note} where shortcuts are off")
    }
    fn segment(&self) -> u32 {
        0
    }
    fn route<const N: usize>(&mut self, ends: &FlowKey<N>, _length: u32) -> Option<(u32, u32)> {
        unreachable!("a way for {ends:?} is asked for where shortcuts are off")
    }
    fn send(&mut self, device: u32, _out: Out) {
        unreachable!("sent to device {device} where shortcuts are off")
    }
    fn is_own(&self) -> bool {
        false
    }
}

pub struct Element<const N: usize>(Rc<Cell<Flow<N>>>);

impl<const N: usize> Fields<N> for Element<N> {
    fn get<R>(&self, field: impl FnOnce(&Flow<N>) -> R) -> R {
        field(&self.0.get())
    }
}

impl<const N: usize> Entry<N> for Element<N> {
    fn set_seen(&self, seen: u32) {
        self.0.set(Flow { seen, ..self.read() });
    }
    fn set_state(&self, state: u8) {
        self.0.set(Flow { state, ..self.read() });
    }
    fn set_proof(&self, proof: u32) {
        self.0.set(Flow { proof, ..self.read() });
    }
    fn set_lease(&self, lease: u32) {
        self.0.set(Flow { lease, ..self.read() });
    }
    fn set_ifindex(&self, ifindex: u32) {
        self.0.set(Flow { ifindex, ..self.read() });
    }
    fn set_far(&self, far: u32) {
        self.0.set(Flow { far, ..self.read() });
    }
    fn set_size(&self, size: u32) {
        self.0.set(Flow { size, ..self.read() });
    }
}

/// A node on which `front` leads to `backend`, and that masquerades with `own`.
pub struct Node<const N: usize> {
    pub front: End,
    pub backend: End,
    pub own: IpAddr,
    flows: RefCell<Vec<(FlowKey<N>, Rc<Cell<Flow<N>>>)>>,
    scratch: RefCell<Scratch<N>>,
}

pub fn addr<const N: usize>(ip: IpAddr) -> Addr<N> {
    let octets = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    }
    Addr(words)
}

impl<const N: usize> Node<N> {
    pub fn new(front: End, backend: End, own: IpAddr) -> Self {
        Self { front, backend, own, flows: RefCell::default(), scratch: RefCell::new(Scratch::EMPTY) }
    }

    pub fn ingress(&self, bytes: &[u8]) -> (Verdict, Frame) {
        let mut frame = Frame { bytes: bytes.to_vec(), mark: 0 };
        (path::ingress(&mut frame, self, &mut Headers::EMPTY.clone(), 14), frame)
    }

    pub fn egress(&self, bytes: &[u8], mark: u32) -> (Verdict, Frame) {
        let mut frame = Frame { bytes: bytes.to_vec(), mark };
        (path::egress(&mut frame, self, &mut Headers::EMPTY.clone(), 14), frame)
    }
}

impl<const N: usize> Tables<N> for Node<N> {
    type Entry = Element<N>;

    fn address_class(&self, address: &Addr<N>) -> AddressClass {
        let is = |ip| *address == addr(ip);
        let service = if is(self.front.0) { AddressClass::SERVICE } else { 0 };
        let local = if is(self.own) { AddressClass::LOCAL } else { 0 };
        AddressClass { bits: service | local }
    }
    fn may_be_endpoint(&self, address: &Addr<N>) -> bool {
        *address == addr(self.backend.0)
    }
    fn frontend(&self, key: &FrontendKey<N>) -> Option<Frontend> {
        let dialled = key.address == addr(self.front.0) && key.port.number() == self.front.1;
        dialled.then_some(Frontend { service: 1, kind: FrontendKind::ExternalIp as u32 })
    }
    fn service(&self, _index: u32) -> Option<Service> {
        let run = Run::new(1, 1);
        let flags = service_flags::IN_USE | service_flags::MASQUERADE_EXTERNAL;
        Some(Service { external: run, internal: run, cluster: run, flags, affinity_timeout: 0 })
    }
    fn backend(&self, _slot: u32) -> Option<Backend<N>> {
        let (ip, port) = self.backend;
        Some(Backend { address: addr(ip), port: Port::new(port), generation: 1, id: 1 })
    }
    fn is_source_allowed(&self, _service: u32, _source: &Addr<N>) -> bool {
        true
    }
    fn affinity(&self, _key: &AffinityKey<N>, _into: &mut Affinity<N>) -> bool {
        false
    }
    fn set_affinity(&self, _key: &AffinityKey<N>, _record: &Affinity<N>) {}
    fn endpoint_generation(&self, _id: u32) -> u32 {
        1
    }
    fn masquerade_address(&self, _ifindex: u32) -> Option<Addr<N>> {
        Some(addr(self.own))
    }
    fn device(&self, _ifindex: u32) -> Option<impl std::borrow::Borrow<Device>> {
        None::<Device>
    }
    fn set_frames(&self, _ifindex: u32, _frames: [u32; 3]) {}
    fn local_socket(&self, _key: &FlowKey<N>, _address: &Addr<N>, _port: Port) -> bool {
        false
    }
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R> {
        Some(work(&mut self.scratch.borrow_mut()))
    }
    fn flow(&self, key: &FlowKey<N>) -> Option<Element<N>> {
        let flows = self.flows.borrow();
        flows.iter().find(|(own, _)| own == key).map(|(_, flow)| Element(Rc::clone(flow)))
    }
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert {
        if self.flow(key).is_some() {
            return Insert::Exists;
        }
        self.flows.borrow_mut().push((*key, Rc::new(Cell::new(*flow))));
        Insert::Done
    }
    fn remove_flow(&self, key: &FlowKey<N>) -> bool {
        let was_there = self.flow(key).is_some();
        self.flows.borrow_mut().retain(|(own, _)| own != key);
        was_there
    }
    fn make_room(&self) -> bool {
        true
    }
    fn ring_size(&self) -> u32 {
        64
    }
    fn ring_used(&self) -> u32 {
        0
    }
    fn ring_add(&self, _change: u32) {}
    fn storm(&self) -> u32 {
        0
    }
    fn set_storm(&self, _moment: u32) {}
    fn ring_push(&self, _turn: &Turn<N>) -> bool {
        true
    }
    fn ring_pop(&self, _turn: &mut Turn<N>) -> bool {
        false
    }
    fn is_pod(&self, _ifindex: u32, _source: &Addr<N>) -> Option<bool> {
        None
    }
    fn masquerade_all(&self) -> bool {
        false
    }
    fn config_flags(&self) -> u32 {
        0
    }
    fn masquerade_mark(&self) -> u32 {
        MARK
    }
    fn seed(&self) -> u32 {
        7
    }
    fn now(&self) -> u32 {
        1000
    }
    fn random(&self) -> u32 {
        0
    }
    fn count(&self, _reason: Reason) {}
}
