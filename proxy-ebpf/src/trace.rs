//! The packet trace: what became of packets from or to one address, told by aya-log.
//!
//! Both globals are set when the programs are loaded: with the trace off the verifier removes all of this, and what is
//! left in the packet path is the load of one constant.

use crate::family::Family;
use crate::packet::Skb;
use crate::tables::Maps;
use aya_ebpf::{EbpfContext, Global, macros::map, maps::PerCpuArray};
use aya_log_ebpf::info;
use core::slice::from_raw_parts;
use proxy_common::{
    abi::{Flow, Port, TraceRecord},
    path::{Entry, Fields, Packet, Tables},
    wire::Headers,
};

/// The address whose packets are told, IPv4 in mapped form.
#[unsafe(no_mangle)]
pub static TRACED: Global<[u32; 4]> = Global::new([0; 4]);
/// Words that the address has in its own family, 1 or 4; 0: no trace.
#[unsafe(no_mangle)]
pub static TRACED_WORDS: Global<u32> = Global::new(0);

/// The record in the making.
#[map]
static TRACE_RECORD: PerCpuArray<TraceRecord> = PerCpuArray::with_max_entries(1, 0);

/// Third word of an IPv4-mapped IPv6 address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// Whether packets of `N`-word addresses are traced.
#[inline(always)]
pub fn is_on<const N: usize>() -> bool {
    TRACED_WORDS.load() == N as u32
}

/// Tells what became of the packet whose headers were written down last, if the address has to do with it. `verdict`
/// is a [`proxy_common::path::Verdict::code`].
///
/// A subprogram of its own: its frame must not add to those of the decision.
#[inline(never)]
pub fn tell<const N: usize, F: Family<N>>(skb: &Skb, verdict: u32) {
    // SAFETY: this CPU's element; tc programs do not interrupt each other.
    let Some(before) = F::headers().and_then(|room| unsafe { room.as_ref() }) else { return };
    if !before.is_parsed() {
        return;
    }
    // SAFETY: as above.
    let Some(record) = TRACE_RECORD.get_ptr_mut(0).and_then(|record| unsafe { record.as_mut() }) else {
        return;
    };
    let key = &before.key;
    widen(&mut record.src, &key.src.0);
    widen(&mut record.dst, &key.dst.0);
    record.sport = key.sport;
    record.dport = key.dport;
    if after(skb, before, record).is_none() {
        return;
    }
    let traced = TRACED.load();
    let parties = [&record.src, &record.dst, &record.new_src, &record.new_dst];
    if !parties.into_iter().any(|party| same(party, &traced)) {
        return;
    }
    record.ifindex = skb.ifindex();
    record.mark = skb.mark();
    record.verdict = verdict;
    record.protocol = key.protocol;
    record.hook = key.hook;
    record.kind = 0;
    record.service = Flow::<N>::NO_SERVICE;
    record.pad = 0;
    if let Some(entry) = Maps::<F>::new(skb.as_ptr()).and_then(|maps| maps.flow(key)) {
        record.kind = entry.kind();
        record.service = entry.get(|flow| flow.service);
    }
    // SAFETY: the record is plain and without padding, and outlives the call.
    let bytes = unsafe { from_raw_parts((&raw const *record).cast::<u8>(), TraceRecord::SIZE) };
    info!(skb, target: "trace", "{:x}", bytes);
}

/// The packet's tuple as it is now. `None`: it is shorter than it was.
#[inline(always)]
fn after<const N: usize>(skb: &Skb, before: &Headers<N>, record: &mut TraceRecord) -> Option<()> {
    let at = before.l3 + if N == 1 { 12 } else { 8 };
    let (mut src, mut dst) = ([0; N], [0; N]);
    let mut word = 0;
    while word < N {
        let offset = at + 4 * word as u32;
        src[word] = u32::from_ne_bytes(skb.load(offset)?);
        dst[word] = u32::from_ne_bytes(skb.load(offset + 4 * N as u32)?);
        word += 1;
    }
    widen(&mut record.new_src, &src);
    widen(&mut record.new_dst, &dst);
    let [a, b, c, d] =
        if before.key.sport.0 | before.key.dport.0 == 0 { [0; 4] } else { skb.load(before.l4)? };
    record.new_sport = Port(u16::from_ne_bytes([a, b]));
    record.new_dport = Port(u16::from_ne_bytes([c, d]));
    Some(())
}

#[inline(always)]
const fn widen<const N: usize>(to: &mut [u32; 4], address: &[u32; N]) {
    *to = [0, 0, MAPPED, 0];
    let mut word = 0;
    while word < N {
        to[4 - N + word] = address[word];
        word += 1;
    }
}

#[inline(always)]
const fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
}
