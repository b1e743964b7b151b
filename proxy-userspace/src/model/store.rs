//! The cluster's objects as the agent keeps them: a Service with its slices, each in few bytes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::HashMap;

use super::desired::{Family, PortId};
use super::select::Hint;
use crate::cluster::types::{
    Defect, Hints, ObjectName, Problem, Service, Slice, SliceEndpoint, SlicePort, SourceRanges,
};
use crate::sorted::Sorted;

/// A slice without what never decides anything: 20 bytes an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSlice {
    pub family: Option<Family>,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[StoredEndpoint]>,
    /// Different sets of zones that hints name (C13); endpoints refer to them from 1 on.
    zones: Vec<Arc<Hints>>,
    pub defects: Vec<Defect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEndpoint {
    pub address: IpAddr,
    bits: u8,
    /// 0: no zone hint.
    zones: u16,
}

impl StoredSlice {
    fn new(slice: Slice, node: &str) -> Self {
        let mut zones: Vec<Arc<Hints>> = Vec::new();
        let endpoints =
            slice.endpoints.iter().map(|endpoint| StoredEndpoint::new(endpoint, node, &mut zones)).collect();
        Self { family: slice.family, ports: slice.ports.into(), endpoints, zones, defects: slice.defects }
    }

    /// Whether the node's zone matters to it (C15).
    pub const fn has_zones(&self) -> bool {
        !self.zones.is_empty()
    }

    /// What the endpoint's hints say to a node in `zone` (C11, C13).
    pub fn zone_hint(&self, endpoint: StoredEndpoint, zone: Option<&str>) -> Hint {
        let Some(hints) = usize::from(endpoint.zones).checked_sub(1).and_then(|i| self.zones.get(i)) else {
            return Hint::Missing;
        };
        let ours = zone.is_some_and(|zone| hints.zones.iter().any(|name| name == zone));
        if ours { Hint::Us } else { Hint::Others }
    }
}

/// The place of this set of zones, from 1 on. More sets than a place can name do not happen in a slice of at most 1000
/// endpoints; a hint that finds no place counts as missing, so that all endpoints are used.
fn place(hints: &Arc<Hints>, zones: &mut Vec<Arc<Hints>>) -> u16 {
    let same = |known: &Arc<Hints>| Arc::ptr_eq(known, hints) || known.zones == hints.zones;
    let at = zones.iter().rposition(same).unwrap_or_else(|| {
        zones.push(hints.clone());
        zones.len() - 1
    });
    u16::try_from(at + 1).unwrap_or(0)
}

impl StoredEndpoint {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;
    const LOCAL: u8 = 8;
    const NODE_HINT: u8 = 16;
    const OUR_NODE: u8 = 32;

    fn new(endpoint: &SliceEndpoint, node: &str, zones: &mut Vec<Arc<Hints>>) -> Self {
        let mut bits = 0;
        let hints = endpoint.hints.as_ref();
        let nodes = hints.map(|hints| hints.nodes.as_slice()).unwrap_or_default();
        for (on, bit) in [
            (endpoint.ready, Self::READY),
            (endpoint.serving, Self::SERVING),
            (endpoint.terminating, Self::TERMINATING),
            // A9: an endpoint without a node is never local.
            (endpoint.node.as_deref() == Some(node), Self::LOCAL),
            (!nodes.is_empty(), Self::NODE_HINT),
            (nodes.iter().any(|name| name == node), Self::OUR_NODE),
        ] {
            bits |= if on { bit } else { 0 };
        }
        let zones = hints.filter(|hints| !hints.zones.is_empty()).map_or(0, |hints| place(hints, zones));
        Self { address: endpoint.address, bits, zones }
    }

    pub const fn node_hint(self) -> Hint {
        match (self.bits & Self::NODE_HINT != 0, self.bits & Self::OUR_NODE != 0) {
            (false, _) => Hint::Missing,
            (true, false) => Hint::Others,
            (true, true) => Hint::Us,
        }
    }

    pub const fn ready(self) -> bool {
        self.bits & Self::READY != 0
    }

    pub const fn serving(self) -> bool {
        self.bits & Self::SERVING != 0
    }

    pub const fn terminating(self) -> bool {
        self.bits & Self::TERMINATING != 0
    }

    pub const fn local(self) -> bool {
        self.bits & Self::LOCAL != 0
    }
}

/// One Service name: the Service, its slices (either may come first, C-17), and what was last told about it.
#[derive(Debug, Default)]
pub struct Entry {
    pub service: Option<Service>,
    /// By the slice's full name: only the namespace is the Service's for sure.
    pub slices: Sorted<ObjectName, StoredSlice>,
    /// Ports in the last plan, to know what has to go.
    pub ports: Vec<PortId>,
    pub problems: Vec<Problem>,
}

/// All Services and slices.
#[derive(Debug, Default)]
pub struct Store {
    pub entries: HashMap<ObjectName, Box<Entry>>,
    /// Where each slice is kept: its label may change (C-17).
    owners: HashMap<ObjectName, ObjectName>,
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
    pub fn set_slice(&mut self, slice: Slice, node: &str, touched: &mut BTreeSet<ObjectName>) {
        let owner = slice.service.clone().filter(|_| !slice.headless);
        let Some(owner) = owner else { return self.remove_slice(&slice.name, touched) };
        let owner = ObjectName { namespace: slice.name.namespace.clone(), name: owner };
        if self.owners.get(&slice.name).is_some_and(|before| *before != owner) {
            self.remove_slice(&slice.name, touched);
        }
        let name = slice.name.clone();
        let stored = StoredSlice::new(slice, node);
        let entry = self.entries.entry(owner.clone()).or_default();
        if entry.slices.get(&name) != Some(&stored) {
            self.owners.insert(name.clone(), owner.clone());
            entry.slices.insert(name, stored);
            touched.insert(owner);
        }
    }

    pub fn remove_slice(&mut self, name: &ObjectName, touched: &mut BTreeSet<ObjectName>) {
        let Some(owner) = self.owners.remove(name) else { return };
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
