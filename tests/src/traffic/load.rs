//! Steady traffic in the background, and the account of what went wrong meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail};

use super::client::{Dial, Outcome};
use crate::lab::{Place, Who};
use crate::wait::{PATIENCE, until};
use crate::wire::Transport;

/// One stream of traffic: connections opened one after the other, or one that stays.
#[derive(Clone, Debug)]
pub struct Stream {
    pub from: Place,
    pub to: SocketAddr,
    pub transport: Transport,
    /// One connection that is used all the time, instead of a new one each time.
    pub lasting: bool,
}

/// Between two exchanges of a stream.
const PACE: Duration = Duration::from_millis(3);

#[derive(Debug, Default)]
struct Account {
    stop: AtomicBool,
    exchanges: Vec<AtomicUsize>,
    troubles: Mutex<Vec<String>>,
}

/// Threads, one a stream, until [`Load::finish`].
#[derive(Debug)]
pub struct Load {
    account: Arc<Account>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts all streams and waits until each has had an exchange.
    ///
    /// # Errors
    /// One of them never gets going.
    pub fn start(streams: Vec<Stream>) -> Result<Self> {
        let exchanges = streams.iter().map(|_| AtomicUsize::new(0)).collect();
        let account = Arc::new(Account { exchanges, ..Account::default() });
        let spawn = |(number, stream): (usize, Stream)| {
            let account = account.clone();
            std::thread::spawn(move || run(&stream, number, &account))
        };
        let threads = streams.into_iter().enumerate().map(spawn).collect();
        let load = Self { account, threads };
        load.progress(1)?;
        Ok(load)
    }

    /// Waits until every stream has had `more` further exchanges.
    ///
    /// # Errors
    /// Something went wrong with one of them.
    pub fn progress(&self, more: usize) -> Result<()> {
        let account = &self.account;
        let now = || account.exchanges.iter().map(|n| n.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let goal: Vec<_> = now().into_iter().map(|n| n + more).collect();
        until("traffic to go on", PATIENCE, || {
            let troubles = account.troubles.lock().unwrap_or_else(PoisonError::into_inner);
            let reached = now().iter().zip(&goal).all(|(n, goal)| n >= goal);
            // What went wrong is told by `finish`; a stream that has ended would be waited for in vain.
            if reached || !troubles.is_empty() {
                Ok(())
            } else {
                Err(format!("exchanges so far: {:?}", now()))
            }
        })
    }

    /// Ends the traffic.
    ///
    /// # Errors
    /// Anything went wrong since the start; the first few are told.
    pub fn finish(mut self) -> Result<usize> {
        self.stop();
        let troubles = self.account.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = troubles.first() {
            bail!("{} of the streams met trouble, first {first}", troubles.len());
        }
        Ok(self.account.exchanges.iter().map(|n| n.load(Ordering::Relaxed)).sum())
    }

    fn stop(&mut self) {
        self.account.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A stream ends at its first trouble: what follows would only blur it.
fn run(stream: &Stream, number: usize, account: &Account) {
    let count = &account.exchanges[number];
    let dial = Dial::new(&stream.from, stream.to, stream.transport);
    let trouble = |what: &str, outcome: &Outcome| {
        let Stream { from, to, transport, .. } = stream;
        let after = count.load(Ordering::Relaxed);
        let told = format!("{} {transport} {to}: {what} after {after} exchanges: {outcome}", from.who.name());
        account.troubles.lock().unwrap_or_else(PoisonError::into_inner).push(told);
    };
    // A steady pace: machines that run tests also have to judge every packet of it.
    let going = || {
        std::thread::sleep(PACE);
        !account.stop.load(Ordering::Relaxed)
    };
    if !stream.lasting {
        while going() {
            let outcome = match dial.probe() {
                // The node's own socket was bound to an endpoint that has left: its owner dials again (S-08).
                Outcome::Ended if stream.from.who == Who::Host => dial.probe(),
                outcome => outcome,
            };
            match outcome {
                Outcome::Ok(_) => count.fetch_add(1, Ordering::Relaxed),
                outcome => return trouble("a new connection", &outcome),
            };
        }
        return;
    }
    let mut connection = match dial.open() {
        Ok(connection) => connection,
        Err(outcome) => return trouble("the lasting connection", &outcome),
    };
    while going() {
        match connection.ask(b"are you there?") {
            Outcome::Ok(_) => count.fetch_add(1, Ordering::Relaxed),
            outcome => return trouble("the lasting connection", &outcome),
        };
    }
}
