//! Global functions: the verifier looks at them once, not once for each way that leads to them.

use aya_ebpf::bindings::__sk_buff;
use proxy_common::{
    abi::{FlowKey, Port, Reason},
    path::{self, Asked, End, Looked, Scratch, Verdict},
    wire,
};

use crate::family::{V4, V6};
use crate::maps::{BEYOND_V4, BEYOND_V6, HEADERS_V4, HEADERS_V6, LOOKED_V4, LOOKED_V6};
use crate::packet::Skb;
use crate::tables::Maps;

/// A drop, where the verifier asks for what never happens.
const NEVER: u32 = Verdict::Drop(Reason::Rewrite).code();

/// [`path::make_room`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_room_v4() -> u32 {
    let Some(room) = LOOKED_V4.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let room = unsafe { &mut *room };
    path::make_room(&Maps::<V4>::new(core::ptr::null_mut()), room).into()
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn make_room_v6() -> u32 {
    let Some(room) = LOOKED_V6.get_ptr_mut(0) else { return 0 };
    // SAFETY: as above.
    let room = unsafe { &mut *room };
    path::make_room(&Maps::<V6>::new(core::ptr::null_mut()), room).into()
}

/// [`path::look`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_v4(room: *mut Looked<1>, time: u64, forgets: u32) -> u32 {
    // SAFETY: the caller has a reference; the verifier asks for the comparison with null.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    path::look(&Maps::<V4>::new(core::ptr::null_mut()), room, time, forgets)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn look_v6(room: *mut Looked<4>, time: u64, forgets: u32) -> u32 {
    // SAFETY: as above.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    path::look(&Maps::<V6>::new(core::ptr::null_mut()), room, time, forgets)
}

/// [`path::insert_pair`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_pair_v4(
    skb: *mut __sk_buff,
    key: *const FlowKey<1>,
    scratch: *mut Scratch<1>,
    keep_port: u32,
    avoid: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    path::insert_pair(&Maps::<V4>::new(skb.cast()), key, scratch, keep_port != 0, Port(avoid as u16))
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn insert_pair_v6(
    skb: *mut __sk_buff,
    key: *const FlowKey<4>,
    scratch: *mut Scratch<4>,
    keep_port: u32,
    avoid: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    path::insert_pair(&Maps::<V6>::new(skb.cast()), key, scratch, keep_port != 0, Port(avoid as u16))
}

/// [`path::attempt`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attempt_v4(
    skb: *mut __sk_buff,
    key: *const FlowKey<1>,
    scratch: *mut Scratch<1>,
    keeps: u32,
    takes_closed: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    path::attempt(&Maps::<V4>::new(skb.cast()), key, scratch, keeps != 0, takes_closed != 0)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn attempt_v6(
    skb: *mut __sk_buff,
    key: *const FlowKey<4>,
    scratch: *mut Scratch<4>,
    keeps: u32,
    takes_closed: u32,
) -> u32 {
    // SAFETY: as above.
    let Some(key) = (unsafe { key.as_ref() }) else { return NEVER };
    // SAFETY: as above; it is not where the key is.
    let Some(scratch) = (unsafe { scratch.as_mut() }) else { return NEVER };
    path::attempt(&Maps::<V6>::new(skb.cast()), key, scratch, keeps != 0, takes_closed != 0)
}

/// [`path::forget`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forget_v4(room: *mut Looked<1>) -> u32 {
    // SAFETY: as above.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    path::forget(&Maps::<V4>::new(core::ptr::null_mut()), room);
    0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn forget_v6(room: *mut Looked<4>) -> u32 {
    // SAFETY: as above.
    let Some(room) = (unsafe { room.as_mut() }) else { return 0 };
    path::forget(&Maps::<V6>::new(core::ptr::null_mut()), room);
    0
}

/// [`path::remove_beyond`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_beyond_v4(egress: *const FlowKey<1>, kind: u32) -> u32 {
    // SAFETY: as above.
    let Some(egress) = (unsafe { egress.as_ref() }) else { return 0 };
    let Some(room) = BEYOND_V4.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let room = unsafe { &mut *room };
    path::remove_beyond(&Maps::<V4>::new(core::ptr::null_mut()), egress, kind, room);
    0
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn remove_beyond_v6(egress: *const FlowKey<4>, kind: u32) -> u32 {
    // SAFETY: as above.
    let Some(egress) = (unsafe { egress.as_ref() }) else { return 0 };
    let Some(room) = BEYOND_V6.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let room = unsafe { &mut *room };
    path::remove_beyond(&Maps::<V6>::new(core::ptr::null_mut()), egress, kind, room);
    0
}

/// [`path::sticky`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sticky_v4(asked: *mut Asked<1>, now: u32) -> u32 {
    // SAFETY: as above.
    let Some(asked) = (unsafe { asked.as_mut() }) else { return u32::MAX };
    path::sticky(&Maps::<V4>::new(core::ptr::null_mut()), asked, now)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn sticky_v6(asked: *mut Asked<4>, now: u32) -> u32 {
    // SAFETY: as above.
    let Some(asked) = (unsafe { asked.as_mut() }) else { return u32::MAX };
    path::sticky(&Maps::<V6>::new(core::ptr::null_mut()), asked, now)
}

/// [`path::refuse`] for IPv4.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refuse_v4(skb: *mut __sk_buff) -> u32 {
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let Some(headers) = HEADERS_V4.get_ptr(0).and_then(|room| unsafe { room.as_ref() }) else { return 0 };
    // To whom it is refused does not matter.
    path::refuse(&mut Skb::again(skb, false), headers)
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn refuse_v6(skb: *mut __sk_buff) -> u32 {
    // SAFETY: as above.
    let Some(headers) = HEADERS_V6.get_ptr(0).and_then(|room| unsafe { room.as_ref() }) else { return 0 };
    path::refuse(&mut Skb::again(skb, false), headers)
}

/// Steps of the path for the packet at hand: a pointer to it can be handed over, what was made of it is found again.
macro_rules! steps {
    ($($function:ident($($argument:ident: $type:ty)?): $step:ident($($value:expr)?), $family:ident, $headers:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $function(skb: *mut __sk_buff, caught: u32 $(, $argument: $type)?) -> u32 {
            // SAFETY: this CPU's element; tc programs do not interrupt each other.
            let Some(headers) = $headers.get_ptr(0).and_then(|room| unsafe { room.as_ref() }) else { return 0 };
            let maps = Maps::<$family>::new(skb.cast());
            path::$step(&mut Skb::again(skb, caught != 0), &maps, headers $(, $value)?)
        }
    )*};
}

steps! {
    enters_v4(before: u64): enters_without_flow(End(before)), V4, HEADERS_V4;
    enters_v6(before: u64): enters_without_flow(End(before)), V6, HEADERS_V6;
    leaves_v4(before: u64): leaves_without_flow(End(before)), V4, HEADERS_V4;
    leaves_v6(before: u64): leaves_without_flow(End(before)), V6, HEADERS_V6;
    passes_by_v4(): passes_by(), V4, HEADERS_V4;
    passes_by_v6(): passes_by(), V6, HEADERS_V6;
    quoted_v4(hook: u32): quoted(hook), V4, HEADERS_V4;
    quoted_v6(hook: u32): quoted(hook), V6, HEADERS_V6;
}

/// [`wire::crc_difference`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc_difference(first: u32, length: u32) -> u32 {
    wire::crc_difference(first, length)
}
