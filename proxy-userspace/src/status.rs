//! What the agent tells about itself: the shapes behind `status`, `services` and `flows`.
//!
//! Field names are a contract with scripts: they may be added, never renamed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::cluster::types::Problem;

/// Something that is not as it should be: the object, the cause, and what to do. Also the shape of every error that
/// an operator reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Trouble {
    pub what: String,
    pub why: String,
    pub next: String,
}

impl Trouble {
    #[must_use]
    pub fn new(what: impl fmt::Display, why: impl fmt::Display, next: impl fmt::Display) -> Self {
        Self { what: what.to_string(), why: why.to_string(), next: next.to_string() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.next)
    }
}

impl std::error::Error for Trouble {}

impl From<Problem> for Trouble {
    fn from(problem: Problem) -> Self {
        Self { what: problem.object, why: problem.what, next: problem.next }
    }
}

/// The error and its causes in one line; a cause that its effect has quoted is not told again.
#[must_use]
pub fn story(error: &(dyn std::error::Error + 'static)) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.contains(&text) {
            told = format!("{told}: {text}");
        }
        cause = error.source();
    }
    told
}

/// What a parser has to say: its first line, which names the place, without the picture below it and without advice to
/// programmers.
#[must_use]
pub fn first_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    line.replacen("error: ", "", 1)
}

/// The latest thing that went wrong, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Latest(Option<(Instant, String)>);

impl Latest {
    pub fn note(&mut self, told: impl fmt::Display) {
        self.0 = Some((Instant::now(), told.to_string()));
    }

    /// Nothing, if nothing went wrong.
    #[must_use]
    pub fn told(self) -> Option<String> {
        self.0.map(|(_, told)| told)
    }
}

/// Troubles that stand until they are over, each under the name of the part that has it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Troubles>>);

#[derive(Debug, Default)]
struct Troubles {
    standing: BTreeMap<&'static str, Trouble>,
    latest: Latest,
}

impl Board {
    /// Puts up a trouble; whether it is new.
    pub fn post(&self, part: &'static str, trouble: Trouble) -> bool {
        let mut troubles = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = troubles.standing.get(part) != Some(&trouble);
        if new {
            troubles.latest.note(&trouble);
            troubles.standing.insert(part, trouble);
        }
        new
    }

    /// Whether there was one.
    pub fn clear(&self, part: &'static str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).standing.remove(part).is_some()
    }

    /// Whether this part has one.
    #[must_use]
    pub fn has(&self, part: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).standing.contains_key(part)
    }

    #[must_use]
    pub fn all(&self) -> Vec<Trouble> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).standing.values().cloned().collect()
    }

    /// The last that was put up, also when it is over.
    #[must_use]
    pub fn latest(&self) -> Latest {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).latest.clone()
    }
}

/// The answer to `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// `proxy_common::abi::LAYOUT`.
    pub layout: u32,
    /// Everything that the source has told is installed; false before its first complete lists (I1).
    pub synced: bool,
    pub source: Source,
    pub node: Node,
    /// Services known, whatever their type.
    pub services: usize,
    /// Endpoint addresses known.
    pub endpoints: usize,
    pub edges: Vec<Edge>,
    pub sockets: Mode,
    /// Who makes them: the programs, or, where they cannot, a kernel helper for them.
    #[serde(default)]
    pub checksums: Mode,
    pub shortcuts: Mode,
    pub flows: Usage,
    /// Packets dropped, rejected, or passed on untranslated though they may be a flow's, by reason; reasons that have not occurred
    /// are left out.
    pub drops: BTreeMap<String, u64>,
    /// What else has been counted: flows that were created, packets that have taken a shortcut.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// The packet trace, while there is one.
    pub trace: Option<TraceView>,
    pub degraded: Vec<Trouble>,
    /// The latest thing that went wrong, also when it has been repaired since. Never null while anything is degraded.
    pub last_error: Option<String>,
    /// Process id of the agent, as it sees itself.
    pub pid: u32,
}

/// Where objects come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `manifests` or `kubernetes`.
    pub kind: String,
    pub connected: bool,
    /// Seconds since the source was last heard of; 0 while connected, null before the first time.
    pub age_seconds: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub name: String,
    /// The node's own addresses that serve NodePorts, sorted.
    pub addresses: Vec<IpAddr>,
}

/// A device that is served, or deliberately not served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Edge {
    pub name: String,
    pub ifindex: u32,
    /// What kind of device: `nic`, `veth`, ….
    pub kind: String,
    /// `ingress`, `egress`; empty when not served.
    pub hooks: Vec<String>,
    pub mode: String,
    /// Why this mode, empty when there is nothing to say.
    pub why: String,
    /// Milliseconds from the device's event to both programs attached; null if found at start.
    pub attach_ms: Option<f64>,
}

/// A mode in force and the reason for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    pub mode: String,
    pub why: String,
}

/// Fill of the flow tables of both families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub used: u64,
    pub max: u64,
}

/// The answer to `explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `translate`, `pass`, `reject` or `drop`.
    pub verdict: String,
    /// A counter's name; or `new_flow`, `known_flow`, `not_a_service`, `no_program`, `no_edge`.
    pub reason: String,
    /// `NAMESPACE/NAME:PORT`.
    pub service: Option<String>,
    /// What was dialled, if it is a Service's.
    pub frontend: Option<SocketAddr>,
    /// Endpoints that may be chosen for this client.
    pub candidates: Vec<SocketAddr>,
    /// The one that was chosen now; a new flow draws anew.
    pub backend: Option<SocketAddr>,
    /// What the backend sees instead of the client, with a port that may be another next time.
    pub masquerade: Option<SocketAddr>,
    /// `stack`, or `socket`: translated when the connection is made.
    pub path: String,
    pub steps: Vec<String>,
}

/// A running packet trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceView {
    pub address: IpAddr,
    /// Until it ends by itself.
    pub seconds: u64,
}

/// One Service port of one family, read back from the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ServiceView {
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// Name of the port, empty for an unnamed one.
    pub port: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    pub frontends: Vec<FrontendView>,
    /// Endpoints for every frontend but the ClusterIP.
    pub external: Vec<SocketAddr>,
    /// Endpoints for the ClusterIP.
    pub internal: Vec<SocketAddr>,
    /// Under external policy Local: endpoints for pods and the node itself in place of `external`.
    #[serde(default)]
    pub cluster: Vec<SocketAddr>,
    /// Sources that may dial LoadBalancer addresses; empty without the flag `source-ranges`: everybody.
    #[serde(default)]
    pub ranges: Vec<IpNet>,
    pub flags: Vec<String>,
}

/// An address that clients dial. A NodePort stands here once for each address of the node that serves it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrontendView {
    /// `ClusterIP`, `NodePort`, `ExternalIP` or `LoadBalancer`.
    pub kind: String,
    pub address: IpAddr,
    pub port: u16,
    pub protocol: String,
}

/// A flow, joined from the entries of the client's and the backend's edge.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FlowView {
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// What the backend sees instead of the client; null if it sees the client.
    pub masquerade: Option<SocketAddr>,
    pub protocol: String,
    /// `NAMESPACE/NAME:PORT`; null if the Service is not known to this agent (yet).
    pub service: Option<String>,
    /// `new`, `established`, `closing` or `closed`.
    pub state: String,
    /// Seconds since the flow was made.
    pub age: u64,
    /// Seconds since its last packet, in either direction.
    pub idle: u64,
    /// `stack`: every packet goes through the node's stack.
    pub path: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("cannot open /r: {source}")]
        Quoting { source: std::io::Error },
        #[error("cannot open /r")]
        Bare { source: std::io::Error },
    }

    #[test]
    fn a_cause_is_told_once() {
        let io = || std::io::Error::from_raw_os_error(2);
        let want = format!("cannot open /r: {}", io());
        assert_eq!(story(&Failure::Quoting { source: io() }), want);
        assert_eq!(story(&Failure::Bare { source: io() }), want);
    }

    #[test]
    fn what_parsers_say_is_one_line() {
        let yaml = |text: &str| serde_saphyr::from_str::<serde_json::Value>(text).unwrap_err();
        let cases = [
            ("a: {", "line 1 column 4: unclosed bracket '{'"),
            ("a: 1\na: 2\n", "line 2 column 1: duplicate mapping key: a"),
        ];
        for (text, want) in cases {
            assert_eq!(first_line(&yaml(text)), want);
        }
    }

    #[test]
    fn a_board_tells_news_once_and_forgets_what_is_over() {
        let board = Board::default();
        let trouble = |why: &str| Trouble::new("healthz server", why, "free the port");
        assert!(board.post("healthz", trouble("in use")), "news");
        assert!(!board.post("healthz", trouble("in use")), "no news");
        assert!(board.post("healthz", trouble("no such address")), "another cause is news");
        assert_eq!(board.all(), [trouble("no such address")]);
        assert!(board.clear("healthz") && !board.clear("healthz"));
        assert_eq!(board.all(), []);
        let last = trouble("no such address").to_string();
        assert_eq!(board.latest().told(), Some(last), "it stays readable");
    }
}
