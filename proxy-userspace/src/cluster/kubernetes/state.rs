//! What the API server's answers say about the connection, told to the receiver when it changes.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{Request, Response};
use kube::client::Body;
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use super::is_watch;
use crate::cluster::Event;
use crate::cluster::types::Problem;

/// The kinds that are watched; the first two are the ones without which nothing works.
pub const RESOURCES: [&str; 4] = ["services", "endpointslices", "nodes", "servicecidrs"];
const ESSENTIAL: usize = 2;
/// Between the beginnings of two watches of one kind.
const BETWEEN: Duration = Duration::from_secs(1);

/// `None`: no answer yet.
type Kinds = [Option<Result<(), Problem>>; RESOURCES.len()];

/// The state of each kind's watch.
#[derive(Debug)]
pub struct State {
    events: mpsc::Sender<Event>,
    kinds: Mutex<Kinds>,
    /// What the last refusal of each kind asked for by its header, in seconds; kube keeps the body only.
    delays: [AtomicU64; RESOURCES.len()],
    /// When the next watch of each kind may be read.
    due: Mutex<[Option<Instant>; RESOURCES.len()]>,
}

impl State {
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, kinds: Mutex::default(), delays: Default::default(), due: Mutex::default() }
    }

    /// The watch of `resource` works (`Ok`) or does not.
    pub async fn set(&self, resource: &str, outcome: Result<(), Problem>) {
        self.update(|kinds| {
            if let Some(i) = position(resource) {
                kinds[i] = Some(outcome);
            }
        })
        .await;
    }

    /// How long the server wants to be left alone with `resource`, by the last answer's Retry-After (C-09).
    pub fn asked(&self, resource: &str) -> Duration {
        let seconds = position(resource).map(|i| self.delays[i].swap(0, Ordering::Relaxed));
        Duration::from_secs(seconds.unwrap_or_default())
    }

    /// Waits until another watch of `resource` may be read. kube asks for the next one as soon as one has ended, which to a server that
    /// ends each at once would be a storm of requests (C-02).
    async fn paced(&self, resource: &str) {
        let Some(i) = position(resource) else { return };
        let begins = {
            let mut due = self.due.lock().await;
            let now = Instant::now();
            let begins = due[i].map_or(now, |due| due.max(now));
            due[i] = Some(begins + BETWEEN);
            begins
        };
        tokio::time::sleep_until(begins).await;
    }

    /// No request can be made at all.
    pub async fn set_all(&self, problem: Problem) {
        self.update(|kinds| kinds.fill(Some(Err(problem)))).await;
    }

    /// Requests can be made again: what [`Self::set_all`] said is over, also of a kind that nobody asks for.
    pub async fn opened(&self, failed: &Problem) {
        self.update(|kinds| {
            for kind in
                kinds.iter_mut().filter(|kind| matches!(kind, Some(Err(problem)) if problem == failed))
            {
                *kind = None;
            }
        })
        .await;
    }

    async fn update(&self, change: impl FnOnce(&mut Kinds)) {
        // Held until it is told: two changes must not overtake each other.
        let mut kinds = self.kinds.lock().await;
        let before = kinds.clone();
        change(&mut kinds);
        if before == *kinds {
            return;
        }
        let (old, problems) = (problems(&before), problems(&kinds));
        // A receiver that is gone ends the watches themselves.
        if old != problems {
            let _ = self.events.send(Event::Problems(problems)).await;
        }
        if works(&before) != works(&kinds) {
            let _ = self.events.send(Event::Connection { connected: works(&kinds) }).await;
        }
    }
}

fn position(resource: &str) -> Option<usize> {
    RESOURCES.iter().position(|name| *name == resource)
}

/// Each problem once: what hinders one kind mostly hinders all.
fn problems(kinds: &Kinds) -> Vec<Problem> {
    let mut problems: Vec<_> = kinds.iter().flatten().filter_map(|kind| kind.clone().err()).collect();
    problems.sort_unstable();
    problems.dedup();
    problems
}

fn works(kinds: &Kinds) -> bool {
    kinds.iter().take(ESSENTIAL).all(|kind| *kind == Some(Ok(())))
}

/// Notes every answer that is a success: kube's watcher does not tell that a watch has been resumed. And for how long the
/// others ask to wait. Holds back the answers to watches that follow each other too soon.
#[derive(Clone, Debug)]
pub struct StateLayer(pub Arc<State>);

impl<S> Layer<S> for StateLayer {
    type Service = WithState<S>;

    fn layer(&self, inner: S) -> WithState<S> {
        WithState { state: self.0.clone(), inner }
    }
}

/// See [`StateLayer`].
#[derive(Debug)]
pub struct WithState<S> {
    state: Arc<State>,
    inner: S,
}

impl<S, B> Service<Request<Body>> for WithState<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let resource = RESOURCES.into_iter().find(|name| path.rsplit('/').next() == Some(name));
        let watches = is_watch(&request);
        let state = self.state.clone();
        let response = self.inner.call(request);
        Box::pin(async move {
            let response = response.await?;
            let Some(resource) = resource else { return Ok(response) };
            if watches {
                state.paced(resource).await;
            }
            if response.status().is_success() {
                state.set(resource, Ok(())).await;
            } else if let (Some(i), Some(seconds)) = (position(resource), retry_after(&response)) {
                state.delays[i].store(seconds, Ordering::Relaxed);
            }
            Ok(response)
        })
    }
}

/// In seconds; the form with a date is not one that API servers use.
fn retry_after<B>(response: &Response<B>) -> Option<u64> {
    response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}
