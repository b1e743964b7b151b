//! Who is dialled: the same question for packets and for sockets.

use super::traits::Tables;
use crate::abi::{Addr, AddressClass, Frontend, FrontendKey, Port, Service, service_flags};

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

/// The Service port behind a frontend, and whether it is reached from outside by design. `None` while it is being removed:
/// treated as unlisted.
#[inline(always)]
pub(super) fn service<const N: usize, T: Tables<N>>(
    tables: &T,
    frontend: Frontend,
) -> Option<(Service, bool)> {
    let (kind, service) = (frontend.kind()?, tables.service(frontend.service)?);
    (service.flags & service_flags::IN_USE != 0).then_some((service, kind.is_external()))
}
