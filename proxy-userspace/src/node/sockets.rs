//! The node's connected UDP sockets, by sock_diag(7): listed and ended.

use std::io;

use rtnetlink::sys::Socket;
use rtnetlink::sys::protocols::NETLINK_SOCK_DIAG;
use thiserror::Error;

use super::diag::{self, Reply, SocketId};
use super::netlink::open;

/// Room for one answer: the kernel fills at most 32 KiB.
const ROOM: usize = 64 << 10;

/// What can go wrong with sock_diag.
#[derive(Debug, Error)]
pub enum SocketsError {
    #[error("cannot open a sock_diag socket: AF_NETLINK is needed")]
    Open { source: io::Error },
    #[error("cannot list UDP sockets: a kernel with CONFIG_INET_UDP_DIAG is needed")]
    List { source: io::Error },
    #[error("cannot end a UDP socket: a kernel with CONFIG_INET_DIAG_DESTROY is needed, and CAP_NET_ADMIN")]
    Destroy { source: io::Error },
}

/// A channel to sock_diag, for the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct SocketDiag(Socket);

impl SocketDiag {
    /// Opens one; meant for one round of questions, so that an answer that comes late meets nobody.
    ///
    /// # Errors
    /// If there is no netlink.
    pub fn open() -> Result<Self, SocketsError> {
        open(NETLINK_SOCK_DIAG).map(Self).map_err(|source| SocketsError::Open { source })
    }

    /// Shows every connected UDP socket.
    ///
    /// # Errors
    /// If the kernel cannot list them.
    pub fn connected(&self, mut show: impl FnMut(SocketId)) -> Result<(), SocketsError> {
        let mut list = |family: i32| {
            self.0.send(&diag::dump(family as u8), 0)?;
            self.answer(&mut show)
        };
        [libc::AF_INET, libc::AF_INET6]
            .into_iter()
            .try_for_each(&mut list)
            .map_err(|source| SocketsError::List { source })
    }

    /// Ends one socket: its owner is told ECONNABORTED. False: it was gone already.
    ///
    /// # Errors
    /// If the kernel cannot or may not.
    pub fn destroy(&self, socket: &SocketId) -> Result<bool, SocketsError> {
        self.end(&diag::destroy(socket))
    }

    /// Whether the kernel would list and end sockets; does neither.
    ///
    /// # Errors
    /// What is missing.
    pub fn probe(&self) -> Result<(), SocketsError> {
        self.connected(drop)?;
        self.end(&diag::destroy_nothing()).map(drop)
    }

    fn end(&self, request: &[u8]) -> Result<bool, SocketsError> {
        let ended = self.0.send(request, 0).and_then(|_| self.answer(drop));
        match ended {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(source) => Err(SocketsError::Destroy { source }),
        }
    }

    /// Reads to the end of an answer.
    fn answer(&self, mut show: impl FnMut(SocketId)) -> io::Result<()> {
        let mut room = vec![0; ROOM];
        loop {
            let length = self.0.recv(&mut &mut room[..], 0)?;
            for reply in diag::replies(&room[..length]).map_err(io::Error::other)? {
                match reply {
                    Reply::Socket(id) => show(id),
                    Reply::Done => return Ok(()),
                    Reply::Failed(error) => return Err(error),
                }
            }
        }
    }
}
