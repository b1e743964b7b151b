//! The cluster's objects as the agent keeps them: a Service with its slices, each in few bytes.

use std::num::NonZeroU16;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use super::desired::{Family, PortId, Protocol};
use super::select::Hint;
use crate::cluster::types::{
    Defect, Hints, ObjectName, Places, Problem, Service, Slice, SliceEndpoint, SlicePort, SourceRanges,
};
use crate::sorted::Sorted;

/// A slice without what never decides anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSlice {
    pub family: Option<Family>,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[SliceEndpoint]>,
    /// By which endpoints refer to this node; `None`: none of them is here (A9).
    own: Option<NonZeroU16>,
    /// What hints say of this node, in the order in which endpoints refer to them.
    hints: Box<[StoredHints]>,
    pub defects: Box<[Defect]>,
}

/// Hints, for one node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct StoredHints {
    /// By node (C12).
    node: Hint,
    /// The node's zone may change (C15).
    zones: Vec<String>,
}

impl StoredSlice {
    fn new(mut slice: Slice, node: &str) -> Self {
        let own =
            slice.nodes.iter().position(|name| **name == *node).and_then(|at| u16::try_from(at + 1).ok());
        // Of hints that name each endpoint's own node few are different to this one.
        let mut hints = Places::default();
        let stored = |hints: Hints| StoredHints { node: hint(&hints.nodes, Some(node)), zones: hints.zones };
        let places: Vec<u16> = slice.hints.into_iter().map(|known| hints.place(stored(known))).collect();
        for endpoint in &mut slice.endpoints {
            let known = usize::from(endpoint.hints).checked_sub(1).and_then(|at| places.get(at));
            endpoint.hints = known.copied().unwrap_or_default();
        }
        Self {
            family: slice.family,
            ports: slice.ports,
            endpoints: slice.endpoints,
            own: own.and_then(NonZeroU16::new),
            hints: hints.into_list().into(),
            defects: slice.defects.into(),
        }
    }

    /// Whether the node's zone matters to it (C15).
    pub fn has_zones(&self) -> bool {
        self.hints.iter().any(|hints| !hints.zones.is_empty())
    }

    /// Whether an endpoint of this slice is on this node.
    pub fn is_local(&self, endpoint: &SliceEndpoint) -> bool {
        self.own.is_some_and(|own| own.get() == endpoint.node)
    }

    /// What an endpoint's hints say to this node and, in this order, to who is in `zone` (C11 … C13).
    pub fn hints(&self, endpoint: &SliceEndpoint, zone: Option<&str>) -> [Hint; 2] {
        let hints = usize::from(endpoint.hints).checked_sub(1).and_then(|at| self.hints.get(at));
        hints.map_or([Hint::Missing; 2], |hints| [hints.node, hint(&hints.zones, zone)])
    }
}

/// What a list of names says to who has this one.
fn hint(names: &[String], own: Option<&str>) -> Hint {
    match own {
        _ if names.is_empty() => Hint::Missing,
        Some(own) if names.iter().any(|name| name == own) => Hint::Us,
        _ => Hint::Others,
    }
}

/// A [`PortId`] but for the Service's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortName {
    port: Arc<str>,
    protocol: Protocol,
    family: Family,
}

impl PortName {
    pub fn of(id: &PortId) -> Self {
        Self { port: id.port.clone(), protocol: id.protocol, family: id.family }
    }

    pub fn in_service(self, ObjectName { namespace, name }: &ObjectName) -> PortId {
        let Self { port, protocol, family } = self;
        PortId { namespace: namespace.clone(), service: name.clone(), port, protocol, family }
    }
}

/// One Service name: the Service, its slices (either may come first, C-17), and what was last told about it.
#[derive(Debug, Default)]
pub struct Entry {
    pub service: Option<Service>,
    /// By the slice's full name: only the namespace is the Service's for sure.
    pub slices: Sorted<ObjectName, StoredSlice>,
    /// Ports in the last plan, to know what has to go.
    pub ports: Box<[PortName]>,
    pub problems: Box<[Problem]>,
}

/// All Services and slices.
#[derive(Debug, Default)]
pub struct Store {
    pub entries: HashMap<ObjectName, Box<Entry>>,
    /// The name of each slice's Service: its label may change (C-17).
    owners: HashMap<ObjectName, Arc<str>>,
}

impl Store {
    /// Stores the Service (`None`: it is gone). Returns what it was before if that is different.
    pub fn set_service(&mut self, name: &ObjectName, service: Option<Service>) -> Option<Option<Service>> {
        let entry = self.entries.entry(name.clone()).or_default();
        if entry.service == service {
            self.tidy(name);
            return None;
        }
        Some(std::mem::replace(&mut entry.service, service))
    }

    /// Stores a slice for a node of this name. Adds the Services that change by it to `touched`.
    pub fn set_slice(&mut self, mut slice: Slice, node: &str, touched: &mut HashSet<ObjectName>) {
        let owner = slice.service.take().filter(|_| !slice.headless);
        let Some(owner) = owner else { return self.remove_slice(&slice.name, touched) };
        let owner = ObjectName { namespace: slice.name.namespace.clone(), name: owner };
        // In the memory that the name has already.
        let owner = self.entries.get_key_value(&owner).map_or(owner, |(known, _)| known.clone());
        if self.owners.get(&slice.name).is_some_and(|before| *before != owner.name) {
            self.remove_slice(&slice.name, touched);
        }
        let name = slice.name.clone();
        let entry = self.entries.entry(owner.clone()).or_default();
        let stored = StoredSlice::new(slice, node);
        if entry.slices.get(&name) != Some(&stored) {
            self.owners.insert(name.clone(), owner.name.clone());
            entry.slices.insert(name, stored);
            touched.insert(owner);
        }
    }

    pub fn remove_slice(&mut self, name: &ObjectName, touched: &mut HashSet<ObjectName>) {
        let Some(owner) = self.owners.remove(name) else { return };
        let owner = ObjectName { namespace: name.namespace.clone(), name: owner };
        if let Some(entry) = self.entries.get_mut(&owner) {
            entry.slices.remove(name);
            touched.insert(owner);
        }
    }

    /// Services that are chosen by the node's zone.
    pub fn zoned(&self) -> impl Iterator<Item = &ObjectName> {
        let zoned = |entry: &Entry| entry.slices.values().any(StoredSlice::has_zones);
        self.entries.iter().filter(move |(_, entry)| zoned(entry)).map(|(name, _)| name)
    }

    /// Services that ask where their clients come from.
    pub fn ranged(&self) -> impl Iterator<Item = &ObjectName> {
        let asks = |service: &Service| service.source_ranges != SourceRanges::default();
        let ranged = move |entry: &Entry| entry.service.as_ref().is_some_and(asks);
        self.entries.iter().filter(move |(_, entry)| ranged(entry)).map(|(name, _)| name)
    }

    pub fn slice_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.owners.keys()
    }

    /// Forgets a name that nothing stands behind any more.
    pub fn tidy(&mut self, name: &ObjectName) {
        let empty = |e: &Entry| e.service.is_none() && e.slices.is_empty() && e.ports.is_empty();
        if self.entries.get(name).is_some_and(|entry| empty(entry)) {
            self.entries.remove(name);
        }
    }
}
