//! `proxy_common::path::Tables` over the maps, one family at a time.

use crate::clock::{Clock, Inline};
use crate::dice;
use crate::element::{Element, copy_words};
use crate::family::Family;
use crate::maps::*;
use crate::shared;
use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1,
    },
    helpers::generated::{self, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
    maps::{Queue, lpm_trie::Key},
};
use core::borrow::{Borrow, BorrowMut};
use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::read_volatile;
use proxy_common::{
    abi::{
        Addr, AddressClass, Affinity, AffinityKey, Backend, Config, Device, Flow, FlowKey, Fragment,
        Frontend, FrontendKey, GENERATIONS_CHUNK, Generations, Guard, OWN_PRIORITY, Port, Reason, Recent,
        SERVICES_CHUNK, Service, SourceRange, TURNS_HELD_BACK, Turn, config_flags, device_flags, protocol,
    },
    path::{Asked, End, Insert, Looked, Packet, Scratch, Tables, tick},
    wire::Headers,
};

/// `-E2BIG` and `-ENOMEM`; anything else that an insert can fail with means that the key is there.
const FULL: [i32; 2] = [-7, -12];

/// The maps of family `F` and the clock `C`, for a program whose context is `ctx`.
pub struct Maps<F, C = Inline> {
    ctx: *mut c_void,
    /// Looked up once: it is asked for again and again.
    config: &'static Config,
    of: PhantomData<(F, C)>,
}

impl<F, C> Maps<F, C> {
    /// `None` never happens, but the verifier wants it looked at.
    #[inline(always)]
    pub fn new(ctx: *mut c_void) -> Option<Self> {
        Some(Self { ctx, config: CONFIG.get(0)?, of: PhantomData })
    }
}

/// Aligned for stores of two words at once.
#[repr(align(8))]
struct Ends(bpf_sock_tuple);

/// Whether a server that is not the agent's own listens at this port of the node.
#[inline(never)]
fn another_listens(ctx: *mut c_void, port: Port) -> bool {
    const LOCALHOST: u32 = 0x7f00_0001_u32.to_be();
    let ipv4 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
        saddr: LOCALHOST,
        daddr: LOCALHOST,
        sport: 0,
        dport: port.0,
    };
    let mut tuple = Ends(bpf_sock_tuple { __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 { ipv4 } });
    let size = size_of::<bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1>() as u32;
    // BPF_F_CURRENT_NETNS: the namespace of the packet's device, or of the socket.
    // SAFETY: the tuple is initialised up to `size`.
    let found = unsafe { bpf_sk_lookup_tcp(ctx, &raw mut tuple.0, size, u64::MAX, 0) };
    if found.is_null() {
        return false;
    }
    // SAFETY: a full socket, to which we hold a reference.
    let own = unsafe { (*found).priority } == OWN_PRIORITY;
    // SAFETY: the look-up returned a reference that must be given back.
    unsafe { bpf_sk_release(found.cast()) };
    !own
}

impl<const N: usize, F: Family<N>, C: Clock> Tables<N> for Maps<F, C> {
    type Entry = Element<N>;

    #[inline(always)]
    fn is_stranger(&self, address: &Addr<N>) -> bool {
        let (word, bit) = address.sieve();
        SIEVE.get(word).is_some_and(|word| *word & bit == 0)
    }

    #[inline(always)]
    fn may_be_endpoint(&self, address: &Addr<N>) -> bool {
        let (word, bit) = address.endpoint_sieve();
        !self.is_stranger(address) && ENDPOINT_SIEVE.get(word).is_some_and(|word| *word & bit != 0)
    }

    #[inline(always)]
    fn is_service_range(&self, address: &Addr<N>) -> bool {
        F::is_service_range(self.config, address)
    }

    #[inline(always)]
    fn address_class(&self, address: &Addr<N>) -> AddressClass {
        // SAFETY: one word is read at once.
        let class = F::addresses().and_then(|addresses| unsafe { addresses.get(address) });
        class.copied().unwrap_or(AddressClass { bits: 0 })
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey<N>) -> Option<Frontend> {
        // SAFETY: written once per frontend; the id is reused after a grace period only.
        F::frontends().and_then(|frontends| unsafe { frontends.get(key) }).copied()
    }

    #[inline(always)]
    fn service(&self, index: u32) -> Option<Service> {
        SERVICES_OF.get_value(index / SERVICES_CHUNK, &(index % SERVICES_CHUNK)).copied()
    }

    #[inline(always)]
    fn backend(&self, slot: u32) -> Option<Backend<N>> {
        F::slot(slot)
    }

    // Apart, so that the key is off the stack when the flow is inserted.
    #[inline(never)]
    fn is_source_allowed(&self, service: u32, source: &Addr<N>) -> bool {
        let range = SourceRange { service, address: *source };
        let key = Key::new(8 * size_of::<SourceRange<N>>() as u32, range);
        F::ranges().get(key).is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey<N>, into: &mut Affinity<N>) -> bool {
        // SAFETY: a record that is changed or reused meanwhile names an endpoint that is looked for before it is used.
        let Some(record) = F::affinity().and_then(|records| unsafe { records.get(key) }) else {
            return false;
        };
        copy_words(record, into);
        true
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey<N>, record: &Affinity<N>) {
        // The table makes room for itself; a record less is no harm.
        let _ = F::affinity().map(|records| records.insert(key, record, 0));
    }

    #[inline(always)]
    fn sticky(&self, asked: &mut Asked<N>, now: u32) -> u32 {
        F::sticky(asked, now)
    }

    #[inline(always)]
    fn prepare(&self, _headers: &Headers<N>, dialled: Frontend, ifindex: u32, room: &mut Scratch<N>) -> u32 {
        F::prepare(dialled.service, dialled.kind, ifindex, room)
    }

    #[inline(always)]
    fn endpoint_generation(&self, id: u32) -> u32 {
        let index = Generations::index(id);
        let generations = ENDPOINTS_OF.get_value(index / GENERATIONS_CHUNK, &(index % GENERATIONS_CHUNK));
        generations.map_or(0, |generations| generations.of(id).into())
    }

    #[inline(always)]
    fn masquerade_address(&self, ifindex: u32) -> Option<Addr<N>> {
        // SAFETY: a device's element is removed only after the device.
        let address = F::masquerade_of(unsafe { DEVICES.get(ifindex) }?);
        (!address.same(&Addr::UNSPECIFIED)).then_some(address)
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<impl Borrow<Device>> {
        // SAFETY: a device's element is removed only after the device.
        unsafe { DEVICES.get(ifindex) }
    }

    #[inline(always)]
    fn set_frames(&self, ifindex: u32, frames: [u32; 3]) {
        let Some(device) = DEVICES.get_ptr_mut(ifindex) else { return };
        // SAFETY: the pointer is what the look-up has returned in this run of the program.
        let first = unsafe { &raw mut (*device).frames }.cast::<u32>();
        // The first word last: it says that the others are there.
        for word in [2, 1, 0] {
            // SAFETY: one of the three words. Volatile, so that their order is kept.
            unsafe { first.wrapping_add(word).write_volatile(frames[word]) };
        }
    }

    // Apart, so that the tuple is off the stack when the flow is inserted.
    #[inline(never)]
    fn local_socket(&self, key: &FlowKey<N>, address: &Addr<N>, port: Port) -> bool {
        let (mut tuple, size) = F::tuple(key, address, port);
        // BPF_F_CURRENT_NETNS: the namespace of the packet's device.
        let netns = u64::MAX;
        let found = match key.protocol {
            // SAFETY: the tuple is initialised up to `size`.
            protocol::TCP => unsafe { bpf_skc_lookup_tcp(self.ctx, &raw mut tuple, size, netns, 0) },
            // SAFETY: as above.
            protocol::UDP => unsafe { bpf_sk_lookup_udp(self.ctx, &raw mut tuple, size, netns, 0) },
            // There is no such helper for SCTP.
            _ => return false,
        };
        if found.is_null() {
            return false;
        }
        // SAFETY: the look-up returned a reference that must be given back.
        unsafe { bpf_sk_release(found.cast()) };
        true
    }

    #[inline(always)]
    fn recent(&self, place: u32) -> Option<impl BorrowMut<Recent<N>>> {
        // SAFETY: this CPU's element, lent to one program at a time.
        unsafe { F::recent(place)?.as_mut() }
    }

    #[inline(always)]
    fn news(&self, place: u32) -> u32 {
        NEWS.get(place).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn tell_news(&self, place: u32) {
        shared::tell_news(place);
    }

    #[inline(always)]
    fn remember<P: Packet>(&self, _packet: &P, _headers: &Headers<N>, device: u32, peer: u32, client: u32) {
        F::remember(self.ctx.cast(), device, peer, client);
    }

    #[inline(always)]
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R> {
        // SAFETY: this CPU's element, lent to one program at a time.
        unsafe { F::scratch()?.as_mut() }.map(work)
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey<N>) -> Option<Element<N>> {
        F::flows().get_ptr_mut(key).map(Element)
    }

    #[inline(always)]
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert {
        match F::flows().insert(key, flow, u64::from(BPF_NOEXIST)) {
            Ok(()) => Insert::Done,
            Err(error) if error == FULL[0] || error == FULL[1] => Insert::Full,
            Err(_) => Insert::Exists,
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &FlowKey<N>) -> bool {
        F::flows().remove(key).is_ok()
    }

    #[inline(always)]
    fn remove_beyond(&self, egress: &FlowKey<N>, kind: u32) {
        F::remove_beyond(egress, kind);
    }

    #[inline(always)]
    fn fragment(&self, key: &FlowKey<N>, into: &mut Fragment<N>) -> bool {
        // SAFETY: an element that is another key's meanwhile is known by its tag.
        let Some(fragment) = (unsafe { F::fragments().get(key) }) else { return false };
        copy_words(fragment, into);
        true
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FlowKey<N>, fragment: &Fragment<N>) {
        // The table makes room for itself; without an entry the datagram's other fragments are dropped.
        let _ = F::fragments().insert(key, fragment, 0);
    }

    #[inline(always)]
    fn remove_fragment(&self, key: &FlowKey<N>) {
        // Mostly there is none.
        let _ = F::fragments().remove(key);
    }

    #[inline(always)]
    fn make_room(&self) -> bool {
        F::make_room() != 0
    }

    #[inline(always)]
    fn look(&self, room: &mut Looked<N>, time: u64, forgets: u32) -> u32 {
        F::look(room, time, forgets)
    }

    #[inline(always)]
    fn meets_flow<P: Packet>(&self, packet: &mut P, _headers: &Headers<N>) -> u64 {
        F::meets_flow(self.ctx.cast(), packet.is_caught().into())
    }

    // Packet and headers are found again there: they cannot be handed over.
    #[inline(always)]
    fn enters_without_flow<P: Packet>(&self, packet: &mut P, _headers: &Headers<N>, before: End) -> u32 {
        F::enters_without_flow(self.ctx.cast(), packet.is_caught().into(), before.0)
    }

    #[inline(always)]
    fn leaves_without_flow<P: Packet>(&self, packet: &mut P, _headers: &Headers<N>, before: End) -> u32 {
        F::leaves_without_flow(self.ctx.cast(), packet.is_caught().into(), before.0)
    }

    #[inline(always)]
    fn passes_by<P: Packet>(&self, packet: &mut P, _headers: &Headers<N>) -> u32 {
        F::passes_by(self.ctx.cast(), packet.is_caught().into())
    }

    #[inline(always)]
    fn refuse<P: Packet>(&self, _packet: &mut P, _headers: &Headers<N>) -> u32 {
        F::refuse(self.ctx.cast())
    }

    #[inline(always)]
    fn quoted<P: Packet>(&self, packet: &mut P, _headers: &Headers<N>, hook: u32) -> u32 {
        F::quoted(self.ctx.cast(), packet.is_caught().into(), hook)
    }

    #[inline(always)]
    fn ended(&self, _headers: &Headers<N>, caught: bool) -> End {
        End(F::ended(caught.into()))
    }

    #[inline(always)]
    fn answer<P: Packet>(&self, _packet: &mut P, _headers: &Headers<N>, key: &FlowKey<N>) -> u32 {
        F::answer(self.ctx.cast(), key)
    }

    #[inline(always)]
    fn masquerade<P: Packet>(
        &self,
        _packet: &mut P,
        _headers: &Headers<N>,
        key: &FlowKey<N>,
        device: u32,
        ways: u32,
    ) -> u32 {
        F::masquerade(self.ctx.cast(), key, device, ways)
    }

    #[inline(always)]
    fn insert_pair(&self, key: &FlowKey<N>, scratch: &mut Scratch<N>, keep_port: bool, avoid: Port) -> u32 {
        F::insert_pair(self.ctx.cast(), key, scratch, keep_port.into(), avoid.0.into())
    }

    #[inline(always)]
    fn attempt(&self, key: &FlowKey<N>, scratch: &mut Scratch<N>, keeps: bool, takes_closed: bool) -> u32 {
        F::attempt(self.ctx.cast(), key, scratch, keeps.into(), takes_closed.into())
    }

    #[inline(always)]
    fn forget(&self, room: &mut Looked<N>) {
        F::forget(room);
    }

    #[inline(always)]
    fn ring_size(&self) -> u32 {
        RING_SIZE.load()
    }

    #[inline(always)]
    fn ring_used(&self) -> u32 {
        let shared = RING_USED.get(F::RING).map_or(u32::MAX, |ring| ring.turns);
        shared.wrapping_add(RING_PENDING.get(F::RING).copied().unwrap_or(0))
    }

    #[inline(always)]
    fn ring_add(&self, change: u32) {
        let Some(pending) = RING_PENDING.get_ptr_mut(F::RING) else { return };
        // SAFETY: this CPU's element; tc programs do not interrupt each other.
        let sum = unsafe { *pending }.wrapping_add(change);
        // The lock costs as much as two look-ups: few changes take it.
        let kept = sum.wrapping_add(TURNS_HELD_BACK) <= 2 * TURNS_HELD_BACK;
        // SAFETY: as above.
        unsafe { *pending = if kept { sum } else { 0 } };
        if !kept {
            shared::add_turns::<N, F>(sum);
        }
    }

    #[inline(always)]
    fn storm(&self) -> u32 {
        STORM.get(F::RING).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn set_storm(&self, moment: u32) {
        let Some(storm) = STORM.get_ptr_mut(F::RING) else { return };
        // SAFETY: array elements stay where they are; whoever else writes, writes a moment of just now.
        unsafe { *storm = moment };
    }

    #[inline(always)]
    fn ring_push(&self, turn: &Turn<N>) -> bool {
        F::ring().push(turn, 0).is_ok()
    }

    #[inline(always)]
    fn ring_pop(&self, turn: &mut Turn<N>) -> bool {
        let queue: *const Queue<Turn<N>> = F::ring();
        // SAFETY: a map's static is what the helper wants, and its values are of this type. `Queue::pop` would return
        // the value by way of the stack.
        unsafe { generated::bpf_map_pop_elem(queue.cast_mut().cast(), (&raw mut *turn).cast()) == 0 }
    }

    #[inline(always)]
    fn is_pod(&self, ifindex: u32, source: &Addr<N>) -> Option<bool> {
        let config = self.config;
        if config.flags & config_flags::DETECT_DEVICE != 0 {
            let flags = Tables::<N>::device_flags(self, ifindex);
            return Some(flags.is_some_and(|flags| flags & device_flags::DETECTED != 0));
        }
        F::detector(config, source)
    }

    #[inline(always)]
    fn masquerade_all(&self) -> bool {
        self.config.flags & config_flags::MASQUERADE_ALL != 0
    }

    #[inline(always)]
    fn config_flags(&self) -> u32 {
        self.config.flags
    }

    #[inline(always)]
    fn masquerade_mark(&self) -> u32 {
        self.config.masquerade_mark
    }

    #[inline(always)]
    fn seed(&self) -> u32 {
        self.config.seed
    }

    #[inline(always)]
    fn strays_pass(&self) -> bool {
        self.config.flags & config_flags::STRAYS_PASS != 0
    }

    #[inline(always)]
    fn handed_over(&self) -> bool {
        let Some(guard) = GUARD.get(0) else { return false };
        guard.since != 0 && guard.handed_over(Tables::<N>::now(self))
    }

    #[inline(always)]
    fn look_for_heir(&self) -> bool {
        let now = Tables::<N>::now(self);
        let Some(guard) = GUARD.get_ptr_mut(0) else { return false };
        // SAFETY: array elements stay where they are; each word is written at once.
        let held = unsafe { *guard };
        if !held.looks(now) {
            return held.handed_over(now);
        }
        let since = held.seen(now, another_listens(self.ctx, held.port));
        // SAFETY: as above.
        unsafe { (*guard).since = since };
        // SAFETY: as above.
        unsafe { (*guard).looked = now };
        Guard { since, ..held }.handed_over(now)
    }

    #[inline(always)]
    fn now(&self) -> u32 {
        tick(self.time())
    }

    #[inline(always)]
    fn time(&self) -> u64 {
        C::time()
    }

    #[inline(always)]
    fn unknown(&self, value: u32) -> u32 {
        let seed = &raw const self.config.seed;
        // SAFETY: the field of an array's element. Volatile, so that LLVM does not see that both reads cancel out.
        let once = unsafe { read_volatile(seed) };
        // SAFETY: as above.
        value ^ once ^ unsafe { read_volatile(seed) }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        if TEST_MODE.load() != 0 {
            return dice::repeatable(Tables::<N>::seed(self));
        }
        dice::throw()
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
            // SAFETY: this CPU's element.
            unsafe { *counter += 1 };
        }
    }
}
