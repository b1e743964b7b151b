//! tc programs of an edge. Inlined into what the macro makes of them, which would call them: each return costs.

use crate::family::{Family, V4, V6};
use crate::packet::Skb;
use crate::tables::Maps;
use crate::trace;
use aya_ebpf::{
    EbpfContext,
    bindings::{TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use proxy_common::path::{self, Packet, Verdict};

const ETHERNET: u32 = 14;
const NO_ETHERNET: u32 = 0;
/// [`Verdict::code`] of a packet that is left alone.
const PASS: u32 = Verdict::Pass.code();
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;

/// Ingress of a device with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn sluice_ingress(ctx: TcContext) -> i32 {
    ingress(ctx, ETHERNET)
}

/// Egress of a device with Ethernet headers.
#[classifier]
#[inline(always)]
pub fn sluice_egress(ctx: TcContext) -> i32 {
    egress(ctx, ETHERNET, false)
}

/// Ingress of a device without link layer header (P-06).
#[classifier]
#[inline(always)]
pub fn sluice_ingr_l3(ctx: TcContext) -> i32 {
    ingress(ctx, NO_ETHERNET)
}

/// Ingress of the catch-all device: what is not translated ends here.
#[classifier]
#[inline(always)]
pub fn sluice_in_catch(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx, ETHERNET, true);
    match skb.protocol() {
        _ if skb.is_tagged() => TC_ACT_SHOT,
        ETH_P_IP => enters::<1, V4>(&mut skb, ETHERNET),
        ETH_P_IPV6 => enters::<4, V6>(&mut skb, ETHERNET),
        _ => TC_ACT_SHOT,
    }
}

/// Egress of the catch-all device: answers.
#[classifier]
#[inline(always)]
pub fn sluice_eg_catch(ctx: TcContext) -> i32 {
    egress(ctx, ETHERNET, true)
}

/// Egress of a device without link layer header.
#[classifier]
#[inline(always)]
pub fn sluice_egr_l3(ctx: TcContext) -> i32 {
    egress(ctx, NO_ETHERNET, false)
}

#[inline(always)]
fn ingress(ctx: TcContext, l3: u32) -> i32 {
    let mut skb = Skb::new(ctx, l3, false);
    match skb.protocol() {
        // A tagged frame is its VLAN device's to serve (P-04).
        _ if skb.is_tagged() => TC_ACT_UNSPEC,
        ETH_P_IP => enters::<1, V4>(&mut skb, l3),
        ETH_P_IPV6 => enters::<4, V6>(&mut skb, l3),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn egress(ctx: TcContext, l3: u32, caught: bool) -> i32 {
    let mut skb = Skb::new(ctx, l3, caught);
    match skb.protocol() {
        _ if skb.is_tagged() => TC_ACT_UNSPEC,
        ETH_P_IP => leaves::<1, V4>(&mut skb, l3),
        ETH_P_IPV6 => leaves::<4, V6>(&mut skb, l3),
        _ => TC_ACT_UNSPEC,
    }
}

#[inline(always)]
fn enters<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> i32 {
    let verdict = ingress_of::<N, F>(skb, l3);
    finish::<N, F>(skb, verdict)
}

#[inline(always)]
fn leaves<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> i32 {
    let verdict = egress_of::<N, F>(skb, l3);
    finish::<N, F>(skb, verdict)
}

// They return `Verdict::code`.

#[inline(always)]
fn ingress_of<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> u32 {
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let Some(room) = F::headers().and_then(|room| unsafe { room.as_mut() }) else { return PASS };
    let Some(maps) = Maps::<F>::new(skb.as_ptr()) else { return PASS };
    path::ingress(skb, &maps, room, l3).code()
}

#[inline(always)]
fn egress_of<const N: usize, F: Family<N>>(skb: &mut Skb, l3: u32) -> u32 {
    // SAFETY: as in `ingress_of`.
    let Some(room) = F::headers().and_then(|room| unsafe { room.as_mut() }) else { return PASS };
    let Some(maps) = Maps::<F>::new(skb.as_ptr()) else { return PASS };
    path::egress(skb, &maps, room, l3).code()
}

/// The hook's number for a verdict: "unspecified" lets programs behind ours run (L-10). Traces on the way, from here
/// and not from where the decision is made: the stack has no room for both.
#[inline(always)]
fn finish<const N: usize, F: Family<N>>(skb: &Skb, verdict: u32) -> i32 {
    if trace::is_on::<N>() {
        trace::tell::<N, F>(skb, verdict);
    }
    match Verdict::from_code(verdict) {
        Verdict::Pass => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        Verdict::Shortcut => TC_ACT_REDIRECT,
        // SAFETY: takes numbers only.
        Verdict::Reject(_) => unsafe { bpf_redirect(skb.ifindex(), 0) as i32 },
    }
}
