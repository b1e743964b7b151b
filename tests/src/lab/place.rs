//! A place where clients and servers run.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};

use super::namespace::Namespace;
use super::plan::{Family, Who};
use super::sockets::Sockets;
use crate::wire::Transport;

/// A namespace with the cgroup its processes belong to.
#[derive(Clone, Debug)]
pub struct Place {
    pub who: Who,
    pub(super) netns: PathBuf,
    pub(super) sockets: Arc<Sockets>,
}

impl Place {
    /// Its first address in a family.
    #[must_use]
    pub const fn address(&self, family: Family) -> IpAddr {
        self.who.address(family)
    }

    /// The same processes in another namespace.
    #[must_use]
    pub fn inside(&self, namespace: &Namespace) -> Self {
        Self { netns: namespace.path().to_owned(), ..self.clone() }
    }

    /// A new non-blocking socket of this place.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn socket(&self, family: Family, transport: Transport) -> Result<OwnedFd> {
        self.sockets.open(&self.netns, family, transport)
    }

    /// The same, bound to `address`. TIME_WAIT of an earlier connection does not hinder.
    ///
    /// # Errors
    /// What the kernel refuses, with place and address.
    pub fn bound(&self, address: SocketAddr, transport: Transport) -> Result<OwnedFd> {
        let fd = self.socket(Family::of(&address.ip()), transport)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        if address.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        bind(fd.as_raw_fd(), &SockaddrStorage::from(address))
            .with_context(|| format!("cannot bind {transport} {address} at {}", self.who.name()))?;
        Ok(fd)
    }
}
