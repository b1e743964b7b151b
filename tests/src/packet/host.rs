//! The path on the host.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use proxy_common::abi::{
    Addr, AddressClass, Backend, Config, Device, Flow, FlowKey, Frontend, FrontendKey, Port, Reason, Service,
    Turn, config_flags, device_flags,
};
use proxy_common::path::{self, Entry, Insert, Looked, Packet, Scratch, Tables, Verdict, repeatable_draw};
use proxy_common::wire::{Diff, Headers, apply};

use super::story::{At, Flows, Node, Outcome};
use super::world::{self, IFINDEX, Writer};

/// Pairs the flow table has room for.
pub const PAIRS: u32 = 64;

/// A frame in a vector.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub mark: u32,
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn load<const K: usize>(&self, at: u32) -> Option<[u8; K]> {
        let at = at as usize;
        self.bytes.get(at..at + K)?.try_into().ok()
    }

    fn store<const K: usize>(&mut self, at: u32, bytes: [u8; K]) -> Option<()> {
        let at = at as usize;
        self.bytes.get_mut(at..at + K)?.copy_from_slice(&bytes);
        Some(())
    }

    fn l4_checksum(&mut self, at: u32, addresses: Diff, ports: Diff, udp: bool, _v6: bool) -> Option<()> {
        for diff in [addresses, ports] {
            let old = u16::from_ne_bytes(self.load(at)?);
            if diff.is_none() || (udp && old == 0) {
                continue;
            }
            let new = match apply(old, diff) {
                0 if udp => 0xffff,
                new => new,
            };
            self.store(at, new.to_ne_bytes())?;
        }
        Some(())
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }

    fn make_room(&mut self, l3: u32, bytes: u32) -> Option<()> {
        let at = l3 as usize;
        self.bytes.splice(at..at, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn ifindex(&self) -> u32 {
        IFINDEX
    }

    /// BPF_PROG_TEST_RUN gives every packet a socket.
    fn is_own(&self) -> bool {
        true
    }
}

/// A flow entry that lives on while somebody holds it, as the kernel's elements do.
pub struct Held<const N: usize>(Rc<Cell<Flow<N>>>);

impl<const N: usize> Held<N> {
    fn change(&self, change: impl FnOnce(&mut Flow<N>)) {
        let mut flow = self.0.get();
        change(&mut flow);
        self.0.set(flow);
    }
}

impl<const N: usize> Entry<N> for Held<N> {
    fn read(&self) -> Flow<N> {
        self.0.get()
    }
    fn tag(&self) -> u32 {
        self.0.get().tag
    }
    fn serial(&self) -> u32 {
        self.0.get().serial
    }
    fn seen(&self) -> u32 {
        self.0.get().seen
    }
    fn created(&self) -> u32 {
        self.0.get().created
    }
    fn state(&self) -> u8 {
        self.0.get().state
    }
    fn partner(&self, key: &FlowKey<N>) -> FlowKey<N> {
        self.0.get().partner(key)
    }
    fn set_seen(&self, tick: u32) {
        self.change(|flow| flow.seen = tick);
    }
    fn set_state(&self, state: u8) {
        self.change(|flow| flow.state = state);
    }
}

/// The maps of one family, and what both families share.
pub struct Maps<const N: usize> {
    addresses: HashMap<Addr<N>, AddressClass>,
    sieve: HashSet<(u32, u64)>,
    frontends: HashMap<FrontendKey<N>, Frontend>,
    services: HashMap<u32, Service>,
    backends: HashMap<u32, Backend<N>>,
    endpoints: RefCell<HashMap<u32, u32>>,
    devices: HashMap<u32, Device>,
    flows: RefCell<HashMap<FlowKey<N>, Rc<Cell<Flow<N>>>>>,
    ring: RefCell<VecDeque<Turn<N>>>,
    config: Cell<Config>,
    draws: Cell<u32>,
    counters: RefCell<HashMap<Reason, u64>>,
}

impl<const N: usize> Maps<N> {
    fn new() -> Self {
        let mut maps = Self {
            addresses: HashMap::new(),
            sieve: HashSet::new(),
            frontends: HashMap::new(),
            services: HashMap::new(),
            backends: HashMap::new(),
            endpoints: RefCell::default(),
            devices: HashMap::new(),
            flows: RefCell::default(),
            ring: RefCell::default(),
            config: Cell::new(world::config()),
            draws: Cell::new(0),
            counters: RefCell::default(),
        };
        world::fill(&mut maps);
        maps
    }
}

impl<const N: usize> Writer<N> for Maps<N> {
    fn address(&mut self, address: Addr<N>, class: u32) {
        self.sieve.insert(address.sieve());
        self.addresses.insert(address, AddressClass { bits: class });
    }
    fn frontend(&mut self, key: FrontendKey<N>, frontend: Frontend) {
        self.frontends.insert(key, frontend);
    }
    fn service(&mut self, index: u32, service: Service) {
        self.services.insert(index, service);
    }
    fn backends(&mut self, slots: &[Backend<N>]) {
        self.backends.extend((0..).zip(slots.iter().copied()));
    }
    fn endpoint(&mut self, id: u32, generation: u32) {
        self.endpoints.borrow_mut().insert(id, generation);
    }
    fn device(&mut self, ifindex: u32, device: Device) {
        self.devices.insert(ifindex, device);
    }
}

impl<const N: usize> Tables<N> for Maps<N> {
    type Entry = Held<N>;

    fn is_stranger(&self, address: &Addr<N>) -> bool {
        !self.sieve.contains(&address.sieve())
    }
    fn address_class(&self, address: &Addr<N>) -> AddressClass {
        self.addresses.get(address).copied().unwrap_or(AddressClass { bits: 0 })
    }
    fn frontend(&self, key: &FrontendKey<N>) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.services.get(&index).copied()
    }
    fn backend(&self, slot: u32) -> Option<Backend<N>> {
        self.backends.get(&slot).copied()
    }
    fn endpoint_generation(&self, id: u32) -> u32 {
        self.endpoints.borrow().get(&id).copied().unwrap_or(0)
    }
    fn masquerade_address(&self, ifindex: u32) -> Option<Addr<N>> {
        let device = self.devices.get(&ifindex)?;
        let mut words = [0; N];
        let from: &[u32] = if N == 1 { &device.masquerade_v4.0 } else { &device.masquerade_v6.0 };
        words.copy_from_slice(from);
        (words != [0; N]).then_some(Addr(words))
    }
    fn local_socket(&self, _key: &FlowKey<N>, _address: &Addr<N>, _port: Port) -> bool {
        false
    }
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R> {
        let key = Headers::<N>::EMPTY.key;
        let flow = Flow {
            src: key.src,
            dst: key.dst,
            sport: key.sport,
            dport: key.dport,
            address_diff: 0,
            seen: 0,
            created: 0,
            service: 0,
            endpoint: 0,
            ifindex: 0,
            serial: 0,
            generation: 0,
            kind: 0,
            state: 0,
            tag: 0,
        };
        let turn = Turn { key, serial: 0 };
        Some(work(&mut Scratch { flow, reply_key: key, reply: flow, turn, quoted: Headers::EMPTY }))
    }
    fn flow(&self, key: &FlowKey<N>) -> Option<Held<N>> {
        self.flows.borrow().get(key).cloned().map(Held)
    }
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert {
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Insert::Exists;
        }
        if flows.len() as u32 >= 2 * PAIRS {
            return Insert::Full;
        }
        flows.insert(*key, Rc::new(Cell::new(*flow)));
        Insert::Done
    }
    fn remove_flow(&self, key: &FlowKey<N>) {
        self.flows.borrow_mut().remove(key);
    }
    fn make_room(&self) -> bool {
        let key = Headers::<N>::EMPTY.key;
        path::make_room(self, &mut Looked { turn: Turn { key, serial: 0 }, partner: key })
    }
    fn ring_size(&self) -> u32 {
        PAIRS
    }
    fn ring_used(&self) -> u32 {
        self.ring.borrow().len() as u32
    }
    fn ring_add(&self, _change: u32) {}
    fn ring_push(&self, turn: &Turn<N>) -> bool {
        self.ring.borrow_mut().push_back(*turn);
        true
    }
    fn ring_pop(&self, turn: &mut Turn<N>) -> bool {
        let oldest = self.ring.borrow_mut().pop_front();
        oldest.map(|oldest| *turn = oldest).is_some()
    }
    fn is_pod(&self, ifindex: u32, source: &Addr<N>) -> Option<bool> {
        let config = self.config.get();
        if config.flags & config_flags::DETECT_DEVICE != 0 {
            let device = self.devices.get(&ifindex);
            return Some(device.is_some_and(|device| device.flags & device_flags::DETECTED != 0));
        }
        let mut words = [0; 4];
        words[..N].copy_from_slice(&source.0);
        let (flag, inside) = if N == 1 {
            (config_flags::DETECT_V4, config.cluster_v4.contains(&Addr([words[0]])))
        } else {
            (config_flags::DETECT_V6, config.cluster_v6.contains(&Addr(words)))
        };
        (config.flags & flag != 0).then_some(inside)
    }
    fn masquerade_all(&self) -> bool {
        self.config.get().flags & config_flags::MASQUERADE_ALL != 0
    }
    fn masquerade_mark(&self) -> u32 {
        self.config.get().masquerade_mark
    }
    fn seed(&self) -> u32 {
        self.config.get().seed
    }
    fn now(&self) -> u32 {
        self.config.get().test_clock
    }
    fn random(&self) -> u32 {
        let n = self.draws.get();
        self.draws.set(n + 1);
        repeatable_draw(self.seed(), n)
    }
    fn count(&self, reason: Reason) {
        *self.counters.borrow_mut().entry(reason).or_default() += 1;
    }
}

/// A node on the host.
pub struct Host {
    v4: Maps<1>,
    v6: Maps<4>,
}

impl Default for Host {
    fn default() -> Self {
        Self { v4: Maps::new(), v6: Maps::new() }
    }
}

impl Node for Host {
    fn run(&mut self, hook: &At, bytes: &[u8], mark: u32) -> Outcome {
        let mut frame = Frame { bytes: bytes.to_vec(), mark };
        let l3 = if hook.ethernet { 14 } else { 0 };
        let verdict = match (hook.ingress, &bytes[12..14]) {
            (true, [0x08, 0x00]) => path::ingress(&mut frame, &self.v4, &mut Headers::EMPTY.clone(), l3),
            (false, [0x08, 0x00]) => path::egress(&mut frame, &self.v4, &mut Headers::EMPTY.clone(), l3),
            (true, [0x86, 0xdd]) => path::ingress(&mut frame, &self.v6, &mut Headers::EMPTY.clone(), l3),
            (false, [0x86, 0xdd]) => path::egress(&mut frame, &self.v6, &mut Headers::EMPTY.clone(), l3),
            _ => Verdict::Pass,
        };
        Outcome { action: verdict.into(), bytes: frame.bytes, mark: frame.mark }
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn set_config(&mut self, config: Config) {
        self.v4.config.set(config);
        self.v6.config.set(config);
    }

    fn set_device(&mut self, device: Device) {
        self.v4.device(IFINDEX, device);
        self.v6.device(IFINDEX, device);
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        if v6 {
            self.v6.endpoint(world::endpoint_id(true), generation);
        } else {
            self.v4.endpoint(world::endpoint_id(false), generation);
        }
    }

    fn counts(&mut self) -> Vec<u64> {
        let (v4, v6) = (self.v4.counters.borrow(), self.v6.counters.borrow());
        let of = |reason| v4.get(reason).unwrap_or(&0) + v6.get(reason).unwrap_or(&0);
        Reason::ALL.iter().map(of).collect()
    }

    fn flows(&mut self) -> Flows {
        fn entries<const N: usize>(maps: &Maps<N>) -> Vec<(FlowKey<N>, Flow<N>)> {
            maps.flows.borrow().iter().map(|(key, flow)| (*key, flow.get())).collect()
        }
        Flows::new(entries(&self.v4), entries(&self.v6))
    }
}
