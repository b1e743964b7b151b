//! The first packet of a masqueraded flow, at the backend's edge.

use super::pair::End;
use super::traits::{Fields, Packet, Tables};
use super::verdict::Verdict;
use super::{frontend, pair, rewrite};
use crate::abi::{Flow, Kind, Port, Reason};
use crate::wire::{Headers, Transport};

/// Masquerades a packet that carries the mark, from the tuple and the device that are really seen here: the stack may
/// have changed the source port since the client's edge. `own` packets of the node keep their source address.
///
/// What has the right source address keeps its port, if that is free. kube-proxy's rules, while they are beside us (L-07), masquerade the
/// first packet of a connection and clear its mark: its others come marked, and go on as that one has.
#[inline(always)]
pub(super) fn open<const N: usize, P: Packet, T: Tables<N>>(
    packet: &mut P,
    tables: &T,
    headers: &Headers<N>,
    own: bool,
    before: End,
) -> Verdict {
    let opened = tables.scratch(|scratch| {
        scratch.before = before;
        let (key, ifindex) = (&headers.key, packet.ifindex());
        pair::start(&mut scratch.flow, &key.src, Kind::Masquerade, ifindex);
        if !own {
            scratch.flow.src = tables.masquerade_address(ifindex).ok_or(Reason::NoMasqueradeAddress)?;
        }
        scratch.flow.dst = key.dst;
        scratch.flow.dport = key.dport;
        let keep_port = scratch.flow.src.same(&key.src);
        pair::open(tables, key, scratch, keep_port, Port(0))?;
        packet.set_mark(packet.mark() & !tables.masquerade_mark());
        Ok(rewrite::packet(packet, headers, &scratch.flow))
    });
    pair::verdict(opened)
}

/// Whether a new flow of the node itself to what is or was an endpoint would get its answers unmasqueraded to somebody
/// else, because a live masqueraded flow owns the reply's key. Such a flow is masqueraded like any other (P-64).
#[inline(always)]
pub(super) fn shadowed<const N: usize, T: Tables<N>>(tables: &T, headers: &Headers<N>) -> bool {
    if !headers.opens() || tables.is_stranger(&headers.key.dst) {
        return false;
    }
    let shadow = tables.scratch(|scratch| {
        scratch.reply_key = headers.key.reply();
        let entry = tables.flow(&scratch.reply_key)?;
        (entry.get(Flow::kind) == Some(Kind::Unmasquerade)).then(|| pair::remove_if_closed(tables, scratch))
    });
    shadow.flatten() == Some(false)
}

/// Whether a datagram that a socket of the node itself has written comes from a frontend's address and port: its answers
/// would be taken for requests. Such a flow is written down, so that they are known (B11, P-30); a TCP connection needs no
/// entry, since only a SYN is a request.
#[inline(always)]
pub(super) fn resembles_frontend<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
) -> bool {
    let key = &headers.key;
    headers.transport == Transport::Udp
        && packet.is_own()
        && frontend::find(tables, tables.address_class(&key.src), &key.src, key.sport, key.protocol).is_some()
}

/// Whether somebody else has masqueraded this packet to an endpoint: the stack forwards it from the node's own address. So come
/// connections that kube-proxy's rules have begun before it left. Each is written down as it is, for conntrack does not tell which
/// ports it has given, and one of our flows by the same port would get its answers (L-07).
#[inline(always)]
pub(super) fn is_anothers<const N: usize, P: Packet, T: Tables<N>>(
    packet: &P,
    tables: &T,
    headers: &Headers<N>,
) -> bool {
    let key = &headers.key;
    !packet.is_own()
        && tables.may_be_endpoint(&key.dst)
        && tables.masquerade_address(packet.ifindex()).is_some_and(|address| address.same(&key.src))
        && !tables.handed_over()
}
