//! How long changes of endpoints take from the cluster to the maps (1.10).

use std::time::Duration;

use crate::cluster::Change;
use crate::cluster::types::{ObjectName, Slice};
use crate::model::Family;

/// Changes on their way, by when they happened. Times since 1970: the cluster's clock is another one.
#[derive(Clone, Debug)]
pub struct Triggers {
    start: Duration,
    waiting: Vec<(Family, Duration)>,
    installing: Vec<(Family, Duration)>,
}

impl Triggers {
    pub const fn new(start: Duration) -> Self {
        Self { start, waiting: Vec::new(), installing: Vec::new() }
    }

    /// What was there before this agent tells nothing about it, and a slice that goes has no time.
    pub fn note(&mut self, change: &Change<Slice, ObjectName>) {
        if let Change::Apply(Slice { family: Some(family), triggered: Some(at), .. }) = change
            && *at > self.start
        {
            self.waiting.push((*family, *at));
        }
    }

    /// A round has begun, with what has come by now.
    pub fn take(&mut self) {
        self.installing.append(&mut self.waiting);
    }

    /// It is over: the latency of each. After a round that failed they stay for the next.
    pub fn installed(&mut self, now: Duration) -> Vec<(Family, Duration)> {
        self.installing.drain(..).map(|(family, at)| (family, now.saturating_sub(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::types::Watched;

    fn slice(triggered: &str) -> Slice {
        let object = json!({
            "metadata": {
                "name": "a-1", "namespace": "ns",
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
            },
            "addressType": "IPv6",
        });
        serde_json::from_value::<Watched<Slice>>(object).unwrap().object
    }

    #[test]
    fn each_change_is_told_once_when_it_is_installed() {
        let at = Duration::from_secs;
        let mut triggers = Triggers::new(at(100));
        triggers.note(&Change::Apply(slice("1970-01-01T00:01:39Z")));
        triggers.note(&Change::Apply(slice("1970-01-01T00:01:50.5Z")));
        triggers.note(&Change::Apply(slice("yesterday")));
        triggers.note(&Change::Delete(ObjectName::new("ns", "a-1")));
        assert_eq!(triggers.installed(at(112)), [], "not yet begun");
        triggers.take();
        triggers.note(&Change::Apply(slice("1970-01-01T00:01:51Z")));
        assert_eq!(triggers.installed(at(112)), [(Family::V6, Duration::from_millis(1_500))]);
        triggers.take();
        assert_eq!(triggers.installed(at(112)), [(Family::V6, at(1))]);
        assert_eq!(triggers.installed(at(112)), []);
    }
}
