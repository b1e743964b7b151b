//! SCTP over raw sockets, since a kernel may have none: as much of both ends as it takes to begin an association, talk,
//! and end it. Every packet's checksum is looked at.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use super::{Answer, Outcome};
use crate::lab::namespace::Namespace;
use crate::lab::{Backend, Family};
use crate::packet::sctp::{HEADER, checksum, chunk, packet, written};
use crate::wait::PATIENCE;

/// The tag by which a server is spoken to, and a client.
const SERVERS_TAG: u32 = 0x5e17_ed00;
const CLIENTS_TAG: u32 = 0xc11e_0700;

/// A raw socket for SCTP. It hears whatever its namespace gets.
#[derive(Debug)]
pub struct Raw(UdpSocket);

impl Raw {
    /// In a namespace, with this address as its own.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn open(space: &Namespace, own: IpAddr) -> Result<Self> {
        let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        space.within(|| {
            let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)?;
            nix::sys::socket::bind(
                std::os::fd::AsRawFd::as_raw_fd(&fd),
                &nix::sys::socket::SockaddrStorage::from(SocketAddr::new(own, 0)),
            )?;
            let socket = UdpSocket::from(fd);
            socket.set_read_timeout(Some(PATIENCE))?;
            Ok(Self(socket))
        })
    }

    /// Sends one chunk.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn send(&self, port: u16, to: SocketAddr, tag: u32, kind: u8, value: &[u8]) -> Result<()> {
        self.0
            .send_to(&packet((port, to.port()), tag, kind, value), (to.ip(), 0))
            .with_context(|| format!("chunk {kind} to {to}"))?;
        Ok(())
    }

    /// The next packet for a port: who has sent it, and what.
    ///
    /// # Errors
    /// None comes, or it has a wrong checksum.
    fn receive(&self, port: u16) -> Result<(SocketAddr, Packet)> {
        let mut buffer = [0; 65_536];
        loop {
            let (length, from) = self.0.recv_from(&mut buffer).context("no packet of SCTP")?;
            let mut bytes = &buffer[..length];
            if from.is_ipv4() {
                bytes = &bytes[usize::from(bytes[0] & 15) * 4..];
            }
            ensure!(bytes.len() >= HEADER + 4, "{} bytes", bytes.len());
            let number = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
            if number(2) != port {
                continue;
            }
            ensure!(written(bytes) == checksum(bytes), "a wrong checksum from {from}");
            let end = HEADER + usize::from(number(HEADER + 2));
            let value = bytes.get(HEADER + 4..end).context("a chunk is cut")?.to_vec();
            let tag = u32::from_be_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            return Ok((SocketAddr::new(from.ip(), number(0)), Packet { tag, kind: bytes[HEADER], value }));
        }
    }

    /// Begins what is refused: the ICMP error that comes, as connect(2) would tell it.
    ///
    /// # Errors
    /// Another one comes, or none.
    pub fn is_refused(&self, to: SocketAddr, tag: u32, kind: u8) -> Result<()> {
        // Only a connected socket is told.
        self.0.connect((to.ip(), 0))?;
        self.0.send(&packet((19_001, to.port()), tag, kind, &[7; 16]))?;
        match self.0.recv(&mut [0; 2_048]) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => bail!("chunk {kind} to {to}: {other:?}"),
        }
    }
}

/// A packet of one chunk.
#[derive(Debug)]
struct Packet {
    tag: u32,
    kind: u8,
    value: Vec<u8>,
}

/// An echo server that answers when it is told to.
#[derive(Debug)]
pub struct Server {
    raw: Raw,
    port: u16,
    id: String,
}

impl Server {
    /// At a backend's place.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn start(space: &Namespace, backend: Backend, family: Family) -> Result<Self> {
        Ok(Self { raw: Raw::open(space, backend.who.address(family))?, port: backend.port, id: backend.id() })
    }

    /// Who it is, and whom it sees: what TCP's and UDP's servers tell in their first line.
    fn cookie(&self, from: SocketAddr) -> String {
        format!("{} {from}", self.id)
    }

    /// Answers whatever comes.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn run(self) -> Result<Answering> {
        /// How long it may take to be stopped.
        const TURN: Duration = Duration::from_millis(100);
        self.raw.0.set_read_timeout(Some(TURN))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Silence, or a client that is gone.
                let _ = self.answer();
            }
        })?;
        Ok(Answering { stop, thread: Some(thread) })
    }

    /// Takes one packet and answers it as RFC 9260 has it: by the chunks that belong there. Who has sent it.
    ///
    /// # Errors
    /// There is none, or it is not for this association.
    fn answer(&self) -> Result<SocketAddr> {
        let (from, asked) = self.raw.receive(self.port)?;
        let tag = if asked.kind == chunk::INIT { 0 } else { SERVERS_TAG };
        ensure!(asked.tag == tag, "chunk {} with tag {:x}", asked.kind, asked.tag);
        let say = |kind, value: &[u8]| self.raw.send(self.port, from, CLIENTS_TAG, kind, value);
        match asked.kind {
            chunk::INIT => {
                ensure!(asked.value[..4] == CLIENTS_TAG.to_be_bytes(), "another client's INIT");
                say(chunk::INIT_ACK, &[&beginning(SERVERS_TAG), self.cookie(from).as_bytes()].concat())?;
            }
            chunk::COOKIE_ECHO => {
                ensure!(asked.value == self.cookie(from).as_bytes(), "another cookie");
                say(chunk::COOKIE_ACK, &[])?;
            }
            chunk::DATA => {
                say(chunk::SACK, &[&asked.value[..4], &[0, 1, 0, 0, 0, 0, 0, 0]].concat())?;
                say(chunk::DATA, &asked.value)?;
            }
            chunk::HEARTBEAT => say(chunk::HEARTBEAT_ACK, &asked.value)?,
            chunk::SHUTDOWN => say(chunk::SHUTDOWN_ACK, &[])?,
            chunk::SACK | chunk::ABORT | chunk::SHUTDOWN_COMPLETE => {}
            other => bail!("chunk {other} is not expected"),
        }
        Ok(from)
    }
}

/// A server that answers by itself, until this is dropped.
#[derive(Debug)]
pub struct Answering {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

/// The fixed fields of INIT and INIT ACK: a tag, a window, streams, the first number.
fn beginning(tag: u32) -> [u8; 16] {
    let [a, b, c, d] = tag.to_be_bytes();
    [a, b, c, d, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]
}

/// A client's association with a server.
#[derive(Debug)]
pub struct Association<'a> {
    raw: Raw,
    /// `None`: it answers by itself.
    server: Option<&'a Server>,
    port: u16,
    to: SocketAddr,
    /// The client as the server sees it.
    pub seen: SocketAddr,
}

/// From one port after the other: begins an association with a server that answers by itself, and aborts it.
#[must_use]
pub fn probe(space: &Namespace, to: SocketAddr, patience: Duration) -> Outcome {
    static PORT: AtomicU16 = AtomicU16::new(30_000);
    let port = PORT.fetch_add(1, Ordering::Relaxed) % 30_000 + 30_000;
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
    let opened = Raw::open(space, any).and_then(|raw| {
        raw.0.set_read_timeout(Some(patience))?;
        // Only a connected socket is told of errors.
        raw.0.connect((to.ip(), 0))?;
        Association::begin(raw, port, to, None)
    });
    match opened {
        Ok((association, answer)) => {
            // Nobody answers it.
            let _ = association.raw.send(port, to, SERVERS_TAG, chunk::ABORT, &[]);
            Outcome::Ok(answer)
        }
        Err(error) => match error.downcast_ref() {
            Some(error) => Outcome::from_io(error),
            None => Outcome::Failed(format!("{error:#}")),
        },
    }
}

impl<'a> Association<'a> {
    /// From a port to where `server` is expected to answer.
    ///
    /// # Errors
    /// It is not answered, by somebody else, or otherwise than it should be.
    pub fn open(raw: Raw, port: u16, to: SocketAddr, server: &'a Server) -> Result<Self> {
        let (association, answer) = Self::begin(raw, port, to, Some(server))?;
        ensure!(answer.backend == server.id, "answered by {}", answer.backend);
        Ok(association)
    }

    fn begin(raw: Raw, port: u16, to: SocketAddr, server: Option<&'a Server>) -> Result<(Self, Answer)> {
        raw.send(port, to, 0, chunk::INIT, &beginning(CLIENTS_TAG))?;
        let mut association = Self { raw, server, port, to, seen: to };
        if let Some(server) = server {
            association.seen = server.answer().context("INIT")?;
        }
        let answer = association.hear(chunk::INIT_ACK)?;
        ensure!(answer[..4] == SERVERS_TAG.to_be_bytes(), "another server's INIT ACK");
        let told = super::client::parse(&String::from_utf8_lossy(&answer[16..]))
            .map_err(|outcome| anyhow!("{outcome}"))?;
        association.seen = told.seen;
        association.say(chunk::COOKIE_ECHO, &answer[16..])?;
        association.hear(chunk::COOKIE_ACK)?;
        Ok((association, told))
    }

    /// Data, which comes back.
    ///
    /// # Errors
    /// As above.
    pub fn ask(&self, data: &[u8]) -> Result<()> {
        let value = [&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], data].concat();
        self.say(chunk::DATA, &value)?;
        self.hear(chunk::SACK)?;
        ensure!(self.hear(chunk::DATA)? == value, "other data came back");
        self.say(chunk::SACK, &[0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0])?;
        self.say(chunk::HEARTBEAT, b"\0\x01\0\x08beat")?;
        self.hear(chunk::HEARTBEAT_ACK).map(drop)
    }

    /// The end, as it should be.
    ///
    /// # Errors
    /// As above.
    pub fn shut_down(self) -> Result<()> {
        self.say(chunk::SHUTDOWN, &[0, 0, 0, 1])?;
        self.hear(chunk::SHUTDOWN_ACK)?;
        self.say(chunk::SHUTDOWN_COMPLETE, &[])
    }

    /// Says it, and the server answers.
    fn say(&self, kind: u8, value: &[u8]) -> Result<()> {
        self.raw.send(self.port, self.to, SERVERS_TAG, kind, value)?;
        if let Some(server) = self.server {
            let seen = server.answer().with_context(|| format!("chunk {kind}"))?;
            ensure!(seen == self.seen, "chunk {kind} came from {seen}, not {}", self.seen);
        }
        Ok(())
    }

    fn hear(&self, kind: u8) -> Result<Vec<u8>> {
        let (from, heard) =
            self.raw.receive(self.port).with_context(|| format!("instead of chunk {kind}"))?;
        ensure!(from == self.to, "answered by {from}, not {}", self.to);
        ensure!((heard.kind, heard.tag) == (kind, CLIENTS_TAG), "{heard:?} instead of chunk {kind}");
        Ok(heard.value)
    }
}
