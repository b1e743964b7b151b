//! The catch-all device: where the node's own packets to Services go that no socket hook has translated.
//!
//! Routes lead Service addresses into one end of a private pair of devices; this is the ingress of the other end. A packet
//! gets an address there as its source that is routed back to the pair, so that the answer comes this way and the kernel's
//! reverse path check is content. Whatever is not translated is dropped: passed on, it would be routed here again.

use super::traits::{Packet, Tables};
use super::verdict::{Returned, Verdict};
use crate::abi::{AddressClass, Flow, Reason};
use crate::wire::Headers;

/// The verdict at the catch-all device: a packet that still goes where `headers` say ends here.
#[inline(always)]
pub(super) fn guard<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    verdict: Verdict,
) -> Verdict {
    if !matches!(verdict, Verdict::Pass) || is_moved(packet, headers) == MOVED {
        return verdict;
    }
    tables.count(Reason::CatchAll);
    Verdict::Drop(Reason::CatchAll)
}

/// Gives a new flow the address that is routed to the device as its source. Only the node's own packets are served.
/// What keeps it from that, as a drop's [`Verdict::code`]; 0: nothing.
///
/// A subprogram of its own: in its caller's frame the address would not fit the stack.
#[inline(never)]
pub(super) fn take_source<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
    flow: &mut Flow<N>,
) -> Returned {
    let reason = if tables.address_class(&headers.key.src).any(AddressClass::LOCAL) {
        match tables.masquerade_address(packet.ifindex()) {
            Some(source) => {
                flow.src = source;
                return Verdict::Pass.into();
            }
            None => Reason::NoMasqueradeAddress,
        }
    } else {
        Reason::CatchAll
    };
    Verdict::Drop(reason).into()
}

const MOVED: u32 = 1;

/// Whether the packet could be read, and its destination is not that of `headers` any more: [`MOVED`].
///
/// A subprogram of its own, as above.
#[inline(never)]
fn is_moved<const N: usize, P: Packet>(packet: &P, headers: &Headers<N>) -> u32 {
    if !headers.is_parsed() {
        return 0;
    }
    let at = headers.l3 + if N == 1 { 16 } else { 24 };
    let mut difference = 0;
    let mut word = 0;
    while word < N {
        let Some(now) = packet.load(at + 4 * word as u32) else { return 0 };
        difference |= u32::from_ne_bytes(now) ^ headers.key.dst.0[word];
        word += 1;
    }
    if difference == 0 { 0 } else { MOVED }
}
