//! Packet stories: written once, told to the path on the host and to the programs in the kernel.
//!
//! ```text
//! world.rs   the node every story plays on: Services, endpoints, addresses
//! tale.rs    the language of rows: who sends what, and what is to become of it
//! teller.rs  tells a row and compares
//! frame.rs   building and reading frames        shape.rs  options, extension headers, tags, trailers
//! host.rs    the path on the host                maps.rs   plain Rust values in place of the kernel's maps
//! kernel.rs  the real programs by BPF_PROG_TEST_RUN
//! pieces.rs  datagrams in parts
//! recent.rs  when the next packet of a flow goes as the last one did, on the host
//! story.rs   both nodes as one: every byte, counter and flow entry is compared
//! ```

pub mod frame;
pub mod host;
pub mod kernel;
pub mod maps;
pub mod pieces;
#[cfg(test)]
mod recent;
pub mod sctp;
pub mod shape;
pub mod story;
pub mod tale;
pub mod teller;
pub mod world;
