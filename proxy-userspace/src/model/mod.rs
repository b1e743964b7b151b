//! What the cluster wants, and what follows from it for this node. Pure: no clock, no I/O, no aya.
//!
//! Events go in by [`Model::apply`]; what changed by them comes out of [`Model::drain_changes`], planned anew for
//! the touched Services only.

mod addresses;
mod claims;
mod desired;
mod node_ports;
mod plan;
mod select;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_node;
#[cfg(test)]
mod tests_policy;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashSet;
use ipnet::IpNet;

pub use desired::{Family, HealthCheck, PortChange, PortFrontend, PortId, PortState, Protocol};
pub use node_ports::{health_check_addresses, node_ips, node_port_addresses};

use crate::cluster::types::{Defect, Kind, Node, ObjectName, Problem, Service, ServiceCidr, Slice};
use crate::cluster::{Change, Event};
use claims::Claims;
use plan::{Place, Planned};
use store::{PortName, Store};

/// What the plan needs to know besides objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name, as in the endpoints' `nodeName` (A9, I6).
    pub node_name: Arc<str>,
    /// `bindAddress`, in place of the Node's own address (I5).
    pub bind: Option<IpAddr>,
    /// Whether `spec.externalIPs` is served (gate AllowServiceExternalIPs, A10).
    pub external_ips: bool,
    /// TCP ports that the agent itself serves to others.
    pub own_ports: Vec<u16>,
}

impl Settings {
    /// Of the node with this name, all else being as kube-proxy has it by default.
    #[must_use]
    pub fn of_node(name: impl Into<Arc<str>>) -> Self {
        Self { node_name: name.into(), bind: None, external_ips: true, own_ports: Vec::new() }
    }
}

/// TCP ports by which a node is reached whatever becomes of its Services: SSH, the API server's, the kubelet's. No NodePort is served there,
/// nor at the agent's own (C-22).
const CRITICAL: [u16; 3] = [22, 6443, 10_250];

/// The cluster's state as far as this node needs it.
#[derive(Debug)]
pub struct Model {
    settings: Settings,
    store: Store,
    claims: Claims,
    dirty: HashSet<ObjectName>,
    health_checks: BTreeMap<ObjectName, HealthCheck>,
    node: Option<Node>,
    /// Names of others. The API server tells of this one alone.
    other_nodes: BTreeSet<Arc<str>>,
    service_cidrs: BTreeMap<Arc<str>, ServiceCidr>,
    source_problems: Vec<Problem>,
    connected: bool,
    services_listed: bool,
    slices_listed: bool,
}

impl Model {
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            store: Store::default(),
            claims: Claims::default(),
            dirty: HashSet::default(),
            health_checks: BTreeMap::new(),
            node: None,
            other_nodes: BTreeSet::new(),
            service_cidrs: BTreeMap::new(),
            source_problems: Vec::new(),
            connected: false,
            services_listed: false,
            slices_listed: false,
        }
    }

    /// Takes in what a source tells. The result depends on the final set of objects only, not on their order (C-17).
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Services(change) => self.apply_services(change),
            Event::Slices(change) => self.apply_slices(change),
            Event::Nodes(change) => self.apply_nodes(change),
            Event::ServiceCidrs(change) => self.apply_service_cidrs(change),
            Event::Problems(problems) => self.source_problems = problems,
            Event::Connection { connected } => self.connected = connected,
        }
    }

    /// Whether Services and EndpointSlices have both been listed: nothing may be installed or removed before (I1).
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.services_listed && self.slices_listed
    }

    /// Every port of every Service that was touched since the last call; empty before [`Self::is_complete`]. A
    /// port may come out unchanged.
    pub fn drain_changes(&mut self) -> Vec<PortChange> {
        if !self.is_complete() {
            return Vec::new();
        }
        let mut changes = Vec::new();
        // All plans before anything that stays: what lay between them would keep their memory, once they are gone.
        let mut dirty: Vec<_> = std::mem::take(&mut self.dirty).into_iter().collect();
        dirty.sort_unstable();
        let plans: Vec<Planned> = dirty.iter().map(|name| self.plan(name)).collect();
        for (name, Planned { ports, problems, health }) in dirty.into_iter().zip(plans) {
            if let Some(entry) = self.store.entries.get_mut(&name) {
                let now: Box<[_]> = ports.iter().map(|(id, _)| PortName::of(id)).collect();
                let before = std::mem::replace(&mut entry.ports, now);
                let gone = before.into_iter().filter(|port| !entry.ports.contains(port));
                changes.extend(gone.map(|port| (port.in_service(&name), None)));
                entry.problems = problems.into();
            }
            changes.extend(ports.into_iter().map(|(id, state)| (id, Some(state))));
            self.store.tidy(&name);
            match health {
                Some(check) => drop(self.health_checks.insert(name, check)),
                None => drop(self.health_checks.remove(&name)),
            }
        }
        changes
    }

    /// Everything that should be installed; costs as much as planning the whole cluster.
    #[must_use]
    pub fn desired(&self) -> BTreeMap<PortId, PortState> {
        self.store.entries.keys().flat_map(|name| self.plan(name).ports).collect()
    }

    /// What keeps this node from serving all that the cluster asks for, as of the last [`Self::drain_changes`].
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.source_problems.clone();
        problems.extend(self.store.entries.values().flat_map(|entry| entry.problems.iter().cloned()));
        let ranges = self.service_cidrs.values();
        problems.extend(ranges.flat_map(|object| {
            let name = format!("{} {}", ServiceCidr::KIND, object.name);
            object.defects.iter().map(move |defect| Problem::new(&name, &defect.what, &defect.next))
        }));
        // C-29.
        if self.node.is_none() && !self.other_nodes.is_empty() {
            let node = format!("{} {}", Node::KIND, self.settings.node_name);
            let next = "correct --hostname-override: endpoints with its name are local, and its addresses this node's";
            problems.push(Problem::new(node, "there are other Nodes and none of this name", next));
        }
        problems.sort_unstable();
        problems
    }

    /// Health check node ports, as of the last [`Self::drain_changes`].
    #[must_use]
    pub const fn health_checks(&self) -> &BTreeMap<ObjectName, HealthCheck> {
        &self.health_checks
    }

    /// This node's own object, once it has been seen.
    #[must_use]
    pub const fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// Every range that ClusterIPs come from, in order, neighbours as one.
    #[must_use]
    pub fn service_cidrs(&self) -> Vec<IpNet> {
        IpNet::aggregate(&self.service_cidrs.values().flat_map(|object| object.cidrs.clone()).collect())
    }

    fn place(&self) -> Place<'_> {
        let zone = self.node.as_ref().and_then(|node| node.zone.as_deref());
        Place { zone, ips: node_ips(self.settings.bind, self.node.as_ref()) }
    }

    /// Whether the source can be reached at present.
    #[must_use]
    pub const fn connected(&self) -> bool {
        self.connected
    }

    /// Number of Services and of endpoints (each address of each slice) known.
    #[must_use]
    pub fn counts(&self) -> (usize, usize) {
        let entries = || self.store.entries.values();
        let endpoints = entries().flat_map(|e| e.slices.values()).map(|slice| slice.endpoints.len()).sum();
        (entries().filter(|e| e.service.is_some()).count(), endpoints)
    }

    fn plan(&self, name: &ObjectName) -> Planned {
        let Some(entry) = self.store.entries.get(name) else { return Planned::default() };
        let Some(service) = &entry.service else { return Planned::default() };
        plan::plan(service, entry.slices.iter(), &self.claims, &self.place())
    }

    fn apply_services(&mut self, change: Change<Service, ObjectName>) {
        match change {
            Change::Apply(service) => self.set_service(&service.name.clone(), Some(service)),
            Change::Delete(name) => self.set_service(&name, None),
            Change::Snapshot(services) => {
                let listed: BTreeSet<_> = services.iter().map(|service| service.name.clone()).collect();
                let known = self.store.entries.iter().filter(|(_, entry)| entry.service.is_some());
                let gone: Vec<_> =
                    known.map(|(name, _)| name.clone()).filter(|n| !listed.contains(n)).collect();
                gone.iter().for_each(|name| self.set_service(name, None));
                services
                    .into_iter()
                    .for_each(|service| self.set_service(&service.name.clone(), Some(service)));
                self.services_listed = true;
            }
        }
    }

    fn set_service(&mut self, name: &ObjectName, mut service: Option<Service>) {
        if let Some(service) = service.as_mut().filter(|_| !self.settings.external_ips) {
            service.external_ips = Box::default();
        }
        if let Some(service) = &mut service {
            self.keep_off_own_ports(service);
        }
        let Some(before) = self.store.set_service(name, service) else { return };
        let now = self.store.entries.get(name).and_then(|entry| entry.service.as_ref());
        self.dirty.extend(self.claims.replace(before.as_ref(), now));
        self.dirty.insert(name.clone());
    }

    /// Takes the node's own ports out of what the Service asks for, and says so.
    fn keep_off_own_ports(&self, service: &mut Service) {
        let is_own = |port: &u16| CRITICAL.contains(port) || self.settings.own_ports.contains(port);
        let mut defects = std::mem::take(&mut service.defects).into_vec();
        for (index, port) in service.ports.iter_mut().enumerate() {
            if port.protocol == Protocol::Tcp && is_own(&port.node_port) {
                let what = format!(
                    "spec.ports[{index}].nodePort is {}, by which the node itself is reached, ignored",
                    port.node_port
                );
                defects.push(Defect { what, next: "give it another".to_owned() });
                port.node_port = 0;
            }
        }
        service.defects = defects.into();
    }

    fn apply_slices(&mut self, change: Change<Slice, ObjectName>) {
        let node = self.settings.node_name.clone();
        match change {
            Change::Apply(slice) => self.store.set_slice(slice, &node, &mut self.dirty),
            Change::Delete(name) => self.store.remove_slice(&name, &mut self.dirty),
            Change::Snapshot(slices) => {
                let listed: BTreeSet<_> = slices.iter().map(|slice| slice.name.clone()).collect();
                let known = self.store.slice_names();
                let gone: Vec<_> = known.filter(|name| !listed.contains(name)).cloned().collect();
                // New homes first: an endpoint that moved between slices is never out of the model in between.
                slices.into_iter().for_each(|slice| self.store.set_slice(slice, &node, &mut self.dirty));
                gone.iter().for_each(|name| self.store.remove_slice(name, &mut self.dirty));
                self.slices_listed = true;
            }
        }
    }

    fn apply_service_cidrs(&mut self, change: Change<ServiceCidr, Arc<str>>) {
        match change {
            Change::Apply(object) => drop(self.service_cidrs.insert(object.name.clone(), object)),
            Change::Delete(name) => drop(self.service_cidrs.remove(&name)),
            Change::Snapshot(list) => {
                self.service_cidrs = list.into_iter().map(|object| (object.name.clone(), object)).collect();
            }
        }
    }

    fn apply_nodes(&mut self, change: Change<Node, Arc<str>>) {
        let own = self.settings.node_name.clone();
        let node = match change {
            Change::Apply(node) if node.name == own => Some(node),
            Change::Delete(name) if name == own => None,
            Change::Snapshot(nodes) => {
                let (mut ours, others): (Vec<_>, Vec<_>) =
                    nodes.into_iter().partition(|node| node.name == own);
                self.other_nodes = others.into_iter().map(|node| node.name).collect();
                ours.pop()
            }
            Change::Apply(node) => {
                self.other_nodes.insert(node.name);
                return;
            }
            Change::Delete(name) => {
                self.other_nodes.remove(&name);
                return;
            }
        };
        let zone = |node: &Option<Node>| node.as_ref().and_then(|node| node.zone.clone());
        let ips = |node: &Option<Node>| node_ips(self.settings.bind, node.as_ref());
        let (moved, renumbered) = (zone(&self.node) != zone(&node), ips(&self.node) != ips(&node));
        self.node = node;
        // C15, C17: at once.
        if moved {
            self.dirty.extend(self.store.zoned().cloned());
        }
        if renumbered {
            self.dirty.extend(self.store.ranged().cloned());
        }
    }
}
