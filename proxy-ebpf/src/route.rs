//! Where the stack's routes lead, asked once a jiffy.

use crate::maps::{CONFIG, ROUTES};
use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LOOKUP_SKIP_NEIGH, bpf_fib_lookup, bpf_redir_neigh,
    },
    helpers::generated::{bpf_fib_lookup as look_up, bpf_jiffies64},
};
use proxy_common::{
    abi::{FlowKey, config_flags},
    path::Told,
};

/// Families as routes are asked for (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// What the routes were asked, and have answered.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Route {
    pub asked: bpf_fib_lookup,
    /// The neighbour.
    pub next: bpf_redir_neigh,
    /// Not zero: the answer has the hardware addresses for a frame to the neighbour.
    framed: u32,
    told: Told,
}

impl Route {
    /// The device that packets leave by.
    #[inline(always)]
    pub const fn device(&self) -> u32 {
        self.asked.ifindex
    }

    /// The longest packet that the way takes, in bytes.
    #[inline(always)]
    pub const fn mtu(&self) -> u32 {
        // SAFETY: in an answer this is the MTU.
        unsafe { self.asked.__bindgen_anon_1.mtu_result as u32 }
    }

    /// Whether the answer has the hardware addresses for a frame.
    #[inline(always)]
    pub const fn is_framed(&self) -> bool {
        self.framed != 0
    }
}

/// Asks the stack's routes where a packet of `length` bytes with these ends leads. With `neighbour` for its hardware address, too: where that is
/// not known yet, the route is an answer all the same.
#[inline(always)]
pub fn ask<const N: usize>(
    skb: *mut __sk_buff,
    ends: &FlowKey<N>,
    length: u32,
    neighbour: bool,
) -> Option<&'static mut Route> {
    let by_port = is_by_port();
    // SAFETY: the kernel hands every tc program a valid __sk_buff.
    let ifindex = unsafe { (*skb).ifindex };
    let place = Told::place(ends, ifindex, by_port);
    // SAFETY: as above. Programs may keep there what they want, and the stack does not look at it.
    unsafe { (*skb).cb[0] = place };
    let route = last(skb)?;
    // SAFETY: takes nothing, cannot fail.
    let now = unsafe { bpf_jiffies64() } as u32;
    if route.told.is_for(ends, ifindex, by_port, now)
        && length <= route.mtu()
        && (route.is_framed() || !neighbour)
    {
        return Some(route);
    }
    let Route { asked, next, framed, told } = route;
    // What is not written here the kernel does not read, or not for this family.
    asked.__bindgen_anon_2.flowinfo = 0;
    asked.family = if N == 1 { AF_INET } else { AF_INET6 };
    asked.l4_protocol = ends.protocol;
    asked.sport = ends.sport.0;
    asked.dport = ends.dport.0;
    // Without a length the device's MTU would be told, and not the way's.
    asked.__bindgen_anon_1.tot_len = length.clamp(1, u16::MAX.into()) as u16;
    asked.ifindex = ifindex;
    // IPv4's address is the first word of IPv6's. One by one: arrays would be made on the stack.
    let src = (&raw mut asked.__bindgen_anon_3).cast::<u32>();
    let dst = (&raw mut asked.__bindgen_anon_4).cast::<u32>();
    for at in 0..N.min(4) {
        // SAFETY: a word of the four.
        unsafe { *src.wrapping_add(at) = ends.src.0[at] };
        // SAFETY: as above.
        unsafe { *dst.wrapping_add(at) = ends.dst.0[at] };
    }
    told.set(ends, ifindex, now);
    let (size, flags) =
        (size_of::<bpf_fib_lookup>() as i32, if neighbour { 0 } else { BPF_FIB_LOOKUP_SKIP_NEIGH });
    // SAFETY: the kernel writes no more than `size` bytes.
    let answer = unsafe { look_up(skb.cast(), &raw mut *asked, size, flags) };
    // A gateway may be of the other family.
    next.nh_family = asked.family.into();
    // SAFETY: in an answer this is the next hop, of whichever family: words, valid whatever they hold.
    next.__bindgen_anon_1.ipv6_nh = unsafe { asked.__bindgen_anon_4.ipv6_dst };
    *framed = (answer == 0 && neighbour).into();
    // An answer without the neighbour has no MTU.
    if answer != 0 {
        told.clear();
    }
    let led = answer == 0 || answer == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH);
    led.then_some(route)
}

/// What [`ask`] has answered for this packet.
#[inline(always)]
pub fn last(skb: *mut __sk_buff) -> Option<&'static mut Route> {
    // SAFETY: the kernel hands every tc program a valid __sk_buff.
    let place = unsafe { (*skb).cb[0] };
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    unsafe { ROUTES.get_ptr_mut(place)?.as_mut() }
}

/// Whether routes may look at ports.
#[inline(always)]
fn is_by_port() -> bool {
    CONFIG.get(0).is_none_or(|config| config.flags & config_flags::ROUTES_BY_ADDRESS == 0)
}
