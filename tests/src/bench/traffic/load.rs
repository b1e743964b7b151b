//! Transactions: client and server on one CPU, so that their rate is the inverse of all that one costs.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::beds::{Path, Site};
use crate::bench::place::pin;
use crate::lab::namespace::enter;

/// Both ends stay on this one.
const CPU: usize = 0;
/// A transaction that takes longer has been lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A connection: opened, a byte each way, closed by the server.
    Crr,
    /// A byte each way on one of so many connections that stay.
    Rr { connections: usize },
    /// A datagram each way, from a new socket.
    Udp,
}

/// Transactions a second, after a tenth of `length` that is not counted.
///
/// # Errors
/// One of them fails.
pub fn rate(site: &Site, path: Path, load: Load, length: Duration) -> Result<f64> {
    let to = path.target(site.proxy).context("nobody serves it")?;
    let stop = AtomicBool::new(false);
    let (ready, is_ready) = channel();
    let netns = |who: crate::lab::Who| site.bed.namespace(who.namespace()).path().to_owned();
    let (server_at, client_at): (PathBuf, PathBuf) = (netns(path.server), netns(path.client));
    std::thread::scope(|scope| {
        let (at, halt) = (&server_at, &stop);
        let server = scope.spawn(move || {
            enter(at)?;
            pin(CPU)?;
            serve(load, path.listens(), halt, ready).context("server")
        });
        let (stop, client_at) = (&stop, &client_at);
        let client = scope.spawn(move || {
            enter(client_at)?;
            pin(CPU)?;
            let told = is_ready.recv().context("the server has not started")?;
            let counted = client(load, to, length);
            stop.store(true, Ordering::Relaxed);
            wake(load, told);
            counted.context("client")
        });
        let counted = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?;
        let served = server.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
        counted.and_then(|rate| served.map(|()| rate))
    })
}

/// Ends a server's wait, now that it is to stop. One that has seen so already cannot be reached.
fn wake(load: Load, server: SocketAddr) {
    match load {
        // It ends when the last connection does.
        Load::Rr { .. } => {}
        Load::Crr => drop(TcpStream::connect(server)),
        Load::Udp => {
            let _ = UdpSocket::bind(any(server)).and_then(|socket| socket.send_to(b"!", server));
        }
    }
}

fn serve(load: Load, own: SocketAddr, stop: &AtomicBool, ready: Sender<SocketAddr>) -> Result<()> {
    if load == Load::Udp {
        let socket = UdpSocket::bind(own)?;
        socket.set_read_timeout(Some(2 * PATIENCE))?;
        ready.send(own)?;
        return serve_datagrams(&socket, stop);
    }
    let listener = TcpListener::bind(own)?;
    // accept(2) waits no longer: its client may have failed.
    let timeout = TimeVal::milliseconds((2 * PATIENCE).as_millis() as i64);
    setsockopt(&listener, sockopt::ReceiveTimeout, &timeout)?;
    ready.send(own)?;
    match load {
        Load::Rr { connections } => serve_round_trips(&listener, connections),
        _ => serve_connections(&listener, stop),
    }
}

fn serve_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        let (_, from) = socket.recv_from(&mut byte)?;
        socket.send_to(&byte, from)?;
    }
    Ok(())
}

fn serve_connections(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    let mut byte = [0];
    while !stop.load(Ordering::Relaxed) {
        let (mut connection, _) = listener.accept()?;
        if connection.read(&mut byte)? == 1 {
            connection.write_all(&byte)?;
        }
    }
    Ok(())
}

fn serve_round_trips(listener: &TcpListener, count: usize) -> Result<()> {
    let mut byte = [0];
    let mut connections = Vec::new();
    for _ in 0..count {
        let (connection, _) = listener.accept()?;
        connection.set_nodelay(true)?;
        connections.push(connection);
    }
    loop {
        for connection in &mut connections {
            match connection.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => connection.write_all(&byte)?,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn client(load: Load, to: SocketAddr, length: Duration) -> Result<f64> {
    match load {
        Load::Crr => counted(length, 1, || {
            let mut connection = TcpStream::connect_timeout(&to, PATIENCE)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            connection.write_all(b"?")?;
            let mut byte = [0];
            connection.read_exact(&mut byte)?;
            // The server closes first: the port is free for the next connection.
            anyhow::ensure!(connection.read(&mut byte)? == 0, "the server sends more than it was asked for");
            Ok(())
        }),
        Load::Rr { connections: count } => {
            let mut connections = Vec::new();
            for _ in 0..count {
                let connection = TcpStream::connect_timeout(&to, PATIENCE)?;
                connection.set_nodelay(true)?;
                connection.set_read_timeout(Some(PATIENCE))?;
                connections.push(connection);
            }
            counted(length, count, || {
                connections.iter_mut().try_for_each(|connection| connection.write_all(b"?"))?;
                connections.iter_mut().try_for_each(|connection| connection.read_exact(&mut [0]))?;
                Ok(())
            })
        }
        Load::Udp => counted(length, 1, || {
            let socket = UdpSocket::bind(any(to))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            socket.recv(&mut [0])?;
            Ok(())
        }),
    }
}

/// Any address and port of the other end's family.
const fn any(other: SocketAddr) -> (IpAddr, u16) {
    let address =
        if other.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    (address, 0)
}

/// How often a second `step` can be done, times `each`.
fn counted(length: Duration, each: usize, mut step: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut run = |length: Duration| -> Result<(usize, Duration)> {
        let (started, mut steps) = (Instant::now(), 0);
        loop {
            step().with_context(|| format!("after {steps} steps"))?;
            steps += 1;
            let took = started.elapsed();
            if took >= length {
                return Ok((steps, took));
            }
        }
    };
    run(length / 10)?;
    let (steps, took) = run(length)?;
    Ok((steps * each) as f64 / took.as_secs_f64())
}
