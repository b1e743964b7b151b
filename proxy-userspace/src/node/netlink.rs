//! What every question to the kernel by netlink has in common, of those that rtnetlink does not ask.

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use rtnetlink::sys::Socket;

/// Messages of include/uapi/linux/netlink.h: NLMSG_ERROR and NLMSG_DONE.
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

/// Their flags: NLM_F_REQUEST, NLM_F_ACK; NLM_F_ROOT and NLM_F_MATCH.
pub const REQUEST: u16 = 1;
pub const ACK: u16 = 4;
pub const DUMP: u16 = 0x300;

/// Longest wait for the kernel, which answers at once.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// A socket of this protocol, for the network namespace of the calling thread.
///
/// # Errors
/// The kernel has no such protocol, or netlink may not be used.
pub fn open(protocol: isize) -> io::Result<Socket> {
    let socket = Socket::new(protocol)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE)?;
    Ok(socket)
}

/// One message for the kernel; its answer needs no number.
pub fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + body.len());
    bytes.extend((16 + body.len() as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}
