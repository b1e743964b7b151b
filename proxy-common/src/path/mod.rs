//! Decisions: what happens to a packet at an edge, and to a socket at connect time.
//!
//! ```text
//! edge.rs        ingress and egress of an edge: which of the stories below a packet belongs to
//! catch_all.rs   ingress of the device that serves the node's own packets where no socket hook does
//! frontend.rs    who is dialled, for packets and sockets alike
//! choice.rs      what it has for a client: admission, list, backend, masquerade
//! affinity.rs    the backend that a client had before
//! established.rs a packet of a known flow: TCP state, stale entries, the rewrite
//! translate.rs   the first packet to a frontend: the pair translate/restore
//! masquerade.rs  the first packet at the backend's edge: choice of a port, the pair masquerade/unmasquerade
//! unserved.rs    what goes to a Service's address and is no Service's
//! pair.rs        inserting both halves of a flow, exclusive keys, other source ports
//! reclaim.rs     second chance: how the flow table forgets
//! time.rs        ticks and moments
//! fragment.rs    later fragments follow their first
//! icmp.rs        errors and redirects about known flows
//! reject.rs      answering with RST or port unreachable
//! rewrite.rs     the bytes of a rewrite
//! scratch.rs     room for a flow in the making
//! shortcut.rs    packets of known flows that pass the stack by
//! lease.rs       which flows may have theirs do so
//! recent.rs      the same once more, with what has been done a moment ago
//! socket.rs      connect, sendmsg, recvmsg, getpeername
//! ```

mod affinity;
mod catch_all;
mod choice;
mod edge;
mod established;
mod fragment;
mod frontend;
mod icmp;
mod lease;
mod masquerade;
mod pair;
mod recent;
mod reclaim;
mod reject;
mod rewrite;
mod route;
mod scratch;
mod shortcut;
pub mod socket;
mod time;
mod traits;
mod translate;
mod unserved;
mod verdict;

pub use affinity::sticky;
pub use choice::prepare;
pub use edge::{egress, enters_without_flow, ingress, leaves_without_flow, meets_flow, passes_by};
pub use established::ended;
pub use icmp::quoted;
pub use lease::LEASE;
pub use pair::{Beyond, End, attempt, insert_pair, other_ports, remove_beyond};
pub use recent::remember;
pub use reclaim::{Looked, Worth, forget, look, make_room, worth};
pub use reject::refuse;
pub use rewrite::sctp_checksum;
pub use route::Told;
pub use scratch::{Asked, Scratch};
pub use shortcut::{Out, answer, masquerade, note};
pub use time::{beginning, since, tick};
pub use traits::{Entry, Fields, Insert, Packet, Tables};
pub use verdict::Verdict;

/// The MTU of every way in runs that must be repeatable, in the kernel and on the host alike.
pub const TEST_MTU: u32 = 1500;

/// Draw number `n` of a run that must be repeatable, in the kernel and on the host alike.
#[must_use]
#[inline(always)]
pub const fn repeatable_draw(seed: u32, n: u32) -> u32 {
    let mut hash = (seed ^ n.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 15
}
