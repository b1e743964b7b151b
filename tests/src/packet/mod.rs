//! Packet stories: written once, told to the path on the host and to the programs in the kernel.
//!
//! ```text
//! world.rs   the node every story plays on: Services, endpoints, addresses
//! frame.rs   building and reading frames
//! host.rs    proxy_common's Tables and Packet over plain Rust values
//! kernel.rs  the real programs by BPF_PROG_TEST_RUN
//! story.rs   running a story on both and comparing every byte
//! ```

pub mod frame;
pub mod host;
pub mod kernel;
pub mod story;
pub mod world;
