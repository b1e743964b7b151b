//! Servers that tell who they are and whom they see, and clients that tell what became of a connection.

pub mod association;
pub mod client;
pub mod flood;
pub mod load;
pub mod sender;
pub mod server;

/// Bytes of the largest UDP payload over IPv4.
pub const LARGEST_DATAGRAM: usize = 65_507;

pub use association::{Answering, Association, Raw, Server, probe};
pub use client::{Answer, Connection, Dial, Outcome};
pub use flood::{flood, send, send_by};
pub use load::{Load, Stream};
pub use server::Servers;
