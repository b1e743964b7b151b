//! Service ports that there is no room for (C-32): told in the log, in an Event, in a metric and in the status.

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::worker::Worker;
use crate::cluster::types::ObjectName;
use crate::cluster::{About, Notice, Told};
use crate::model::PortId;
use crate::status::Trouble;
use crate::sync::Lack;

/// kube-proxy has no such Event; its Services are all there is memory for.
const REASON: &str = "FailedToInstallService";
const ACTION: &str = "Install";

fn trouble(id: &PortId, why: Lack) -> Trouble {
    let limit = why.limit();
    let next = format!(
        "what was installed before stays; remove Services or endpoints that are not used, or start with a higher --limits {limit}=N after `sluice cleanup`"
    );
    Trouble::new(format_args!("Service {id}"), why, next)
}

impl Worker {
    /// Tells of each port when it begins to wait, waits for another reason, and when it waits no more.
    pub(super) fn follow_refusals(&mut self) {
        let now: BTreeMap<_, _> =
            self.syncer.refused().into_iter().map(|refused| (refused.id, refused.why)).collect();
        if now != self.refusals {
            for (id, why) in now.iter().filter(|(id, why)| self.refusals.get(*id) != Some(*why)) {
                let trouble = trouble(id, *why);
                warn!("{trouble}");
                self.latest.note(&trouble);
                self.untold.insert(ObjectName::new(&id.namespace, &id.service));
            }
            for id in self.refusals.keys().filter(|id| !now.contains_key(*id)) {
                info!("Service {id}: waits no more");
            }
            self.metrics.refused(now.len());
            self.refusals = now;
        }
        self.tell_refusals();
    }

    /// One Event a Service, whatever number of its ports waits. Those that there is no room for are told at a later beat.
    fn tell_refusals(&mut self) {
        while let Some(name) = self.untold.pop_first() {
            let ports = self.refusals.iter();
            let mut ports =
                ports.filter(|(id, _)| (&id.namespace, &id.service) == (&name.namespace, &name.name));
            let Some((first, why)) = ports.next() else { continue };
            let others = ports.map(|(id, _)| format!(", {id} {}", id.family.name())).collect::<String>();
            let trouble = trouble(first, *why);
            let note = format!("{first} {}{others}: {}; {}", first.family.name(), trouble.why, trouble.next);
            let notice = Notice::warning(About::Service(name.clone()), REASON, ACTION, note);
            if self.notices.tell(notice) == Told::Later {
                self.untold.insert(name);
                return;
            }
        }
    }

    pub(super) fn refusals(&self) -> impl Iterator<Item = Trouble> {
        self.refusals.iter().map(|(id, why)| trouble(id, *why))
    }
}
