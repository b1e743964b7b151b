//! Refusals and interruptions that a real API server gives only on a bad day, from a small server of our own.

use std::collections::VecDeque;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use futures::StreamExt;
use serde_json::{Value, json};

use super::*;
use crate::cluster::types::ObjectName;
use crate::cluster::{About, Change, Notice, Notices};
use tokio::sync::mpsc;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const NODES: &str = "/api/v1/nodes";
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// One answer: status and body lines; `open` leaves the stream open after them.
#[derive(Clone, Debug)]
struct Answer {
    code: u16,
    lines: Vec<Value>,
    open: bool,
    /// The header's value.
    retry_after: Option<&'static str>,
}

fn refuse(code: u16, message: &str) -> Answer {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": "Test", "message": message});
    Answer { code, lines: vec![status], open: false, retry_after: None }
}

fn list(version: &str, items: &[Value]) -> Answer {
    let list = json!({"metadata": {"resourceVersion": version}, "items": items});
    Answer { code: 200, lines: vec![list], open: false, retry_after: None }
}

fn watch(open: bool, lines: &[Value]) -> Answer {
    Answer { code: 200, lines: lines.to_vec(), open, retry_after: None }
}

fn end_of_list() -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    let metadata = json!({"resourceVersion": "5", "annotations": annotations});
    json!({"type": "BOOKMARK", "object": {"apiVersion": "v1", "kind": "Any", "metadata": metadata}})
}

fn object(name: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"}, "spec": {"clusterIP": "10.96.0.1"}})
}

/// What the server does; by default every kind is empty and nothing happens.
#[derive(Default)]
struct Script {
    /// Answers to be given once each, by path.
    answers: Mutex<VecDeque<(&'static str, Answer)>>,
    /// The only token that is accepted, if any.
    token: Mutex<Option<&'static str>>,
    /// Paths that are forbidden.
    forbidden: Mutex<Vec<&'static str>>,
    requests: Mutex<Vec<String>>,
    /// When each of them came.
    times: Mutex<Vec<(String, std::time::Instant)>>,
}

impl Script {
    fn answer(&self, request: &Request) -> Answer {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        self.requests.lock().unwrap().push(format!("{path}?{query}"));
        self.times.lock().unwrap().push((path.clone(), std::time::Instant::now()));
        let token = request.headers().get(AUTHORIZATION).map(|value| value.as_bytes().to_vec());
        let wanted = self.token.lock().unwrap().map(|token| format!("Bearer {token}").into_bytes());
        if wanted.is_some() && token != wanted {
            return refuse(401, "Unauthorized");
        }
        if self.forbidden.lock().unwrap().contains(&path.as_str()) {
            return refuse(403, "User \"x\" cannot do that");
        }
        let mut answers = self.answers.lock().unwrap();
        if let Some(at) = answers.iter().position(|(at, _)| *at == path) {
            return answers.remove(at).unwrap().1;
        }
        drop(answers);
        match (query.contains("watch=true"), query.contains("sendInitialEvents=true")) {
            (true, true) => watch(true, &[end_of_list()]),
            (true, false) => watch(true, &[]),
            _ => list("5", &[]),
        }
    }

    fn requests(&self, path: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter_map(|r| r.strip_prefix(path)).map(str::to_owned).collect()
    }
}

struct Lab {
    script: Arc<Script>,
    folder: PathBuf,
    events: mpsc::Receiver<Event>,
    notices: Notices,
    seen: Vec<Event>,
}

impl Lab {
    /// A server, a kubeconfig as kubeadm writes it, a token file with a newline, and the source following it.
    async fn start(script: Script) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("sluice-api-{}-{n}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let script = Arc::new(script);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answering = script.clone();
        let app = Router::new().fallback(move |request: Request| {
            let answer = answering.answer(&request);
            async move { respond(answer) }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        let kubeconfig = folder.join("kubeconfig.conf");
        let file = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "default",
            "clusters": [{"name": "default", "cluster": {"server": format!("http://{address}")}}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default", "namespace": "default"}}],
            "users": [{"name": "default", "user": {"tokenFile": folder.join("token")}}],
        });
        fs::write(&kubeconfig, file.to_string()).unwrap();
        fs::write(folder.join("token"), "one\n").unwrap();
        let environment = Environment { host: None, port: None, folder: folder.clone() };
        let access = Access { kubeconfig: Some(kubeconfig), master: None, environment };
        let (sender, events) = mpsc::channel(16);
        let (notices, told) = Notices::channel();
        let requests = Requests::default();
        let channels = Channels { events: sender, notices: told, requests };
        tokio::spawn(follow(access, Scope { node: "n1".into(), service_cidrs: false }, channels));
        Self { script, folder, events, notices, seen: Vec::new() }
    }

    /// Waits for an event, unless it has come already: the kinds are watched side by side.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        if let Some(event) = self.seen.iter().find(|event| wanted(event)) {
            return event.clone();
        }
        let reached = async {
            loop {
                let event = self.events.recv().await.unwrap();
                self.seen.push(event.clone());
                if wanted(&event) {
                    return event;
                }
            }
        };
        match tokio::time::timeout(Duration::from_secs(40), reached).await {
            Ok(event) => event,
            Err(_) => panic!("{what} did not come; seen: {:#?}", self.seen),
        }
    }

    async fn problem(&mut self, texts: &[&str]) -> String {
        let all = |event: &Event| match event {
            Event::Problems(list) => {
                list.iter().any(|p| texts.iter().all(|text| p.to_string().contains(text)))
            }
            _ => false,
        };
        let event = self.until(&format!("a problem with {texts:?}"), all).await;
        format!("{event:?}")
    }

    async fn connected(&mut self) {
        self.until("a connection", |event| matches!(event, Event::Connection { connected: true })).await;
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn respond(answer: Answer) -> Response {
    let lines = answer.lines.into_iter().map(|line| Ok::<_, std::convert::Infallible>(format!("{line}\n")));
    let body = futures::stream::iter(lines);
    let body = if answer.open {
        Body::from_stream(body.chain(futures::stream::pending()))
    } else {
        Body::from_stream(body)
    };
    let mut response = Response::builder().status(StatusCode::from_u16(answer.code).unwrap());
    if let Some(delay) = answer.retry_after {
        response = response.header("Retry-After", delay);
    }
    response.body(body).unwrap()
}

fn services(names: &[&str]) -> impl Fn(&Event) -> bool {
    let names: Vec<_> = names.iter().map(|name| ObjectName::new("ns", name)).collect();
    move |event| match event {
        Event::Services(Change::Snapshot(list)) => list.iter().map(|s| &s.name).eq(&names),
        _ => false,
    }
}

#[tokio::test]
async fn a1_requests_are_kube_proxys_and_the_token_is_trimmed() {
    let script = Script::default();
    *script.token.lock().unwrap() = Some("one");
    let first = watch(true, &[json!({"type": "ADDED", "object": object("a")}), end_of_list()]);
    script.answers.lock().unwrap().push_back((SERVICES, first));
    let mut lab = Lab::start(script).await;
    lab.until("the first list", services(&["a"])).await;
    lab.connected().await;
    lab.until("the own node", |event| matches!(event, Event::Nodes(Change::Snapshot(_)))).await;
    let cases = [
        (
            SERVICES,
            vec![
                "fieldSelector=spec.clusterIP%21%3DNone",
                "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
            ],
        ),
        (SLICES, vec!["labelSelector=%21service.kubernetes.io%2Fheadless"]),
        (NODES, vec!["fieldSelector=metadata.name%3Dn1"]),
    ];
    for (path, parts) in cases {
        let requests = lab.script.requests(path);
        for part in parts.into_iter().chain(["watch=true", "sendInitialEvents=true", "timeoutSeconds=50"]) {
            assert!(requests[0].contains(part), "{path}: {part} in {requests:?}");
        }
    }
}

#[tokio::test]
async fn c07_servers_without_streaming_lists_or_field_selectors() {
    let script = Script::default();
    let refused = || {
        refuse(422, "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled")
    };
    script.answers.lock().unwrap().extend([
        (SERVICES, refused()),
        (SLICES, refused()),
        (NODES, refused()),
        (SERVICES, refuse(400, "\"spec.clusterIP\" is not a known field selector")),
        (SERVICES, list("5", &[object("a")])),
    ]);
    let mut lab = Lab::start(script).await;
    lab.until("the list", services(&["a"])).await;
    lab.until("the slices", |event| matches!(event, Event::Slices(Change::Snapshot(_)))).await;
    let requests = lab.script.requests(SERVICES);
    assert!(requests[1].contains("fieldSelector") && !requests[1].contains("watch"), "{requests:?}");
    assert!(!requests[2].contains("fieldSelector") && requests[2].contains("labelSelector"), "{requests:?}");
}

/// Too long for one watch, or from a server that takes `sendInitialEvents` for a plain watch: no error tells.
#[tokio::test]
async fn c07_a_streamed_list_that_ends_too_early_is_asked_for_as_a_list() {
    let script = Script::default();
    script.answers.lock().unwrap().extend([
        (SERVICES, watch(false, &[json!({"type": "ADDED", "object": object("a")})])),
        // kube has begun anew before it tells.
        (SERVICES, watch(false, &[])),
        (SERVICES, list("5", &[object("a"), object("b")])),
    ]);
    let mut lab = Lab::start(script).await;
    lab.until("the list", services(&["a", "b"])).await;
    let requests = lab.script.requests(SERVICES);
    assert!(requests[1].contains("sendInitialEvents") && !requests[2].contains("watch=true"), "{requests:?}");
}

/// kube asks again as soon as a watch has ended.
#[tokio::test]
async fn c02_watches_that_end_at_once_are_no_storm() {
    let script = Script::default();
    let added = |name| json!({"type": "ADDED", "object": object(name)});
    script.answers.lock().unwrap().extend([
        (SERVICES, watch(false, &[added("a"), end_of_list()])),
        (SERVICES, watch(false, &[])),
        (SERVICES, watch(false, &[])),
        (SERVICES, watch(true, &[added("b")])),
    ]);
    let mut lab = Lab::start(script).await;
    lab.until("the fourth", |event| matches!(event, Event::Services(Change::Apply(_)))).await;
    let times = lab.script.times.lock().unwrap();
    let times: Vec<_> = times.iter().filter(|(path, _)| path == SERVICES).map(|(_, at)| *at).collect();
    assert!(times[3] - times[1] >= Duration::from_secs(1), "{times:?}");
}

/// What it was about is not known, so that everything is listed.
#[tokio::test]
async fn c31_an_event_that_cannot_be_read_leads_to_a_new_list() {
    let script = Script::default();
    let added = |object: Value| json!({"type": "ADDED", "object": object});
    script.answers.lock().unwrap().extend([
        (SERVICES, watch(true, &[added(object("a")), end_of_list(), added(json!(3))])),
        (SERVICES, watch(true, &[added(object("a")), added(object("b")), end_of_list()])),
    ]);
    let mut lab = Lab::start(script).await;
    lab.until("the first list", services(&["a"])).await;
    lab.until("the list after it", services(&["a", "b"])).await;
}

#[tokio::test]
async fn c06_gone_as_http_status_leads_to_a_new_list() {
    let script = Script::default();
    let added = |name| json!({"type": "ADDED", "object": object(name)});
    script.answers.lock().unwrap().extend([
        (SERVICES, watch(false, &[added("a"), added("b"), end_of_list()])),
        (SERVICES, refuse(410, "too old resource version")),
        (SERVICES, watch(false, &[added("b"), end_of_list()])),
        (SERVICES, watch(false, &[json!({"type": "ERROR", "object": {"code": 410, "message": "gone"}})])),
        (SERVICES, watch(true, &[added("c"), end_of_list()])),
    ]);
    let mut lab = Lab::start(script).await;
    lab.until("the first list", services(&["a", "b"])).await;
    lab.until("the list after 410 on resuming", services(&["b"])).await;
    lab.until("the list after 410 within the stream", services(&["c"])).await;
}

#[tokio::test]
async fn c_11_a_rotated_token_is_taken_at_once_and_a_refused_one_is_named() {
    let script = Script::default();
    *script.token.lock().unwrap() = Some("two");
    let mut lab = Lab::start(script).await;
    let token = lab.folder.join("token");
    let text = lab.problem(&["401", token.to_str().unwrap()]).await;
    assert!(!text.contains("Bearer"), "{text}");
    fs::write(&token, "two\n").unwrap();
    lab.connected().await;
}

#[tokio::test]
async fn c_10_a_forbidden_kind_is_named_and_comes_back() {
    let script = Script::default();
    script.forbidden.lock().unwrap().push(SLICES);
    let mut lab = Lab::start(script).await;
    let role = "bind ClusterRole system:node-proxier";
    lab.problem(&["watch endpointslices", "403: User \"x\" cannot do that", "discovery.k8s.io", role]).await;
    let connected = |event: &Event| matches!(event, Event::Connection { connected: true });
    assert!(!lab.seen.iter().any(connected), "not connected without slices");
    lab.script.forbidden.lock().unwrap().clear();
    lab.connected().await;
    let problems = lab.seen.iter().rev().find_map(|event| match event {
        Event::Problems(list) => Some(list),
        _ => None,
    });
    assert_eq!(problems, Some(&Vec::new()), "the problem is withdrawn");
}

/// As priority and fairness answers: no Status, the delay in a header.
#[tokio::test]
async fn c09_an_overloaded_server_is_left_alone_for_as_long_as_it_asks() {
    let script = Script::default();
    let busy = json!("Too many requests, please try again later.");
    let busy = Answer { code: 429, lines: vec![busy], open: false, retry_after: Some("3") };
    for answer in [busy, refuse(500, "etcd is away"), refuse(503, "shutting down")] {
        script.answers.lock().unwrap().push_back((SERVICES, answer));
    }
    let mut lab = Lab::start(script).await;
    for (code, cause) in [("429", "Too many requests"), ("500", "etcd is away"), ("503", "shutting down")] {
        lab.problem(&["watch services", code, cause, "the agent tries again"]).await;
    }
    lab.connected().await;
    let times = lab.script.times.lock().unwrap();
    let times: Vec<_> = times.iter().filter(|(path, _)| path == SERVICES).map(|(_, at)| *at).collect();
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let wanted = [3, 2, 4].map(Duration::from_secs);
    assert!(gaps.len() >= 3 && gaps.iter().zip(wanted).all(|(gap, least)| *gap >= least), "{gaps:?}");
}

#[tokio::test]
async fn c31_one_bad_object_in_a_list() {
    let script = Script::default();
    let bad = json!({"metadata": {"name": "b", "namespace": "ns", "resourceVersion": "7"}, "spec": [1]});
    let lines = [bad, json!(3), object("a")].map(|object| json!({"type": "ADDED", "object": object}));
    let mut lines = lines.to_vec();
    lines.push(end_of_list());
    script.answers.lock().unwrap().push_back((SERVICES, watch(true, &lines)));
    let mut lab = Lab::start(script).await;
    let a = ObjectName::new("ns", "a");
    lab.until("the good one", |event| match event {
        Event::Services(Change::Snapshot(list)) => list.iter().any(|service| service.name == a),
        _ => false,
    })
    .await;
}

#[tokio::test]
async fn i14_events_are_sent_again_until_they_are_taken_or_refused_for_good() {
    let answers =
        [refuse(503, "busy"), refuse(409, "there already"), refuse(403, "forbidden"), list("1", &[])];
    let answers = Mutex::new(answers.into_iter().map(|answer| (EVENTS, answer)).collect());
    let lab = Lab::start(Script { answers, ..Script::default() }).await;
    // The first is sent twice; the server has it already, so that attempt counts. The second is not to be. The third is taken.
    for reason in ["One", "Two", "Three"] {
        lab.notices.tell(Notice::normal(About::Node, reason, "Test", ""));
    }
    let sent = tokio::time::timeout(Duration::from_secs(40), async {
        while lab.script.requests(EVENTS).len() < 4 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(sent.await.is_ok(), "{:?}", lab.script.requests(EVENTS));
    let left: Vec<_> = lab.script.answers.lock().unwrap().iter().map(|(path, _)| *path).collect();
    assert_eq!(left, [""; 0]);
}
