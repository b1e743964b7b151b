//! Connections that are held open for as long as a test wants, both ends in its hands.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::lab::namespace::Namespace;

/// Port of the server of held connections, beside that of the backends' own.
pub const HELD_PORT: u16 = 8_090;
/// How long one byte may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Connections from one pod to another by a Service.
pub struct Flows(Vec<[TcpStream; 2]>);

impl Flows {
    /// Opens `count` connections from `client` to the Service at `address`, port 80, which leads to `server` at
    /// [`HELD_PORT`].
    ///
    /// # Errors
    /// One of them does not come to be.
    pub fn open(client: &Namespace, server: &Namespace, address: &str, count: usize) -> Result<Self> {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")?;
        let target = SocketAddr::new(address.parse().with_context(|| format!("no address: {address}"))?, 80);
        let listener = server.within(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, HELD_PORT))?))?;
        let open = |number: usize| {
            let near = TcpStream::connect_timeout(&target, PATIENCE);
            let near = near.with_context(|| format!("connection {number} to {target}"))?;
            // It is established, so it waits to be accepted.
            let (far, _) = listener.accept()?;
            for end in [&near, &far] {
                end.set_read_timeout(Some(PATIENCE))?;
                end.set_nodelay(true)?;
            }
            Ok([near, far])
        };
        client.within(|| (0..count).map(open).collect::<Result<_>>()).map(Self)
    }

    /// Sends a byte there and back on each of them.
    ///
    /// # Errors
    /// One is dead.
    pub fn alive(&self) -> Result<()> {
        for (number, [near, far]) in self.0.iter().enumerate() {
            for (mut from, mut to, byte) in [(near, far, b"?"), (far, near, b"!")] {
                let mut seen = [0];
                let told = || format!("flow {number}");
                from.write_all(byte).and_then(|()| to.read_exact(&mut seen)).with_context(told)?;
                ensure!(seen == *byte, "flow {number} carries something else");
            }
        }
        Ok(())
    }
}
