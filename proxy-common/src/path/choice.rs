//! What a frontend has for a packet without a flow: admission, endpoint list, backend, masquerade.

use super::frontend::{self, Client};
use super::scratch::Scratch;
use super::traits::Tables;
use super::{affinity, pair};
use crate::abi::{Addr, Frontend, Kind, Service, service_flags, state};
use crate::wire::Headers;

// What a frontend has for a packet: numbers, as in the kernel a function of its own tells.

/// The frontend is being removed.
pub(super) const UNLISTED: u32 = 0;
/// The source is in none of the ranges (C16).
pub(super) const CLOSED: u32 = 1;
/// The packet opens nothing.
pub(super) const STRAY: u32 = 2;
/// Of endpoints there may be some, of which the policy allows none (C3): without one there is no answer.
pub(super) const SILENT: u32 = 3;
/// Without an endpoint there is an answer.
pub(super) const LOUD: u32 = 4;

/// Writes into `room.asked` what an endpoint is to be taken from, and begins `room.flow`: a mark among its state says that the
/// flow is to be masqueraded, whichever endpoint it gets. `room.asked` names the client, of which the unspecified address
/// stands for this node's own processes.
///
/// A step of its own: with its callers in one frame it would not fit the stack.
#[inline(always)]
pub fn prepare<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    dialled: Frontend,
    ifindex: u32,
    room: &mut Scratch<N>,
) -> u32 {
    let Some((service, kind)) = frontend::service(tables, dialled) else { return UNLISTED };
    let source = &headers.key.src;
    let own = room.asked.key.client.same(&Addr::UNSPECIFIED);
    if frontend::has_ranges(&service, kind) && !is_admitted(tables, headers, dialled.service, &service, own) {
        return CLOSED;
    }
    if !headers.opens() {
        return STRAY;
    }
    let external = kind.is_external();
    let client = if external && service.flags & service_flags::LOCAL_EXTERNAL != 0 {
        if own { Client::Node } else { frontend::client(tables, ifindex, source) }
    } else {
        Client::Outside
    };
    let (run, silent) = frontend::list(&service, external, client);
    room.asked.set(dialled.service, &service, run);
    pair::start(&mut room.flow, source, Kind::Translate, ifindex);
    room.flow.service = dialled.service;
    // kube-proxy's masquerade matrix: external frontends under policy Cluster (C5).
    let marked = own
        || if external {
            client == Client::Node || service.flags & service_flags::MASQUERADE_EXTERNAL != 0
        } else {
            is_masqueraded(tables, ifindex, source)
        };
    if marked {
        room.flow.state |= state::MARK;
    }
    if silent { SILENT } else { LOUD }
}

/// Completes `room.flow` with an endpoint. False: there is none.
#[inline(always)]
pub(super) fn take<const N: usize, T: Tables<N>>(tables: &T, room: &mut Scratch<N>) -> bool {
    let Some(backend) = affinity::choose(tables, &mut room.asked) else { return false };
    let flow = &mut room.flow;
    flow.dst = backend.address;
    flow.dport = backend.port;
    flow.endpoint = backend.id;
    flow.generation = backend.generation;
    // Hairpin (B7).
    if flow.src.same(&backend.address) {
        flow.state |= state::MARK;
    }
    true
}

/// C16; and C17: a LoadBalancer address that is bound here may dial itself where this node may.
#[inline(always)]
fn is_admitted<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    index: u32,
    service: &Service,
    own: bool,
) -> bool {
    let key = &headers.key;
    let node = service.flags & service_flags::NODE_IN_RANGES != 0;
    (node && (own || key.src.same(&key.dst))) || tables.is_source_allowed(index, &key.src)
}

/// Whether ClusterIP traffic from `source` is masqueraded: all of it by `masqueradeAll` (F4), else what comes from no pod
/// (F5).
#[inline(always)]
fn is_masqueraded<const N: usize, T: Tables<N>>(tables: &T, ifindex: u32, source: &Addr<N>) -> bool {
    tables.masquerade_all() || tables.is_pod(ifindex, source) == Some(false)
}
