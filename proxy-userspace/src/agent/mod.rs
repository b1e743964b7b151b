//! The agent's loop: what the source tells goes into the model, what follows from it to the data plane, and
//! questions are answered in between.

mod catch_all;
mod config_file;
mod conntrack;
mod edges;
mod explain;
mod facts;
mod guard;
mod misnamed;
mod pace;
mod places;
mod plane;
mod reads;
mod refusals;
mod serve;
mod shortcuts;
mod sockets;
mod start;
#[cfg(test)]
mod tests;
mod trace;
mod triggers;
mod worker;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::cluster::Event;
use crate::cluster::types::Problem;
use crate::config::{Config, Source};
use crate::control::{Answer, Question, Request};
use crate::datapath::{netns_cookie, trim_heap};
use crate::http::{Checks, Clock, Health};
use crate::metrics::Metrics;
use crate::model::{self, Model};
use crate::status::{Board, Latest, Trouble};
use facts::{Identity, LoopReport, assemble};
use pace::Pace;
use plane::{Installed, gone};
use triggers::Triggers;

pub use conntrack::{be_liberal as make_conntrack_liberal, tune as tune_conntrack};
pub use places::Places;
pub use plane::Plane;
pub use serve::serve;
pub use start::{Listing, StartError, Started, list, start};

/// How often the loop shows that it and the data plane's thread are alive, and the thread does its housekeeping.
const BEAT: Duration = Duration::from_secs(1);
/// How often attachments are looked at without a reason.
const CHECK: Duration = Duration::from_secs(60);
/// Name of the health server, also on the board.
const HEALTH_SERVER: &str = "healthz";
/// Events taken in before the loop looks at anything else.
const BATCH: usize = 1024;

/// Everything that the loop talks to.
pub struct Parts {
    pub plane: Plane,
    pub events: mpsc::Receiver<Event>,
    pub questions: mpsc::Receiver<Question>,
    pub health: Arc<Health>,
    /// Health check node ports, once what they tell of is installed.
    pub checks: watch::Sender<Checks>,
    pub metrics: Arc<Metrics>,
    pub board: Board,
    pub clock: Clock,
}

/// The loop's state.
pub struct Agent {
    parts: Parts,
    identity: Identity,
    model: Model,
    node_ip: Option<std::net::IpAddr>,
    /// Cookie of the network namespace.
    netns: Option<u64>,
    /// There is no API server that could evict a node: a node that no manifest describes is a good one.
    needs_node: bool,
    pace: Pace,
    installing: Option<(Duration, oneshot::Receiver<Installed>)>,
    /// The last sign of life asked of the data plane's thread.
    pulse: Option<oneshot::Receiver<()>>,
    /// Whether the first complete lists have been given to the data plane.
    handed_over: bool,
    /// Whether they have been installed.
    born: bool,
    /// Whether kube-proxy's rules are still to be removed.
    takes_over: bool,
    heard: Option<Duration>,
    problems: Vec<Problem>,
    latest: Latest,
    triggers: Triggers,
}

impl Agent {
    #[must_use]
    pub fn new(config: &Config, node: Arc<str>, parts: Parts) -> Self {
        let served = [config.healthz, config.metrics].into_iter().flatten();
        let own_ports = served.filter(|address| !address.ip().is_loopback());
        let settings = model::Settings {
            node_name: node.clone(),
            bind: config.node_ip,
            external_ips: config.external_ips,
            own_ports: own_ports.map(|address| address.port()).collect(),
        };
        Self {
            identity: Identity::new(config, node),
            model: Model::new(settings),
            node_ip: config.node_ip,
            netns: netns_cookie().ok(),
            needs_node: matches!(config.source, Source::Kubernetes { .. }),
            pace: Pace::new(config.sync.period),
            installing: None,
            pulse: None,
            handed_over: false,
            born: false,
            takes_over: config.healthz.is_some() && matches!(config.source, Source::Kubernetes { .. }),
            heard: None,
            problems: Vec::new(),
            latest: Latest::default(),
            triggers: Triggers::new(wall()),
            parts,
        }
    }

    /// Runs until SIGTERM, SIGINT or a request to stop.
    ///
    /// # Errors
    /// A part that the agent cannot do without has ended.
    pub async fn run(mut self, mut stops: Stops) -> Result<(), Trouble> {
        let mut beat = tokio::time::interval(BEAT);
        let mut check = tokio::time::interval_at(Instant::now() + CHECK, CHECK);
        let mut batch = Vec::new();
        self.parts.health.update(None);
        self.node_changed();
        loop {
            let due = self.pace.due().map(|due| self.parts.clock.instant(due));
            tokio::select! {
                count = self.parts.events.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return Err(Trouble::new("the source", "it has ended", "restart the agent"));
                    }
                    self.take(batch.drain(..));
                }
                installed = done(&mut self.installing) => self.installed(installed?),
                () = until(due) => self.install(),
                Some(question) = self.parts.questions.recv() => {
                    if self.answer(question) {
                        return Ok(());
                    }
                }
                _ = beat.tick() => self.beat()?,
                _ = check.tick() => {
                    self.parts.plane.tell(plane::Order::Check);
                    self.take_over();
                    trim_heap();
                }
                name = stops.next() => {
                    info!(signal = name, "stopping; the data plane stays");
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, events: impl Iterator<Item = Event>) {
        let mut problems = false;
        for event in events {
            match &event {
                Event::Services(_) => self.parts.metrics.service_changed(wall()),
                Event::Slices(change) => {
                    self.parts.metrics.slice_changed(wall());
                    self.triggers.note(change);
                }
                Event::Problems(_) => problems = true,
                Event::Connection { connected } if *connected != self.model.connected() => {
                    if *connected {
                        info!(source = self.identity.source, "connected");
                    } else {
                        warn!(source = self.identity.source, "not connected; what is installed stays");
                    }
                }
                _ => {}
            }
            let (node, ranges) = (matches!(event, Event::Nodes(_)), matches!(event, Event::ServiceCidrs(_)));
            self.model.apply(event);
            if node {
                self.node_changed();
            }
            if ranges {
                self.parts.plane.tell(plane::Order::ServiceCidrs(self.model.service_cidrs()));
            }
        }
        if self.model.connected() {
            self.heard = Some(self.parts.clock.now());
        }
        if self.model.is_complete() {
            self.parts.health.queue();
            self.pace.wake(self.parts.clock.now());
        }
        if problems {
            self.tell_problems();
        }
    }

    /// Each problem is logged when it comes and when it goes. A new one is the last error until there is another.
    fn tell_problems(&mut self) {
        let now = self.model.problems();
        for problem in now.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
            self.latest.note(problem);
        }
        for problem in self.problems.iter().filter(|problem| !now.contains(problem)) {
            info!("over: {}: {}", problem.object, problem.what);
        }
        self.problems = now;
    }

    fn node_changed(&self) {
        let node = self.model.node();
        let eligible = node.map_or(!self.needs_node, |node| node.eligible);
        self.parts.health.set_node_eligible(eligible);
        let own = plane::OwnNode {
            ips: model::node_ips(self.node_ip, node),
            pod_cidrs: node.map(|node| node.pod_cidrs.clone()),
        };
        self.parts.plane.tell(plane::Order::OwnNode(own));
    }

    /// Starts a round. An empty one is made too: it retries what has failed before, and is soon over.
    fn install(&mut self) {
        let changes = self.model.drain_changes();
        for (port, state) in &changes {
            debug!(%port, family = ?port.family, "{}", if state.is_some() { "to be installed" } else { "to go" });
        }
        self.tell_problems();
        self.parts.metrics.taken();
        self.triggers.take();
        self.pace.begin();
        // The first changes after the complete lists are all there is.
        let complete = !std::mem::replace(&mut self.handed_over, true);
        let done = self.parts.plane.install(changes, complete);
        self.installing = Some((self.parts.clock.now(), done));
    }

    fn installed(&mut self, (begun, installed): (Duration, Installed)) {
        let now = self.parts.clock.now();
        self.pace.end(now, installed.failed.is_some());
        if let Some(error) = installed.failed {
            error!(%error, "not everything could be installed; trying again");
            self.latest.note(&error);
            return;
        }
        let took = now.saturating_sub(begun);
        self.parts.metrics.synced(took, !self.born, wall());
        for (family, latency) in self.triggers.installed(wall()) {
            self.parts.metrics.programmed(family, latency);
        }
        self.parts.health.update(self.pace.waiting());
        self.parts.checks.send_if_modified(|checks| {
            let changed = checks != self.model.health_checks();
            if changed {
                checks.clone_from(self.model.health_checks());
            }
            changed
        });
        if !self.born {
            self.born = true;
            let (services, endpoints) = self.model.counts();
            info!(services, endpoints, ?took, "all that the source told is installed");
            self.take_over();
            // Loading programs and reading all objects took several times of what is kept.
            trim_heap();
        }
    }

    /// Once, when all is installed (L-07). A kube-proxy that runs beside us holds the port of the health server, and keeps its
    /// rules.
    fn take_over(&mut self) {
        if self.takes_over && self.born && !self.parts.board.has(HEALTH_SERVER) {
            self.takes_over = false;
            self.parts.plane.tell(plane::Order::TakeOver);
        }
    }

    /// Health sees a beat only if the data plane's thread has answered the one before (L-18).
    fn beat(&mut self) -> Result<(), Trouble> {
        match self.pulse.as_mut().map(oneshot::Receiver::try_recv) {
            Some(Err(TryRecvError::Empty)) => return Ok(()),
            Some(Err(TryRecvError::Closed)) => return Err(gone()),
            Some(Ok(())) | None => self.parts.health.beat(),
        }
        let (answer, wait) = oneshot::channel();
        self.parts.plane.tell(plane::Order::Beat(answer));
        self.pulse = Some(wait);
        Ok(())
    }

    /// Answers off the loop: reading maps takes the data plane's thread a while. True: the agent is to end.
    fn answer(&self, Question { request, answer }: Question) -> bool {
        let stop = matches!(request, Request::Stop { netns } if self.is_here(netns));
        if stop {
            info!("stopping, as `sluice cleanup` asked; the data plane stays until it is taken away");
        }
        let plane = self.parts.plane.clone();
        let (report, identity, clock) = (self.report(), self.identity.clone(), self.parts.clock);
        let work = async move {
            Ok(match request {
                Request::Status => {
                    let plane = plane.ask(plane::Order::Report).await?;
                    Answer::Status(Box::new(assemble(&identity, report, plane, clock.now())))
                }
                Request::Services { name } => {
                    Answer::Services(plane.ask(|to| plane::Order::Services(name, to)).await??)
                }
                Request::Flows(filter) => {
                    Answer::Flows(plane.ask(|to| plane::Order::Flows(filter, to)).await??)
                }
                Request::Trace { address, seconds } => {
                    let length = Duration::from_secs(seconds);
                    Answer::Trace(plane.ask(|to| plane::Order::Trace(address, length, to)).await??)
                }
                Request::Explain(query) => Answer::Explain(Box::new(
                    plane.ask(|to| plane::Order::Explain(Box::new(query), to)).await??,
                )),
                Request::Stop { .. } if stop => Answer::Stopping,
                Request::Stop { .. } => {
                    let why = "it serves another network namespace than this one";
                    let next = "run the command there, or name the --run-dir of this one's agent";
                    return Err(Trouble::new("the agent", why, next));
                }
            })
        };
        tokio::spawn(async move {
            let result: Result<_, Trouble> = work.await;
            // Who asked may have gone.
            drop(answer.send(result.unwrap_or_else(Answer::Error)));
        });
        stop
    }

    /// Whether this network namespace is meant. Kernels without cookies cannot tell.
    fn is_here(&self, netns: Option<u64>) -> bool {
        netns.is_none() || self.netns.is_none() || netns == self.netns
    }

    fn report(&self) -> LoopReport {
        let (services, endpoints) = self.model.counts();
        let mut degraded: Vec<_> = self.problems.iter().cloned().map(Trouble::from).collect();
        degraded.extend(self.parts.board.all());
        LoopReport {
            synced: self.born && self.installing.is_none() && self.pace.due().is_none(),
            connected: self.model.connected(),
            heard: self.heard,
            services,
            endpoints,
            degraded,
            latest: self.latest.clone().max(self.parts.board.latest()),
        }
    }
}

/// The running round's end; never, if none runs.
async fn done(
    installing: &mut Option<(Duration, oneshot::Receiver<Installed>)>,
) -> Result<(Duration, Installed), Trouble> {
    let Some((begun, wait)) = installing else { return std::future::pending().await };
    let result = wait.await.map(|installed| (*begun, installed));
    *installing = None;
    result.map_err(|_| gone())
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Signals that end the agent, kept from the moment on at which they are listened for: the kernel lets the first process of a
/// container miss those that nobody listens for (L-21).
#[derive(Debug)]
pub struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    /// To be called within a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn listen() -> Result<Self, Trouble> {
        let failed = |error| Trouble::new("signals", error, "restart the agent");
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Time since 1970, for metrics only.
fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
