//! The catch-all device: where the node's own packets to Services go that no socket hook has translated.
//!
//! Routes lead Service addresses into one end of a private pair of devices; this is the ingress of the other end. A packet
//! gets an address there as its source that is routed back to the pair, so that the answer comes this way and the kernel's
//! reverse path check is content. Whatever is not translated is dropped: passed on, it would be routed here again.

use super::traits::{Packet, Tables, Verdict};
use crate::abi::{Addr, AddressClass, Reason};
use crate::wire::Headers;

/// The verdict at the catch-all device: a packet that still goes where `headers` say ends here.
#[inline(always)]
pub(super) fn guard<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    verdict: Verdict,
) -> Verdict {
    if !matches!(verdict, Verdict::Pass) || (headers.is_parsed() && is_moved(packet, headers) == Some(true)) {
        return verdict;
    }
    tables.count(Reason::CatchAll);
    Verdict::Drop(Reason::CatchAll)
}

/// The source that a new flow takes at the catch-all device: the address that is routed to it. Only the node's own
/// packets are served.
#[inline(always)]
pub(super) fn source<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
) -> Result<Addr<N>, Reason> {
    if !tables.address_class(&headers.key.src).any(AddressClass::LOCAL) {
        return Err(Reason::CatchAll);
    }
    tables.masquerade_address(packet.ifindex()).ok_or(Reason::NoMasqueradeAddress)
}

/// Whether the packet's destination is not that of `headers` any more.
#[inline(always)]
fn is_moved<const N: usize, P: Packet>(packet: &P, headers: &Headers<N>) -> Option<bool> {
    let at = headers.l3 + if N == 1 { 16 } else { 24 };
    let mut difference = 0;
    let mut word = 0;
    while word < N {
        difference |= u32::from_ne_bytes(packet.load(at + 4 * word as u32)?) ^ headers.key.dst.0[word];
        word += 1;
    }
    Some(difference != 0)
}
