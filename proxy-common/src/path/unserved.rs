//! Packets to a Service's address that no Service serves, and how far they go.

use super::traits::{Packet, Tables};
use super::verdict::Verdict;
use crate::abi::{AddressClass, Reason, device_flags};
use crate::wire::Headers;

/// Whether a packet to a Service's address that no Service serves goes no further (P-24). To one that another host may have it does, unless
/// it would circle.
#[inline(always)]
pub(super) fn ends_here<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    class: AddressClass,
) -> bool {
    let shared = class.any(AddressClass::SHARED) && !class.any(AddressClass::LOCAL);
    class.is_services_alone() || shared && circles(packet, tables, headers)
}

/// What becomes of one that no Service could serve, whatever it asks for.
#[inline(always)]
pub(super) fn verdict<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    class: AddressClass,
    reason: Reason,
) -> Verdict {
    if ends_here(packet, tables, headers, class) { Verdict::Drop(reason) } else { Verdict::Pass }
}

/// Whether a packet would leave by where it has come from: the router that has sent it here would get it back, and send it again. What
/// comes by a port of a bridge through which the node itself is reached leaves by the bridge, which is no edge.
#[inline(always)]
fn circles<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
) -> bool {
    let Some((device, _)) = packet.route(&headers.key, headers.end - headers.l3) else { return false };
    let here = packet.ifindex();
    let by_port = tables
        .device_flags(here)
        .is_some_and(|flags| flags & (device_flags::PORT | device_flags::POD) == device_flags::PORT);
    device == here || by_port && tables.device_flags(device).is_none()
}
