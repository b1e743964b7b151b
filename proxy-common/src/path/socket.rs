//! Sockets of the node's own processes: translated when they dial, not per packet.

use super::affinity;
use super::frontend::{self, Client};
use super::traits::{Asked, Tables};
use crate::abi::{
    Addr, AddressClass, Backend, Port, Reason, SOCKET_PAIRS, SocketPair, SocketPairs, service_flags,
};

/// What becomes of an address that a socket dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial<const N: usize> {
    /// Not a Service's: leave it.
    Pass,
    /// Connect there instead.
    To(Backend<N>),
    /// ECONNREFUSED (B17); already counted.
    Refuse,
}

/// Decides for one address. The choice is a draw: a connecting socket has no source yet to hash. `of_node`: the socket is
/// the node's own. What depends on the client's address is left to the packet path for other sockets.
#[inline(always)]
pub fn dial<const N: usize, T: Tables<N>>(
    tables: &T,
    address: &Addr<N>,
    port: Port,
    protocol: u8,
    of_node: bool,
) -> Dial<N> {
    let class = tables.address_class(address);
    if !class.any(AddressClass::SERVICE | AddressClass::NODE_PORT) {
        return Dial::Pass;
    }
    // Other sockets' network namespaces are not where a proxy would listen.
    if if of_node { tables.look_for_heir() } else { tables.handed_over() } {
        return Dial::Pass;
    }
    let refuse = |reason| {
        tables.count(reason);
        Dial::Refuse
    };
    let Some(frontend) = frontend::find(tables, class, address, port, protocol) else {
        // As for packets: only a Service's own addresses are refused. A loopback address serves NodePorts and is no Service's.
        let owned = class.any(AddressClass::SERVICE) && !class.any(AddressClass::LOCAL);
        return if owned { refuse(Reason::Unlisted) } else { Dial::Pass };
    };
    let Some((service, kind)) = frontend::service(tables, frontend) else {
        return refuse(Reason::Unlisted);
    };
    let external = kind.is_external();
    if frontend::has_ranges(&service, kind) {
        if !of_node {
            return Dial::Pass;
        }
        if service.flags & service_flags::NODE_IN_RANGES == 0 {
            return refuse(Reason::SourceRange);
        }
    }
    if service.affinity_timeout != 0 && !of_node {
        return Dial::Pass;
    }
    let mut client = Client::Outside;
    if external && service.flags & service_flags::LOCAL_EXTERNAL != 0 {
        if !of_node {
            return Dial::Pass;
        }
        client = Client::Node;
    }
    let (run, _) = frontend::list(&service, external, client);
    let mut asked = Asked::new(Addr::UNSPECIFIED);
    asked.set(frontend.service, &service, run);
    match affinity::choose(tables, &mut asked) {
        Some(backend) => Dial::To(backend),
        None => refuse(Reason::NoEndpoint),
    }
}

/// The pair under which a socket has dialled this frontend before.
#[inline(always)]
#[must_use]
pub fn recall<'a>(pairs: &'a SocketPairs, address: &[u32; 4], port: Port) -> Option<&'a SocketPair> {
    let mut i = 0;
    while i < SOCKET_PAIRS {
        let pair = &pairs.pairs[i];
        if pair.used != 0 && pair.frontend_port == port && Addr(pair.frontend).same(&Addr(*address)) {
            return Some(pair);
        }
        i += 1;
    }
    None
}

/// The pair whose backend this is: what recvmsg and getpeername show instead (J14, S-07).
#[inline(always)]
#[must_use]
pub fn dialled<'a>(pairs: &'a SocketPairs, address: &[u32; 4], port: Port) -> Option<&'a SocketPair> {
    let mut i = 0;
    while i < SOCKET_PAIRS {
        let pair = &pairs.pairs[i];
        if pair.used != 0 && pair.backend_port == port && Addr(pair.backend).same(&Addr(*address)) {
            return Some(pair);
        }
        i += 1;
    }
    None
}

/// Remembers a pair: in the place of the same frontend's old one, else in a free place. False: no place is left.
#[inline(always)]
pub fn remember(pairs: &mut SocketPairs, pair: &SocketPair) -> bool {
    let mut i = 0;
    while i < SOCKET_PAIRS {
        let old = &mut pairs.pairs[i];
        if old.used == 0
            || (old.frontend_port == pair.frontend_port && Addr(old.frontend).same(&Addr(pair.frontend)))
        {
            *old = *pair;
            return true;
        }
        i += 1;
    }
    false
}
