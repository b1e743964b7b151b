//! Service ports that there is no room for (C-32): told in the log, in an Event, in a metric and in the status.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::worker::Worker;
use crate::cluster::types::ObjectName;
use crate::cluster::{About, Notice};
use crate::model::PortId;
use crate::status::Trouble;
use crate::sync::Lack;

/// kube-proxy has no such Event; its Services are all there is memory for.
const REASON: &str = "FailedToInstallService";
const ACTION: &str = "Install";

fn trouble(id: &PortId, why: Lack) -> Trouble {
    let next = "what was installed before stays; remove Services or endpoints that are not used";
    Trouble::new(format_args!("Service {id}"), why, next)
}

impl Worker {
    /// Tells of each port when it begins to wait, waits for another reason, and when it waits no more.
    pub(super) fn follow_refusals(&mut self) {
        let now: BTreeMap<_, _> =
            self.syncer.refused().into_iter().map(|refused| (refused.id, refused.why)).collect();
        if now == self.refusals {
            return;
        }
        for (id, why) in now.iter().filter(|(id, why)| self.refusals.get(*id) != Some(*why)) {
            let trouble = trouble(id, *why);
            warn!("{trouble}");
            self.latest.note(&trouble);
            let service = About::Service(ObjectName::new(&id.namespace, &id.service));
            let note = format!("{} {}: {}; {}", id, id.family.name(), trouble.why, trouble.next);
            self.notices.tell(Notice::warning(service, REASON, ACTION, note));
        }
        for id in self.refusals.keys().filter(|id| !now.contains_key(*id)) {
            info!("Service {id}: waits no more");
        }
        self.metrics.refused(now.len());
        self.refusals = now;
    }

    pub(super) fn refusals(&self) -> impl Iterator<Item = Trouble> {
        self.refusals.iter().map(|(id, why)| trouble(id, *why))
    }
}
