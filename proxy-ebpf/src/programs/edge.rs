//! tc programs of an edge.

use crate::packet::Skb;
use crate::tables::{Family, Maps, V4, V6};
use crate::trace;
use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use proxy_common::path::{self, Packet, Verdict};

const ETHERNET: u32 = 14;
const NO_ETHERNET: u32 = 0;
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Ingress of a device with Ethernet headers.
#[classifier]
pub fn sluice_ingress(ctx: TcContext) -> i32 {
    ingress(ctx, ETHERNET)
}

/// Egress of a device with Ethernet headers.
#[classifier]
pub fn sluice_egress(ctx: TcContext) -> i32 {
    egress(ctx, ETHERNET)
}

/// Ingress of a device without link layer header (P-06).
#[classifier]
pub fn sluice_ingr_l3(ctx: TcContext) -> i32 {
    ingress(ctx, NO_ETHERNET)
}

/// Egress of a device without link layer header.
#[classifier]
pub fn sluice_egr_l3(ctx: TcContext) -> i32 {
    egress(ctx, NO_ETHERNET)
}

#[inline(always)]
fn ingress(ctx: TcContext, l3: u32) -> i32 {
    let mut skb = Skb::new(ctx);
    match skb.protocol() {
        // A tagged frame is its VLAN device's to serve (P-04).
        _ if skb.is_tagged() => TC_ACT_UNSPEC,
        ETH_P_IP => ingress_of::<1, V4>(&mut skb, l3),
        ETH_P_IPV6 => ingress_of::<4, V6>(&mut skb, l3),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn egress(ctx: TcContext, l3: u32) -> i32 {
    let mut skb = Skb::new(ctx);
    match skb.protocol() {
        _ if skb.is_tagged() => TC_ACT_UNSPEC,
        ETH_P_IP => egress_of::<1, V4>(&mut skb, l3),
        ETH_P_IPV6 => egress_of::<4, V6>(&mut skb, l3),
        _ => TC_ACT_UNSPEC,
    }
}

// One subprogram per hook and family: in one frame the two families would not fit the stack.

#[inline(never)]
fn ingress_of<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> i32 {
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let Some(room) = F::headers().and_then(|room| unsafe { room.as_mut() }) else {
        return TC_ACT_UNSPEC;
    };
    let maps = Maps::<F>::new(skb.as_ptr());
    let tracing = trace::is_on::<N>();
    if tracing {
        trace::prepare(room);
    }
    let verdict = path::ingress(skb, &maps, room, l3);
    if tracing {
        trace::tell::<N, F>(skb, room, verdict.code());
    }
    action(skb, verdict)
}

#[inline(never)]
fn egress_of<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> i32 {
    // SAFETY: as in `ingress_of`.
    let Some(room) = F::headers().and_then(|room| unsafe { room.as_mut() }) else {
        return TC_ACT_UNSPEC;
    };
    let maps = Maps::<F>::new(skb.as_ptr());
    let tracing = trace::is_on::<N>();
    if tracing {
        trace::prepare(room);
    }
    let verdict = path::egress(skb, &maps, room, l3);
    if tracing {
        trace::tell::<N, F>(skb, room, verdict.code());
    }
    action(skb, verdict)
}

/// The hook's number for a verdict: "unspecified" lets programs behind ours run (L-10).
#[inline(always)]
fn action(skb: &Skb, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        // SAFETY: takes numbers only.
        Verdict::Reject(_) => unsafe { bpf_redirect(skb.ifindex(), 0) as i32 },
    }
}
