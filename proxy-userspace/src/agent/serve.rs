use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::start::{Listing, Started};
use super::{Agent, HEALTH_SERVER, Parts, Stops, config_file};
use crate::cluster::{About, Notice, Notices};
use crate::config::Config;
use crate::control::{Answer, Listener, Question, Request};
use crate::http::{self, Clock, Health, Snapshot};
use crate::metrics::Metrics;
use crate::status::{Board, Status, Trouble};

/// Longest time that a scrape waits for fresh numbers.
const SCRAPE: Duration = Duration::from_secs(2);

/// Starts servers and loop, and runs until the agent is told to stop.
///
/// # Errors
/// A part cannot start, or one that the agent cannot do without has ended.
pub async fn serve(
    config: Config,
    node: Arc<str>,
    started: Started,
    metrics: Arc<Metrics>,
    control: Listener,
    stops: Stops,
) -> Result<(), Trouble> {
    let clock = Clock::start();
    let board = Board::default();
    let health = Arc::new(Health::new(clock, config.sync.period, metrics.clone()));
    let (questions, asked) = mpsc::channel(16);
    let Started { plane, follower, places, listing: Listing { follower: source, events, notices } } = started;
    metrics.feature("AllowServiceExternalIPs", config.external_ips);
    notices.tell(Notice::normal(About::Node, "Starting", ACTION, ""));
    let (checks, checked) = watch::channel(http::Checks::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(async { follower.await.unwrap_or_else(|error| Err(broken(&error))) });

    tasks.spawn(endless("the control socket", control.serve(questions.clone())));
    tasks.spawn(endless("the source", async { drop(source.await) }));
    if let Some(address) = config.healthz {
        let routes = http::health_routes(health.clone());
        let teller = teller(&notices, "FailedToStartProxierHealthcheck");
        let server = http::Server { name: HEALTH_SERVER, address, hard_fail: config.bind_hard_fail, routes };
        tasks.spawn(http::serve(server, board.clone(), teller));
    }
    let node_ports = http::serve_node_ports(checked, places, health.clone(), board.clone(), notices.clone());
    tasks.spawn(endless("health check node ports", node_ports));
    if let Some(address) = config.metrics {
        let configuration = http::configuration(&config);
        let routes = http::metrics_routes(metrics.clone(), snapshot(questions), &configuration);
        let teller = teller(&notices, "FailedToStartMetricServer");
        let server = http::Server { name: "metrics", address, hard_fail: config.bind_hard_fail, routes };
        tasks.spawn(http::serve(server, board.clone(), teller));
    }
    if let Some(path) = config.file.clone() {
        tasks.spawn(config_file::follow(path));
    }
    info!(node = &*node, run_dir = %config.run_dir.display(), "the agent is running");
    let parts = Parts { plane, events, questions: asked, health, checks, metrics, board, clock };
    let agent = Agent::new(&config, node, parts);
    tokio::select! {
        end = agent.run(stops) => end,
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|error| Err(broken(&error))),
    }
}

/// What is done when something about the node as a whole fails.
const ACTION: &str = "StartKubeProxy";

/// Tells the cluster of a server that cannot be opened (I14).
fn teller(notices: &Notices, reason: &'static str) -> impl Fn(&Trouble) + Send + 'static {
    let notices = notices.clone();
    move |trouble| {
        notices.tell(Notice::warning(About::Node, reason, ACTION, trouble.to_string()));
    }
}

fn broken(error: &tokio::task::JoinError) -> Trouble {
    Trouble::new("a task of the agent", error, "see the log; the agent has to be restarted")
}

/// A task that ends only by mistake.
async fn endless(what: &'static str, task: impl Future<Output = ()>) -> Result<(), Trouble> {
    task.await;
    Err(Trouble::new(what, "it has ended", "see the log; the agent has to be restarted"))
}

/// Asks the loop, as the control socket does.
fn snapshot(questions: mpsc::Sender<Question>) -> Snapshot {
    Arc::new(move || -> Pin<Box<dyn Future<Output = Option<Status>> + Send>> {
        let questions = questions.clone();
        Box::pin(async move {
            let (answer, wait) = oneshot::channel();
            let asked = async {
                questions.send(Question { request: Request::Status, answer }).await.ok()?;
                wait.await.ok()
            };
            match tokio::time::timeout(SCRAPE, asked).await {
                Ok(Some(Answer::Status(status))) => Some(*status),
                _ => None,
            }
        })
    })
}
