//! Second chance: each insert pushes its key into this CPU's ring and looks at the two oldest. What is closed, idle or
//! never answered goes, in pairs; what lives gets another turn. So the table lives without the agent.

use super::pair;
use super::traits::{Entry, Tables};
use crate::abi::{FlowKey, RingHead, protocol, state};

/// Old keys looked at per insert: more than one, so that the ring shrinks when it can.
const LOOKS: u32 = 2;

/// Ticks (about 1.07 s) a pair may be idle before it is forgotten; `a` and `b` are the states of its directions.
/// Never shorter than what kube-proxy and the kernel's defaults give (J10, P-45).
#[must_use]
pub const fn idle_limit(protocol: u8, a: u8, b: u8) -> u32 {
    let answered = a & state::SEEN != 0 && b & state::SEEN != 0;
    if protocol == protocol::TCP {
        match (pair::closed(a, b), answered) {
            (true, _) => 112,
            (false, false) => 56,
            (false, true) => 80_466,
        }
    } else if answered {
        112
    } else {
        28
    }
}

/// Makes room and pushes `key`. False: every flow this CPU could forget is alive, and its ring is full.
#[inline(never)]
pub(super) fn turn<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>, now: u32) -> bool {
    let mut ring = tables.ring_head();
    for _ in 0..LOOKS {
        if ring.head == ring.tail {
            break;
        }
        let Some(oldest) = tables.ring_key(ring.tail) else { break };
        ring.tail = ring.tail.wrapping_add(1);
        if is_alive(tables, &oldest, now) {
            push(tables, &mut ring, &oldest);
        }
    }
    let room = ring.head.wrapping_sub(ring.tail) < tables.ring_size();
    if room {
        push(tables, &mut ring, key);
    }
    tables.set_ring_head(ring);
    room
}

#[inline(always)]
fn push<const N: usize, T: Tables<N>>(tables: &T, ring: &mut RingHead, key: &FlowKey<N>) {
    tables.set_ring_key(ring.head, key);
    ring.head = ring.head.wrapping_add(1);
}

/// Whether the pair lives; removes it when it does not.
#[inline(always)]
fn is_alive<const N: usize, T: Tables<N>>(tables: &T, key: &FlowKey<N>, now: u32) -> bool {
    let Some(entry) = tables.flow(key) else { return false };
    if entry.tag() != key.tag() {
        return false;
    }
    let partner = entry.partner(key);
    let (answer, answered) =
        tables.flow(&partner).map_or((state::RST, entry.seen()), |entry| (entry.state(), entry.seen()));
    let idle = now.wrapping_sub(entry.seen()).min(now.wrapping_sub(answered));
    if idle < idle_limit(key.protocol, entry.state(), answer) {
        return true;
    }
    pair::remove(tables, key, &partner);
    false
}
