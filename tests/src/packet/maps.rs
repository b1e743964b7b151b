//! Plain Rust values in place of the kernel's maps: [`Tables`] for the path on the host.

use std::borrow::{Borrow, BorrowMut};
use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use proxy_common::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, Cidr, Config, Device, Flow, FlowKey, Fragment,
    Frontend, FrontendKey, Guard, Port, Reason, Recent, Service, Turn, config_flags, device_flags,
};
use proxy_common::path::{self, Entry, Fields, Insert, Looked, Scratch, Tables, repeatable_draw};
use proxy_common::wire::Headers;

use super::world::{self, Writer};

/// A flow entry that lives on while somebody holds it, as the kernel's elements do.
pub struct Held<const N: usize>(Rc<Cell<Flow<N>>>);

impl<const N: usize> Held<N> {
    /// Whether both are one entry, and not one after the other under the same key.
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn change(&self, change: impl FnOnce(&mut Flow<N>)) {
        let mut flow = self.0.get();
        change(&mut flow);
        self.0.set(flow);
    }
}

impl<const N: usize> Fields<N> for Held<N> {
    fn get<R>(&self, field: impl FnOnce(&Flow<N>) -> R) -> R {
        field(&self.0.get())
    }
}

impl<const N: usize> Entry<N> for Held<N> {
    fn set_seen(&self, tick: u32) {
        self.change(|flow| flow.seen = tick);
    }
    fn set_state(&self, state: u8) {
        self.change(|flow| flow.state = state);
    }
    fn set_proof(&self, proof: u32) {
        self.change(|flow| flow.proof = proof);
    }
    fn set_lease(&self, lease: u32) {
        self.change(|flow| flow.lease = lease);
    }
    fn set_ifindex(&self, ifindex: u32) {
        self.change(|flow| flow.ifindex = ifindex);
    }
    fn set_far(&self, ifindex: u32) {
        self.change(|flow| flow.far = ifindex);
    }
    fn set_size(&self, bytes: u32) {
        self.change(|flow| flow.size = bytes);
    }
}

/// A record of what has just been done, as it is lent to the path.
struct Lent<'a, const N: usize>(RefMut<'a, Recent<N>>);

impl<const N: usize> Borrow<Recent<N>> for Lent<'_, N> {
    fn borrow(&self) -> &Recent<N> {
        &self.0
    }
}

impl<const N: usize> BorrowMut<Recent<N>> for Lent<'_, N> {
    fn borrow_mut(&mut self) -> &mut Recent<N> {
        &mut self.0
    }
}

/// The maps of one family, and what both families share.
pub struct Maps<const N: usize> {
    pub(crate) addresses: HashMap<Addr<N>, AddressClass>,
    sieve: HashSet<(u32, u64)>,
    endpoint_sieve: HashSet<(u32, u64)>,
    pub(crate) frontends: HashMap<FrontendKey<N>, Frontend>,
    pub(crate) services: HashMap<u32, Service>,
    pub(crate) backends: HashMap<u32, Backend<N>>,
    pub(crate) endpoints: RefCell<HashMap<u32, u32>>,
    pub(crate) ranges: Vec<(u32, Addr<N>, u32)>,
    pub(crate) affinity: RefCell<HashMap<AffinityKey<N>, Affinity<N>>>,
    pub(crate) fragments: RefCell<HashMap<FlowKey<N>, Fragment<N>>>,
    pub(crate) devices: RefCell<HashMap<u32, Device>>,
    pub(crate) flows: RefCell<HashMap<FlowKey<N>, Rc<Cell<Flow<N>>>>>,
    recent: RefCell<HashMap<u32, Recent<N>>>,
    news: RefCell<HashMap<u32, u32>>,
    pub(crate) ring: RefCell<VecDeque<Turn<N>>>,
    pub(crate) storm: Cell<u32>,
    /// Lent with whatever it was left with, as the kernel's is.
    scratch: RefCell<Scratch<N>>,
    /// How many moments have gone by since the clock's last tick.
    pub(crate) moments: Cell<u64>,
    pub(crate) config: Cell<Config>,
    pub(crate) guard: Cell<Guard>,
    pub(crate) draws: Cell<u32>,
    pub(crate) counters: RefCell<HashMap<Reason, u64>>,
    /// Pairs the flow table has room for.
    pub(crate) pairs: u32,
    /// Protocol, address and port of the node's own sockets (P-64).
    pub(crate) sockets: RefCell<HashSet<(u8, Addr<N>, Port)>>,
    /// What another CPU does before a flow entry is inserted, one for each insertion, the last one first.
    pub(crate) meanwhile: RefCell<Vec<Option<Meanwhile<N>>>>,
    /// Keys of flow entries made or removed, with what was removed, where somebody wants to know.
    pub(crate) journal: Option<RefCell<Journal<N>>>,
}

/// See [`Maps::meanwhile`].
pub(crate) type Meanwhile<const N: usize> = Box<dyn FnOnce(&Maps<N>)>;

/// Flow entries made (`None`) and removed, in order.
pub(crate) type Journal<const N: usize> = Vec<(FlowKey<N>, Option<Flow<N>>)>;

impl<const N: usize> Maps<N> {
    /// Empty maps, with room for so many pairs of flow entries.
    pub(crate) fn empty(pairs: u32, config: Config) -> Self {
        Self {
            addresses: HashMap::new(),
            sieve: HashSet::new(),
            endpoint_sieve: HashSet::new(),
            frontends: HashMap::new(),
            services: HashMap::new(),
            backends: HashMap::new(),
            endpoints: RefCell::default(),
            ranges: Vec::new(),
            affinity: RefCell::default(),
            fragments: RefCell::default(),
            devices: RefCell::default(),
            flows: RefCell::default(),
            recent: RefCell::default(),
            news: RefCell::default(),
            ring: RefCell::default(),
            storm: Cell::default(),
            scratch: RefCell::new(Scratch::EMPTY),
            moments: Cell::default(),
            config: Cell::new(config),
            guard: Cell::new(world::alive()),
            draws: Cell::new(0),
            counters: RefCell::default(),
            pairs,
            sockets: RefCell::default(),
            meanwhile: RefCell::default(),
            journal: None,
        }
    }

    /// Takes an address away, and its frontends.
    pub(crate) fn take(&mut self, address: Addr<N>) {
        self.frontends.retain(|key, _| key.address != address);
        self.addresses.remove(&address);
    }

    /// This address is an endpoint's from now on.
    fn note_endpoint(&mut self, address: &Addr<N>) {
        self.sieve.insert(address.sieve());
        self.endpoint_sieve.insert(address.endpoint_sieve());
    }

    /// Fills slots, from these numbers on.
    pub(crate) fn set_slots(&mut self, slots: impl Iterator<Item = (u32, Backend<N>)>) {
        for (slot, backend) in slots {
            self.note_endpoint(&backend.address);
            self.backends.insert(slot, backend);
        }
    }

    fn note(&self, key: &FlowKey<N>, removed: Option<Flow<N>>) {
        if let Some(journal) = &self.journal {
            journal.borrow_mut().push((*key, removed));
        }
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
        self.set_slots((0..).zip(slots.iter().copied()));
    }
    fn endpoint(&mut self, id: u32, generation: u32) {
        self.endpoints.borrow_mut().insert(id, generation);
    }
    fn range(&mut self, service: u32, address: Addr<N>, length: u32) {
        self.ranges.push((service, address, length));
    }
    fn device(&mut self, ifindex: u32, device: Device) {
        self.devices.borrow_mut().insert(ifindex, device);
    }
}

impl<const N: usize> Tables<N> for Maps<N> {
    type Entry = Held<N>;

    fn is_stranger(&self, address: &Addr<N>) -> bool {
        !self.sieve.contains(&address.sieve())
    }
    fn may_be_endpoint(&self, address: &Addr<N>) -> bool {
        !self.is_stranger(address) && self.endpoint_sieve.contains(&address.endpoint_sieve())
    }
    fn is_service_range(&self, address: &Addr<N>) -> bool {
        let config = self.config.get();
        let mut words = [0; 4];
        words[..N].copy_from_slice(&address.0);
        if N == 1 {
            Cidr::inside_any(&config.services_v4, &Addr([words[0]]))
        } else {
            Cidr::inside_any(&config.services_v6, &Addr(words))
        }
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
    fn is_source_allowed(&self, service: u32, source: &Addr<N>) -> bool {
        let bit = |address: &Addr<N>, n: u32| u32::from_be(address.0[n as usize / 32]) >> (31 - n % 32) & 1;
        let inside = |(of, network, length): &(u32, Addr<N>, u32)| {
            *of == service && (0..*length).all(|n| bit(network, n) == bit(source, n))
        };
        self.ranges.iter().any(inside)
    }
    fn affinity(&self, key: &AffinityKey<N>, into: &mut Affinity<N>) -> bool {
        let found = self.affinity.borrow().get(key).copied();
        *into = found.unwrap_or(*into);
        found.is_some()
    }
    fn set_affinity(&self, key: &AffinityKey<N>, record: &Affinity<N>) {
        self.affinity.borrow_mut().insert(*key, *record);
    }
    fn endpoint_generation(&self, id: u32) -> u32 {
        self.endpoints.borrow().get(&id).copied().unwrap_or(0)
    }
    fn masquerade_address(&self, ifindex: u32) -> Option<Addr<N>> {
        let device = *self.devices.borrow().get(&ifindex)?;
        let mut words = [0; N];
        let from: &[u32] = if N == 1 { &device.masquerade_v4.0 } else { &device.masquerade_v6.0 };
        words.copy_from_slice(from);
        (words != [0; N]).then_some(Addr(words))
    }
    fn device(&self, ifindex: u32) -> Option<impl Borrow<Device>> {
        self.devices.borrow().get(&ifindex).copied()
    }
    fn set_frames(&self, ifindex: u32, frames: [u32; 3]) {
        if let Some(device) = self.devices.borrow_mut().get_mut(&ifindex) {
            device.frames = frames;
        }
    }
    fn config_flags(&self) -> u32 {
        self.config.get().flags
    }
    fn local_socket(&self, key: &FlowKey<N>, address: &Addr<N>, port: Port) -> bool {
        self.sockets.borrow().contains(&(key.protocol, *address, port))
    }
    fn recent(&self, place: u32) -> Option<impl BorrowMut<Recent<N>>> {
        let empty = || Recent {
            key: Headers::EMPTY.key,
            src: Addr::UNSPECIFIED,
            dst: Addr::UNSPECIFIED,
            sport: Port(0),
            dport: Port(0),
            address_diff: 0,
            ifindex: 0,
            device: 0,
            size: 0,
            frame: [0; 3],
            moment: 0,
            client: 0,
            news: [0; 2],
        };
        Some(Lent(RefMut::map(self.recent.borrow_mut(), |recent| recent.entry(place).or_insert_with(empty))))
    }
    fn news(&self, place: u32) -> u32 {
        self.news.borrow().get(&place).copied().unwrap_or(0)
    }
    fn tell_news(&self, place: u32) {
        *self.news.borrow_mut().entry(place).or_default() += 1;
    }
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R> {
        Some(match self.scratch.try_borrow_mut() {
            Ok(mut room) => work(&mut room),
            // Another CPU's, that acts meanwhile.
            Err(_) => work(&mut Scratch::EMPTY.clone()),
        })
    }
    fn flow(&self, key: &FlowKey<N>) -> Option<Held<N>> {
        self.flows.borrow().get(key).cloned().map(Held)
    }
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert {
        let meanwhile = self.meanwhile.borrow_mut().pop().flatten();
        if let Some(meanwhile) = meanwhile {
            meanwhile(self);
        }
        let mut flows = self.flows.borrow_mut();
        if flows.contains_key(key) {
            return Insert::Exists;
        }
        if flows.len() as u32 >= 2 * self.pairs {
            return Insert::Full;
        }
        flows.insert(*key, Rc::new(Cell::new(*flow)));
        self.note(key, None);
        Insert::Done
    }
    fn remove_flow(&self, key: &FlowKey<N>) -> bool {
        let removed = self.flows.borrow_mut().remove(key);
        if let Some(flow) = &removed {
            self.note(key, Some(flow.get()));
        }
        removed.is_some()
    }
    fn fragment(&self, key: &FlowKey<N>, into: &mut Fragment<N>) -> bool {
        let found = self.fragments.borrow().get(key).copied();
        *into = found.unwrap_or(*into);
        found.is_some()
    }
    fn set_fragment(&self, key: &FlowKey<N>, fragment: &Fragment<N>) {
        self.fragments.borrow_mut().insert(*key, *fragment);
    }
    fn remove_fragment(&self, key: &FlowKey<N>) {
        self.fragments.borrow_mut().remove(key);
    }
    fn make_room(&self) -> bool {
        path::make_room(self, &mut Looked::EMPTY.clone())
    }
    fn ring_size(&self) -> u32 {
        self.pairs
    }
    fn ring_used(&self) -> u32 {
        self.ring.borrow().len() as u32
    }
    fn ring_add(&self, _change: u32) {}
    fn storm(&self) -> u32 {
        self.storm.get()
    }
    fn set_storm(&self, moment: u32) {
        self.storm.set(moment);
    }
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
            let flags = self.device_flags(ifindex);
            return Some(flags.is_some_and(|flags| flags & device_flags::DETECTED != 0));
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
    fn strays_pass(&self) -> bool {
        self.config.get().flags & config_flags::STRAYS_PASS != 0
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
    fn handed_over(&self) -> bool {
        self.guard.get().handed_over(self.now())
    }
    fn now(&self) -> u32 {
        path::tick(self.time())
    }
    fn time(&self) -> u64 {
        path::beginning(self.config.get().test_clock) + self.moments.get()
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
