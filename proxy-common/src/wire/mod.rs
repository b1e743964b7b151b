//! Headers and checksums: where things stand in a packet. No tables, no policy.
//!
//! Offsets are bytes from the start of the frame. Every offset a parser returns is below [`MAX_OFFSET`], so that a
//! shim may mask it for the verifier without changing it.

mod checksum;
mod crc32c;
mod extensions;
mod headers;

pub use checksum::{Diff, apply, fold, grow, pseudo_header, same_sum};
pub use crc32c::{crc_difference, port_difference};
pub use extensions::extensions;
pub use headers::{
    Headers, IPV4, IPV6, MAX_OFFSET, Transport, addresses_at, load_addresses, parse, parse_quoted, tcp_flags,
};
