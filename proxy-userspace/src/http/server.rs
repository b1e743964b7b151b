use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use proxy_common::abi::OWN_PRIORITY;
use serde_json::{Value, json};
use tracing::{info, warn};

use super::connections;
use super::health::{self, Moment, Progress, Report};
use crate::metrics::{HealthPath, Metrics, plain};
use crate::model::Family;
use crate::status::{Board, Status, Trouble};

/// Shortest time after which a loop that shows no life counts as stuck, however short the syncPeriod.
const STALL: Duration = Duration::from_secs(30);

/// As setsockopt(2) takes it.
const OWN_PRIORITY_OF_SOCKETS: i32 = OWN_PRIORITY as i32;

/// A port that is taken is tried again this often.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// The agent's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// The same time for timers.
    #[must_use]
    pub fn instant(&self, at: Duration) -> tokio::time::Instant {
        (self.0 + at).into()
    }
}

/// What the health server judges by; written by the agent's loop.
#[derive(Debug)]
pub struct Health {
    clock: Clock,
    patience: Duration,
    /// Both families are written together.
    progress: Mutex<Progress>,
    /// When the loop last went round: a loop that stands still queues nothing (L-18).
    beat: Mutex<Duration>,
    node_eligible: AtomicBool,
    metrics: Arc<Metrics>,
}

impl Health {
    /// `period` is the syncPeriod: a change may wait for twice as long.
    #[must_use]
    pub fn new(clock: Clock, period: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            clock,
            patience: period * 2,
            progress: Mutex::default(),
            beat: Mutex::new(clock.now()),
            node_eligible: AtomicBool::new(false),
            metrics,
        }
    }

    pub fn queue(&self) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).queue(self.clock.now());
    }

    /// `waiting`: since when more waits, on the agent's clock.
    pub fn update(&self, waiting: Option<Duration>) {
        let now = self.clock.now();
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).update(now, waiting);
    }

    /// The agent's loop is alive.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.now();
    }

    pub fn set_node_eligible(&self, eligible: bool) {
        self.node_eligible.store(eligible, Ordering::Relaxed);
    }

    /// Whether what the cluster asks for is installed in time, whatever the Node's state (H7).
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.judge(None).code == 200
    }

    fn report(&self, path: HealthPath) -> Report {
        let node = match path {
            HealthPath::Healthz => Some(self.node_eligible.load(Ordering::Relaxed)),
            HealthPath::Livez => None,
        };
        let report = self.judge(node);
        self.metrics.health_answered(path, report.code);
        report
    }

    fn judge(&self, node: Option<bool>) -> Report {
        let now = self.clock.now();
        let mut progress = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(beat) >= self.patience.max(STALL) {
            progress.queue(beat);
        }
        let at = Moment { now, wall: Timestamp::now(), patience: self.patience };
        health::report(&[(Family::V4, progress), (Family::V6, progress)], node, &at)
    }
}

/// `/healthz` and `/livez`, exactly (H1).
pub fn health_routes(health: Arc<Health>) -> Router {
    let answer = |path| {
        get(move |State(health): State<Arc<Health>>| async move {
            let report = health.report(path);
            let code = StatusCode::from_u16(report.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (code, json_headers(), report.body)
        })
    };
    Router::new()
        .route("/healthz", answer(HealthPath::Healthz))
        .route("/livez", answer(HealthPath::Livez))
        .with_state(health)
}

const fn json_headers() -> [(header::HeaderName, &'static str); 2] {
    [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")]
}

/// Asks the agent for its status; `None` if it does not answer in time.
pub type Snapshot = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Option<Status>> + Send>> + Send + Sync>;

/// `/metrics`, `/metrics/slis`, `/healthz`, `/proxyMode` and `/configz` (H11).
pub fn metrics_routes(metrics: Arc<Metrics>, snapshot: Snapshot, configuration: &Value) -> Router {
    let configz = json!({"kubeproxy.config.k8s.io": configuration}).to_string();
    let of_ping = metrics.clone();
    let ping = move || {
        of_ping.pinged();
        async { "ok" }
    };
    let of_slis = metrics.clone();
    let slis = move |asked: HeaderMap| {
        let page = text_page(of_slis.encode_slis(), &asked);
        async { page }
    };
    let page = move |asked: HeaderMap| {
        let (metrics, snapshot) = (metrics.clone(), snapshot.clone());
        async move { text_page(metrics.encode(snapshot().await), &asked) }
    };
    Router::new()
        .route("/metrics", get(page))
        .route("/metrics/slis", get(slis))
        .route("/healthz", get(ping))
        .route("/proxyMode", get(|| async { "sluice" }))
        .route("/configz", get(move || async move { (json_headers(), configz) }))
}

/// The older text format unless the newer is asked for, as kube-proxy answers.
fn text_page(page: Result<String, std::fmt::Error>, asked: &HeaderMap) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";
    let accept = asked.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    match page {
        Ok(page) if !accept.contains("application/openmetrics-text") => {
            ([(header::CONTENT_TYPE, PLAIN)], plain(&page)).into_response()
        }
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What to serve where.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    /// Give up if the address cannot be bound.
    pub hard_fail: bool,
    pub routes: Router,
}

/// Serves. A port that is taken is tried again every 5 s and reported meanwhile, new troubles also to `tell` (H6).
///
/// # Errors
/// The address cannot be bound and that is to be fatal.
pub async fn serve(server: Server, board: Board, tell: impl Fn(&Trouble)) -> Result<(), Trouble> {
    let Server { name, address, hard_fail, routes } = server;
    let listener = loop {
        match connections::listen_as_go(address) {
            Ok(listener) => break listener,
            Err(error) => {
                let next = remedy(name, &error);
                let trouble = Trouble::new(format_args!("{name} server at {address}"), error, next);
                if hard_fail {
                    return Err(trouble);
                }
                if board.post(name, trouble.clone()) {
                    warn!("{trouble}; trying again every 5 s");
                    tell(&trouble);
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    board.clear(name);
    // By this the programs tell our server from another proxy's, should this process stop answering.
    if let Err(error) = setsockopt(&listener, sockopt::Priority, &OWN_PRIORITY_OF_SOCKETS) {
        warn!(%error, server = name, "SO_PRIORITY cannot be set");
    }
    info!(server = name, %address, "serving");
    match connections::serve(listener, routes).await {}
}

/// What to do about an address that cannot be bound.
fn remedy(name: &str, error: &std::io::Error) -> String {
    let flag = format!("--{name}-bind-address");
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!("free the port, or give another with {flag}"),
        std::io::ErrorKind::PermissionDenied => {
            format!("give a port from 1024 with {flag}, or the agent CAP_NET_BIND_SERVICE")
        }
        _ => format!("give an address that this node has with {flag}"),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use axum::http::Request;
    use tower::ServiceExt;

    use super::*;

    async fn fetch(routes: &Router, path: &str) -> (u16, Option<String>, bool, String) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let (head, body) = routes.clone().oneshot(request).await.unwrap().into_parts();
        let kind = head.headers.get(header::CONTENT_TYPE).map(|kind| kind.to_str().unwrap().to_owned());
        let nosniff = head.headers.get(header::X_CONTENT_TYPE_OPTIONS).is_some_and(|v| v == "nosniff");
        let body = to_bytes(body, usize::MAX).await.unwrap();
        (head.status.as_u16(), kind, nosniff, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn h1_h5_health_paths() {
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(Clock::start(), Duration::from_secs(30), metrics.clone()));
        let routes = health_routes(health.clone());
        health.update(None);
        for (path, eligible, code) in [
            ("/healthz", true, 200),
            ("/healthz", false, 503),
            ("/livez", false, 200),
            ("/readyz", true, 404),
            ("/healthz/", true, 404),
            ("/", true, 404),
        ] {
            health.set_node_eligible(eligible);
            let (got, kind, nosniff, body) = fetch(&routes, path).await;
            assert_eq!(got, code, "{path} {eligible}");
            if code != 404 {
                assert_eq!((kind.as_deref(), nosniff), (Some("application/json"), true), "{path}");
                assert!(body.contains("lastUpdated"), "{body}");
            }
        }
        assert!(metrics.encode(None).unwrap().contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1"));
    }

    #[tokio::test]
    async fn l18_h2_a_stuck_queue_is_unhealthy_and_recovers() {
        let metrics = Arc::new(Metrics::new());
        let health = Arc::new(Health::new(Clock::start(), Duration::ZERO, metrics));
        let routes = health_routes(health.clone());
        health.queue();
        assert_eq!(fetch(&routes, "/livez").await.0, 503, "waits for longer than twice a period of 0");
        health.update(None);
        assert_eq!(fetch(&routes, "/livez").await.0, 200);
    }

    #[tokio::test]
    async fn h11_metrics_server() {
        let asked: Snapshot =
            Arc::new(|| Box::pin(async { Some(Status { services: 3, ..Status::default() }) }));
        let routes = metrics_routes(Arc::new(Metrics::new()), asked, &json!({"mode": "iptables"}));
        let (code, kind, _, page) = fetch(&routes, "/metrics").await;
        assert!(code == 200 && kind.unwrap().starts_with("text/plain; version=0.0.4"));
        assert!(page.contains("sluice_services 3\n") && !page.contains("# EOF"), "{page}");
        let request =
            Request::builder().uri("/metrics").header("accept", "application/openmetrics-text;version=1.0.0");
        let answer = routes.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let page = to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        assert!(page.ends_with(b"# EOF\n"), "the newer format for those who ask for it");
        for (path, want) in [
            ("/healthz", "ok"),
            (
                "/metrics/slis",
                "# HELP kubernetes_healthcheck The last result of a check.\n# TYPE kubernetes_healthcheck gauge\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n# HELP kubernetes_healthchecks_total Results of checks.\n# TYPE kubernetes_healthchecks_total counter\nkubernetes_healthchecks_total{name=\"ping\",type=\"healthz\",status=\"success\"} 1\n",
            ),
            ("/proxyMode", "sluice"),
            ("/configz", r#"{"kubeproxy.config.k8s.io":{"mode":"iptables"}}"#),
        ] {
            let (code, _, _, body) = fetch(&routes, path).await;
            assert_eq!((code, body.as_str()), (200, want), "{path}");
        }
    }

    #[tokio::test]
    async fn h6_a_taken_port_is_reported_or_fatal() {
        let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let board = Board::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let server = |hard_fail| {
            let telling = told.clone();
            let server = Server { name: "healthz", address, hard_fail, routes: Router::new() };
            serve(server, board.clone(), move |trouble| telling.lock().unwrap().push(trouble.clone()))
        };
        let fatal = server(true).await.unwrap_err();
        assert!(fatal.to_string().contains("--healthz-bind-address"), "{fatal}");
        let server = tokio::spawn(server(false));
        while board.all().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(board.all()[0].what.contains(&address.to_string()), "{:?}", board.all());
        assert_eq!(*told.lock().unwrap(), board.all(), "told once (I14)");
        drop(taken);
        while !board.all().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(tokio::net::TcpStream::connect(address).await.is_ok(), "served as soon as the port is free");
        server.abort();
    }
}
