//! What the path needs from its surroundings. The kernel shim, the host tests and the simulator implement these.

use core::borrow::{Borrow, BorrowMut};

use super::pair::{Beyond, End};
use super::reclaim::Looked;
use super::scratch::{Asked, Scratch};
use super::shortcut::Out;
use super::time::beginning;
use crate::abi::{
    Addr, AddressClass, Affinity, AffinityKey, Backend, Device, Flow, FlowKey, Fragment, Frontend,
    FrontendKey, Port, Reason, Recent, Service, Turn,
};
use crate::wire::{Diff, Headers, crc_difference, extensions};

/// A packet under a hook's hands. Offsets are bytes from the start of the frame.
///
/// Methods that may move packet memory take `&mut self`, so that nothing read before can be mistaken for current.
pub trait Packet {
    /// Length of the frame in bytes, the part that is not linear included.
    fn len(&self) -> u32;

    /// Whether there are no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `K` bytes at `at` (below [`crate::wire::MAX_OFFSET`]), or `None` when the packet is shorter. Each window is a
    /// comparison with the packet's end: one for a whole header costs what one for a field does.
    fn window<const K: usize>(&self, at: u32) -> Option<&[u8; K]>;

    /// The same, to be changed in place.
    fn window_mut<const K: usize>(&mut self, at: u32) -> Option<&mut [u8; K]>;

    /// A copy of `K` bytes at `at`.
    #[inline(always)]
    fn load<const K: usize>(&self, at: u32) -> Option<[u8; K]> {
        self.window(at).copied()
    }

    /// Overwrites `K` bytes at `at`.
    #[inline(always)]
    fn store<const K: usize>(&mut self, at: u32, bytes: [u8; K]) -> Option<()> {
        *self.window_mut(at)? = bytes;
        Some(())
    }

    /// Updates the TCP or UDP checksum at `at` for a change of addresses and of ports. Partial checksums stay
    /// partial (P-80), an absent UDP checksum stays absent (P-58).
    fn l4_checksum(&mut self, at: u32, addresses: Diff, ports: Diff, udp: bool, v6: bool) -> Option<()>;

    /// [`crc_difference`]. In the kernel a function that the verifier looks at once.
    fn crc_difference(&self, first: u32, length: u32) -> u32 {
        crc_difference(first, length)
    }

    /// [`extensions`], likewise.
    fn extensions<const N: usize>(&self, headers: &mut Headers<N>) -> u32
    where
        Self: Sized,
    {
        extensions(self, headers)
    }

    /// [`super::sctp_checksum`], likewise. `headers` are those of this run's parse.
    fn sctp_checksum<const N: usize>(&mut self, headers: &Headers<N>, sport: Port, dport: Port) -> u32
    where
        Self: Sized,
    {
        super::sctp_checksum(self, headers, sport, dport)
    }

    /// Tells the device's sum over the whole packet, if there is one, of a change that no checksum in the packet makes up
    /// for.
    fn shift_sum(&mut self, _change: Diff) {}

    /// Cuts the frame, or grows it by bytes of unspecified content, to `len` bytes.
    fn resize(&mut self, len: u32) -> Option<()>;

    /// Inserts `bytes` (a header's size) before the network header at `l3`.
    fn make_room(&mut self, l3: u32, bytes: u32) -> Option<()>;

    /// The packet's mark.
    fn mark(&self) -> u32;

    /// Replaces the packet's mark.
    fn set_mark(&mut self, mark: u32);

    /// Device the hook belongs to.
    fn ifindex(&self) -> u32;

    /// Whether its frame was sent to the device's own hardware address: not to everybody, nor to somebody else.
    fn is_for_host(&self) -> bool;

    /// What it carries through the stack: a value of [`super::note`], or somebody else's.
    fn note(&self) -> u16;

    /// Replaces that.
    fn set_note(&mut self, note: u16);

    /// Bytes of payload in each segment of a super-packet; 0: it is none.
    fn segment(&self) -> u32;

    /// Where the stack's routes lead a packet of so many bytes with these ends that comes in here: the device, and the MTU that
    /// way. `None`: it is not passed on, or not by a way that can be told beforehand.
    fn route<const N: usize>(&mut self, ends: &FlowKey<N>, length: u32) -> Option<(u32, u32)>;

    /// The same, to have it leave by that device at once, as [`Out::NextHop`].
    fn next_hop<const N: usize>(&mut self, ends: &FlowKey<N>, length: u32) -> Option<u32> {
        self.route(ends, length).map(|(device, _)| device)
    }

    /// It leaves by `device`. Nothing is done with it afterwards.
    fn send(&mut self, device: u32, out: Out);

    /// Whether its transport checksum is left to a device to finish; `None`: nobody can tell.
    fn is_unfinished(&self) -> Option<bool> {
        None
    }

    /// Whether a socket on this side of the device has written it, as opposed to a packet that is passed on.
    fn is_own(&self) -> bool;

    /// Whether that is the catch-all device.
    fn is_caught(&self) -> bool {
        false
    }
}

/// Result of inserting a flow entry that must not exist yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insert {
    /// Inserted.
    Done,
    /// The key is taken.
    Exists,
    /// No room.
    Full,
}

/// A flow of which fields are read one by one: the stack has no room for a copy.
pub trait Fields<const N: usize> {
    /// What `field` takes out of the value.
    fn get<R>(&self, field: impl FnOnce(&Flow<N>) -> R) -> R;
}

impl<const N: usize> Fields<N> for Flow<N> {
    #[inline(always)]
    fn get<R>(&self, field: impl FnOnce(&Self) -> R) -> R {
        field(self)
    }
}

/// A flow entry in place.
pub trait Entry<const N: usize>: Fields<N> {
    /// A copy of the value.
    #[inline(always)]
    fn read(&self) -> Flow<N> {
        self.get(|flow| *flow)
    }
    /// [`Entry::read`], in place.
    #[inline(always)]
    fn read_to(&self, to: &mut Flow<N>) {
        *to = self.read();
    }
    /// [`Flow::tag`].
    #[inline(always)]
    fn tag(&self) -> u32 {
        self.get(|flow| flow.tag)
    }
    /// [`Flow::serial`].
    #[inline(always)]
    fn serial(&self) -> u32 {
        self.get(|flow| flow.serial)
    }
    /// [`Flow::seen`].
    #[inline(always)]
    fn seen(&self) -> u32 {
        self.get(|flow| flow.seen)
    }
    /// [`Flow::created`].
    #[inline(always)]
    fn created(&self) -> u32 {
        self.get(|flow| flow.created)
    }
    /// [`Flow::kind`].
    #[inline(always)]
    fn kind(&self) -> u8 {
        self.get(|flow| flow.kind)
    }
    /// [`Flow::state`].
    #[inline(always)]
    fn state(&self) -> u8 {
        self.get(|flow| flow.state)
    }
    /// [`Flow::partner`] of the value in place.
    #[inline(always)]
    fn partner(&self, key: &FlowKey<N>) -> FlowKey<N> {
        self.get(|flow| flow.partner(key))
    }
    /// [`Flow::write_partner`] of the value in place.
    #[inline(always)]
    fn write_partner(&self, key: &FlowKey<N>, to: &mut FlowKey<N>) {
        self.get(|flow| flow.write_partner(key, to));
    }
    /// Overwrites [`Flow::seen`].
    fn set_seen(&self, tick: u32);
    /// Overwrites [`Flow::state`].
    fn set_state(&self, state: u8);
    /// Overwrites [`Flow::proof`].
    fn set_proof(&self, proof: u32);
    /// Overwrites [`Flow::lease`].
    fn set_lease(&self, tick: u32);
    /// Overwrites [`Flow::far`].
    fn set_far(&self, ifindex: u32);
    /// Writes [`Flow::ifindex`].
    fn set_ifindex(&self, ifindex: u32);
    /// Overwrites [`Flow::size`].
    fn set_size(&self, bytes: u32);
}

/// The maps of one family, the clock and the dice.
pub trait Tables<const N: usize> {
    /// Handle of a flow entry.
    type Entry: Entry<N>;

    /// Whether an address has certainly never been anything to this node: true for most that have not, false for all
    /// that have.
    fn is_stranger(&self, _address: &Addr<N>) -> bool {
        false
    }
    /// Whether an address lies in a range whose unassigned addresses are guarded (B15).
    fn is_service_range(&self, _address: &Addr<N>) -> bool {
        false
    }
    /// Whether an address is or has been an endpoint's: true for all that are, false for most that have never been.
    fn may_be_endpoint(&self, address: &Addr<N>) -> bool;
    /// What an address is to this node; no bits for a stranger, nor for who is nothing but an endpoint.
    fn address_class(&self, address: &Addr<N>) -> AddressClass;
    /// Who is dialled.
    fn frontend(&self, key: &FrontendKey<N>) -> Option<Frontend>;
    /// The Service port with this index.
    fn service(&self, index: u32) -> Option<Service>;
    /// The endpoint in this slot.
    fn backend(&self, slot: u32) -> Option<Backend<N>>;
    /// Whether a source may dial a service that asks (C16).
    fn is_source_allowed(&self, service: u32, source: &Addr<N>) -> bool;
    /// Copies a client's affinity record; false: there is none.
    fn affinity(&self, key: &AffinityKey<N>, into: &mut Affinity<N>) -> bool;
    /// Writes a client's affinity record; the oldest one makes way if there is no room (D7).
    fn set_affinity(&self, key: &AffinityKey<N>, record: &Affinity<N>);
    /// [`super::sticky`], for the same reason apart as [`Tables::look`].
    fn sticky(&self, asked: &mut Asked<N>, now: u32) -> u32
    where
        Self: Sized,
    {
        super::sticky(self, asked, now)
    }
    /// [`super::prepare`], likewise. `headers` are those of this run's parse.
    fn prepare(&self, headers: &Headers<N>, dialled: Frontend, ifindex: u32, room: &mut Scratch<N>) -> u32
    where
        Self: Sized,
    {
        super::prepare(self, headers, dialled, ifindex, room)
    }
    /// Generation of a live endpoint id, 0 when it is gone.
    fn endpoint_generation(&self, id: u32) -> u32;
    /// Address that packets leaving by `ifindex` are masqueraded with.
    fn masquerade_address(&self, ifindex: u32) -> Option<Addr<N>>;
    /// What is known of this edge; `None`: it is none.
    fn device(&self, ifindex: u32) -> Option<impl Borrow<Device>>;
    /// Bits of [`crate::abi::device_flags`] of this edge.
    #[inline(always)]
    fn device_flags(&self, ifindex: u32) -> Option<u32> {
        self.device(ifindex).map(|device| device.borrow().flags)
    }
    /// Writes [`Device::frames`] of an edge.
    fn set_frames(&self, ifindex: u32, frames: [u32; 3]);
    /// Whether a socket of the node owns `address`:`port` towards the destination of `key` (P-64).
    fn local_socket(&self, key: &FlowKey<N>, address: &Addr<N>, port: Port) -> bool;

    /// This CPU's record in this place ([`Recent::place`]). `None`: none are kept.
    fn recent(&self, _place: u32) -> Option<impl BorrowMut<Recent<N>>> {
        None::<Recent<N>>
    }
    /// The number in this place of [`crate::abi::news`].
    fn news(&self, _place: u32) -> u32 {
        0
    }
    /// Makes it another one.
    fn tell_news(&self, _place: u32) {}
    /// [`super::remember`], for the same reason apart as [`Tables::look`].
    fn remember<P: Packet>(&self, packet: &P, headers: &Headers<N>, device: u32, peer: u32, client: u32)
    where
        Self: Sized,
    {
        // Without a record the next packet goes the usual way, too.
        let _ = super::remember(packet, self, headers, device, peer, client);
    }

    /// Lends this CPU's scratch room; `None` never happens, but the verifier does not know that.
    fn scratch<R>(&self, work: impl FnOnce(&mut Scratch<N>) -> R) -> Option<R>;

    /// A flow entry.
    fn flow(&self, key: &FlowKey<N>) -> Option<Self::Entry>;
    /// Inserts a flow entry unless the key is taken.
    fn insert_flow(&self, key: &FlowKey<N>, flow: &Flow<N>) -> Insert;
    /// Removes a flow entry. Whether it was there: of several that remove it, one is told so.
    fn remove_flow(&self, key: &FlowKey<N>) -> bool;

    /// Calls [`super::remove_beyond`] with a room of its own.
    fn remove_beyond(&self, egress: &FlowKey<N>, kind: u32)
    where
        Self: Sized,
    {
        super::remove_beyond(self, egress, kind, &mut Beyond::EMPTY.clone());
    }

    /// Copies what is known of a datagram, by its id in place of the ports; false: nothing is.
    fn fragment(&self, _key: &FlowKey<N>, _into: &mut Fragment<N>) -> bool {
        false
    }
    /// Writes what its first fragment shows; the oldest datagram makes way if there is no room (P-11).
    fn set_fragment(&self, _key: &FlowKey<N>, _fragment: &Fragment<N>) {}
    /// Forgets a datagram.
    fn remove_fragment(&self, _key: &FlowKey<N>) {}

    /// Calls [`super::make_room`] with a room of its own.
    fn make_room(&self) -> bool;
    /// [`super::look`]. In the kernel a function that the verifier looks at once, and not once for each way through the
    /// loop that calls it.
    fn look(&self, room: &mut Looked<N>, time: u64, forgets: u32) -> u32
    where
        Self: Sized,
    {
        super::look(self, room, time, forgets)
    }
    /// [`super::meets_flow`], likewise.
    fn meets_flow<P: Packet>(&self, packet: &mut P, headers: &Headers<N>) -> u64
    where
        Self: Sized,
    {
        super::meets_flow(packet, self, headers)
    }
    /// [`super::enters_without_flow`], likewise.
    fn enters_without_flow<P: Packet>(&self, packet: &mut P, headers: &Headers<N>, before: End) -> u32
    where
        Self: Sized,
    {
        super::enters_without_flow(packet, self, headers, before)
    }
    /// [`super::leaves_without_flow`], likewise.
    fn leaves_without_flow<P: Packet>(&self, packet: &mut P, headers: &Headers<N>, before: End) -> u32
    where
        Self: Sized,
    {
        super::leaves_without_flow(packet, self, headers, before)
    }
    /// [`super::passes_by`], likewise.
    fn passes_by<P: Packet>(&self, packet: &mut P, headers: &Headers<N>) -> u32
    where
        Self: Sized,
    {
        super::passes_by(packet, self, headers)
    }
    /// [`super::ended`], likewise.
    fn ended(&self, headers: &Headers<N>, caught: bool) -> End
    where
        Self: Sized,
    {
        super::ended(self, headers, caught)
    }
    /// [`super::answer`], likewise.
    fn answer<P: Packet>(&self, packet: &mut P, headers: &Headers<N>, key: &FlowKey<N>) -> u32
    where
        Self: Sized,
    {
        super::answer(packet, self, headers, key)
    }
    /// [`super::masquerade`], likewise.
    fn masquerade<P: Packet>(
        &self,
        packet: &mut P,
        headers: &Headers<N>,
        key: &FlowKey<N>,
        device: u32,
        ways: u32,
    ) -> u32
    where
        Self: Sized,
    {
        super::masquerade(packet, self, headers, key, device, ways)
    }
    /// [`super::insert_pair`], likewise.
    fn insert_pair(&self, key: &FlowKey<N>, scratch: &mut Scratch<N>, keep_port: bool, avoid: Port) -> u32
    where
        Self: Sized,
    {
        super::insert_pair(self, key, scratch, keep_port, avoid)
    }
    /// [`super::attempt`], likewise.
    fn attempt(&self, key: &FlowKey<N>, scratch: &mut Scratch<N>, keeps: bool, takes_closed: bool) -> u32
    where
        Self: Sized,
    {
        super::attempt(self, key, scratch, keeps, takes_closed)
    }
    /// [`super::refuse`], likewise.
    fn refuse<P: Packet>(&self, packet: &mut P, headers: &Headers<N>) -> u32 {
        super::refuse(packet, headers)
    }
    /// [`super::quoted`], likewise.
    fn quoted<P: Packet>(&self, packet: &mut P, headers: &Headers<N>, hook: u32) -> u32
    where
        Self: Sized,
    {
        super::quoted(packet, self, headers, hook)
    }
    /// [`super::forget`], likewise.
    fn forget(&self, room: &mut Looked<N>)
    where
        Self: Sized,
    {
        super::forget(self, room);
    }
    /// Pairs that the flow table has room for.
    fn ring_size(&self) -> u32;
    /// Turns in the ring, as far as this CPU knows: others change it meanwhile, and hold changes back. Wrapping.
    fn ring_used(&self) -> u32;
    /// Adds to [`Tables::ring_used`], wrapping, as one step.
    fn ring_add(&self, change: u32);
    /// Moment ([`Tables::time`]) of the last sign of a storm ([`super::reclaim`]); 0: there was none.
    fn storm(&self) -> u32;
    /// Overwrites it.
    fn set_storm(&self, moment: u32);
    /// Queues a turn. False: the ring holds more than [`Tables::ring_size`].
    fn ring_push(&self, turn: &Turn<N>) -> bool;
    /// Takes the oldest turn. False: there is none.
    fn ring_pop(&self, turn: &mut Turn<N>) -> bool;

    /// Whether a packet from `source` that came in by `ifindex` counts as a pod's; `None` without a local-traffic detector
    /// (F5 … F8).
    fn is_pod(&self, ifindex: u32, source: &Addr<N>) -> Option<bool>;
    /// Whether all ClusterIP traffic is masqueraded (F4).
    fn masquerade_all(&self) -> bool;
    /// Bits of [`crate::abi::config_flags`].
    fn config_flags(&self) -> u32;
    /// The masquerade mark's bit (F3).
    fn masquerade_mark(&self) -> u32;
    /// Secret that orders masquerade ports.
    fn seed(&self) -> u32;

    /// Whether the stack has connections of kube-proxy's: segments without a flow may be theirs (L-07).
    fn strays_pass(&self) -> bool {
        false
    }
    /// Whether another proxy has taken over, as far as is known ([`crate::abi::Guard::handed_over`]).
    fn handed_over(&self) -> bool {
        false
    }
    /// The same, after a look if it is time for one.
    fn look_for_heir(&self) -> bool {
        self.handed_over()
    }

    /// Monotonic time in ticks of 2^30 ns.
    fn now(&self) -> u32;
    /// The same clock in [`MOMENTS`](crate::abi::MOMENTS) of a tick; in whole ticks where it is no finer.
    fn time(&self) -> u64 {
        beginning(self.now())
    }
    /// `value`, of which the verifier knows nothing any more: what it has learnt about a variable makes each way through a loop, or to what
    /// follows, a case of its own.
    fn unknown(&self, value: u32) -> u32 {
        value
    }
    /// A uniform 32-bit draw.
    fn random(&self) -> u32;
    /// Counts something that happened.
    fn count(&self, reason: Reason);
}
