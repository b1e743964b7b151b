//! Global functions: the verifier looks at them once, not once for each way that leads to them.
//!
//! Numbers and pointers to whole values are all that it lets through; what was made of a packet is found again. An argument that
//! is not used must not be there: LLVM hands over whatever is in its register then, which the verifier refuses.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    abi::{FlowKey, Frontend, Port, Reason, SocketPair, SocketPairs},
    path::{self, Asked, End, Looked, Scratch, Verdict, socket},
    wire::{self, Headers},
};

use crate::clock::{Called, Clock, Inline};
use crate::family::{Family, V4, V6};
use crate::packet::Skb;
use crate::route;
use crate::tables::Maps;

/// For each line a global function of either family, and the way to it from what is written for both: a method of [`Steps`].
macro_rules! steps {
    ($($v4:ident, $v6:ident: $step:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        /// The steps of the path that are global functions, by the names that they have in [`path`].
        pub trait Steps<const N: usize> {
            $(fn $step($($argument: $type),*) -> $result;)*
        }

        steps! { @family V4, 1: v4; $($v4: $step($($argument: $type),*) -> $result;)* }
        steps! { @family V6, 4: v6; $($v6: $step($($argument: $type),*) -> $result;)* }
    };
    (@family $family:ident, $n:literal: $module:ident;
     $($function:ident: $step:ident($($argument:ident: $type:ty),*) -> $result:ty;)*) => {
        mod $module {
            use super::*;

            const N: usize = $n;

            impl Steps<N> for $family {
                $(#[inline(always)]
                fn $step($($argument: $type),*) -> $result {
                    $function($($argument),*)
                })*
            }

            $(#[unsafe(no_mangle)]
            #[inline(never)]
            extern "C" fn $function($($argument: $type),*) -> $result {
                super::$step::<N, $family>($($argument),*)
            })*
        }
    };
}

steps! {
    make_room_v4, make_room_v6: make_room() -> u32;
    look_v4, look_v6: look(room: *mut Looked<N>, time: u64, forgets: u32) -> u32;
    forget_v4, forget_v6: forget(room: *mut Looked<N>) -> u32;
    remove_beyond_v4, remove_beyond_v6: remove_beyond(egress: *const FlowKey<N>, kind: u32) -> u32;
    insert_pair_v4, insert_pair_v6: insert_pair(skb: *mut __sk_buff, key: *const FlowKey<N>, scratch: *mut Scratch<N>, keep_port: u32, avoid: u32) -> u32;
    attempt_v4, attempt_v6: attempt(skb: *mut __sk_buff, key: *const FlowKey<N>, scratch: *mut Scratch<N>, keeps: u32, takes_closed: u32) -> u32;
    prepare_v4, prepare_v6: prepare(service: u32, kind: u32, ifindex: u32, scratch: *mut Scratch<N>) -> u32;
    sticky_v4, sticky_v6: sticky(asked: *mut Asked<N>, now: u32) -> u32;
    flow_v4, flow_v6: meets_flow(skb: *mut __sk_buff, caught: u32) -> u64;
    enters_v4, enters_v6: enters_without_flow(skb: *mut __sk_buff, caught: u32, before: u64) -> u32;
    leaves_v4, leaves_v6: leaves_without_flow(skb: *mut __sk_buff, caught: u32, before: u64) -> u32;
    passes_by_v4, passes_by_v6: passes_by(skb: *mut __sk_buff, caught: u32) -> u32;
    remember_v4, remember_v6: remember(skb: *mut __sk_buff, device: u32, peer: u32, client: u32) -> u32;
    answer_v4, answer_v6: answer(skb: *mut __sk_buff, key: *const FlowKey<N>) -> u32;
    masquerade_v4, masquerade_v6: masquerade(skb: *mut __sk_buff, key: *const FlowKey<N>, device: u32, ways: u32) -> u32;
    ended_v4, ended_v6: ended(caught: u32) -> u64;
    quoted_v4, quoted_v6: quoted(skb: *mut __sk_buff, caught: u32, hook: u32) -> u32;
    route_v4, route_v6: route(skb: *mut __sk_buff, ends: *const FlowKey<N>, length: u32, neighbour: u32) -> u64;
    sctp_v4, sctp_v6: sctp_checksum(skb: *mut __sk_buff, sport: u32, dport: u32) -> u32;
    refuse_v4, refuse_v6: refuse(skb: *mut __sk_buff) -> u32;
}

/// A drop, where the verifier asks for what never happens and no pair can be made.
const NEVER: u32 = Verdict::Drop(Reason::Rewrite).code();
/// No verdict, likewise: the packet goes on as it is.
const NONE: u32 = u32::MAX;

/// The headers of the packet at hand.
#[inline(always)]
fn headers<const N: usize, F: Family<N>>() -> Option<&'static Headers<N>> {
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    F::headers().and_then(|room| unsafe { room.as_ref() })
}

/// Tables for what few packets need; `skb`: the packet, to look for sockets.
#[inline(always)]
fn maps<F>(skb: *mut __sk_buff) -> Option<Maps<F, Called>> {
    Maps::new(skb.cast())
}

/// No packet.
const NO_SKB: *mut __sk_buff = core::ptr::null_mut();

#[inline(always)]
fn make_room<const N: usize, F: Family<N>>() -> u32 {
    let Some(room) = F::looked() else { return 0 };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let room = unsafe { &mut *room };
    let Some(maps) = maps::<F>(NO_SKB) else { return 0 };
    path::make_room(&maps, room).into()
}

#[inline(always)]
fn look<const N: usize, F: Family<N>>(room: *mut Looked<N>, time: u64, forgets: u32) -> u32 {
    // SAFETY: the caller has a reference; the verifier asks for the comparison with null.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    let Some(maps) = maps::<F>(NO_SKB) else { return 0 };
    path::look(&maps, room, time, forgets)
}

#[inline(always)]
fn forget<const N: usize, F: Family<N>>(room: *mut Looked<N>) -> u32 {
    // SAFETY: as above.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    let Some(maps) = maps::<F>(NO_SKB) else { return 0 };
    path::forget(&maps, room);
    0
}

#[inline(always)]
fn remove_beyond<const N: usize, F: Family<N>>(egress: *const FlowKey<N>, kind: u32) -> u32 {
    // SAFETY: as above.
    let Some(egress) = (unsafe { egress.as_ref() }) else { return 0 };
    let Some(room) = F::beyond() else { return 0 };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let room = unsafe { &mut *room };
    let Some(maps) = maps::<F>(NO_SKB) else { return 0 };
    path::remove_beyond(&maps, egress, kind, room);
    0
}

#[inline(always)]
fn insert_pair<const N: usize, F: Family<N>>(
    skb: *mut __sk_buff,
    key: *const FlowKey<N>,
    scratch: *mut Scratch<N>,
    keep_port: u32,
    avoid: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    let Some(maps) = maps::<F>(skb) else { return NEVER };
    path::insert_pair(&maps, key, scratch, keep_port != 0, Port(avoid as u16))
}

#[inline(always)]
fn attempt<const N: usize, F: Family<N>>(
    skb: *mut __sk_buff,
    key: *const FlowKey<N>,
    scratch: *mut Scratch<N>,
    keeps: u32,
    takes_closed: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    let Some(maps) = maps::<F>(skb) else { return NEVER };
    path::attempt(&maps, key, scratch, keeps != 0, takes_closed != 0)
}

#[inline(always)]
fn prepare<const N: usize, F: Family<N>>(
    service: u32,
    kind: u32,
    ifindex: u32,
    scratch: *mut Scratch<N>,
) -> u32 {
    let Some(headers) = headers::<N, F>() else { return NONE };
    // SAFETY: as above.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NONE };
    let Some(maps) = maps::<F>(NO_SKB) else { return NONE };
    path::prepare(&maps, headers, Frontend { service, kind }, ifindex, scratch)
}

#[inline(always)]
fn sticky<const N: usize, F: Family<N>>(asked: *mut Asked<N>, now: u32) -> u32 {
    // SAFETY: as above.
    let Some(asked) = (unsafe { asked.as_mut() }) else { return u32::MAX };
    let Some(maps) = maps::<F>(NO_SKB) else { return u32::MAX };
    path::sticky(&maps, asked, now)
}

#[inline(always)]
fn meets_flow<const N: usize, F: Family<N>>(skb: *mut __sk_buff, caught: u32) -> u64 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    // Many a packet has met one before: the time without a call.
    let Some(maps) = Maps::<F>::new(skb.cast()) else { return 0 };
    path::meets_flow(&mut Skb::again(skb, caught != 0), &maps, headers)
}

#[inline(always)]
fn enters_without_flow<const N: usize, F: Family<N>>(skb: *mut __sk_buff, caught: u32, before: u64) -> u32 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    let Some(maps) = maps::<F>(skb) else { return 0 };
    path::enters_without_flow(&mut Skb::again(skb, caught != 0), &maps, headers, End(before))
}

#[inline(always)]
fn leaves_without_flow<const N: usize, F: Family<N>>(skb: *mut __sk_buff, caught: u32, before: u64) -> u32 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    let Some(maps) = maps::<F>(skb) else { return 0 };
    path::leaves_without_flow(&mut Skb::again(skb, caught != 0), &maps, headers, End(before))
}

#[inline(always)]
fn passes_by<const N: usize, F: Family<N>>(skb: *mut __sk_buff, caught: u32) -> u32 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    let Some(maps) = maps::<F>(skb) else { return 0 };
    path::passes_by(&mut Skb::again(skb, caught != 0), &maps, headers)
}

#[inline(always)]
fn remember<const N: usize, F: Family<N>>(skb: *mut __sk_buff, device: u32, peer: u32, client: u32) -> u32 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    let Some(maps) = maps::<F>(skb) else { return 0 };
    path::remember(&Skb::again(skb, false), &maps, headers, device, peer, client).is_some().into()
}

#[inline(always)]
fn answer<const N: usize, F: Family<N>>(skb: *mut __sk_buff, key: *const FlowKey<N>) -> u32 {
    let Some(headers) = headers::<N, F>() else { return NONE };
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NONE };
    // As of a packet that meets a flow.
    let Some(maps) = Maps::<F>::new(skb.cast()) else { return NONE };
    path::answer(&mut Skb::again(skb, false), &maps, headers, key)
}

#[inline(always)]
fn masquerade<const N: usize, F: Family<N>>(
    skb: *mut __sk_buff,
    key: *const FlowKey<N>,
    device: u32,
    ways: u32,
) -> u32 {
    let Some(headers) = headers::<N, F>() else { return ways };
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return ways };
    // Likewise.
    let Some(maps) = Maps::<F>::new(skb.cast()) else { return ways };
    path::masquerade(&mut Skb::again(skb, false), &maps, headers, key, device, ways)
}

#[inline(always)]
fn ended<const N: usize, F: Family<N>>(caught: u32) -> u64 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    let Some(maps) = maps::<F>(NO_SKB) else { return 0 };
    path::ended(&maps, headers, caught != 0).0
}

#[inline(always)]
fn quoted<const N: usize, F: Family<N>>(skb: *mut __sk_buff, caught: u32, hook: u32) -> u32 {
    let Some(headers) = headers::<N, F>() else { return NONE };
    let Some(maps) = maps::<F>(skb) else { return NONE };
    path::quoted(&mut Skb::again(skb, caught != 0), &maps, headers, hook)
}

#[inline(always)]
fn refuse<const N: usize, F: Family<N>>(skb: *mut __sk_buff) -> u32 {
    let Some(headers) = headers::<N, F>() else { return 0 };
    path::refuse(&mut Skb::again(skb, false), headers)
}

#[inline(always)]
fn sctp_checksum<const N: usize, F: Family<N>>(skb: *mut __sk_buff, sport: u32, dport: u32) -> u32 {
    let Some(headers) = headers::<N, F>() else { return NEVER };
    path::sctp_checksum(&mut Skb::again(skb, false), headers, Port(sport as u16), Port(dport as u16))
}

/// [`route::ask`]: the device, and above it the MTU; 0: it leads nowhere.
#[inline(always)]
fn route<const N: usize, F: Family<N>>(
    skb: *mut __sk_buff,
    ends: *const FlowKey<N>,
    length: u32,
    neighbour: u32,
) -> u64 {
    // SAFETY: as above.
    let Some(ends) = (unsafe { ends.as_ref() }) else { return 0 };
    match route::ask(skb, ends, length, neighbour != 0) {
        Some(route) => u64::from(route.mtu()) << 32 | u64::from(route.device()),
        None => 0,
    }
}

/// [`wire::extensions`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn extensions(skb: *mut __sk_buff, headers: *mut Headers<4>) -> u32 {
    // SAFETY: as above.
    let Some(headers) = (unsafe { headers.as_mut() }) else { return 0 };
    wire::extensions(&Skb::again(skb, false), headers)
}

/// The time, [`Inline::time`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn clock_time() -> u64 {
    Inline::time()
}

/// [`socket::last_stamp`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn last_stamp(pairs: *mut SocketPairs) -> u32 {
    // SAFETY: null, or what a look-up has returned in this run of the program.
    unsafe { pairs.as_mut() }.map_or(0, |pairs| socket::last_stamp(pairs).into())
}

/// The pair is remembered.
pub const REMEMBERED: u32 = 1;

/// [`socket::remember`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remember_pair(pairs: *mut SocketPairs, pair: *const SocketPair) -> u32 {
    // SAFETY: as above.
    let Some(pairs) = (unsafe { pairs.as_mut() }) else { return 0 };
    // SAFETY: as above.
    let Some(pair) = (unsafe { pair.as_ref() }) else { return 0 };
    let last = last_stamp(pairs) as u16;
    socket::remember(pairs, pair, last);
    REMEMBERED
}

/// [`wire::crc_difference`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc_difference(first: u32, length: u32) -> u32 {
    wire::crc_difference(first, length)
}
