//! Connections of all HTTP servers: anybody who reaches a port may open them, so each has its time, and all of a port their
//! number. Beyond it they wait in the kernel until others end.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn6, bind, listen as listen_on, setsockopt, socket,
    sockopt,
};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

/// How long a request's head may take, and how long a connection may be idle between two.
const HEAD: Duration = Duration::from_secs(10);
/// How long a connection may take in all: an answer that nobody reads holds memory.
const LIFE: Duration = Duration::from_secs(300);
/// Connections of one port.
const MOST: usize = 256;
/// After the kernel had no descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens at an address of one family.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    match address {
        SocketAddr::V4(_) => adopt(std::net::TcpListener::bind(address)?),
        SocketAddr::V6(v6) => at_ipv6(v6, true),
    }
}

/// Listens as programs in Go do: an unspecified address, of either family, stands for both.
pub fn listen_as_go(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen(address);
    }
    match at_ipv6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, address.port(), 0, 0), false) {
        // A kernel without IPv6, or with none in this network namespace.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            listen(address)
        }
        outcome => outcome,
    }
}

fn at_ipv6(address: SocketAddrV6, alone: bool) -> io::Result<TcpListener> {
    let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::Ipv6V6Only, &alone)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    bind(fd.as_raw_fd(), &SockaddrIn6::from(address))?;
    listen_on(&fd, Backlog::new(128)?)?;
    adopt(fd.into())
}

fn adopt(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves until it is dropped, and all its connections with it.
pub async fn serve(listener: TcpListener, routes: Router) -> Infallible {
    let room = Arc::new(Semaphore::new(MOST));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // It is never closed.
        let Ok(place) = room.clone().acquire_owned().await else { std::future::pending().await };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A client that has gone again is no reason to wait.
                if error
                    .raw_os_error()
                    .is_some_and(|code| [libc::EMFILE, libc::ENFILE, libc::ENOMEM].contains(&code))
                {
                    warn!(%error, "a connection cannot be accepted; trying again");
                    tokio::time::sleep(PAUSE).await;
                }
                continue;
            }
        };
        let service = TowerToHyperService::new(routes.clone());
        connections.spawn(async move {
            let mut server = http1::Builder::new();
            let server = server.timer(TokioTimer::new()).header_read_timeout(HEAD);
            // Whatever ends it is the client's doing.
            drop(tokio::time::timeout(LIFE, server.serve_connection(TokioIo::new(stream), service)).await);
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, Router::new().route("/", get(|| async { "here" }))));
        address
    }

    #[tokio::test]
    async fn h1_an_unspecified_address_stands_for_both_families() {
        let cases = [("0.0.0.0:0", [true, true]), ("[::]:0", [true, true]), ("127.0.0.1:0", [true, false])];
        for (address, want) in cases {
            let listener = listen_as_go(address.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            for (host, want) in ["127.0.0.1", "::1"].into_iter().zip(want) {
                assert_eq!(TcpStream::connect((host, port)).await.is_ok(), want, "{host} at {address}");
            }
        }
    }

    async fn answers(stream: &mut TcpStream) -> bool {
        stream.write_all(REQUEST).await.unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"here") {
            if stream.read_buf(&mut text).await.unwrap() == 0 {
                return false;
            }
        }
        true
    }

    /// Whether the server ends a connection. Time jumps to the next timer once nobody has anything to do.
    async fn ends(mut stream: TcpStream) -> bool {
        tokio::time::pause();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        tokio::time::resume();
        !rest.ends_with(b"here")
    }

    #[tokio::test]
    async fn x13_half_a_request_and_silence_end() {
        let address = start().await;
        for begun in [&b""[..], b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\n"] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(begun).await.unwrap();
            assert!(ends(stream).await, "{begun:?} was answered");
        }
        let mut kept = TcpStream::connect(address).await.unwrap();
        assert!(answers(&mut kept).await && answers(&mut kept).await, "several requests on one connection");
        assert!(ends(kept).await, "and it ends when no more come");
    }

    #[tokio::test]
    async fn x13_connections_beyond_the_limit_wait_for_others_to_end() {
        let address = start().await;
        let mut open = Vec::new();
        for _ in 0..MOST {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert!(answers(&mut stream).await);
            open.push(stream);
        }
        let mut late = TcpStream::connect(address).await.unwrap();
        late.write_all(REQUEST).await.unwrap();
        assert!(answers(&mut open[0]).await, "those that are open are served on");
        assert!(late.try_read(&mut [0; 9]).is_err(), "more than the limit are served");
        open.pop();
        let mut text = Vec::new();
        while !text.ends_with(b"here") {
            assert!(late.read_buf(&mut text).await.unwrap() > 0, "the late one is served in its turn");
        }
    }
}
