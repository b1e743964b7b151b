//! The cluster's objects, which change at random, and the agent that follows them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use proxy_common::abi::FrontendKind;
use proxy_userspace::cluster::types::{Service, Slice, Watched};
use proxy_userspace::cluster::{Change, Event};
use proxy_userspace::model::{self, Model, PortId, PortState};
use proxy_userspace::sync::{NodeAddresses, Report, Settings, Step, Syncer};
use serde_json::{Value, json};

use super::conn::Conn;
use super::dice::Dice;
use super::events::{self, Events};
use super::kernel::{Fault, Kernel};
use super::store::Shadow;
use crate::packet::frame::End;

/// Services there may be: one with a NodePort, one plain, one for load balancers under policy Local.
pub const SERVICES: usize = 3;
/// The one under policy Local.
pub const LOCAL_POLICY: usize = 2;
/// Endpoints there may be: pods of this node, of another, and the node itself.
pub const BACKENDS: usize = 6;
/// Ticks that a program may still hold what it has read.
const IN_HAND: u32 = 2;
/// Ticks in which a connection that is used sends something.
const SHORTLY: u32 = 20;

/// Addresses of one family.
pub struct Plan {
    pub pods: [IpAddr; 5],
    pub outside: [IpAddr; 3],
    pub node: IpAddr,
    vips: [IpAddr; SERVICES],
    balancer: IpAddr,
}

impl Plan {
    pub fn new(v6: bool) -> Self {
        let ip = |subnet: u8, host: u8| -> IpAddr {
            if v6 {
                [0xfd00, u16::from(subnet), 0, 0, 0, 0, 0, u16::from(host)].into()
            } else {
                [10, subnet, 7, host].into()
            }
        };
        Self {
            pods: [1, 2, 3, 4, 5].map(|n| ip(1, n)),
            outside: [1, 2, 3].map(|n| ip(2, n)),
            node: ip(3, 1),
            vips: [1, 2, 3].map(|n| ip(4, n)),
            balancer: ip(5, 1),
        }
    }

    /// Where endpoint `n` listens.
    pub fn backend(&self, n: usize) -> End {
        self.pods.get(n).map_or((self.node, 9000), |ip| (*ip, 8080))
    }

    /// What of Service `n` can be dialled, and whether it is external traffic.
    pub fn frontends(&self, n: usize) -> Vec<(End, bool)> {
        let mut all = vec![((self.vips[n], 80), false)];
        if n != 1 {
            all.push(((self.node, 30_080 + n as u16), true));
        }
        if n == LOCAL_POLICY {
            all.push(((self.balancer, 80), true));
        }
        all
    }
}

/// Which of a Service's endpoint lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Internal,
    /// External traffic from outside.
    External,
    /// External traffic from pods and the node itself, where policy Local does not bind them.
    Cluster,
}

/// A Service's endpoint list, by the Service's number.
pub type List = (usize, Kind);

pub struct Cluster<const N: usize> {
    pub plan: Plan,
    pub kernel: Kernel<N>,
    present: [bool; SERVICES],
    members: [BTreeSet<usize>; SERVICES],
    model: Model,
    syncer: Syncer,
    shadow: Shadow,
    queue: VecDeque<Step>,
    grace: Duration,
    dirty: bool,
    lists: HashMap<List, BTreeSet<End>>,
    /// Endpoints that leave lists by writes that are under way.
    leaving: BTreeSet<(List, End)>,
    /// Step and tick at which an endpoint was last seen to leave.
    left: HashMap<(List, End), (u64, u32)>,
    /// Tick of the latest write.
    written: u32,
    pub events: Events,
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

impl<const N: usize> Cluster<N> {
    pub fn new(plan: Plan, kernel: Kernel<N>, fault: Fault) -> Result<Self, String> {
        let mut model = Model::new(model::Settings::of_node("n1"));
        model.apply(Event::Services(Change::Snapshot(Vec::new())));
        model.apply(Event::Slices(Change::Snapshot(Vec::new())));
        let shadow = Shadow::default();
        let grace = Duration::from_secs(if fault == Fault::EarlyReuse { 0 } else { 3 });
        let syncer = Syncer::adopt(&shadow, Settings { grace, first_generation: 1 });
        let mut cluster = Self {
            plan,
            kernel,
            present: [false; SERVICES],
            members: Default::default(),
            model,
            syncer: syncer.map_err(|error| error.to_string())?,
            shadow,
            queue: VecDeque::new(),
            grace,
            dirty: false,
            lists: HashMap::new(),
            leaving: BTreeSet::new(),
            left: HashMap::new(),
            written: 0,
            events: Events::default(),
        };
        cluster.set_node(0)?;
        Ok(cluster)
    }

    fn set_node(&mut self, now: u32) -> Result<(), String> {
        let own = HashSet::from([self.plan.node]);
        let node = NodeAddresses { local: own.clone(), node_port: own, ..NodeAddresses::default() };
        let report = self.syncer.set_node(&mut self.shadow, node, seconds(now));
        self.take(&report)
    }

    /// What a call of the syncer has asked for is on its way.
    fn take(&mut self, report: &Report) -> Result<(), String> {
        self.queue.extend(self.shadow.asked.drain(..));
        if report.is_clean() { Ok(()) } else { Err(format!("the syncer could not do its work: {report:?}")) }
    }

    /// Everything the cluster wants is in the maps.
    pub fn is_settled(&self) -> bool {
        self.queue.is_empty() && !self.dirty
    }

    /// Nothing is being written: time may go on, which for a packet's way is short.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// A Service comes, goes, or gets or loses an endpoint.
    pub fn change(&mut self, dice: &mut Dice) -> Result<(), String> {
        let n = dice.below(SERVICES);
        if dice.chance(100) || (!self.present[n] && dice.chance(500)) {
            self.present[n] = !self.present[n];
            self.events.note(if self.present[n] {
                events::Event::ServiceCame
            } else {
                events::Event::ServiceWent
            });
            self.tell_service(n)?;
        } else {
            let backend = dice.below(BACKENDS);
            let left = self.members[n].remove(&backend);
            if !left {
                self.members[n].insert(backend);
            }
            self.events.note(if left { events::Event::EndpointWent } else { events::Event::EndpointCame });
            self.tell_slice(n)?;
        }
        self.dirty = true;
        Ok(())
    }

    /// Everything goes.
    pub fn clear(&mut self) -> Result<(), String> {
        self.present = [false; SERVICES];
        self.dirty = true;
        (0..SERVICES).try_for_each(|n| self.tell_service(n))
    }

    fn tell_service(&mut self, n: usize) -> Result<(), String> {
        let name = format!("s{n}");
        let kind = ["NodePort", "ClusterIP", "LoadBalancer"][n];
        let port = |protocol: &str| match n {
            1 => json!({"name": protocol, "port": 80, "protocol": protocol}),
            _ => json!({"name": protocol, "port": 80, "protocol": protocol, "nodePort": 30_080 + n}),
        };
        let object = json!({
            "metadata": {"name": name, "namespace": "sim", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "type": kind,
                "clusterIP": self.plan.vips[n],
                "ports": [port("TCP"), port("UDP")],
                "externalTrafficPolicy": if n == LOCAL_POLICY { "Local" } else { "Cluster" },
            },
            "status": {"loadBalancer": {"ingress": if n == LOCAL_POLICY { json!([{"ip": self.plan.balancer}]) } else { json!([]) }}},
        });
        let service = parse::<Watched<Service>>(object)?.object;
        let change = if self.present[n] { Change::Apply(service) } else { Change::Delete(service.name) };
        self.model.apply(Event::Services(change));
        Ok(())
    }

    fn tell_slice(&mut self, n: usize) -> Result<(), String> {
        // One slice for each port number: pods listen on one, the node on another.
        for (suffix, host) in [("pods", false), ("node", true)] {
            let of = |member: &&usize| (self.plan.backend(**member).0 == self.plan.node) == host;
            let endpoint = |member: &usize| {
                let node = if (3..5).contains(member) { "n2" } else { "n1" };
                json!({"addresses": [self.plan.backend(*member).0], "nodeName": node})
            };
            let endpoints: Vec<Value> = self.members[n].iter().filter(of).map(endpoint).collect();
            let number = if host { 9000 } else { 8080 };
            let port = |protocol: &str| json!({"name": protocol, "port": number, "protocol": protocol});
            let object = json!({
                "metadata": {
                    "name": format!("s{n}-{suffix}"),
                    "namespace": "sim",
                    "labels": {"kubernetes.io/service-name": format!("s{n}")},
                },
                "addressType": if N == 4 { "IPv6" } else { "IPv4" },
                "ports": [port("TCP"), port("UDP")],
                "endpoints": endpoints,
            });
            self.model.apply(Event::Slices(Change::Apply(parse::<Watched<Slice>>(object)?.object)));
        }
        Ok(())
    }

    /// The agent takes in what has changed, and what has rested long enough.
    pub fn sync(&mut self, step: u64, now: u32) -> Result<(), String> {
        if !self.queue.is_empty() {
            return Ok(());
        }
        let changes = self.model.drain_changes();
        if self.dirty {
            self.renew_lists();
        }
        let report = self.syncer.apply(&mut self.shadow, changes, seconds(now));
        self.dirty = false;
        self.take(&report)?;
        self.settle(step, now)
    }

    /// The agent is killed wherever it is, and another one starts.
    pub fn restart(&mut self, dice: &mut Dice, step: u64, now: u32) -> Result<(), String> {
        self.events.note(if self.queue.is_empty() {
            events::Event::AgentRestarted
        } else {
            events::Event::AgentKilled
        });
        self.queue.clear();
        self.kernel.let_go();
        self.shadow = self.kernel.real.clone();
        let settings = Settings { grace: self.grace, first_generation: dice.next() as u16 };
        self.syncer = Syncer::adopt(&self.shadow, settings).map_err(|error| error.to_string())?;
        self.set_node(now)?;
        self.model.drain_changes();
        self.renew_lists();
        let desired = self.model.desired().into_iter().collect();
        let report = self.syncer.replace_all(&mut self.shadow, desired, seconds(now));
        self.dirty = false;
        self.take(&report)?;
        self.settle(step, now)
    }

    /// One write of those under way.
    pub fn write(&mut self, step: u64, now: u32) -> Result<(), String> {
        if let Some(write) = self.queue.pop_front() {
            self.kernel.write(&write);
            self.written = now;
        }
        self.settle(step, now)
    }

    fn renew_lists(&mut self) {
        let mut lists: HashMap<List, BTreeSet<End>> = HashMap::new();
        for (id, state) in self.model.desired() {
            let Some(n) = id.service.strip_prefix('s').and_then(|n| n.parse().ok()) else { continue };
            let ends = |list: &[std::net::SocketAddr]| list.iter().map(|s| (s.ip(), s.port())).collect();
            lists.insert((n, Kind::Internal), ends(&state.internal));
            lists.insert((n, Kind::External), ends(&state.external));
            lists.insert((n, Kind::Cluster), ends(&state.cluster));
        }
        for (list, ends) in &self.lists {
            let now = lists.get(list);
            let gone = ends.iter().filter(|end| !now.is_some_and(|now| now.contains(end)));
            self.leaving.extend(gone.map(|end| (*list, *end)));
        }
        self.lists = lists;
    }

    fn settle(&mut self, step: u64, now: u32) -> Result<(), String> {
        if !self.is_settled() {
            return Ok(());
        }
        for leaving in std::mem::take(&mut self.leaving) {
            self.left.insert(leaving, (step, now));
        }
        self.check_maps()
    }

    /// A flow to this list may have been given this endpoint: it is there, or was a moment ago.
    pub fn may_get(&self, list: List, end: End, now: u32) -> bool {
        let here = self.lists.get(&list).is_some_and(|ends| ends.contains(&end));
        let lately = self.left.get(&(list, end)).is_some_and(|(_, tick)| now <= tick + IN_HAND);
        here || lately || self.leaving.contains(&(list, end))
    }

    /// What is known of a list, for messages.
    pub fn describe(&self, list: List) -> String {
        let left: Vec<_> = self.left.iter().filter(|((of, _), _)| *of == list).collect();
        format!("it has {:?}, {left:?} have left, {:?} leave now", self.lists.get(&list), self.leaving)
    }

    /// Whether a Service's flow has been made anew since it was given its backend, as that has left, even if it has come back.
    pub fn made_anew(&self, conn: &Conn, now: u32) -> bool {
        let stayed = |list| conn.backend.is_some_and(|end| self.has_stayed(list, end, conn.since, now));
        conn.list.is_some_and(|list| !stayed(list))
    }

    /// The endpoint has been in the list without a break since `step`. One that had left shortly before may have been given
    /// as it was, with an id that is dead, by a program that held the old list.
    pub fn has_stayed(&self, list: List, end: End, step: u64, now: u32) -> bool {
        let broke = self.leaving.contains(&(list, end))
            || self.left.get(&(list, end)).is_some_and(|(left, at)| *left >= step || now <= at + SHORTLY);
        !broke && self.lists.get(&list).is_some_and(|ends| ends.contains(&end))
    }

    /// Whether somebody who dials this list must be served.
    pub fn serves(&self, list: List, now: u32) -> bool {
        self.is_settled()
            && now > self.written + IN_HAND
            && self.lists.get(&list).is_some_and(|ends| !ends.is_empty())
    }

    /// The maps are what the plan says, no more and no less.
    fn check_maps(&self) -> Result<(), String> {
        let real = &self.kernel.real;
        let installed = self.syncer.installed(real).map_err(|error| error.to_string())?;
        let desired: BTreeMap<PortId, PortState> =
            self.model.desired().into_iter().filter(|(_, state)| !state.frontends.is_empty()).collect();
        let mut endpoints = 0;
        for port in &installed {
            let want = port.id.as_ref().and_then(|id| desired.get(id));
            let Some(want) = want else { return Err(format!("nobody wants {port:?}")) };
            let frontends: Vec<(Option<FrontendKind>, IpAddr, u16)> =
                port.frontends.iter().map(|f| (f.kind, f.address, f.port)).collect();
            let wanted: Vec<_> = want.frontends.iter().map(|f| (Some(f.kind), f.address, f.port)).collect();
            let lists = [&port.external[..], &port.internal, &port.cluster];
            if (lists, frontends) != (want.lists(), wanted) {
                return Err(format!("installed is {port:?}, wanted {want:?}"));
            }
            endpoints += want.lists().into_iter().flatten().collect::<BTreeSet<_>>().len();
        }
        if installed.len() != desired.len() {
            return Err(format!("{} ports are installed, {} wanted", installed.len(), desired.len()));
        }
        if real.endpoints.len() != endpoints {
            return Err(format!("{} endpoints are alive, {endpoints} wanted", real.endpoints.len()));
        }
        Ok(())
    }

    /// Nothing but the node's own addresses is left.
    pub fn check_empty(&self) -> Result<(), String> {
        let real = &self.kernel.real;
        let left = (real.frontends.len(), real.in_use().count(), real.endpoints.len(), real.addresses.len());
        if left == (0, 0, 0, 1) { Ok(()) } else { Err(format!("left in the maps: {left:?}")) }
    }
}

/// The agent's clock, of which a tick of the programs is a second here.
fn seconds(tick: u32) -> Duration {
    Duration::from_secs(tick.into())
}
