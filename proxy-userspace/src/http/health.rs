//! Whether this proxy is healthy, and how it says so (H2 … H5).

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::model::Family;

/// One family's progress. Times are on the agent's monotonic clock; wall clock jumps must not turn health (C-36).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the oldest change that is not yet installed came in.
    pub queued: Option<Duration>,
    /// When everything was last installed; `None` before the agent's loop has started.
    pub updated: Option<Duration>,
}

impl Progress {
    /// A change waits to be installed.
    pub fn queue(&mut self, now: Duration) {
        self.queued.get_or_insert(now);
    }

    /// A round has been installed. `waiting`: since when there is more, that came while it ran.
    pub const fn update(&mut self, now: Duration, waiting: Option<Duration>) {
        self.queued = waiting;
        self.updated = Some(now);
    }

    fn healthy(&self, at: &Moment) -> bool {
        self.queued.is_none_or(|queued| at.now.saturating_sub(queued) < at.patience)
    }
}

/// When health is judged.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// Monotonic clock, as in [`Progress`].
    pub now: Duration,
    /// The same moment on the wall clock.
    pub wall: Timestamp,
    /// Longest time that a change may wait: twice the syncPeriod.
    pub patience: Duration,
}

impl Moment {
    fn wall_clock(&self, then: Duration) -> Timestamp {
        let age = self.now.saturating_sub(then);
        self.wall.checked_sub(age).unwrap_or(self.wall)
    }
}

/// What a health path answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// 200 or 503.
    pub code: u16,
    /// JSON.
    pub body: String,
}

/// Judges both families. `node` is the node's eligibility for traffic of cloud load balancers: asked by `/healthz`
/// (H3), not by `/livez` (H4).
#[must_use]
pub fn report(families: &[(Family, Progress)], node: Option<bool>, at: &Moment) -> Report {
    let mut status = Map::new();
    let mut healthy = true;
    let mut oldest: Option<Timestamp> = None;
    for (family, progress) in families {
        let well = progress.healthy(at);
        healthy &= well;
        let Some(updated) = progress.updated else { continue };
        let updated = if well { at.wall } else { at.wall_clock(updated) };
        oldest = Some(oldest.map_or(updated, |oldest| oldest.min(updated)));
        status.insert(family.name().to_owned(), json!({"lastUpdated": time(updated), "healthy": well}));
    }
    let mut body = json!({
        "lastUpdated": oldest.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), time),
        "currentTime": time(at.wall),
        "healthy": healthy,
        "status": status,
    });
    if let (Some(eligible), Some(fields)) = (node, body.as_object_mut()) {
        fields.insert("nodeEligible".to_owned(), Value::Bool(eligible));
    }
    let code = if healthy && node.unwrap_or(true) { 200 } else { 503 };
    Report { code, body: body.to_string() }
}

/// RFC 3339 with nanoseconds, as Go prints it.
fn time(at: Timestamp) -> String {
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn moment(seconds: u64) -> Moment {
        let wall = "2026-01-31T12:00:00Z".parse::<Timestamp>().unwrap();
        let now = Duration::from_secs(seconds);
        Moment { now, wall: wall.checked_add(now).unwrap(), patience: PATIENCE }
    }

    fn progress(queued: Option<u64>, updated: Option<u64>) -> Progress {
        Progress { queued: queued.map(Duration::from_secs), updated: updated.map(Duration::from_secs) }
    }

    #[test]
    fn h2_to_h4_codes() {
        let idle = progress(None, Some(0));
        let cases = [
            ("H2 before the first sync", progress(None, None), idle, Some(true), 200, 200),
            ("H2 nothing pending", idle, idle, Some(true), 200, 200),
            ("H2 pending, not for long", progress(Some(41), Some(0)), idle, Some(true), 200, 200),
            ("H2 pending for twice the period", progress(Some(40), Some(0)), idle, Some(true), 503, 503),
            ("H2 one family suffices", idle, progress(Some(1), Some(0)), Some(true), 503, 503),
            ("H3 node on its way out", idle, idle, Some(false), 503, 200),
        ];
        for (name, v4, v6, node, healthz, livez) in cases {
            let families = [(Family::V4, v4), (Family::V6, v6)];
            assert_eq!(report(&families, node, &moment(100)).code, healthz, "healthz: {name}");
            assert_eq!(report(&families, None, &moment(100)).code, livez, "livez: {name}");
        }
    }

    #[test]
    fn h5_body() {
        let families = [(Family::V4, progress(Some(10), Some(5))), (Family::V6, progress(None, Some(50)))];
        let body = |node| serde_json::from_str::<Value>(&report(&families, node, &moment(100)).body).unwrap();
        assert_eq!(
            body(Some(true)),
            json!({
                "lastUpdated": "2026-01-31T12:00:05Z",
                "currentTime": "2026-01-31T12:01:40Z",
                "nodeEligible": true,
                "healthy": false,
                "status": {
                    "IPv4": {"lastUpdated": "2026-01-31T12:00:05Z", "healthy": false},
                    "IPv6": {"lastUpdated": "2026-01-31T12:01:40Z", "healthy": true},
                },
            })
        );
        assert_eq!(body(None).get("nodeEligible"), None, "livez does not ask");
        let unborn = report(&[(Family::V4, Progress::default())], None, &moment(0));
        let unborn: Value = serde_json::from_str(&unborn.body).unwrap();
        assert_eq!(unborn["status"], json!({}), "families appear after their first update");
    }

    #[test]
    fn queue_keeps_the_oldest_until_it_is_installed() {
        let at = Duration::from_secs;
        let mut progress = Progress::default();
        progress.queue(at(3));
        progress.queue(at(9));
        assert_eq!(progress.queued, Some(at(3)));
        progress.update(at(10), Some(at(9)));
        assert_eq!(progress, Progress { queued: Some(at(9)), updated: Some(at(10)) }, "never-ending changes");
        progress.update(at(11), None);
        assert_eq!(progress, Progress { queued: None, updated: Some(at(11)) });
    }
}
