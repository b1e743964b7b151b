//! Packet sockets in every namespace of a bed, read by one thread that judges as it reads.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

use super::check::{Offload, Unfinished};
use super::packet::Packet;
use super::rules::{Rules, Seen, Violation};

sockopt_impl!(
    /// Puts a `virtio_net_hdr` before each packet: it tells unfinished checksums and GSO.
    PacketVnetHdr,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

sockopt_impl!(
    /// Packets seen and packets lost since the last query.
    PacketStatistics,
    GetOnly,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats
);

/// Room for bursts of GSO packets: a lost packet is an unjudged packet.
const BUFFER: usize = 256 << 20;
/// `struct virtio_net_hdr` without the mergeable buffers' field.
const VNET_HEADER: usize = 10;
/// `PACKET_OTHERHOST` and `PACKET_OUTGOING` of packet(7).
const OTHER_HOST: u8 = 3;
const OUTGOING: u8 = 4;

/// A device that was there when the tap was opened.
#[derive(Debug)]
struct Own {
    name: String,
    /// Its hardware address, if it has one.
    address: Option<[u8; 6]>,
}

/// A packet socket in one namespace.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    rules: Rules,
    /// By ifindex; loopback is left out.
    devices: HashMap<usize, Own>,
}

impl Tap {
    /// Opens the socket in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn open(rules: Rules) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
        setsockopt(&socket, PacketVnetHdr, &true)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        let own = |interface: nix::ifaddrs::InterfaceAddress| {
            let link = *interface.address?.as_link_addr()?;
            let address = link.addr().filter(|_| link.hatype() == libc::ARPHRD_ETHER);
            Some((link.ifindex(), Own { name: interface.interface_name, address }))
        };
        let devices = nix::ifaddrs::getifaddrs()?.filter_map(own).collect();
        Ok(Self { socket, rules, devices })
    }

    /// Reads until nothing is left; `buffer` is scratch space.
    fn drain(&mut self, buffer: &mut [u8], observed: &Mutex<Observed>) -> io::Result<()> {
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), buffer) {
                Ok(received) => received,
                Err(nix::Error::EAGAIN) => return Ok(()),
                // A device that went away reports so on the socket; the others go on.
                Err(nix::Error::ENETDOWN | nix::Error::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let Some(from) = from.filter(|_| length > VNET_HEADER) else { continue };
            let device = self.devices.get(&from.ifindex());
            let name = device.map_or("?", |device| device.name.as_str());
            if name == "lo" {
                continue;
            }
            let (header, frame) = buffer[..length].split_at(VNET_HEADER);
            let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            // `VIRTIO_NET_HDR_F_NEEDS_CSUM`, then `csum_start` and `csum_offset`.
            let unfinished = (header[0] & 1 != 0).then(|| Unfinished { start: word(6), field: word(8) });
            let seen = Seen {
                frame,
                outgoing: from.pkttype() == OUTGOING,
                foreign: from.pkttype() == OTHER_HOST,
                own: device.and_then(|device| device.address),
                offload: Offload { unfinished },
            };
            let violations = self.rules.judge(name, seen);
            let arrived = !seen.outgoing && !seen.foreign;
            lock(observed).add(violations, Packet::parse(frame).ok().filter(|_| arrived));
        }
    }

    fn lost(&self) -> usize {
        nix::sys::socket::getsockopt(&self.socket, PacketStatistics).map_or(0, |s| s.tp_drops as usize)
    }
}

/// What the capture has found since the last [`Capture::take`].
#[derive(Debug, Default)]
pub struct Observed {
    /// The first violations, up to [`Observed::KEPT`].
    pub violations: Vec<Violation>,
    /// All violations, kept or not.
    pub count: usize,
    /// Packets judged.
    pub packets: usize,
    /// ICMP redirects that arrived at a pod or client.
    pub redirects: usize,
    /// Packets the kernel had no room for.
    pub lost: usize,
    /// Why nothing is judged any more.
    pub failure: Option<String>,
    /// Arrived packets that [`Capture::watch`]'s predicate asked for.
    pub watched: usize,
    watch: Option<Watch>,
}

#[derive(Clone, Copy)]
struct Watch(fn(&Packet) -> bool);

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watch")
    }
}

impl Observed {
    const KEPT: usize = 5;

    fn add(&mut self, violations: Vec<Violation>, arrived: Option<Packet>) {
        self.packets += 1;
        if let Some(packet) = arrived {
            self.redirects += usize::from(matches!(packet, Packet::Error { redirect: true, .. }));
            self.watched += usize::from(self.watch.is_some_and(|w| w.0(&packet)));
        }
        for violation in violations {
            self.count += 1;
            if self.violations.len() < Self::KEPT {
                self.violations.push(violation);
            }
        }
    }
}

fn lock(observed: &Mutex<Observed>) -> std::sync::MutexGuard<'_, Observed> {
    observed.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All taps of a bed and the thread that reads them.
#[derive(Debug)]
pub struct Capture {
    observed: Arc<Mutex<Observed>>,
    wake: UnixStream,
    /// Asks the thread to drain once more and answer, or (closed) to end.
    requests: Option<Sender<Sender<()>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts judging.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn start(taps: Vec<Tap>) -> io::Result<Self> {
        let observed = Arc::new(Mutex::new(Observed::default()));
        let (wake, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        let (requests, inbox) = channel();
        let thread = std::thread::Builder::new().name("capture".into()).spawn({
            let observed = observed.clone();
            move || read_all(taps, &observed, woken, &inbox)
        })?;
        Ok(Self { observed, wake, requests: Some(requests), thread: Some(thread) })
    }

    /// Counts arriving packets that satisfy `predicate` from now on, in [`Observed::watched`].
    pub fn watch(&self, predicate: fn(&Packet) -> bool) {
        let mut observed = lock(&self.observed);
        observed.watch = Some(Watch(predicate));
        observed.watched = 0;
    }

    /// Number of packets that satisfied the predicate since [`Capture::watch`].
    #[must_use]
    pub fn peek_watched(&self) -> usize {
        self.settle();
        lock(&self.observed).watched
    }

    /// Everything found so far; what is in flight in the sockets is judged first.
    #[must_use]
    pub fn take(&self) -> Observed {
        let judged = self.settle();
        let mut observed = lock(&self.observed);
        if !judged {
            observed.failure.get_or_insert_with(|| "its thread has ended".into());
        }
        let (watch, failure) = (observed.watch, observed.failure.clone());
        std::mem::replace(&mut *observed, Observed { watch, failure, ..Observed::default() })
    }

    /// Waits until everything that has arrived is judged. False: nobody judges any more.
    ///
    /// Whoever sends as fast as it can calls this now and then: what finds no room is not judged, which fails the story.
    pub fn settle(&self) -> bool {
        let (done, wait) = channel();
        let asked = self.requests.as_ref().is_some_and(|requests| requests.send(done).is_ok());
        // The thread answers, or has ended and dropped the sender: either ends the wait.
        asked && (&self.wake).write(&[1]).is_ok() && wait.recv().is_ok()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.requests = None;
        if (&self.wake).write(&[1]).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn read_all(
    mut taps: Vec<Tap>,
    observed: &Mutex<Observed>,
    mut woken: UnixStream,
    inbox: &Receiver<Sender<()>>,
) {
    let mut buffer = vec![0; 1 << 17];
    loop {
        {
            let fds = taps.iter().map(|tap| tap.socket.as_fd()).chain([woken.as_fd()]);
            let mut fds: Vec<_> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
            // Interrupted or not: every socket is looked at below.
            let _ = nix::poll::poll(&mut fds, PollTimeout::NONE);
        }
        // When nobody woke us this fails, and nothing is lost.
        let _ = woken.read(&mut [0; 16]);
        // Taken before the sockets are read: whoever asked sees everything that was there when it asked.
        let mut asked = Vec::new();
        let ended = loop {
            match inbox.try_recv() {
                Ok(done) => asked.push(done),
                Err(error) => break error == TryRecvError::Disconnected,
            }
        };
        for tap in &mut taps {
            if let Err(error) = tap.drain(&mut buffer, observed) {
                let mut observed = lock(observed);
                observed.failure = Some(format!("the capture at {} ended: {error}", tap.rules.place()));
                return;
            }
        }
        if !asked.is_empty() {
            lock(observed).lost += taps.iter().map(Tap::lost).sum::<usize>();
        }
        for done in asked {
            let _ = done.send(());
        }
        if ended {
            return;
        }
    }
}
