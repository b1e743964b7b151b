//! One question: what becomes of a client that dials an address?

use std::fmt;
use std::net::SocketAddr;

use crate::lab::plan::{Family, Who};
use crate::wire::Transport;

/// A client, the addresses that it dials in turn, and the case that they belong to.
#[derive(Clone, Debug)]
pub struct Cell {
    /// The Service's name.
    pub case: String,
    /// What is dialled, in a word.
    pub via: &'static str,
    pub client: Who,
    pub family: Family,
    pub transport: Transport,
    pub targets: Vec<SocketAddr>,
    /// Clients are expected to stick to one backend: any will do.
    pub sticky: bool,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { case, via, client, family, transport, .. } = self;
        write!(f, "{case}::{via}::from_{}::{family}::{transport}", client.name())
    }
}
