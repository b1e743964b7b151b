//! The cluster's objects as the agent keeps them: a Service with its slices, each in few bytes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use super::desired::{Family, PortId};
use crate::cluster::types::{Defect, ObjectName, Problem, Service, Slice, SliceEndpoint, SlicePort};

/// A slice without what never decides anything: 18 bytes an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSlice {
    pub family: Option<Family>,
    pub ports: Box<[SlicePort]>,
    pub endpoints: Box<[StoredEndpoint]>,
    pub defects: Vec<Defect>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEndpoint {
    pub address: IpAddr,
    bits: u8,
}

impl StoredEndpoint {
    const READY: u8 = 1;
    const SERVING: u8 = 2;
    const TERMINATING: u8 = 4;
    const LOCAL: u8 = 8;

    fn new(endpoint: &SliceEndpoint, node: &str) -> Self {
        let mut bits = 0;
        for (on, bit) in [
            (endpoint.ready, Self::READY),
            (endpoint.serving, Self::SERVING),
            (endpoint.terminating, Self::TERMINATING),
            // A9: an endpoint without a node is never local.
            (endpoint.node.as_deref() == Some(node), Self::LOCAL),
        ] {
            bits |= if on { bit } else { 0 };
        }
        Self { address: endpoint.address, bits }
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
    pub slices: BTreeMap<ObjectName, StoredSlice>,
    /// Ports in the last plan, to know what has to go.
    pub ports: Vec<PortId>,
    pub problems: Vec<Problem>,
}

/// All Services and slices.
#[derive(Debug, Default)]
pub struct Store {
    pub entries: HashMap<ObjectName, Entry>,
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
        let stored = StoredSlice {
            family: slice.family,
            ports: slice.ports.into(),
            endpoints: slice.endpoints.iter().map(|e| StoredEndpoint::new(e, node)).collect(),
            defects: slice.defects,
        };
        let entry = self.entries.entry(owner.clone()).or_default();
        if entry.slices.get(&slice.name) != Some(&stored) {
            self.owners.insert(slice.name.clone(), owner.clone());
            entry.slices.insert(slice.name, stored);
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

    pub fn slice_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.owners.keys()
    }

    /// Forgets a name that nothing stands behind any more.
    pub fn tidy(&mut self, name: &ObjectName) {
        let empty = |e: &Entry| e.service.is_none() && e.slices.is_empty() && e.ports.is_empty();
        if self.entries.get(name).is_some_and(empty) {
            self.entries.remove(name);
        }
    }
}
