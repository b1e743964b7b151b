//! The thread that owns the data plane. Its calls into the kernel block, each for a short time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use proxy_common::abi::{self, config_flags};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use super::catch_all::CatchAll;
use super::edges::{Edges, Served, State};
use super::misnamed;
use super::plane::{Installed, Order, OwnNode};
use super::shortcuts::InForce;
use super::sockets::Sweeps;
use super::start::StartError;
use super::trace::Trace;
use crate::cluster::Notices;
use crate::cluster::types::ObjectName;
use crate::config::{self, Config, DetectLocal, NodePortAddresses, NodePorts, Shortcuts, set_service_cidrs};
use crate::datapath::{Datapath, DatapathError};
use crate::http::{Clock, Places};
use crate::metrics::Metrics;
use crate::model::{PortChange, PortId, health_check_addresses, node_port_addresses};
use crate::node::{Address, Edge, EdgeKind, Facts, NodeEvent};
use crate::status::{Latest, Mode, Trouble, Usage, story};
use crate::sync::{Lack, NodeAddresses, Report, Settings, Syncer};

/// Whom the data plane's thread tells what others want to know.
pub struct Tellers {
    pub metrics: Arc<Metrics>,
    pub notices: Notices,
}

pub struct Worker {
    pub(super) datapath: Datapath,
    pub(super) syncer: Syncer,
    pub(super) clock: Clock,
    pub(super) runtime: Handle,
    pub(super) trace: Option<Trace>,
    pub(super) catch_all: CatchAll,
    node_ports: NodePorts,
    pub(super) sockets: Mode,
    pub(super) asked_shortcuts: Shortcuts,
    pub(super) shortcuts: InForce,
    pub(super) metrics: Arc<Metrics>,
    pub(super) notices: Notices,
    /// Ports that wait for room, as was told.
    pub(super) refusals: BTreeMap<PortId, Lack>,
    /// Services with ports among them that no notice was handed in of yet.
    pub(super) untold: BTreeSet<ObjectName>,
    pub(super) edges: Edges,
    pub(super) addresses: Vec<Address>,
    pub(super) own_node: OwnNode,
    asked_edges: config::Edges,
    /// Where health check node ports are open.
    places: watch::Sender<Places>,
    detect_local: DetectLocal,
    guards_service_cidrs: bool,
    /// Ranges of ClusterIPs that there is no room for.
    pub(super) unguarded: Vec<IpNet>,
    pub(super) latest: Latest,
    /// When the flow tables were last counted, and what came of it.
    pub(super) usage: Option<(Duration, Usage)>,
    /// Port of the health server, where another proxy would be heard of.
    pub(super) health: Option<u16>,
    /// Whether kube-proxy's rules are still to be removed.
    pub(super) takes_over: bool,
    /// What is known of them that is not as it should be.
    pub(super) guard_troubles: Vec<Trouble>,
    pub(super) sweeps: Sweeps,
    pub(super) sockets_probed: bool,
    /// Why sockets cannot be ended that should be.
    pub(super) sweep_trouble: Option<Trouble>,
    /// The write that failed first, until all that should be in the maps is there.
    pub(super) unwritten: Option<Trouble>,
}

impl Worker {
    pub fn new(
        config: &Config,
        datapath: Datapath,
        sockets: Mode,
        tellers: Tellers,
        runtime: Handle,
    ) -> Result<Self, StartError> {
        Ok(Self {
            syncer: Syncer::adopt(&datapath, settings())?,
            clock: Clock::start(),
            runtime,
            trace: None,
            catch_all: CatchAll::default(),
            datapath,
            node_ports: config.node_ports.clone(),
            sockets,
            asked_shortcuts: config.shortcuts,
            shortcuts: InForce::default(),
            metrics: tellers.metrics,
            notices: tellers.notices,
            refusals: BTreeMap::new(),
            untold: BTreeSet::new(),
            edges: Edges::new(),
            addresses: Vec::new(),
            own_node: OwnNode { ips: config.node_ip.into_iter().collect(), pod_cidrs: None },
            asked_edges: config.edges.clone(),
            detect_local: config.detect_local.clone(),
            guards_service_cidrs: config.guards_service_cidrs(),
            unguarded: Vec::new(),
            places: watch::channel(Places::default()).0,
            latest: Latest::default(),
            usage: None,
            health: config.healthz.map(|at| at.port()),
            takes_over: false,
            guard_troubles: Vec::new(),
            sweeps: Sweeps::default(),
            sockets_probed: false,
            sweep_trouble: None,
            unwritten: None,
        })
    }

    /// Where NodePorts are served, and so health checks.
    pub fn health_places(&self) -> watch::Receiver<Places> {
        self.places.subscribe()
    }

    pub const fn adopted(&self) -> bool {
        self.datapath.adopted()
    }

    /// Attaches to what is there: uplinks first, then pods, then sockets; then takes our programs off whatever is no
    /// edge any more.
    pub fn begin(&mut self, facts: &Facts) {
        self.show_life();
        // Before any program is attached: kube-proxy's connections must not be refused for a moment (L-07).
        self.follow_kube_proxy();
        self.set_addresses(facts.addresses.clone());
        let (pods, uplinks): (Vec<_>, Vec<_>) = facts.edges.iter().cloned().partition(|edge| edge.pod);
        self.catch_up();
        for edge in uplinks.into_iter().chain(pods) {
            self.attach(edge, None);
        }
        self.catch_up();
        self.attach_sockets();
        self.settle_catch_all();
        self.follow_shortcuts();
        let served: Vec<_> = self.edges.keys().copied().collect();
        match self.datapath.retire(&served) {
            Ok(retired) => {
                for device in retired.devices {
                    info!(device, "is no edge any more, programs removed");
                }
            }
            Err(error) => self.failed("cannot remove earlier programs", &error),
        }
        match self.datapath.forget_other_layouts() {
            Ok(true) => info!("the data plane of an agent of another layout is taken over"),
            Ok(false) => {}
            Err(error) => self.failed("pins of another layout", &error),
        }
        self.misnamed().iter().for_each(|trouble| warn!("{trouble}"));
    }

    /// L-22: flows of another layout's programs.
    fn catch_up(&mut self) {
        if let Err(error) = self.datapath.catch_up() {
            self.failed("flows of an agent of another layout", &error);
        }
    }

    /// What flags or the Node name and this node has not.
    pub(super) fn misnamed(&self) -> Vec<Trouble> {
        let mut troubles = misnamed::families(&self.own_node.ips, &self.addresses);
        let served = self.edges.values().map(|served| served.edge.name.as_str());
        troubles.extend(misnamed::devices(&self.asked_edges, served));
        troubles.extend(misnamed::node_ports(&self.node_ports, &self.addresses));
        troubles
    }

    /// Serves orders until nobody is left to give any.
    pub fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        while let Some(order) = orders.blocking_recv() {
            self.obey(order);
        }
    }

    /// Whoever asked may have gone before the answer.
    fn obey(&mut self, order: Order) {
        match order {
            Order::Install { changes, complete, done } => drop(done.send(self.install(changes, complete))),
            Order::OwnNode(own) => self.set_own_node(own),
            Order::ServiceCidrs(ranges) => self.set_service_cidrs(&ranges),
            Order::Node(events, heard) => events.into_iter().for_each(|event| self.node(event, heard)),
            Order::Check => self.check(),
            Order::TakeOver => self.take_over(),
            Order::Beat(answer) => {
                self.show_life();
                let report = self.syncer.tick(&mut self.datapath, self.clock.now());
                self.note(&report);
                self.follow_refusals();
                self.follow_shortcuts();
                self.tend_trace();
                self.probe_sockets();
                self.follow_sockets(&report, self.clock.now());
                answer.send(()).ok();
            }
            Order::Report(answer) => drop(answer.send(self.report())),
            Order::Services(name, answer) => drop(answer.send(self.services(name.as_deref()))),
            Order::Flows(filter, answer) => drop(answer.send(self.flows(&filter))),
            Order::Explain(query, answer) => drop(answer.send(self.explain(&query))),
            Order::Trace(address, length, answer) => drop(answer.send(self.set_trace(address, length))),
        }
    }

    fn install(&mut self, changes: Vec<PortChange>, complete: bool) -> Installed {
        let now = self.clock.now();
        let first = self.syncer.is_empty();
        let mut report = if complete {
            let desired = changes.into_iter().filter_map(|(id, state)| Some((id, state?))).collect();
            self.syncer.replace_all(&mut self.datapath, desired, now)
        } else {
            self.syncer.apply(&mut self.datapath, changes, now)
        };
        self.follow_refusals();
        self.name_trace();
        let failed = self.note(&report);
        // What departed while no agent ran is seen in the complete list only.
        if complete {
            self.sweeps.departed(now);
        }
        // L-07: what kube-proxy has served before us is the kernel's to finish.
        if first && self.strays_pass() {
            report.arrived.clear();
        }
        self.follow_sockets(&report, now);
        // After a failed write the maps rest before they are read back: until then nothing is lost, nothing done.
        let waiting = || {
            self.syncer.is_stale().then(|| "an earlier write failed, the maps are read back soon".to_owned())
        };
        Installed { failed: failed.or_else(waiting) }
    }

    fn follow_sockets(&mut self, report: &Report, now: Duration) {
        if report.departed {
            self.sweeps.departed(now);
        }
        self.sweeps.arrived(&report.arrived, now);
        self.sweep_sockets(now);
    }

    /// Counts failures, and remembers and returns the last one. As long as the maps are not as they should be, so does the
    /// status: [`Self::unwritten`].
    fn note(&mut self, report: &Report) -> Option<String> {
        self.follow_catch_all(report.addresses.iter().copied());
        let before = self.unwritten.clone();
        let told = report.failed.last().map(|failed| {
            let (what, why) = (format!("writing {}", failed.what), story(&*failed.error));
            let told = format!("{what}: {why}");
            let next =
                "the maps are read back and written again, without a restart; see the log for the cause";
            self.unwritten.get_or_insert_with(|| Trouble::new(what, why, next));
            self.metrics.write_failed();
            told
        });
        if told.is_none() && !self.syncer.is_stale() {
            self.unwritten = None;
        }
        self.tell_changes(before.as_slice(), self.unwritten.clone().as_slice());
        if let Some(told) = &told {
            self.latest.note(told);
        }
        told
    }

    fn node(&mut self, event: NodeEvent, heard: Instant) {
        match event {
            NodeEvent::Edge(edge) => self.attach(edge, Some(heard)),
            NodeEvent::EdgeGone { ifindex, name, device_gone } => {
                self.edges.remove(&ifindex);
                let done = if device_gone {
                    self.datapath.forget_edge(ifindex)
                } else {
                    self.datapath.detach_edge(ifindex)
                };
                match done {
                    Ok(()) => info!(device = name, ifindex, "no longer served"),
                    Err(error) => self.failed(&format!("device {name}"), &error),
                }
            }
            NodeEvent::Addresses(addresses) => self.set_addresses(addresses),
        }
    }

    /// `heard`: when the device was reported; `None` for one that was there at start.
    pub(super) fn attach(&mut self, edge: Edge, heard: Option<Instant>) {
        // An earlier agent's, until it turns out to be needed.
        if edge.kind == EdgeKind::CatchAll && !self.catch_all.is_there() {
            return;
        }
        let known = self.edges.get(&edge.ifindex).and_then(|served| served.took);
        let state = match self.datapath.attach_edge(&edge) {
            Ok(attached) => State::from(&attached),
            Err(error) if error.is_gone() => {
                self.edges.remove(&edge.ifindex);
                return;
            }
            Err(error) => {
                self.failed(&format!("device {}", edge.name), &error);
                State::Failed(story(&error))
            }
        };
        let new = !self.edges.contains_key(&edge.ifindex);
        let took = known.or_else(|| heard.filter(|_| new).map(|heard| heard.elapsed()));
        if let (State::Attached { .. }, true) = (&state, new) {
            info!(device = edge.name, ifindex = edge.ifindex, kind = edge.kind.name(), ?took, "served");
            if let Some(took) = took {
                self.metrics.attached(took);
            }
        }
        self.serve(Served { edge, state, took });
    }

    /// What is known of an edge now.
    fn serve(&mut self, served: Served) {
        if let Err(error) = self.datapath.set_ways(&served.edge, served.ways().ok()) {
            self.failed(&format!("device {}", served.edge.name), &error);
        }
        self.edges.insert(served.edge.ifindex, served);
    }

    fn attach_sockets(&mut self) {
        if !self.datapath.has_sockets() {
            return;
        }
        match self.datapath.attach_sockets() {
            Ok(()) => self.sockets.why.clear(),
            Err(error) => {
                self.failed("sockets", &error);
                self.sockets.why = story(&error);
            }
        }
    }

    fn set_own_node(&mut self, own: OwnNode) {
        if own.ips != self.own_node.ips {
            self.own_node.ips.clone_from(&own.ips);
            self.set_addresses(self.addresses.clone());
        }
        // F6: an earlier agent's ranges stay until the Node is known.
        if let Some(pod_cidrs) = own.pod_cidrs.filter(|cidrs| Some(cidrs) != self.own_node.pod_cidrs.as_ref())
        {
            let detector = self.detect_local.clone();
            match self.change_config(|config| _ = detector.set_node(&pod_cidrs, config)) {
                Ok(()) => self.own_node.pod_cidrs = Some(pod_cidrs),
                Err(error) => self.failed("the node's podCIDRs", &error),
            }
        }
    }

    /// B15; only where kube-proxy does so.
    fn set_service_cidrs(&mut self, ranges: &[IpNet]) {
        if !self.guards_service_cidrs {
            return;
        }
        let mut unguarded = std::mem::take(&mut self.unguarded);
        let changed = self.change_config(|config| unguarded = set_service_cidrs(config, ranges));
        self.unguarded = unguarded;
        if let Err(error) = changed {
            self.failed("the ServiceCIDRs", &error);
        }
    }

    /// Writes the settings that programs read, if they change.
    pub(super) fn change_config(&self, change: impl FnOnce(&mut abi::Config)) -> Result<(), DatapathError> {
        let before = self.datapath.config()?;
        let mut config = before;
        change(&mut config);
        if config == before { Ok(()) } else { self.datapath.set_config(&config) }
    }

    fn strays_pass(&self) -> bool {
        self.datapath.config().is_ok_and(|config| config.flags & config_flags::STRAYS_PASS != 0)
    }

    /// F6: no pod is told from other clients.
    pub(super) fn lacks_pod_cidrs(&self) -> bool {
        let known = self.own_node.pod_cidrs.as_ref().is_some_and(|cidrs| !cidrs.is_empty());
        self.detect_local == DetectLocal::NodeCidr && !known
    }

    /// The node's own addresses, and those of them that serve NodePorts.
    fn set_addresses(&mut self, addresses: Vec<Address>) {
        self.addresses = addresses;
        let local: Vec<_> = self.addresses.iter().map(|address| address.ip).collect();
        let node_port = self.node_port_addresses(&local);
        debug!(?local, ?node_port, "node addresses");
        let listening = health_check_addresses(&self.node_ports, &local, &node_port);
        self.places.send_if_modified(|places| std::mem::replace(places, listening.clone()) != listening);
        let node = NodeAddresses {
            local: local.into_iter().collect(),
            node_port: node_port.into_iter().collect(),
            links: self.addresses.iter().filter_map(Address::subnet).collect(),
        };
        let report = self.syncer.set_node(&mut self.datapath, node, self.clock.now());
        if let Some(error) = self.note(&report) {
            error!("the node's addresses: {error}; trying again");
        }
    }

    /// As long as the node's IPs are not known, those that an earlier agent served stay (C-35).
    fn node_port_addresses(&self, local: &[IpAddr]) -> BTreeSet<IpAddr> {
        if self.node_ports.addresses == NodePortAddresses::Primary && self.own_node.ips.is_empty() {
            return self.served_node_ports().unwrap_or_default().into_iter().collect();
        }
        node_port_addresses(&self.node_ports, local, &self.own_node.ips)
    }

    /// What another program has undone is done again (L-10), and what failed is tried again.
    fn check(&mut self) {
        for served in self.edges.values().cloned().collect::<Vec<_>>() {
            match self.datapath.inspect_edge(&served.edge) {
                Ok(hooks) if hooks.iter().all(|hook| hook.ours) => {
                    let state = State::Attached {
                        before: hooks.map(|hook| hook.before),
                        after: hooks.map(|hook| hook.after),
                    };
                    self.serve(Served { state, ..served });
                }
                _ => {
                    warn!(device = served.edge.name, "our programs are not there, attaching again");
                    self.attach(served.edge, None);
                }
            }
        }
        self.attach_sockets();
        self.settle_catch_all();
        self.follow_kube_proxy();
    }

    /// Tells of troubles when they come, and when nothing is the matter any more with what they were about.
    pub(super) fn tell_changes(&mut self, before: &[Trouble], now: &[Trouble]) {
        for new in now.iter().filter(|trouble| !before.contains(trouble)) {
            warn!("{new}");
            self.latest.note(new);
        }
        for old in before.iter().filter(|old| now.iter().all(|trouble| trouble.what != old.what)) {
            info!("over: {}", old.what);
        }
    }

    pub(super) fn complain(&mut self, told: &str) {
        error!("{told}");
        self.latest.note(told);
    }

    pub(super) fn failed(&mut self, what: &str, error: &DatapathError) {
        self.complain(&format!("{what}: {}", story(error)));
    }
}

/// Ids of earlier agents' endpoints may still be in flows: a start of its own keeps generations apart.
fn settings() -> Settings {
    use std::hash::{BuildHasher, Hasher};
    let draw = std::hash::RandomState::new().build_hasher().finish();
    Settings { first_generation: (draw as u16).max(1), ..Settings::default() }
}
