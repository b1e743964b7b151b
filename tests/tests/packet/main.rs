//! Suite `packet`: stories told to the path on the host and to the programs in the kernel, every byte compared.
//!
//! ```text
//! frontends.rs  who is dialled, and who answers      masquerade.rs  whose address the endpoint sees
//! tcp.rs        connections that begin and end       udp.rs         datagrams
//! collide.rs    one five-tuple, several flows        table.rs       how the flow table forgets
//! headers.rs    options, extensions, tags, fragments errors.rs      ICMP about flows
//! malformed.rs  packets that lie or end early        policy.rs      which endpoints serve whom
//! asking.rs     source ranges, session affinity     fragments.rs   datagrams in parts
//! guard.rs      packets that pretend              sctp.rs        associations, and their checksum
//! hand_over.rs  another proxy has taken over
//! shortcut.rs   packets that pass the stack by
//! always.rs     the same, by routes alone
//! ```

mod always;
mod asking;
mod collide;
mod errors;
mod fragments;
mod frontends;
mod guard;
mod hand_over;
mod headers;
mod malformed;
mod masquerade;
mod policy;
mod sctp;
mod shortcut;
mod table;
mod tcp;
mod udp;

use std::process::ExitCode;

use sluice_tests::harness;
use sluice_tests::packet::teller::{group, stories};

fn main() -> ExitCode {
    let rows = [
        ("frontends", frontends::rows()),
        ("masquerade", masquerade::rows()),
        ("policy", policy::rows()),
        ("asking", asking::rows()),
        ("tcp", tcp::rows()),
        ("udp", udp::rows()),
        ("sctp", sctp::rows()),
        ("collide", collide::rows()),
        ("headers", headers::rows()),
        ("table", table::rows()),
        ("guard", guard::rows()),
        ("hand_over", hand_over::rows()),
        ("shortcut", shortcut::rows()),
        ("always", always::rows()),
    ];
    let mut groups: Vec<_> = rows.into_iter().map(|(name, rows)| group(name, stories(rows, true))).collect();
    // P-06.
    let mut bare = stories(frontends::rows(), false);
    bare.extend(stories(masquerade::rows(), false));
    bare.extend(stories(collide::rows(), false));
    groups.push(group("no_ethernet", bare));
    groups.push(group("errors", errors::stories()));
    groups.push(group("malformed", malformed::stories()));
    groups.push(group("draws", table::draws()));
    groups.push(group("affinity", asking::affinity()));
    groups.push(group("fragments", fragments::stories()));
    groups.push(group("sctp_bytes", sctp::stories()));
    harness::main("packet", groups)
}
