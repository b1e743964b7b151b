//! What a frontend has for a packet without a flow: admission, endpoint list, backend, masquerade.

use super::frontend::{self, Client};
use super::traits::{Scratch, Tables};
use super::{affinity, pair};
use crate::abi::{Addr, Frontend, Kind, Service, service_flags, state};
use crate::wire::Headers;

/// Without payload, for the verifier's sake: see `About`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Choice {
    /// The frontend is being removed.
    Unlisted = 0,
    /// The source is in none of the ranges (C16).
    Closed = 1,
    /// The packet opens nothing.
    Stray = 2,
    /// There are endpoints, none that the policy allows (C3).
    Silent = 3,
    /// There is no endpoint.
    Nobody = 4,
    /// There is a backend; the flow's half for this packet is begun.
    Chosen = 5,
}

/// Begins `room.flow`. A mark among its state says that the flow is to be masqueraded. `room.asked` names the client, of which
/// the unspecified address stands for this node's own processes.
///
/// A subprogram of its own: with its callers in one frame it would not fit the stack.
#[inline(never)]
pub(super) fn choose<const N: usize, T: Tables<N>>(
    tables: &T,
    headers: &Headers<N>,
    dialled: Frontend,
    ifindex: u32,
    room: &mut Scratch<N>,
) -> Choice {
    let Some((service, kind)) = frontend::service(tables, dialled) else { return Choice::Unlisted };
    let source = &headers.key.src;
    let own = room.asked.key.client.same(&Addr::UNSPECIFIED);
    if frontend::has_ranges(&service, kind) && !is_admitted(tables, headers, dialled.service, &service, own) {
        return Choice::Closed;
    }
    if !headers.opens() {
        return Choice::Stray;
    }
    let external = kind.is_external();
    let client = if external && service.flags & service_flags::LOCAL_EXTERNAL != 0 {
        if own { Client::Node } else { frontend::client(tables, ifindex, source) }
    } else {
        Client::Outside
    };
    let (run, silent) = frontend::list(&service, external, client);
    room.asked.key.service = dialled.service;
    let Some(backend) = affinity::choose(tables, &mut room.asked, &service, run) else {
        return if silent { Choice::Silent } else { Choice::Nobody };
    };
    pair::start(&mut room.flow, source, &backend.address, backend.port, Kind::Translate, ifindex);
    room.flow.service = dialled.service;
    room.flow.endpoint = backend.id;
    room.flow.generation = backend.generation;
    // kube-proxy's masquerade matrix: hairpin always (B7), external frontends under policy Cluster (C5).
    let marked = own
        || source.same(&backend.address)
        || if external {
            client == Client::Node || service.flags & service_flags::MASQUERADE_EXTERNAL != 0
        } else {
            is_masqueraded(tables, ifindex, source)
        };
    if marked {
        room.flow.state |= state::MARK;
    }
    Choice::Chosen
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
