//! Connected UDP sockets of the node's own processes whose endpoint has departed (S-08, P-52), or that are older than the
//! Service that they have dialled (P-54).
//!
//! connect(2) was translated once, or not at all, so such a socket would talk to the departed endpoint, or to nobody, for
//! ever. It is ended: its owner is told ECONNABORTED and dials again. TCP connections end by themselves, and stay.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tracing::info;

use super::worker::Worker;
use crate::datapath::{Datapath, DatapathError, Translated};
use crate::model::Protocol;
use crate::node::{SocketDiag, SocketId, SocketsError};
use crate::status::{Trouble, story};
use crate::sync::{Dialled, EndpointId};

/// After a failure: what is missing in the kernel will hardly come.
const RETRY: Duration = Duration::from_secs(30);
/// A second sweep follows a departure after so long: sockets that were being connected during the first are found then.
const SETTLE: Duration = Duration::from_millis(500);
/// Sweeps take at most one part in so many of the thread's time.
const SHARE: u32 = 20;

/// When to look for sockets. Times are on the agent's monotonic clock.
#[derive(Clone, Debug, Default)]
pub struct Sweeps {
    now: bool,
    again: Option<Duration>,
    not_before: Duration,
    /// UDP frontends that have come since the last one.
    arrived: HashSet<Dialled>,
}

impl Sweeps {
    /// Endpoints have departed.
    pub fn departed(&mut self, now: Duration) {
        self.now = true;
        self.again = Some(now + SETTLE);
    }

    /// UDP frontends have come.
    pub fn arrived(&mut self, frontends: &[Dialled], now: Duration) {
        if !frontends.is_empty() {
            self.arrived.extend(frontends);
            self.departed(now);
        }
    }

    pub fn due(&self, now: Duration) -> bool {
        (self.now || self.again.is_some_and(|again| now >= again)) && now >= self.not_before
    }

    /// Those that sockets may be older than.
    const fn frontends(&self) -> &HashSet<Dialled> {
        &self.arrived
    }

    /// One that began at `begun` has ended. A failed one is still due.
    pub fn done(&mut self, begun: Duration, now: Duration, failed: bool) {
        if failed {
            self.not_before = now + RETRY;
            return;
        }
        self.not_before = now + (now - begun) * SHARE;
        self.now = false;
        self.again = self.again.filter(|again| begun < *again);
        if self.again.is_none() {
            self.arrived.clear();
        }
    }
}

/// Whether a socket connected to `peer` goes. `pairs` is what was translated for it: a socket that has dialled its peer
/// itself has no such pair. Where two Services led it to the same peer it stays while either still has that endpoint.
fn is_stranded(peer: SocketAddr, pairs: &[Translated], is_endpoint: impl Fn(EndpointId) -> bool) -> bool {
    let mut led = pairs.iter().filter(|pair| pair.backend == peer).peekable();
    led.peek().is_some() && led.all(|pair| !is_endpoint(pair.endpoint))
}

/// Whether a socket connected to `peer` is older than the frontend that it has dialled: it would have been led elsewhere, or
/// here for a reason that is among `pairs`.
fn is_older(peer: SocketAddr, pairs: &[Translated], arrived: &HashSet<Dialled>, own: &[IpAddr]) -> bool {
    let dialled = |address| Dialled { address, port: peer.port(), protocol: Protocol::Udp };
    let any = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let is_frontend = arrived.contains(&dialled(peer.ip()))
        || (own.contains(&peer.ip()) && arrived.contains(&dialled(any)));
    is_frontend && pairs.iter().all(|pair| pair.backend != peer)
}

#[derive(Debug, thiserror::Error)]
enum SweepError {
    #[error(transparent)]
    Sockets(#[from] SocketsError),
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Whether a [`sweep`] can be done here.
fn probe(datapath: &mut Datapath) -> Result<(), SweepError> {
    datapath.prepare_sockets()?;
    datapath.translated_sockets(|_, _| {})?;
    Ok(SocketDiag::open()?.probe()?)
}

/// Ends every stranded socket of this network namespace, and every one that is older than what has arrived. How many.
fn sweep(datapath: &Datapath, arrived: &HashSet<Dialled>, own: &[IpAddr]) -> Result<usize, SweepError> {
    let mut led = HashMap::new();
    datapath.translated_sockets(|cookie, pairs| drop(led.insert(cookie, pairs)))?;
    let living = datapath.living()?;
    let is_endpoint = |endpoint| living.has(endpoint);
    if arrived.is_empty() {
        led.retain(|_, pairs| pairs.iter().any(|pair| !is_endpoint(pair.endpoint)));
        if led.is_empty() {
            return Ok(0);
        }
    }
    let diag = SocketDiag::open()?;
    let mut ends = Vec::new();
    diag.connected(|socket| {
        let pairs = led.get(&socket.cookie()).map(Vec::as_slice).unwrap_or_default();
        let peer = socket.peer();
        if is_stranded(peer, pairs, is_endpoint) || is_older(peer, pairs, arrived, own) {
            ends.push(socket);
        }
    })?;
    Ok(end_all(&diag, ends)?)
}

/// Sockets that share both ends (SO_REUSEPORT) are found by the kernel one at a time: again, as long as it helps.
fn end_all(diag: &SocketDiag, mut sockets: Vec<SocketId>) -> Result<usize, SocketsError> {
    let mut ended = 0;
    loop {
        let before = sockets.len();
        let mut left = Vec::new();
        for socket in sockets {
            if !diag.destroy(&socket)? {
                left.push(socket);
            }
        }
        ended += before - left.len();
        if left.is_empty() || left.len() == before {
            return Ok(ended);
        }
        sockets = left;
    }
}

impl Worker {
    /// Can it be done at all? Found out once, when the agent has time: an operator is told before it matters (L-13).
    pub(super) fn probe_sockets(&mut self) {
        let first = !std::mem::replace(&mut self.sockets_probed, true);
        if first && self.datapath.has_sockets() {
            let can = probe(&mut self.datapath);
            self.note_sweep(can);
        }
    }

    /// Looks for sockets to end if endpoints have departed or frontends have come.
    pub(super) fn sweep_sockets(&mut self, now: Duration) {
        if !self.sweeps.due(now) {
            return;
        }
        // Without the programs nothing is translated; those of an earlier agent may have been there.
        if !self.datapath.has_sockets() && !self.datapath.adopted() {
            self.sweeps = Sweeps::default();
            return;
        }
        let own: Vec<IpAddr> = self.addresses.iter().map(|address| address.ip).collect();
        let ready = self.datapath.prepare_sockets().map_err(SweepError::from);
        let begun = self.clock.now();
        let swept = ready.and_then(|()| sweep(&self.datapath, self.sweeps.frontends(), &own));
        self.sweeps.done(begun, self.clock.now(), swept.is_err());
        if let Ok(ended @ 1..) = swept {
            info!(
                ended,
                "connected UDP sockets whose endpoint has departed, or that are older than their Service: ended, their owners dial again"
            );
            self.metrics.sockets_ended(ended);
        }
        if swept.is_err() {
            self.metrics.sweep_failed();
        }
        self.note_sweep(swept.map(drop));
    }

    fn note_sweep(&mut self, outcome: Result<(), SweepError>) {
        let what = "connected UDP sockets of the node's own processes";
        let next = "until then they stay with an endpoint that departs, and do not notice a Service that comes; restart such clients, or use --sockets off";
        let trouble = outcome.err().map(|error| Trouble::new(what, story(&error), next));
        let before = std::mem::replace(&mut self.sweep_trouble, trouble.clone());
        self.tell_changes(before.as_slice(), trouble.as_slice());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led(backend: &str, id: u32, generation: u16) -> Translated {
        Translated { backend: backend.parse().unwrap(), endpoint: EndpointId { id, generation } }
    }

    #[test]
    fn s08_exactly_the_sockets_that_were_led_to_a_departed_endpoint_go() {
        // Endpoint 1 departed, its id has another holder by now; 2 departed; 3 is there.
        let live = [EndpointId { id: 1, generation: 8 }, EndpointId { id: 3, generation: 5 }];
        let (a, b) = ("10.244.1.6:53", "10.244.1.7:53");
        let cases = [
            ("its endpoint departed", a, vec![led(a, 2, 5)], true),
            ("its endpoint departed, the id is another's by now", a, vec![led(a, 1, 7)], true),
            ("its endpoint is there", a, vec![led(a, 3, 5)], false),
            ("it dialled the pod itself", a, vec![], false),
            ("another port of the same pod", "10.244.1.6:54", vec![led(a, 2, 5)], false),
            ("connected to one Service, has sent to another", a, vec![led(b, 2, 5), led(a, 3, 5)], false),
            ("and the other way round", b, vec![led(b, 2, 5), led(a, 3, 5)], true),
            ("one of two Services keeps the endpoint", a, vec![led(a, 2, 5), led(a, 3, 5)], false),
            ("both Services have lost it", a, vec![led(a, 2, 5), led(a, 1, 7)], true),
            ("IPv6", "[fd00:10::6]:53", vec![led("[fd00:10::6]:53", 2, 5)], true),
        ];
        for (name, peer, pairs, want) in cases {
            let got = is_stranded(peer.parse().unwrap(), &pairs, |endpoint| live.contains(&endpoint));
            assert_eq!(got, want, "{name}");
        }
    }

    #[test]
    fn p54_exactly_the_sockets_that_are_older_than_their_frontend_go() {
        let udp = |address: &str, port| Dialled {
            address: address.parse().unwrap(),
            port,
            protocol: Protocol::Udp,
        };
        let arrived = HashSet::from([udp("10.96.0.10", 53), udp("0.0.0.0", 30_053), udp("::", 30_053)]);
        let own = ["192.0.2.11", "fd00:2::11"].map(|ip| ip.parse().unwrap());
        let cases = [
            ("connected to the ClusterIP", "10.96.0.10:53", vec![], true),
            ("has been led elsewhere before", "10.96.0.10:53", vec![led("10.244.1.6:53", 1, 1)], true),
            ("another port", "10.96.0.10:54", vec![], false),
            ("another address", "10.96.0.11:53", vec![], false),
            ("to a NodePort here", "192.0.2.11:30053", vec![], true),
            ("to a NodePort here, IPv6", "[fd00:2::11]:30053", vec![], true),
            ("to that port of another host", "192.0.2.12:30053", vec![], false),
            (
                "led to an endpoint that has the frontend's address",
                "10.96.0.10:53",
                vec![led("10.96.0.10:53", 1, 1)],
                false,
            ),
        ];
        for (name, peer, pairs, want) in cases {
            assert_eq!(is_older(peer.parse().unwrap(), &pairs, &arrived, &own), want, "{name}");
        }
    }

    #[test]
    fn frontends_that_have_come_are_asked_about_twice_and_then_forgotten() {
        let ms = Duration::from_millis;
        let dns = Dialled { address: [10, 96, 0, 10].into(), port: 53, protocol: Protocol::Udp };
        let mut sweeps = Sweeps::default();
        sweeps.arrived(&[], ms(0));
        assert!(!sweeps.due(ms(0)), "nothing has come");
        sweeps.arrived(&[dns], ms(10));
        assert!(sweeps.due(ms(10)));
        sweeps.done(ms(10), ms(11), false);
        assert!(
            sweeps.frontends().contains(&dns),
            "sockets that were being connected are found by the second one"
        );
        sweeps.done(ms(510), ms(511), false);
        assert!(sweeps.frontends().is_empty());
    }

    #[test]
    fn a_departure_is_followed_at_once_and_once_more_and_never_too_often() {
        let ms = Duration::from_millis;
        let mut sweeps = Sweeps::default();
        assert!(!sweeps.due(ms(0)), "nothing has departed");
        sweeps.departed(ms(10));
        assert!(sweeps.due(ms(10)), "at once");
        sweeps.done(ms(10), ms(20), false);
        assert!(!sweeps.due(ms(509)) && sweeps.due(ms(510)), "once more");
        sweeps.departed(ms(100));
        assert!(!sweeps.due(ms(219)) && sweeps.due(ms(220)), "long sweeps are rare");
        sweeps.done(ms(220), ms(221), false);
        assert!(!sweeps.due(ms(599)) && sweeps.due(ms(700)), "the later departure's second one");
        sweeps.done(ms(700), ms(701), true);
        assert!(!sweeps.due(ms(30_700)) && sweeps.due(ms(30_701)), "a failed one is tried again");
        sweeps.done(ms(30_701), ms(30_702), false);
        assert!(!sweeps.due(ms(600_000)));
    }
}
