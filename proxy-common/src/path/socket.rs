//! Sockets of the node's own processes: translated when they dial, not per packet.

use super::affinity;
use super::frontend::{self, Client};
use super::scratch::Asked;
use super::traits::Tables;
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
    // A pod's loopback is its own, whatever the node serves there.
    if !of_node && address.is_loopback() {
        return Dial::Pass;
    }
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
        // As for packets, whose way out shows whether they circle. A loopback address serves NodePorts and is no Service's.
        return if class.is_services_alone() { refuse(Reason::Unlisted) } else { Dial::Pass };
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
    // The unspecified address, in a way that the compiler does not see: it would have memset write it, byte by byte. It still does so with
    // the record: as two words at once its zeros would be stored at places that the verifier calls misaligned.
    let mut asked = Asked::new(Addr([tables.unknown(0); N]));
    asked.set(frontend.service, &service, run);
    match affinity::choose(tables, &mut asked) {
        Some(backend) => Dial::To(backend),
        None => refuse(Reason::NoEndpoint),
    }
}

/// The pair under which a socket has dialled this frontend before; from now on the one used last. `last`: [`last_stamp`].
#[inline(always)]
#[must_use]
pub fn recall<'a>(
    pairs: &'a mut SocketPairs,
    address: &[u32; 4],
    port: Port,
    last: u16,
) -> Option<&'a SocketPair> {
    let pair = pairs.pairs.iter_mut().find(|pair| is_frontend(pair, address, port))?;
    // A socket that keeps asking one frontend writes nothing.
    if pair.used != last {
        pair.used = last + 1;
    }
    Some(pair)
}

/// The pair whose backend this is: what recvmsg and getpeername show instead (J14, S-07). Where several frontends led to one
/// backend, the one that was asked last.
#[inline(always)]
#[must_use]
pub fn dialled<'a>(pairs: &'a SocketPairs, address: &[u32; 4], port: Port) -> Option<&'a SocketPair> {
    let mut found: Option<&SocketPair> = None;
    let mut i = 0;
    while i < SOCKET_PAIRS {
        let pair = &pairs.pairs[i];
        if pair.used != 0
            && pair.backend_port == port
            && Addr(pair.backend).same(&Addr(*address))
            && found.is_none_or(|found| found.used < pair.used)
        {
            found = Some(pair);
        }
        i += 1;
    }
    found
}

/// Remembers a pair as the one used last: in the place of the same frontend's old one, else of the one used longest ago. Its late
/// answers show the backend then. `last`: [`last_stamp`].
#[inline(always)]
pub fn remember(pairs: &mut SocketPairs, pair: &SocketPair, last: u16) {
    // Before all stamps: the same frontend's.
    let rank = |old: &SocketPair| {
        if is_frontend(old, &pair.frontend, pair.frontend_port) { 0 } else { u32::from(old.used) + 1 }
    };
    let [first, others @ ..] = &mut pairs.pairs;
    let (mut lowest, mut place) = (rank(first), first);
    for other in others {
        let rank = rank(other);
        if rank < lowest {
            (lowest, place) = (rank, other);
        }
    }
    *place = SocketPair { used: last + 1, ..*pair };
}

#[inline(always)]
fn is_frontend(pair: &SocketPair, address: &[u32; 4], port: Port) -> bool {
    pair.used != 0 && pair.frontend_port == port && Addr(pair.frontend).same(&Addr(*address))
}

/// The stamp of the pair that was used last, less than `u16::MAX`; 0: there is none. Where stamps end, all others begin anew as equals.
#[inline(always)]
#[must_use]
pub fn last_stamp(pairs: &mut SocketPairs) -> u16 {
    let last = pairs.pairs.iter().fold(0, |last, pair| match pair.used {
        used if used > last => used,
        // Two threads may have given the same one: then neither is the last.
        used if used == last && used != 0 => used.saturating_add(1),
        _ => last,
    });
    if last < u16::MAX {
        return last;
    }
    for pair in &mut pairs.pairs {
        if pair.used != 0 {
            pair.used = if pair.used == last { 2 } else { 1 };
        }
    }
    2
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: Port = Port::new(53);

    fn pair(frontend: u32, backend: u32) -> SocketPair {
        let mut pair = EMPTY;
        pair.frontend[3] = frontend;
        pair.backend[3] = backend;
        pair
    }

    const EMPTY: SocketPair = SocketPair {
        frontend: [0; 4],
        backend: [0; 4],
        frontend_port: PORT,
        backend_port: PORT,
        endpoint: 0,
        generation: 0,
        used: 0,
    };

    fn shown(pairs: &SocketPairs, backend: u32) -> Option<u32> {
        dialled(pairs, &[0, 0, 0, backend], PORT).map(|pair| pair.frontend[3])
    }

    fn recalled(pairs: &mut SocketPairs, frontend: u32) -> Option<u32> {
        let last = last_stamp(pairs);
        recall(pairs, &[0, 0, 0, frontend], PORT, last).map(|pair| pair.backend[3])
    }

    fn keep(pairs: &mut SocketPairs, pair: SocketPair) {
        let last = last_stamp(pairs);
        remember(pairs, &pair, last);
    }

    #[test]
    fn s11_one_frontend_more_takes_the_place_of_the_one_used_longest_ago() {
        let mut pairs = SocketPairs { pairs: [EMPTY; SOCKET_PAIRS] };
        for n in 1..=4 {
            keep(&mut pairs, pair(n, 10 + n));
        }
        assert_eq!(recalled(&mut pairs, 1), Some(11), "used again: no more the oldest");
        keep(&mut pairs, pair(5, 15));
        let left = [1, 2, 3, 4, 5].map(|n| recalled(&mut pairs, n));
        assert_eq!(left, [Some(11), None, Some(13), Some(14), Some(15)]);
        keep(&mut pairs, pair(3, 23));
        assert_eq!(recalled(&mut pairs, 3), Some(23), "a frontend has one backend");
        assert_eq!(pairs.pairs.iter().filter(|pair| pair.frontend[3] == 3).count(), 1);
    }

    /// Two threads that send by one socket may find the same last stamp.
    #[test]
    fn equal_stamps_part_when_either_is_used() {
        for stamp in [1, 5, u16::MAX - 1, u16::MAX] {
            let mut pairs = SocketPairs { pairs: [EMPTY; SOCKET_PAIRS] };
            for (place, frontend) in [(1, 1), (2, 2)] {
                pairs.pairs[place] = SocketPair { used: stamp, ..pair(frontend, 10) };
            }
            // The second look is for the greatest stamps: they begin anew as equals first.
            for _ in 0..2 {
                assert_eq!(recalled(&mut pairs, 2), Some(10));
            }
            assert_eq!(shown(&pairs, 10), Some(2), "after two stamps of {stamp}");
        }
    }

    #[test]
    fn s07_of_two_frontends_of_one_backend_the_one_asked_last_is_shown() {
        let mut pairs = SocketPairs { pairs: [EMPTY; SOCKET_PAIRS] };
        keep(&mut pairs, pair(1, 10));
        keep(&mut pairs, pair(2, 10));
        assert_eq!(shown(&pairs, 10), Some(2));
        assert_eq!(recalled(&mut pairs, 1), Some(10));
        assert_eq!(shown(&pairs, 10), Some(1));
        assert_eq!(shown(&pairs, 11), None);
    }

    /// However often a socket changes its frontend.
    #[test]
    fn stamps_that_end_begin_anew() {
        let mut pairs = SocketPairs { pairs: [EMPTY; SOCKET_PAIRS] };
        keep(&mut pairs, pair(1, 10));
        keep(&mut pairs, pair(2, 10));
        for n in 0..140_000_u32 {
            assert_eq!(recalled(&mut pairs, 1 + n % 2), Some(10));
            assert_eq!(shown(&pairs, 10), Some(1 + n % 2), "after {n}");
        }
    }
}
