//! Socket storage: what recvmsg and getpeername must show again.

use super::{Port, abi};

/// Pairs kept for one socket. An unconnected UDP socket that talks to more frontends than this sees the backend's address in late
/// answers of those that it has asked longest ago (S-11).
pub const SOCKET_PAIRS: usize = 4;

abi! {
    /// One frontend a socket has dialled, and the backend it got. IPv4 addresses are kept in mapped form.
    pub struct SocketPair {
        /// Address dialled.
        pub frontend: [u32; 4],
        /// Address used.
        pub backend: [u32; 4],
        /// Port dialled.
        pub frontend_port: Port,
        /// Port used.
        pub backend_port: Port,
        /// Index into `endpoints`.
        pub endpoint: u32,
        /// Generation of `endpoint` at the time.
        pub generation: u16,
        /// 0: free. The greatest is that of the pair used last.
        pub used: u16,
    }
}

abi! {
    /// What the iterator over the storage writes for each socket.
    pub struct SocketRecord {
        /// The kernel's number of the socket.
        pub cookie: u64,
        /// Its storage.
        pub pairs: SocketPairs,
    }
}

abi! {
    /// Value of the `sockets` storage.
    pub struct SocketPairs {
        /// The pairs, in no order.
        pub pairs: [SocketPair; SOCKET_PAIRS],
    }
}
