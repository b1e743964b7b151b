//! Packet memory: every bounds check and every raw access of this crate.

use crate::family::{V4, V6};
use crate::global::Steps;
use crate::maps::{SUMMED_AT, TEST_MODE};
use crate::route;
use aya_ebpf::{
    EbpfContext,
    bindings::{
        __sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
        bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated::{
        bpf_csum_update, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_pull_data,
    },
    programs::TcContext,
};
use core::ffi::c_void;
use core::mem::transmute;
use core::ptr::{null_mut, read_volatile, write_volatile};
use proxy_common::{
    abi::{CAST_CALL, FlowKey, Port, protocol},
    path::{Out, Packet, TEST_MTU},
    wire::{Diff, Headers, MAX_OFFSET, apply, grow, same_sum},
};

/// `BPF_F_IPV6` (kernel 6.16): with it the helper keeps CHECKSUM_COMPLETE right for IPv6, whose address change the
/// transport checksum compensates.
const BPF_F_IPV6: u64 = 1 << 7;

/// `ip_summed` of a packet whose checksum is finished: not looked at, and found to be right (include/linux/skbuff.h).
const CHECKSUM_NONE: u8 = 0;
const CHECKSUM_UNNECESSARY: u8 = 1;
/// The same of one whose checksum is left to a device.
const CHECKSUM_PARTIAL: u8 = 3;

/// The number in a VLAN's tag (IEEE 802.1Q).
const VLAN_ID: u32 = 0xfff;

/// `pkt_type` of a packet that is for this host (include/uapi/linux/if_packet.h).
const PACKET_HOST: u32 = 0;

/// Bytes that are made linear before anything is read: Ethernet, IPv6, a few extension headers, TCP.
const HEADERS: u32 = 14 + 40 + 64 + 20;
/// Plain network headers, and TCP's behind them.
const PLAIN_V4: usize = 20 + 20;
const PLAIN_V6: usize = 40 + 20;

/// A socket buffer at a tc hook.
pub struct Skb {
    ctx: TcContext,
    caught: bool,
}

impl Skb {
    /// Takes over the context of a packet whose network header begins at `l3`, and makes the headers linear when the device left
    /// them in fragments (P-07). `caught`: at the catch-all device.
    #[inline(always)]
    pub fn new(ctx: TcContext, l3: u32, caught: bool) -> Self {
        let skb = Self { ctx, caught };
        let want = if skb.len() < HEADERS { skb.len() } else { HEADERS };
        let (data, end) = skb.bounds();
        if data.wrapping_add(want as usize) > end && !skb.is_plain(l3) {
            // SAFETY: the context is the hook's own; pointers are read anew after every helper.
            unsafe { bpf_skb_pull_data(skb.ctx.skb.skb, want) };
        }
        skb
    }

    /// The same of a socket buffer that has been taken over before.
    #[inline(always)]
    pub fn again(skb: *mut __sk_buff, caught: bool) -> Self {
        Self { ctx: TcContext::new(skb), caught }
    }

    /// Whether the headers are linear and nothing beyond them is read: TCP or UDP, right behind a network header without options.
    /// So is what sockets of this machine send: TCP's data lies in pages, and to copy some of it costs more than a look-up.
    #[inline(always)]
    fn is_plain(&self, l3: u32) -> bool {
        let is_ours = |number: u8| matches!(number, protocol::TCP | protocol::UDP);
        if let Some(header) = self.window::<PLAIN_V4>(l3)
            && header[0] == 0x45
        {
            return is_ours(header[9]);
        }
        self.window::<PLAIN_V6>(l3).is_some_and(|header| header[0] >> 4 == 6 && is_ours(header[6]))
    }

    /// EtherType in host order.
    #[inline(always)]
    pub fn protocol(&self) -> u16 {
        // SAFETY: the kernel hands every tc program a valid __sk_buff.
        u16::from_be(unsafe { (*self.ctx.skb.skb).protocol } as u16)
    }

    /// Whether the frame belongs to a VLAN: its own device serves it (P-04). A tag of number 0 gives it a priority, and no VLAN.
    #[inline(always)]
    pub fn is_tagged(&self) -> bool {
        // SAFETY: as above. Zero without a tag.
        unsafe { (*self.ctx.skb.skb).vlan_tci & VLAN_ID != 0 }
    }

    /// Volatile, or LLVM narrows the pointers to 32-bit values that the verifier takes for numbers.
    #[inline(always)]
    fn bounds(&self) -> (*mut u8, *mut u8) {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel hands every tc program a valid __sk_buff.
        let start = unsafe { &raw const (*skb).data };
        // SAFETY: as above.
        let end = unsafe { &raw const (*skb).data_end };
        // SAFETY: fields of that __sk_buff.
        let data = unsafe { read_volatile(start) };
        // SAFETY: as above.
        let end = unsafe { read_volatile(end) };
        (data as usize as *mut u8, end as usize as *mut u8)
    }

    /// Whether finishing the checksum is left to a device, by the socket buffer's `ip_summed`, where the agent has found out how to
    /// read it. `None`: nobody can tell, or a device has summed the whole packet.
    #[inline(always)]
    fn summed(&self) -> Option<bool> {
        let at = SUMMED_AT.load();
        if at == 0 {
            return None;
        }
        // SAFETY: the agent puts bpf_cast_to_kern_ctx in this call's place before it gives `at` a value.
        let cast: unsafe extern "C" fn(*mut c_void) -> *const u8 = unsafe { transmute(CAST_CALL as usize) };
        // SAFETY: the context is the hook's own.
        let skb = unsafe { cast(self.ctx.as_ptr()) };
        // SAFETY: a byte of struct sk_buff. Volatile, or LLVM would move the load in front of the branch.
        let byte = unsafe { read_volatile(skb.wrapping_add((at / 8) as usize)) };
        match byte >> (at % 8) & 3 {
            CHECKSUM_PARTIAL => Some(true),
            CHECKSUM_NONE | CHECKSUM_UNNECESSARY => Some(false),
            _ => None,
        }
    }

    /// What the routes answer in a test run.
    #[inline(always)]
    fn tested_route(&mut self) -> Option<(u32, u32)> {
        let skb = self.ctx.skb.skb;
        // SAFETY: the kernel hands every tc program a valid __sk_buff.
        let device = unsafe { (*skb).cb[3] };
        // SAFETY: as above.
        let next = unsafe { (*skb).cb[4] };
        // SAFETY: as above.
        unsafe { (*skb).cb[3] = next };
        // SAFETY: as above.
        unsafe { (*skb).cb[4] = 0 };
        (device != 0).then_some((device, TEST_MTU))
    }

    /// The device and the MTU that the routes name; `neighbour`: and its hardware address.
    #[inline(always)]
    fn ask<const N: usize>(&mut self, ends: &FlowKey<N>, length: u32, neighbour: bool) -> Option<(u32, u32)> {
        if TEST_MODE.load() != 0 {
            return self.tested_route();
        }
        let (skb, ends, neighbour) = (self.ctx.skb.skb, &raw const *ends, neighbour.into());
        let told = if N == 1 {
            V4::route(skb, ends.cast(), length, neighbour)
        } else {
            V6::route(skb, ends.cast(), length, neighbour)
        };
        (told != 0).then_some((told as u32, (told >> 32) as u32))
    }

    /// Gives the frame the hardware addresses that the routes have answered with.
    #[inline(always)]
    fn address(&mut self, answer: &bpf_fib_lookup) -> Option<()> {
        let [a, b, c, d, e, f] = answer.dmac;
        let [g, h, i, j, k, l] = answer.smac;
        self.store(0, [a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// A finished checksum at `at`, after the bytes that it covers have changed.
    #[inline(always)]
    fn finished(&mut self, at: u32, change: Diff, udp: bool) -> Option<()> {
        let field: &mut [u8; 2] = self.window_mut(at)?;
        let checksum = u16::from_ne_bytes(*field);
        if !(udp && checksum == 0) {
            *field = mangled(apply(checksum, change), udp).to_ne_bytes();
        }
        Some(())
    }

    /// A partial checksum at `at`: a sum of the pseudo header, so of addresses and not of ports.
    #[inline(always)]
    fn partial(&mut self, at: u32, addresses: Diff, udp: bool) -> Option<()> {
        let field: &mut [u8; 2] = self.window_mut(at)?;
        let sum = u16::from_ne_bytes(*field);
        if !(udp && sum == 0 || addresses.is_none()) {
            *field = mangled(grow(sum, addresses), udp).to_ne_bytes();
        }
        Some(())
    }

    /// A pointer to `size` bytes at `at`, if they are there.
    #[inline(always)]
    fn at(&self, at: u32, size: usize) -> Option<*mut u8> {
        let (data, end) = self.bounds();
        // The mask is what the verifier believes; `wire` promises that it changes nothing.
        let start = data.wrapping_add((at & (MAX_OFFSET - 1)) as usize);
        if start.wrapping_add(size) > end { None } else { Some(start) }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.ctx.len()
    }

    #[inline(always)]
    fn window<const K: usize>(&self, at: u32) -> Option<&[u8; K]> {
        let start = self.at(at, K)?;
        // SAFETY: `at` compared start + K with data_end; any bytes make a [u8; K]. What moves packet memory takes the
        // packet by `&mut`.
        Some(unsafe { &*start.cast::<[u8; K]>() })
    }

    #[inline(always)]
    fn window_mut<const K: usize>(&mut self, at: u32) -> Option<&mut [u8; K]> {
        let start = self.at(at, K)?;
        // SAFETY: as above; the packet is borrowed for as long.
        Some(unsafe { &mut *start.cast::<[u8; K]>() })
    }

    /// Own arithmetic where the socket buffer tells how its checksum stands. Else, and where a device has summed the whole
    /// packet, one call of the helper, which takes longer than all the rest of a rewrite. It tells as well, by what it does
    /// with the addresses: a partial checksum is a sum and grows by them, a finished one is a complement and shrinks. A
    /// finished one covers the ports as well, and they are added here.
    #[inline(always)]
    fn l4_checksum(&mut self, at: u32, addresses: Diff, ports: Diff, udp: bool, v6: bool) -> Option<()> {
        match self.summed() {
            Some(false) => return self.finished(at, addresses.and(ports), udp),
            Some(true) => return self.partial(at, addresses, udp),
            None => {}
        }
        let skb = self.ctx.skb.skb;
        let kind = if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        if addresses.is_none() {
            if ports.is_none() {
                return Some(());
            }
            // SAFETY: the helper checks the offset itself.
            let failed = unsafe { bpf_l4_csum_replace(skb, at, 0, u64::from(ports.0), kind) };
            return if failed == 0 { Some(()) } else { None };
        }
        let before = u16::from_ne_bytes(self.load(at)?);
        if udp && before == 0 {
            return Some(());
        }
        let flags = u64::from(BPF_F_PSEUDO_HDR) | kind | if v6 { BPF_F_IPV6 } else { 0 };
        // SAFETY: as above.
        let failed = unsafe { bpf_l4_csum_replace(skb, at, 0, u64::from(addresses.0), flags) };
        if failed != 0 {
            return None;
        }
        let after = u16::from_ne_bytes(self.load(at)?);
        if ports.is_none() || !same_sum(after, apply(before, addresses)) {
            return Some(());
        }
        self.store(at, mangled(apply(after, ports), udp).to_ne_bytes())
    }

    #[inline(always)]
    fn crc_difference(&self, first: u32, length: u32) -> u32 {
        crate::global::crc_difference(first, length)
    }

    /// Of IPv6 only.
    #[inline(always)]
    fn extensions<const N: usize>(&self, headers: &mut Headers<N>) -> u32 {
        crate::global::extensions(self.ctx.skb.skb, (&raw mut *headers).cast())
    }

    #[inline(always)]
    fn sctp_checksum<const N: usize>(&mut self, _headers: &Headers<N>, sport: Port, dport: Port) -> u32 {
        let (skb, sport, dport) = (self.ctx.skb.skb, sport.0.into(), dport.0.into());
        if N == 1 { V4::sctp_checksum(skb, sport, dport) } else { V6::sctp_checksum(skb, sport, dport) }
    }

    #[inline(always)]
    fn shift_sum(&mut self, change: Diff) {
        if self.summed().is_some() {
            return;
        }
        // SAFETY: as above. Without such a sum there is nothing to do.
        unsafe { bpf_csum_update(self.ctx.skb.skb, change.0) };
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        // SAFETY: the context is the hook's own; pointers are read anew after every helper.
        let failed = unsafe { bpf_skb_change_tail(self.ctx.skb.skb, len, 0) };
        if failed == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn make_room(&mut self, _l3: u32, bytes: u32) -> Option<()> {
        // SAFETY: as above.
        let failed = unsafe { bpf_skb_adjust_room(self.ctx.skb.skb, bytes as i32, BPF_ADJ_ROOM_MAC, 0) };
        if failed == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the kernel hands every tc program a valid __sk_buff.
        unsafe { (*self.ctx.skb.skb).mark }
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u32) {
        self.ctx.set_mark(mark);
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the kernel hands every tc program a valid __sk_buff.
        unsafe { (*self.ctx.skb.skb).ifindex }
    }

    /// In test runs the byte behind the note says that it is not.
    #[inline(always)]
    fn is_for_host(&self) -> bool {
        let skb = self.ctx.skb.skb;
        if TEST_MODE.load() != 0 {
            // SAFETY: the kernel hands every tc program a valid __sk_buff.
            let place = unsafe { &raw const (*skb).cb };
            // SAFETY: as above.
            return unsafe { read_volatile(place.cast::<u8>().wrapping_add(2)) } == 0;
        }
        // SAFETY: as above.
        unsafe { (*skb).pkt_type == PACKET_HOST }
    }

    /// `tc_index`, which the stack keeps and only packet schedulers look at; in test runs, which do not show it, `cb`. Of different
    /// sizes, or LLVM would make one access to a computed place of both, which the verifier refuses.
    #[inline(always)]
    fn note(&self) -> u16 {
        let skb = self.ctx.skb.skb;
        if TEST_MODE.load() != 0 {
            // SAFETY: the kernel hands every tc program a valid __sk_buff.
            let place = unsafe { &raw const (*skb).cb };
            // SAFETY: as above.
            return unsafe { read_volatile(place.cast::<u16>()) };
        }
        // SAFETY: as above.
        unsafe { (*skb).tc_index as u16 }
    }

    #[inline(always)]
    fn set_note(&mut self, note: u16) {
        let skb = self.ctx.skb.skb;
        if TEST_MODE.load() != 0 {
            // SAFETY: as above.
            let place = unsafe { &raw mut (*skb).cb };
            // SAFETY: as above.
            unsafe { write_volatile(place.cast::<u16>(), note) };
        } else {
            // SAFETY: as above.
            unsafe { (*skb).tc_index = note.into() };
        }
    }

    #[inline(always)]
    fn segment(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).gso_size }
    }

    // Whether the neighbour answers is for the stack to find out.
    #[inline(always)]
    fn route<const N: usize>(&mut self, ends: &FlowKey<N>, length: u32) -> Option<(u32, u32)> {
        self.ask(ends, length, false)
    }

    #[inline(always)]
    fn next_hop<const N: usize>(&mut self, ends: &FlowKey<N>, length: u32) -> Option<u32> {
        self.ask(ends, length, true).map(|(device, _)| device)
    }

    #[inline(always)]
    fn send(&mut self, device: u32, out: Out) {
        let skb = self.ctx.skb.skb;
        let peer = matches!(out, Out::Peer);
        if TEST_MODE.load() != 0 {
            // SAFETY: as above.
            unsafe { (*skb).cb[1] = device };
            // SAFETY: as above.
            unsafe { (*skb).cb[2] = peer.into() };
        }
        // What comes in by a bridge's port is for the bridge's own address, which to the port is somebody else.
        // SAFETY: as above.
        if unsafe { (*skb).pkt_type } != PACKET_HOST {
            // SAFETY: as above.
            unsafe { bpf_skb_change_type(skb, PACKET_HOST) };
        }
        if peer {
            // SAFETY: takes numbers only. What it returns is what the program returns for a shortcut.
            unsafe { bpf_redirect_peer(device, 0) };
            return;
        }
        let mut next: (*mut bpf_redir_neigh, usize) = (null_mut(), 0);
        if let Out::NextHop = out
            && let Some(route) = route::last(skb)
        {
            if route.is_framed() && self.address(&route.asked).is_some() {
                // SAFETY: takes numbers only.
                unsafe { bpf_redirect(device, 0) };
                return;
            }
            next = (&raw mut route.next, size_of::<bpf_redir_neigh>());
        }
        // SAFETY: as above; without a neighbour the helper asks the routes.
        unsafe { bpf_redirect_neigh(device, next.0, next.1 as i32, 0) };
    }

    /// To the kernel all of a test run's packets are finished.
    #[inline(always)]
    fn is_unfinished(&self) -> Option<bool> {
        if TEST_MODE.load() != 0 { None } else { self.summed() }
    }

    /// Test runs give every packet a socket: the byte behind that says that it has none.
    #[inline(always)]
    fn is_own(&self) -> bool {
        if TEST_MODE.load() != 0 {
            // SAFETY: as above.
            let place = unsafe { &raw const (*self.ctx.skb.skb).cb };
            // SAFETY: as above.
            return unsafe { read_volatile(place.cast::<u8>().wrapping_add(3)) } == 0;
        }
        // SAFETY: as above.
        let socket = unsafe { &(*self.ctx.skb.skb).__bindgen_anon_2 };
        // SAFETY: eight bytes of the context, valid whatever they hold. Devices that hand a packet to another namespace
        // take its socket away.
        !unsafe { socket.sk }.is_null()
    }

    #[inline(always)]
    fn is_caught(&self) -> bool {
        self.caught
    }
}

/// A UDP checksum of zero would mean that there is none (P-58).
#[inline(always)]
const fn mangled(checksum: u16, udp: bool) -> u16 {
    if udp && checksum == 0 { 0xffff } else { checksum }
}

impl EbpfContext for Skb {
    fn as_ptr(&self) -> *mut c_void {
        self.ctx.as_ptr()
    }
}
