use std::sync::Arc;
use std::time::Duration;

use proxy_common::abi::LAYOUT;

use super::plane::PlaneReport;
use crate::config::{Config, Source};
use crate::status::{self, Latest, Status, Trouble};

/// What never changes while the agent runs.
#[derive(Clone, Debug)]
pub struct Identity {
    pub node: Arc<str>,
    /// `manifests` or `kubernetes`.
    pub source: &'static str,
}

impl Identity {
    #[must_use]
    pub fn new(config: &Config, node: Arc<str>) -> Self {
        let source = match config.source {
            Source::Manifests(_) => "manifests",
            Source::Kubernetes { .. } => "kubernetes",
        };
        Self { node, source }
    }
}

/// The loop's part of the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoopReport {
    pub synced: bool,
    pub connected: bool,
    /// When the source was last connected.
    pub heard: Option<Duration>,
    pub services: usize,
    pub endpoints: usize,
    pub degraded: Vec<Trouble>,
    pub latest: Latest,
}

/// Puts the status together; `now` is on the agent's monotonic clock.
#[must_use]
pub fn assemble(identity: &Identity, agent: LoopReport, plane: PlaneReport, now: Duration) -> Status {
    let age = agent.heard.map(|heard| now.saturating_sub(heard).as_secs());
    let mut degraded = agent.degraded;
    degraded.extend(plane.degraded);
    degraded.sort();
    degraded.dedup();
    // What has stood from the start may never have been noted as an event.
    let standing = degraded.first().map(ToString::to_string);
    let last_error = agent.latest.max(plane.latest).told().or(standing);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        layout: LAYOUT,
        synced: agent.synced && !plane.unwritten,
        source: status::Source {
            kind: identity.source.to_owned(),
            connected: agent.connected,
            age_seconds: if agent.connected { Some(0) } else { age },
        },
        node: status::Node { name: identity.node.to_string(), addresses: plane.addresses },
        services: agent.services,
        endpoints: agent.endpoints,
        edges: plane.edges,
        sockets: plane.sockets,
        checksums: plane.checksums,
        shortcuts: plane.shortcuts,
        flows: plane.flows,
        drops: plane.drops,
        counts: plane.counts,
        trace: plane.trace,
        degraded,
        last_error,
        pid: std::process::id(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { node: "n1".into(), source: "kubernetes" }
    }

    #[test]
    fn the_source_ages_only_while_it_is_away() {
        let at = Duration::from_secs;
        let cases = [
            ("connected", true, Some(at(1)), Some(0)),
            ("away", false, Some(at(40)), Some(60)),
            ("never heard of", false, None, None),
        ];
        for (name, connected, heard, want) in cases {
            let agent = LoopReport { connected, heard, ..LoopReport::default() };
            let status = assemble(&identity(), agent, PlaneReport::default(), at(100));
            assert_eq!(status.source.age_seconds, want, "{name}");
        }
    }

    #[test]
    fn what_could_not_be_written_is_not_in_step() {
        for (agent, unwritten, want) in [(true, false, true), (true, true, false), (false, false, false)] {
            let agent = LoopReport { synced: agent, ..LoopReport::default() };
            let plane = PlaneReport { unwritten, ..PlaneReport::default() };
            assert_eq!(assemble(&identity(), agent, plane, Duration::ZERO).synced, want, "{unwritten}");
        }
    }

    /// The contract with scripts: these names, whatever is added.
    #[test]
    fn status_has_every_field_of_the_contract() {
        let status = assemble(&identity(), LoopReport::default(), PlaneReport::default(), Duration::ZERO);
        let json = serde_json::to_value(&status).unwrap();
        let fields = [
            "/version",
            "/layout",
            "/synced",
            "/source/kind",
            "/source/connected",
            "/source/age_seconds",
            "/node/name",
            "/node/addresses",
            "/services",
            "/endpoints",
            "/edges",
            "/sockets/mode",
            "/sockets/why",
            "/checksums/mode",
            "/checksums/why",
            "/shortcuts/mode",
            "/shortcuts/why",
            "/flows/used",
            "/flows/max",
            "/drops",
            "/degraded",
            "/last_error",
        ];
        for field in fields {
            assert!(json.pointer(field).is_some(), "{field} is missing in {json}");
        }
    }

    #[test]
    fn the_last_error_is_the_latest_and_never_missing_while_something_is_degraded() {
        let noted = |told: &str| {
            let mut latest = Latest::default();
            latest.note(told);
            latest
        };
        let (older, newer, none) = (noted("older"), noted("newer"), Latest::default());
        let standing = Trouble::new("device eth0", "not served", "look");
        let cases = [
            ("all is well", &none, &none, false, None),
            ("of the agent's half", &newer, &older, false, Some("newer")),
            ("of the data plane's half", &older, &newer, false, Some("newer")),
            ("over, and another stands from the start", &older, &none, true, Some("older")),
            ("stands from the start", &none, &none, true, Some("device eth0: not served; look")),
        ];
        for (name, agent, plane, degraded, want) in cases {
            let agent = LoopReport { latest: agent.clone(), ..LoopReport::default() };
            let degraded = if degraded { vec![standing.clone()] } else { Vec::new() };
            let plane = PlaneReport { latest: plane.clone(), degraded, ..PlaneReport::default() };
            let status = assemble(&identity(), agent, plane, Duration::ZERO);
            assert_eq!(status.last_error.as_deref(), want, "{name}");
        }
    }

    #[test]
    fn troubles_of_both_halves_are_sorted_and_told_once() {
        let trouble = |what: &str| Trouble::new(what, "why", "next");
        let agent = LoopReport { degraded: vec![trouble("b"), trouble("a")], ..LoopReport::default() };
        let plane = PlaneReport { degraded: vec![trouble("a")], ..PlaneReport::default() };
        let status = assemble(&identity(), agent, plane, Duration::ZERO);
        assert_eq!(status.degraded, [trouble("a"), trouble("b")]);
    }
}
