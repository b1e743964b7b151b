use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tracing::{info, warn};

use super::health::{self, Moment, Progress, Report};
use crate::metrics::{HealthPath, Metrics};
use crate::model::Family;
use crate::status::{Board, Status, Trouble};

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

    pub fn update(&self) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).update(self.clock.now());
    }

    /// The agent's loop is alive.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = self.clock.now();
    }

    pub fn set_node_eligible(&self, eligible: bool) {
        self.node_eligible.store(eligible, Ordering::Relaxed);
    }

    fn report(&self, path: HealthPath) -> Report {
        let now = self.clock.now();
        let mut progress = *self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let beat = *self.beat.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_sub(beat) >= self.patience {
            progress.queue(beat);
        }
        let node = match path {
            HealthPath::Healthz => Some(self.node_eligible.load(Ordering::Relaxed)),
            HealthPath::Livez => None,
        };
        let at = Moment { now, wall: Timestamp::now(), patience: self.patience };
        let report = health::report(&[(Family::V4, progress), (Family::V6, progress)], node, &at);
        self.metrics.health_answered(path, report.code);
        report
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

/// `/metrics`, `/healthz`, `/proxyMode` and `/configz` (H11).
pub fn metrics_routes(metrics: Arc<Metrics>, snapshot: Snapshot, configuration: &Value) -> Router {
    let configz = json!({"kubeproxy.config.k8s.io": configuration}).to_string();
    let page = move || {
        let (metrics, snapshot) = (metrics.clone(), snapshot.clone());
        async move { metrics_page(&metrics, snapshot().await) }
    };
    Router::new()
        .route("/metrics", get(page))
        .route("/healthz", get(|| async { "ok" }))
        .route("/proxyMode", get(|| async { "sluice" }))
        .route("/configz", get(move || async move { (json_headers(), configz) }))
}

fn metrics_page(metrics: &Metrics, status: Option<Status>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics.encode(status) {
        Ok(page) => ([(header::CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Serves `routes` at `address`. A port that is taken is tried again every 5 s and reported meanwhile (H6).
///
/// # Errors
/// The address cannot be bound and `hard_fail` asks to give up; or the server ends, which it does not.
pub async fn serve(
    name: &'static str,
    address: SocketAddr,
    hard_fail: bool,
    routes: Router,
    board: Board,
) -> Result<(), Trouble> {
    const AGAIN: Duration = Duration::from_secs(5);
    let next = format!("free the port, or give another with --{name}-bind-address");
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                let trouble = Trouble::new(format_args!("{name} server at {address}"), error, &next);
                if hard_fail {
                    return Err(trouble);
                }
                if board.post(name, trouble.clone()) {
                    warn!("{trouble}; trying again every 5 s");
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    board.clear(name);
    info!(server = name, %address, "serving");
    axum::serve(listener, routes)
        .await
        .map_err(|error| Trouble::new(format_args!("{name} server at {address}"), error, "restart the agent"))
}
