//! The API server's audit log: who asked for what, and what the answer was.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// Everything is recorded, without bodies.
pub const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1",
  "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [{"level": "Metadata"}]
}"#;

/// One request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The same for all stages of one request.
    #[serde(rename = "auditID")]
    pub id: String,
    /// Kubernetes verb: `list`, `watch`, `get`, …; in lower case the HTTP method for paths that are no resource.
    pub verb: String,
    /// Path and query as sent (percent-encoded).
    #[serde(rename = "requestURI")]
    pub uri: String,
    /// Who; empty name when authentication failed.
    #[serde(default)]
    pub user: User,
    /// Address of the client.
    #[serde(default, rename = "sourceIPs")]
    pub sources: Vec<String>,
    /// When it came in, RFC 3339 with microseconds, UTC.
    #[serde(rename = "requestReceivedTimestamp")]
    pub received: String,
    /// What was asked for; absent for paths such as `/version`.
    pub object_ref: Option<ObjectRef>,
    /// The answer; absent when the client went away first.
    pub response_status: Option<Status>,
}

/// Who sent a request.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct User {
    /// User name, for ServiceAccounts `system:serviceaccount:NAMESPACE:NAME`.
    #[serde(default)]
    pub username: String,
}

/// What a request was about.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// Plural name.
    #[serde(default)]
    pub resource: String,
    /// API group, empty for the core group.
    #[serde(default)]
    pub api_group: String,
}

/// How a request was answered.
#[derive(Clone, Debug, Deserialize)]
pub struct Status {
    /// HTTP status.
    #[serde(default)]
    pub code: u16,
}

impl Entry {
    /// HTTP status, 0 if there was no answer.
    pub fn code(&self) -> u16 {
        self.response_status.as_ref().map_or(0, |status| status.code)
    }

    /// `group/resource`, or the path for what is no resource.
    pub fn target(&self) -> String {
        match &self.object_ref {
            Some(object) => format!("{}/{}", object.api_group, object.resource),
            None => self.uri.split('?').next().unwrap_or_default().to_owned(),
        }
    }

    /// The decoded value of a query parameter.
    pub fn query(&self, parameter: &str) -> Option<String> {
        let (_, query) = self.uri.split_once('?')?;
        let value = query.split('&').find_map(|pair| pair.strip_prefix(parameter)?.strip_prefix('='))?;
        Some(decode(value))
    }

    /// When it came in, in seconds since midnight.
    ///
    /// # Errors
    /// If the time is not `…THH:MM:SS.FRACTIONZ`.
    pub fn seconds(&self) -> Result<f64> {
        let time = self.received.split_once('T').and_then(|(_, time)| time.strip_suffix('Z'));
        let time = time.with_context(|| format!("no time in UTC: {}", self.received))?;
        time.split(':').try_fold(0.0, |sum, part| Ok(sum * 60.0 + part.parse::<f64>()?))
    }

    /// Whether `system:node-proxier` (or `system:discovery`, which everybody has) allows it. Row A1 needs no more.
    pub fn is_allowed_to_a_proxy(&self) -> bool {
        match (self.verb.as_str(), self.target().as_str()) {
            (
                "list" | "watch",
                "/services" | "discovery.k8s.io/endpointslices" | "networking.k8s.io/servicecidrs",
            ) => true,
            ("get" | "list" | "watch", "/nodes") => true,
            ("create" | "patch" | "update", "/events" | "events.k8s.io/events") => true,
            ("get", path) => ["/version", "/api", "/apis", "/healthz", "/livez", "/readyz"].contains(&path),
            _ => false,
        }
    }
}

/// The requests that `log` records from byte `start` on, one entry each with its last known answer, in order of their
/// first line. A line that is still being written is left out.
///
/// # Errors
/// If the log cannot be read or holds something else than audit events.
pub fn read(log: &Path, start: u64) -> Result<Vec<Entry>> {
    let mut text = String::new();
    let mut file = File::open(log).with_context(|| format!("no audit log at {}", log.display()))?;
    file.seek(SeekFrom::Start(start))?;
    file.read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let mut order = Vec::new();
    let mut entries = BTreeMap::new();
    for line in whole.lines() {
        let entry: Entry =
            serde_json::from_str(line).with_context(|| format!("not an audit event: {line}"))?;
        let id = entry.id.clone();
        if entries.insert(id.clone(), entry).is_none() {
            order.push(id);
        }
    }
    Ok(order.iter().filter_map(|id| entries.remove(id)).collect())
}

/// Undoes percent-encoding and `+` for a blank.
fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut plain = Vec::new();
    while let Some(byte) = bytes.next() {
        plain.push(match byte {
            b'%' => hex(&mut bytes).unwrap_or(b'%'),
            b'+' => b' ',
            other => other,
        });
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn hex(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let pair = [bytes.next()?, bytes.next()?];
    u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()
}
