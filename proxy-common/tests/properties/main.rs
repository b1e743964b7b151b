//! Properties of parser, checksums and rewrites, with etherparse as the second opinion: whatever it builds we read alike, and
//! whatever we write is what it would have built.

mod crc32c;
mod handshake;
mod packets;
mod parsing;
mod rewriting;
mod summing;
mod tables;
mod transports;
