//! Clients.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{SockaddrStorage, connect, getsockopt, sockopt};

use super::LARGEST_DATAGRAM;
use crate::lab::{Family, Place};
use crate::wire::Transport;

/// What a server says about a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Answer {
    /// The server's id, `POD:PORT`.
    pub backend: String,
    /// The peer address that it sees.
    pub seen: SocketAddr,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Ok(Answer),
    /// Told that nobody is there: RST, ICMP port unreachable, or by the local kernel.
    Refused,
    /// A live connection was cut (RST or end).
    Reset,
    /// A UDP socket was ended under its owner: ECONNABORTED, or on sending EDESTADDRREQ (S-08).
    Ended,
    /// Silence.
    Timeout,
    /// Anything else.
    Failed(String),
}

impl Outcome {
    /// The answer, or an error that tells what came instead.
    ///
    /// # Errors
    /// There is no answer.
    pub fn ok(self) -> anyhow::Result<Answer> {
        match self {
            Self::Ok(answer) => Ok(answer),
            other => anyhow::bail!("{other}"),
        }
    }

    /// What an error of a socket says.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                Self::Reset
            }
            io::ErrorKind::ConnectionAborted => Self::Ended,
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout,
            _ if error.raw_os_error() == Some(nix::Error::EDESTADDRREQ as i32) => Self::Ended,
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok(answer) => write!(f, "answered by {}, which sees {}", answer.backend, answer.seen),
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Ended => f.write_str("the socket was ended"),
            Self::Timeout => f.write_str("no answer"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// One attempt to reach a server.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    pub from: &'a Place,
    pub to: SocketAddr,
    pub transport: Transport,
    /// None: the kernel's choice.
    pub source: Option<SocketAddr>,
    /// How long each step may take.
    pub patience: Duration,
}

impl<'a> Dial<'a> {
    /// Patience reaches over two SYN retransmissions.
    #[must_use]
    pub const fn new(from: &'a Place, to: SocketAddr, transport: Transport) -> Self {
        Self { from, to, transport, source: None, patience: Duration::from_secs(5) }
    }

    /// From this source port of the place's first address; 0: the kernel's choice.
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        let family = if self.to.is_ipv4() { Family::V4 } else { Family::V6 };
        self.source = if port == 0 { None } else { Some(SocketAddr::new(self.from.address(family), port)) };
        self
    }

    /// From this address and port.
    #[must_use]
    pub const fn from_address(mut self, source: SocketAddr) -> Self {
        self.source = Some(source);
        self
    }

    /// For attempts that are expected to be silent.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Connects, asks once, closes.
    #[must_use]
    pub fn probe(&self) -> Outcome {
        match self.open() {
            Ok(connection) => Outcome::Ok(connection.answer),
            Err(outcome) => outcome,
        }
    }

    /// Connects and asks once.
    ///
    /// # Errors
    /// What became of it instead.
    pub fn open(&self) -> Result<Connection, Outcome> {
        let fd = self.socket().map_err(|error| Outcome::Failed(format!("{error:#}")))?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to)) {
            Ok(()) => {}
            Err(nix::Error::EINPROGRESS) => self.wait_connected(&fd)?,
            Err(error) => return Err(Outcome::from_io(&error.into())),
        }
        Connection::greet(fd, self)
    }

    fn socket(&self) -> anyhow::Result<OwnedFd> {
        match self.source {
            Some(address) => self.from.bound(address, self.transport),
            None => self.from.socket(Family::of(&self.to.ip()), self.transport),
        }
    }

    fn wait_connected(&self, fd: &OwnedFd) -> Result<(), Outcome> {
        let end = Instant::now() + self.patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(0) => return Err(Outcome::Timeout),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(Outcome::Failed(error.to_string())),
                Ok(_) => {
                    let pending = getsockopt(fd, sockopt::SocketError).unwrap_or_default();
                    return match pending {
                        0 => Ok(()),
                        errno => Err(Outcome::from_io(&io::Error::from_raw_os_error(errno))),
                    };
                }
            }
        }
    }
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

/// A connection that has been answered once.
#[derive(Debug)]
pub struct Connection {
    stream: Stream,
    /// The first answer.
    pub answer: Answer,
}

impl Connection {
    fn greet(fd: OwnedFd, dial: &Dial<'_>) -> Result<Self, Outcome> {
        let failed = |error: io::Error| Outcome::from_io(&error);
        match dial.transport {
            Transport::Tcp => {
                let mut stream = TcpStream::from(fd);
                stream.set_nonblocking(false).map_err(failed)?;
                stream.set_read_timeout(Some(dial.patience)).map_err(failed)?;
                stream.set_write_timeout(Some(dial.patience)).map_err(failed)?;
                let answer = parse(&read_line(&mut stream).map_err(failed)?)?;
                Ok(Self { stream: Stream::Tcp(stream), answer })
            }
            Transport::Udp => {
                let socket = UdpSocket::from(fd);
                socket.set_nonblocking(false).map_err(failed)?;
                socket.set_read_timeout(Some(dial.patience)).map_err(failed)?;
                let answer = exchange(&socket, b"hello").map_err(failed)?;
                Ok(Self { stream: Stream::Udp(socket), answer: parse(&answer)? })
            }
        }
    }

    /// Sends `token` and waits for it to come back. For UDP the answer may come from another backend than before.
    pub fn ask(&mut self, token: &[u8]) -> Outcome {
        match self.try_ask(token) {
            Ok(answer) => Outcome::Ok(answer),
            Err(error) => Outcome::from_io(&error),
        }
    }

    fn try_ask(&mut self, token: &[u8]) -> io::Result<Answer> {
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.write_all(token)?;
                let mut echoed = vec![0; token.len()];
                stream.read_exact(&mut echoed)?;
                same(token, &echoed)?;
                Ok(self.answer.clone())
            }
            Stream::Udp(socket) => {
                let line = exchange(socket, token)?;
                parse(&line).map_err(|outcome| io::Error::other(outcome.to_string()))
            }
        }
    }

    /// Moves `bytes` each way at once and compares. TCP only.
    ///
    /// # Errors
    /// What became of it instead.
    pub fn bulk(&mut self, bytes: usize) -> Result<(), Outcome> {
        let Stream::Tcp(stream) = &self.stream else {
            return Err(Outcome::Failed("bulk transfer is for TCP".into()));
        };
        let pattern: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
        let moved = std::thread::scope(|scope| -> io::Result<()> {
            let writer = scope.spawn(|| {
                let mut to = stream;
                to.write_all(&pattern)
            });
            let mut echoed = vec![0; bytes];
            let mut from = stream;
            let read = from.read_exact(&mut echoed);
            let wrote = writer.join().map_err(|_| io::Error::other("the writer panicked"))?;
            wrote.and(read)?;
            same(&pattern, &echoed)
        });
        moved.map_err(|error| Outcome::from_io(&error))
    }

    /// Ends a TCP connection and waits until the far end has ended it too: nothing is on its way any more.
    ///
    /// # Errors
    /// The far end does not.
    pub fn close(self) -> io::Result<()> {
        let Stream::Tcp(mut stream) = self.stream else { return Ok(()) };
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut Vec::new()).map(drop)
    }

    /// The socket's own end.
    ///
    /// # Errors
    /// The kernel does not know.
    pub fn local(&self) -> io::Result<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.local_addr(),
            Stream::Udp(socket) => socket.local_addr(),
        }
    }

    /// The far end as the socket knows it: what was dialled.
    ///
    /// # Errors
    /// Not connected any more.
    pub fn peer(&self) -> io::Result<SocketAddr> {
        match &self.stream {
            Stream::Tcp(stream) => stream.peer_addr(),
            Stream::Udp(socket) => socket.peer_addr(),
        }
    }
}

/// Sends a datagram on a connected socket and waits for the answer that echoes it; answers to earlier datagrams are
/// passed over.
fn exchange(socket: &UdpSocket, token: &[u8]) -> io::Result<String> {
    socket.send(token)?;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.recv(&mut buffer)?;
        let (line, echoed) = split(&buffer[..length])?;
        // The line in front leaves less room for the echo of the largest ones.
        let cut = length == LARGEST_DATAGRAM && token.starts_with(echoed);
        if cut || echoed == token {
            return Ok(line);
        }
    }
}

/// One datagram on an *unconnected* socket: the answer and who it came from.
///
/// # Errors
/// As the socket says; silence is `WouldBlock`.
pub fn exchange_unconnected(socket: &UdpSocket, to: SocketAddr) -> io::Result<(Answer, SocketAddr)> {
    socket.send_to(b"hello", to)?;
    take(socket).map(|(answer, from, _)| (answer, from))
}

/// The next answer on a socket, who it came from, and what was sent.
///
/// # Errors
/// As the socket says; silence is `WouldBlock`.
pub fn take(socket: &UdpSocket) -> io::Result<(Answer, SocketAddr, Vec<u8>)> {
    let mut buffer = vec![0; 2_048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let (line, echoed) = split(&buffer[..length])?;
    let answer = parse(&line).map_err(|outcome| io::Error::other(outcome.to_string()))?;
    Ok((answer, from, echoed.to_vec()))
}

fn split(datagram: &[u8]) -> io::Result<(String, &[u8])> {
    let end = datagram.iter().position(|b| *b == b'\n');
    let end = end.ok_or_else(|| io::Error::other("a datagram without a line"))?;
    Ok((String::from_utf8_lossy(&datagram[..end]).into_owned(), &datagram[end + 1..]))
}

fn same(sent: &[u8], echoed: &[u8]) -> io::Result<()> {
    if sent == echoed { Ok(()) } else { Err(io::Error::other("the echo differs from what was sent")) }
}

fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0; 1];
    loop {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.push(byte[0]);
    }
}

pub(super) fn parse(line: &str) -> Result<Answer, Outcome> {
    let parsed = line
        .split_once(' ')
        .and_then(|(backend, seen)| Some(Answer { backend: backend.to_owned(), seen: seen.parse().ok()? }));
    parsed.ok_or_else(|| Outcome::Failed(format!("the answer {line:?} is not understood")))
}
