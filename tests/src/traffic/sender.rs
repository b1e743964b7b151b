//! UDP senders that never pause and keep their port while endpoints change under them: conntrack would keep such a flow for
//! ever (P-52, P-55, S-08).

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{SockaddrStorage, connect};

use super::client::{Outcome, take};
use crate::lab::app::{App, Backend, Via};
use crate::lab::{Bed, Family, Place, Who};
use crate::wait::{PATIENCE, until};
use crate::wire::Transport;

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);

/// Whoever serves in [`changes`].
pub const BACKENDS: [Backend; 2] = [PB, PC];
/// Ten changes, with a scaling to none and back from either side. They lead back to [`BEFORE`].
const ROUND: [&[Backend]; 10] = [&[PC], &[PB], &[], &[PB], &[PC], &[PB, PC], &[PB], &[], &[PC], &[PB]];

/// Twenty changes from [`BEFORE`] on: to the other endpoint, to none and back from either side, to both.
pub fn changes() -> impl Iterator<Item = &'static [Backend]> {
    ROUND.into_iter().chain(ROUND)
}

/// What serves before the first of [`changes`].
pub const BEFORE: &[Backend] = &[PB];

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(1);

/// The application that they talk to.
#[must_use]
pub fn app(backends: &[Backend]) -> App {
    App::new("app", 1, backends.iter().copied())
}

/// Whether this is what one of `backends` answers, or, where there is none, what tells so.
#[must_use]
pub fn answers(backends: &[Backend], outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok(answer) => backends.iter().any(|backend| backend.id() == answer.backend),
        Outcome::Refused => backends.is_empty(),
        _ => false,
    }
}

/// What the application makes of its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Connected,
    Unconnected,
    /// Connected, in the node's own namespace: told that its socket has ended it opens another from the same port.
    DialsAgain,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Came {
    /// Of the datagram that it answers; what says nothing of that counts as the last one's.
    pub number: usize,
    pub at: Instant,
    pub outcome: Outcome,
}

#[derive(Debug, Default)]
struct Account {
    stop: AtomicBool,
    sent: AtomicUsize,
    came: Mutex<Vec<Came>>,
}

impl Account {
    fn came(&self) -> MutexGuard<'_, Vec<Came>> {
        self.came.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sender, which goes on until it is finished or dropped.
#[derive(Debug)]
pub struct Sender {
    pub name: &'static str,
    pub kind: Kind,
    account: Arc<Account>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sender {
    /// One of each kind, to [`app`].
    #[must_use]
    pub fn everywhere(bed: &Bed, family: Family) -> [Self; 4] {
        let start = |name, who: Who, via, port, kind| {
            Self::start(name, bed.place(who), app(&[]).address(via, family), port, kind)
        };
        [
            start("a pod", Who::Pa, Via::ClusterIp, 40_001, Kind::Connected),
            start("an outside client", Who::Client, Via::NodePort, 40_002, Kind::Connected),
            start("the node, unconnected", Who::Host, Via::ClusterIp, 40_003, Kind::Unconnected),
            start("the node, connected", Who::Host, Via::NodePort, 40_004, Kind::DialsAgain),
        ]
    }

    fn start(name: &'static str, place: &Place, to: SocketAddr, port: u16, kind: Kind) -> Self {
        let account = Arc::new(Account::default());
        let source = SocketAddr::new(place.address(Family::of(&to.ip())), port);
        let (place, shared) = (place.clone(), account.clone());
        let thread = std::thread::spawn(move || Sending { place, source, to, kind, account: shared }.run());
        Self { name, kind, account, thread: Some(thread) }
    }

    /// Datagrams sent by now.
    #[must_use]
    pub fn sent(&self) -> usize {
        self.account.sent.load(Ordering::Relaxed)
    }

    /// Waits until something has come for a later datagram than `number` that is what `backends` answer.
    ///
    /// # Errors
    /// Nothing such comes.
    pub fn first(&self, number: usize, backends: &[Backend]) -> Result<Came> {
        self.wait("the right one to answer", |came| {
            came.iter().find(|came| came.number > number && answers(backends, &came.outcome)).cloned()
        })
    }

    /// Waits until as many answers have come for later datagrams than `number`.
    ///
    /// # Errors
    /// They do not.
    pub fn more(&self, number: usize, count: usize) -> Result<()> {
        self.wait("it to stay so", |came| {
            (came.iter().filter(|came| came.number > number).count() >= count).then_some(())
        })
    }

    fn wait<T>(&self, what: &str, look: impl Fn(&[Came]) -> Option<T>) -> Result<T> {
        until(what, PATIENCE, || {
            let came = self.account.came();
            look(&came).with_context(|| format!("last came {:?}", came.last()))
        })
        .context(self.name)
    }

    /// All that has come since this was asked last.
    #[must_use]
    pub fn take(&self) -> Vec<Came> {
        std::mem::take(&mut *self.account.came())
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it has failed by.
    pub fn finish(mut self) -> Result<()> {
        self.account.stop.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().and_then(|thread| thread.join().ok());
        outcome.context("the sender panicked")?.context(self.name)
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.account.stop.store(true, Ordering::Relaxed);
        // What it says is told by `finish` where anybody asks.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The sender's own side.
struct Sending {
    place: Place,
    source: SocketAddr,
    to: SocketAddr,
    kind: Kind,
    account: Arc<Account>,
}

impl Sending {
    fn run(&self) -> Result<()> {
        let mut kept = None;
        while !self.account.stop.load(Ordering::Relaxed) {
            std::thread::sleep(PACE);
            let number = self.account.sent.fetch_add(1, Ordering::Relaxed) + 1;
            match kept.take().map_or_else(|| self.open(), |socket| Ok(Ok(socket)))? {
                Ok(socket) => kept = self.turn(&socket, number)?.then_some(socket),
                Err(outcome) => self.note(number, outcome),
            }
        }
        Ok(())
    }

    fn note(&self, number: usize, outcome: Outcome) {
        self.account.came().push(Came { number, at: Instant::now(), outcome });
    }

    /// Sends one datagram and takes all that has come, behind errors too: what is read late would count as an answer of a later
    /// time. Whether the socket is kept.
    fn turn(&self, socket: &UdpSocket, number: usize) -> Result<bool> {
        let datagram = number.to_be_bytes();
        let sent = match self.kind {
            Kind::Unconnected => socket.send_to(&datagram, self.to),
            _ => socket.send(&datagram),
        };
        let mut failed = sent.err();
        loop {
            match failed.take().map_or_else(|| take(socket), Err) {
                Ok((answer, from, echoed)) => {
                    let number = echoed.try_into().ok().map(usize::from_be_bytes);
                    let outcome = if from == self.to {
                        Outcome::Ok(answer)
                    } else {
                        Outcome::Failed(format!("{} answers as {from}", answer.backend))
                    };
                    self.note(number.context("no number comes back")?, outcome);
                }
                Err(error) => {
                    let outcome = Outcome::from_io(&error);
                    if outcome == Outcome::Timeout {
                        return Ok(true);
                    }
                    let goes_on = outcome == Outcome::Refused;
                    self.note(number, outcome);
                    if self.kind == Kind::DialsAgain || !goes_on {
                        return Ok(self.kind != Kind::DialsAgain);
                    }
                }
            }
        }
    }

    fn open(&self) -> Result<Result<UdpSocket, Outcome>> {
        let fd = self.place.bound(self.source, Transport::Udp)?;
        if self.kind != Kind::Unconnected {
            match connect(fd.as_raw_fd(), &SockaddrStorage::from(self.to)) {
                Ok(()) => {}
                Err(nix::Error::ECONNREFUSED) => return Ok(Err(Outcome::Refused)),
                Err(error) => bail!("cannot dial {}: {error}", self.to),
            }
        }
        Ok(Ok(UdpSocket::from(fd)))
    }
}
