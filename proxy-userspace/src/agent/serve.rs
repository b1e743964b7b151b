use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::info;

use super::start::Started;
use super::{Agent, HEALTH_SERVER, Parts};
use crate::cluster;
use crate::config::Config;
use crate::control::{Answer, Listener, Question, Request};
use crate::http::{self, Clock, Health, Snapshot};
use crate::metrics::Metrics;
use crate::status::{Board, Status, Trouble};

/// Longest time that a scrape waits for fresh numbers.
const SCRAPE: Duration = Duration::from_secs(2);

/// Starts source, servers and loop, and runs until the agent is told to stop.
///
/// # Errors
/// A part cannot start, or one that the agent cannot do without has ended.
pub async fn serve(
    config: Config,
    node: Arc<str>,
    started: Started,
    metrics: Arc<Metrics>,
    control: Listener,
) -> Result<(), Trouble> {
    let clock = Clock::start();
    let board = Board::default();
    let health = Arc::new(Health::new(clock, config.sync.period, metrics.clone()));
    let (questions, asked) = mpsc::channel(16);
    let (events, told) = mpsc::channel(1024);
    let Started { plane, follower, places } = started;
    let (checks, checked) = watch::channel(http::Checks::new());
    let mut tasks = JoinSet::new();
    tasks.spawn(async { follower.await.unwrap_or_else(|error| Err(broken(&error))) });

    tasks.spawn(endless("the control socket", control.serve(questions.clone())));
    let scope = cluster::Scope { node: node.clone(), service_cidrs: config.guards_service_cidrs() };
    let source = cluster::follow(config.source.clone(), scope, events);
    tasks.spawn(endless("the source", source));
    if let Some(address) = config.healthz {
        let routes = http::health_routes(health.clone());
        tasks.spawn(http::serve(HEALTH_SERVER, address, config.bind_hard_fail, routes, board.clone()));
    }
    let node_ports = http::serve_node_ports(checked, places, health.clone(), board.clone());
    tasks.spawn(endless("health check node ports", node_ports));
    if let Some(address) = config.metrics {
        let configuration = http::configuration(&config);
        let routes = http::metrics_routes(metrics.clone(), snapshot(questions), &configuration);
        tasks.spawn(http::serve("metrics", address, config.bind_hard_fail, routes, board.clone()));
    }
    info!(node = &*node, run_dir = %config.run_dir.display(), "the agent is running");
    let parts = Parts { plane, events: told, questions: asked, health, checks, metrics, board, clock };
    let agent = Agent::new(&config, node, parts);
    tokio::select! {
        end = agent.run() => end,
        Some(ended) = tasks.join_next() => ended.unwrap_or_else(|error| Err(broken(&error))),
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
