//! What an API server's watches bring.
//!
//! Input: watch events as the server sends them, a line each, of any kind that the agent follows.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::core::WatchEvent;
use proxy_userspace::cluster::types::{Kind, Node, ObjectName, Service, ServiceCidr, Slice, Watched};
use proxy_userspace::cluster::{Change, Event};
use serde_json::{Value, json};

use super::settled;

/// The plan that grew with the events is the one that a new agent makes of the objects that are left (C-17).
pub fn run(data: &[u8]) {
    let mut model = settled::listed();
    let mut known = Known::default();
    let mut told = BTreeMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { continue };
        let kind = value.pointer("/object/kind").and_then(Value::as_str).unwrap_or_default();
        let event = match kind {
            Service::KIND => known.services.event(value, |o| o.name.clone()).map(Event::Services),
            Slice::KIND => known.slices.event(value, |o| o.name.clone()).map(Event::Slices),
            Node::KIND => known.nodes.event(value, |o| o.name.clone()).map(Event::Nodes),
            ServiceCidr::KIND => known.ranges.event(value, |o| o.name.clone()).map(Event::ServiceCidrs),
            _ => None,
        };
        if let Some(event) = event {
            model.apply(event);
            settled::follow(&mut model, &mut told);
        }
    }
    let mut fresh = settled::listed();
    for event in known.snapshots() {
        fresh.apply(event);
    }
    settled::follow(&mut fresh, &mut BTreeMap::new());
    assert_eq!(model.desired(), fresh.desired());
    assert_eq!(model.problems(), fresh.problems());
    assert_eq!(model.health_checks(), fresh.health_checks());
    assert_eq!(model.service_cidrs(), fresh.service_cidrs());
    settled::installs(&model);
}

/// The objects there are of one kind.
struct Objects<T, N>(BTreeMap<N, T>);

impl<T, N> Default for Objects<T, N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

#[derive(Default)]
struct Known {
    services: Objects<Service, ObjectName>,
    slices: Objects<Slice, ObjectName>,
    nodes: Objects<Node, Arc<str>>,
    ranges: Objects<ServiceCidr, Arc<str>>,
}

impl<T: Kind, N: Ord + Clone> Objects<T, N> {
    fn event(&mut self, line: Value, name: fn(&T) -> N) -> Option<Change<T, N>> {
        match serde_json::from_value::<WatchEvent<Watched<T>>>(line).ok()? {
            WatchEvent::Added(watched) | WatchEvent::Modified(watched) => {
                self.0.insert(name(&watched.object), watched.object.clone());
                Some(Change::Apply(watched.object))
            }
            WatchEvent::Deleted(watched) => {
                let name = name(&watched.object);
                self.0.remove(&name);
                Some(Change::Delete(name))
            }
            WatchEvent::Bookmark(_) | WatchEvent::Error(_) => None,
        }
    }

    fn list(self) -> Vec<T> {
        self.0.into_values().collect()
    }
}

impl Known {
    fn snapshots(self) -> [Event; 4] {
        [
            Event::Slices(Change::Snapshot(self.slices.list())),
            Event::Services(Change::Snapshot(self.services.list())),
            Event::Nodes(Change::Snapshot(self.nodes.list())),
            Event::ServiceCidrs(Change::Snapshot(self.ranges.list())),
        ]
    }
}

/// Everything comes, changes, goes, and comes back.
pub fn seeds() -> Vec<Vec<u8>> {
    let objects = settled::example();
    let line = |kind: &str, object: &Value| format!("{}\n", json!({"type": kind, "object": object}));
    let all = |kind: &str| objects.iter().map(|object| line(kind, object)).collect::<String>();
    let (added, modified, deleted) = (all("ADDED"), all("MODIFIED"), all("DELETED"));
    let mut seeds = vec![
        added.clone().into_bytes(),
        format!("{added}{modified}").into_bytes(),
        format!("{added}{deleted}{added}").into_bytes(),
    ];
    seeds.extend(objects.iter().map(|object| line("ADDED", object).into_bytes()));
    seeds
}
