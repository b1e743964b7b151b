//! Servers that tell who they are and whom they see, and clients that tell what became of a connection.

pub mod client;
pub mod flood;
pub mod load;
pub mod server;

pub use client::{Answer, Connection, Dial, Outcome};
pub use flood::flood;
pub use load::{Load, Stream};
pub use server::Servers;
