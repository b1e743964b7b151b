//! Senders that never pause and keep their port while endpoints change under them (P-52, P-55, S-08): conntrack would keep
//! such a flow for ever. Time is counted in their own datagrams.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{SockaddrStorage, connect};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Place, Who, Wiring};
use sluice_tests::traffic::Outcome;
use sluice_tests::traffic::client::take;
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);

/// Ten changes, with a scaling to zero and back from either side; the stories make them twice.
const CHANGES: [&[Backend]; 10] = [&[PC], &[PB], &[], &[PB], &[PC], &[PB, PC], &[PB], &[], &[PC], &[PB]];

/// Between two datagrams.
const PACE: Duration = Duration::from_millis(1);
/// Ten seconds' worth, where an idle machine needs some milliseconds: the agent may have to wait for its turn, and the senders do not.
/// Much less than the half minute after which conntrack forgets a flow that rests.
const PROMPTLY: usize = 10_000;
/// After the first right answer as many more must be right.
const STEADY: usize = 50;

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let story = |family: Family| {
        let name = format!("P52_P55_S08_senders_that_never_pause_follow_twenty_changes::{family}");
        Story::new(name, move |bed| follow(bed, family))
    };
    Group {
        name: format!("sender::{wiring}"),
        // Not watched: an answer that is on its way when its flow moves has lost it, as with conntrack; sockets do not take it.
        config: BedConfig { watched: false, ..BedConfig::new(wiring) },
        setup: Box::new(setup),
        stories: Family::BOTH.into_iter().map(story).collect(),
    }
}

fn setup(bed: &mut Bed) -> Result<()> {
    for backend in [PB, PC] {
        bed.serve(backend.who, backend.port)?;
    }
    bed.start_agent()
}

fn app(backends: &[Backend]) -> App {
    App::new("app", 1, backends.iter().copied())
}

fn follow(bed: &mut Bed, family: Family) -> Result<()> {
    let mut before: &[Backend] = &[PB];
    bed.apply(&app(before))?;
    let to = |via| app(&[]).address(via, family);
    let start = |name, who: Who, via, port, kind| Sender::start(name, bed.place(who), to(via), port, kind);
    let senders = [
        start("a pod", Who::Pa, Via::ClusterIp, 40_001, Kind::Connected),
        start("an outside client", Who::Client, Via::NodePort, 40_002, Kind::Connected),
        start("the node, unconnected", Who::Host, Via::ClusterIp, 40_003, Kind::Unconnected),
        start("the node, connected", Who::Host, Via::NodePort, 40_004, Kind::DialsAgain),
    ];
    for sender in &senders {
        sender.follows(before, before)?;
    }
    for (round, after) in CHANGES.into_iter().chain(CHANGES).enumerate() {
        bed.apply(&app(after))?;
        for sender in &senders {
            let moved = sender.follows(before, after);
            moved.with_context(|| format!("{}, change {round}, to {after:?}", sender.name))?;
        }
        before = after;
    }
    senders.into_iter().try_for_each(Sender::finish)
}

/// What the application makes of its socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connected,
    Unconnected,
    /// Connected, in the node's own namespace: told that its socket has ended it opens another from the same port.
    DialsAgain,
}

#[derive(Default)]
struct Account {
    stop: AtomicBool,
    sent: AtomicUsize,
    /// What came, and of which datagram; what says nothing of that counts as the last one's.
    came: Mutex<Vec<(usize, Outcome)>>,
}

struct Sender {
    name: &'static str,
    kind: Kind,
    account: Arc<Account>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Sender {
    fn start(name: &'static str, place: &Place, to: SocketAddr, port: u16, kind: Kind) -> Self {
        let account = Arc::new(Account::default());
        let source = SocketAddr::new(place.address(Family::of(&to.ip())), port);
        let (place, shared) = (place.clone(), account.clone());
        let thread = std::thread::spawn(move || Sending { place, source, to, kind, account: shared }.run());
        Self { name, kind, account, thread: Some(thread) }
    }

    /// Waits until an endpoint of `after` answers, or, without any, until it is told that nobody is there. Until then
    /// only those of `before` may answer, and afterwards nobody else may.
    fn follows(&self, before: &[Backend], after: &[Backend]) -> Result<()> {
        let changed = self.account.sent.load(Ordering::Relaxed);
        let right = |outcome: &Outcome| answers(after, outcome);
        let first = self.wait("the right one to answer", |came| {
            let first = came.iter().find(|(number, outcome)| *number > changed && right(outcome));
            first.map(|(number, _)| *number)
        })?;
        ensure!(first - changed <= PROMPTLY, "right only with datagram {} after the change", first - changed);
        self.wait("it to stay so", |came| {
            let later = came.iter().filter(|(number, _)| *number > first);
            (later.count() >= STEADY).then_some(())
        })?;
        let came = std::mem::take(&mut *self.came());
        for (number, outcome) in came {
            let meanwhile = match outcome {
                Outcome::Ended => self.kind == Kind::DialsAgain,
                // On its way when the socket was led elsewhere, or between the new one's bind and connect: nobody knows any
                // more whom it answers for.
                Outcome::Failed(_) => self.kind != Kind::Connected,
                _ => answers(before, &outcome),
            };
            let early = number <= first && meanwhile;
            ensure!(
                early || right(&outcome),
                "datagram {number}, {first} was the first right one: {outcome}"
            );
        }
        Ok(())
    }

    fn wait<T>(&self, what: &str, look: impl Fn(&[(usize, Outcome)]) -> Option<T>) -> Result<T> {
        until(what, PATIENCE, || {
            let came = self.came();
            look(&came).with_context(|| format!("last came {:?}", came.last()))
        })
    }

    fn came(&self) -> std::sync::MutexGuard<'_, Vec<(usize, Outcome)>> {
        self.account.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(mut self) -> Result<()> {
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

fn answers(backends: &[Backend], outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok(answer) => backends.iter().any(|backend| backend.id() == answer.backend),
        Outcome::Refused => backends.is_empty(),
        _ => false,
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
        self.account.came.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
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
