//! Who is dialled: the same question for packets and for sockets.

use super::traits::Tables;
use crate::abi::{
    Addr, AddressClass, Frontend, FrontendKey, FrontendKind, Port, Run, Service, service_flags,
};

/// The frontend with exactly this address.
#[inline(always)]
pub(super) fn exact<const N: usize, T: Tables<N>>(
    tables: &T,
    address: &Addr<N>,
    port: Port,
    protocol: u8,
) -> Option<Frontend> {
    tables.frontend(&FrontendKey { address: *address, port, protocol, pad: 0 })
}

/// The frontend behind an address of `class`: the exact address first, then, on addresses that serve them, the NodePorts
/// (B9, B10).
#[inline(always)]
pub(super) fn find<const N: usize, T: Tables<N>>(
    tables: &T,
    class: AddressClass,
    address: &Addr<N>,
    port: Port,
    protocol: u8,
) -> Option<Frontend> {
    let mut key = FrontendKey { address: *address, port, protocol, pad: 0 };
    if class.any(AddressClass::SERVICE)
        && let Some(frontend) = tables.frontend(&key)
    {
        return Some(frontend);
    }
    if class.any(AddressClass::NODE_PORT) {
        key.address = Addr::UNSPECIFIED;
        return tables.frontend(&key);
    }
    None
}

/// The Service port behind a frontend, and which of its addresses that is. `None` while it is being removed: treated as
/// unlisted.
#[inline(always)]
pub(super) fn service<const N: usize, T: Tables<N>>(
    tables: &T,
    frontend: Frontend,
) -> Option<(Service, FrontendKind)> {
    let (kind, service) = (frontend.kind()?, tables.service(frontend.service)?);
    (service.flags & service_flags::IN_USE != 0).then_some((service, kind))
}

/// Whether `loadBalancerSourceRanges` close this frontend to some sources: LoadBalancer addresses only, as kube-proxy does.
#[inline(always)]
pub(super) const fn has_ranges(service: &Service, kind: FrontendKind) -> bool {
    matches!(kind, FrontendKind::LoadBalancer) && service.flags & service_flags::SOURCE_RANGES != 0
}

/// Who dials an external frontend, as far as policy Local cares (C6 … C10).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Client {
    /// Bound by the policy.
    Outside = 0,
    /// Not bound by it, and not masqueraded.
    Pod = 1,
    /// A process of this node: not bound by it, and masqueraded.
    Node = 2,
}

/// Who sends from `source` by `ifindex`. Asked only where the answer matters.
#[inline(always)]
pub(super) fn client<const N: usize, T: Tables<N>>(tables: &T, ifindex: u32, source: &Addr<N>) -> Client {
    if tables.is_pod(ifindex, source) == Some(true) {
        Client::Pod
    } else if tables.address_class(source).any(AddressClass::LOCAL) {
        Client::Node
    } else {
        Client::Outside
    }
}

/// The endpoints for a client, and whether an empty list means silence (C3).
#[inline(always)]
pub(super) const fn list(service: &Service, external: bool, client: Client) -> (Run, bool) {
    if !external {
        return (service.internal, service.flags & service_flags::DROP_INTERNAL != 0);
    }
    match client {
        Client::Outside => (service.external, service.flags & service_flags::DROP_EXTERNAL != 0),
        Client::Pod | Client::Node => (service.cluster, false),
    }
}
