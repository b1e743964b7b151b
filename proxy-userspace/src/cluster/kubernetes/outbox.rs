//! Notices become Events (events.k8s.io/v1) as kube-proxy's do (I14).

use std::time::{Duration, SystemTime};

use http::Request;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Error as KubeError};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::pace::Backoff;
use super::watch::{Session, draw};
use crate::cluster::{About, Notice};

/// An Event that the server does not take is given up after so many attempts, as client-go does.
const ATTEMPTS: u32 = 12;
/// The API allows so many bytes.
const LONGEST_NOTE: usize = 1024;
/// Where Events about objects without a namespace are.
const NAMESPACE: &str = "default";
/// Who tells: what is looked for at a proxy's name is found at its replacement's.
const CONTROLLER: &str = "kube-proxy";

/// Notices on their way.
pub struct Outbox {
    notices: mpsc::Receiver<Notice>,
    /// The one that is being sent, and how often that was tried: a new login begins with it.
    current: Option<(Notice, u32)>,
    node: String,
}

impl Outbox {
    pub fn new(notices: mpsc::Receiver<Notice>, node: &str) -> Self {
        Self { notices, current: None, node: node.to_owned() }
    }

    /// Sends whatever there is to be told, one after the other. Never ends by itself.
    pub async fn send(&mut self, session: &Session) {
        let mut backoff = Backoff::default();
        loop {
            let (notice, attempt) = match self.current.take() {
                Some((notice, attempts)) => (notice, attempts + 1),
                None => match self.notices.recv().await {
                    Some(notice) => (notice, 1),
                    None => std::future::pending().await,
                },
            };
            self.current = Some((notice.clone(), attempt));
            match post(&session.client, &notice, &self.node).await {
                Ok(()) => {
                    self.current = None;
                    backoff.reset();
                }
                Err(error) if attempt >= ATTEMPTS || is_final(&error) => {
                    let about = regarding(&notice, &self.node).1;
                    warn!(%error, about, reason = notice.reason, "the cluster does not take an Event");
                    self.current = None;
                }
                Err(error) => {
                    debug!(%error, reason = notice.reason, "an Event is to be sent again");
                    session.pace.wait(backoff.next(Duration::ZERO, draw())).await;
                }
            }
        }
    }
}

/// Whether another attempt could not help. An identity that is not accepted is renewed by the watches.
fn is_final(error: &KubeError) -> bool {
    match error {
        KubeError::Api(status) => {
            (400..500).contains(&status.code) && ![401, 408, 429].contains(&status.code)
        }
        _ => false,
    }
}

async fn post(client: &Client, notice: &Notice, node: &str) -> Result<(), KubeError> {
    let event = event(notice, node);
    let namespace = event["metadata"]["namespace"].as_str().unwrap_or(NAMESPACE);
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let request = Request::post(path).header("Content-Type", "application/json");
    let request = request.body(event.to_string().into_bytes()).map_err(KubeError::HttpError)?;
    match client.request_text(request).await {
        // An earlier attempt has got through.
        Err(KubeError::Api(status)) if status.code == 409 => Ok(()),
        answer => answer.map(drop),
    }
}

/// The object, and how it is called. Uids are what kube-proxy and the kubelet write in their place.
fn regarding(notice: &Notice, node: &str) -> (Value, String) {
    match &notice.about {
        About::Node => (json!({"kind": "Node", "name": node, "uid": node}), node.to_owned()),
        About::Service(service) => {
            let uid = service.to_string();
            let object = json!({"kind": "Service", "namespace": &*service.namespace, "name": &*service.name, "uid": uid});
            (object, uid)
        }
    }
}

fn event(notice: &Notice, node: &str) -> Value {
    let (regarding, _) = regarding(notice, node);
    let nanoseconds = notice.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let at = Timestamp::try_from(notice.at).unwrap_or_default();
    let name = format!("{}.{nanoseconds:x}", regarding["name"].as_str().unwrap_or_default());
    let namespace = regarding["namespace"].as_str().unwrap_or(NAMESPACE).to_owned();
    let mut note = notice.note.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "eventTime": at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        "type": if notice.warning { "Warning" } else { "Normal" },
        "reason": notice.reason,
        "action": notice.action,
        "note": note,
        "regarding": regarding,
        "reportingController": CONTROLLER,
        "reportingInstance": format!("{CONTROLLER}-{node}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::types::ObjectName;

    #[test]
    fn i14_events_as_kube_proxy_writes_them() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_700_000_000_123_456_789);
        let starting = Notice { at, ..Notice::normal(About::Node, "Starting", "StartKubeProxy", "") };
        let want = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "n1.17979cfe3d85cd15", "namespace": "default"},
            "eventTime": "2023-11-14T22:13:20.123456Z",
            "type": "Normal", "reason": "Starting", "action": "StartKubeProxy", "note": "",
            "regarding": {"kind": "Node", "name": "n1", "uid": "n1"},
            "reportingController": "kube-proxy", "reportingInstance": "kube-proxy-n1",
        });
        assert_eq!(event(&starting, "n1"), want);
        let service = About::Service(ObjectName::new("shop", "web"));
        let full = Notice::warning(service, "FailedToStartServiceHealthcheck", "Listen", "ä".repeat(700));
        let event = event(&full, "n1");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["metadata"]["namespace"], "shop");
        let want = json!({"kind": "Service", "namespace": "shop", "name": "web", "uid": "shop/web"});
        assert_eq!(event["regarding"], want);
        assert_eq!(event["note"].as_str().map(str::len), Some(LONGEST_NOTE));
    }
}
