//! Echo servers, TCP and UDP.
//!
//! TCP: one line `ID PEER` on accept, then everything that comes in goes out again, until the client closes.
//! UDP: each datagram is answered by one line `ID PEER` and the datagram.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use nix::sys::socket::{Backlog, listen};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::LARGEST_DATAGRAM;
use crate::lab::{Backend, Family, Place};
use crate::wire::Transport;

/// All servers of a bed; they stop when this is dropped.
#[derive(Debug)]
pub struct Servers {
    runtime: Option<Runtime>,
    running: HashMap<(Backend, Transport, Family), JoinHandle<()>>,
}

impl Servers {
    /// No server yet.
    ///
    /// # Errors
    /// The runtime cannot be started.
    pub fn new() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        Ok(Self { runtime: Some(runtime), running: HashMap::new() })
    }

    /// Starts a backend's servers of all transports and families at its place.
    ///
    /// # Errors
    /// A port is taken.
    pub fn start(&mut self, place: &Place, port: u16) -> Result<Backend> {
        let backend = Backend::new(place.who, port);
        for family in Family::BOTH {
            let address = SocketAddr::new(place.address(family), port);
            for transport in Transport::BOTH {
                let task = self.serve(place, backend, address, transport)?;
                self.running.insert((backend, transport, family), task);
            }
        }
        Ok(backend)
    }

    /// Starts one server at another address than its place's own.
    ///
    /// # Errors
    /// The port is taken.
    pub fn start_at(&mut self, place: &Place, address: SocketAddr, transport: Transport) -> Result<()> {
        let backend = Backend::new(place.who, address.port());
        let task = self.serve(place, backend, address, transport)?;
        self.running.insert((backend, transport, Family::of(&address.ip())), task);
        Ok(())
    }

    /// Stops a backend's servers; their ports are closed when this returns. Connections end.
    ///
    /// # Errors
    /// None were running.
    pub fn stop(&mut self, backend: Backend) -> Result<()> {
        for family in Family::BOTH {
            for transport in Transport::BOTH {
                let task = self.running.remove(&(backend, transport, family));
                let task =
                    task.with_context(|| format!("no {transport} server {} is running", backend.id()))?;
                task.abort();
                if let Some(runtime) = &self.runtime {
                    // Being aborted is what it should be.
                    let _ = runtime.block_on(task);
                }
            }
        }
        Ok(())
    }

    fn serve(
        &self,
        place: &Place,
        backend: Backend,
        address: SocketAddr,
        transport: Transport,
    ) -> Result<JoinHandle<()>> {
        let fd = place.bound(address, transport)?;
        let runtime = self.runtime.as_ref().context("the servers have been stopped")?;
        let _inside = runtime.enter();
        let id = backend.id();
        Ok(match transport {
            Transport::Tcp => {
                listen(&fd, Backlog::MAXCONN)?;
                let listener = TcpListener::from_std(std::net::TcpListener::from(fd))?;
                runtime.spawn(accept(listener, id))
            }
            Transport::Udp => {
                let socket = UdpSocket::from_std(std::net::UdpSocket::from(fd))?;
                runtime.spawn(answer(socket, id))
            }
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, id: String) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                // A connection that was reset before it was accepted is no reason to stop.
                if let Ok((stream, peer)) = accepted {
                    connections.spawn(echo(stream, format!("{id} {peer}\n")));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn echo(mut stream: tokio::net::TcpStream, greeting: String) {
    if stream.write_all(greeting.as_bytes()).await.is_ok() {
        let (mut from, mut to) = stream.split();
        // The client may end it in any way it likes.
        let _ = tokio::io::copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
}

async fn answer(socket: UdpSocket, id: String) {
    let mut buffer = vec![0; 65_536];
    loop {
        // Errors tell of earlier answers that nobody took.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
            let mut reply = format!("{id} {peer}\n").into_bytes();
            reply.extend_from_slice(&buffer[..length]);
            reply.truncate(LARGEST_DATAGRAM);
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}
