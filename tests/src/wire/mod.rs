//! The wire oracle: every packet at every namespace end is captured and judged.
//!
//! [`packet`] turns bytes into a [`Packet`]; [`check`] judges one packet by itself (lengths, checksums);
//! [`rules`] judges it against what its namespace has sent before and against the laboratory's addresses;
//! [`capture`] feeds both from packet sockets.

pub mod capture;
pub mod check;
pub mod packet;
pub mod rules;

pub use capture::{Capture, Tap};
pub use check::Offload;
pub use packet::{Packet, Quote, Transport};
pub use rules::{Knowledge, Rules, Seen, Violation};
