//! A Kubernetes API server as the source. Only what ClusterRole `system:node-proxier` allows is asked for: list and
//! watch on Services and EndpointSlices, on this node's own Node, and, where they matter, on ServiceCIDRs; and to create
//! Events.

mod counted;
mod explain;
pub mod login;
mod outbox;
mod pace;
mod state;
#[cfg(test)]
mod tests;
mod token;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::client::ClientBuilder;
use tokio::time::Instant;

use super::types::{Node, Problem, Service, ServiceCidr, Slice};
use super::{Channels, Event, Scope};
use crate::metrics::Requests;
use counted::CountLayer;
use login::{Environment, Login, LoginError, login};
use outbox::Outbox;
use pace::{Backoff, Pace};
use state::{State, StateLayer};
use token::{Token, TokenLayer};
use watch::{Selector, Session, draw};

/// A login that has lasted this long was a good one.
const STEADY: Duration = Duration::from_secs(60);

/// How to find the API server; see [`login`].
#[derive(Clone, Debug)]
pub struct Access {
    /// `None`: the pod's ServiceAccount.
    pub kubeconfig: Option<PathBuf>,
    pub master: Option<String>,
    pub environment: Environment,
}

impl Access {
    /// With the environment of this process.
    #[must_use]
    pub fn new(kubeconfig: Option<PathBuf>, master: Option<String>) -> Self {
        Self { kubeconfig, master, environment: Environment::of_process() }
    }
}

/// Delivers the cluster's objects until the receiver is gone. Whatever fails is told, retried and never ends it: the
/// state that was delivered before stays (C-01, C-02, C-10, C-11).
pub async fn follow(access: Access, scope: Scope, channels: Channels) {
    let Channels { events, notices, requests } = channels;
    let mut outbox = Outbox::new(notices, &scope.node);
    let state = Arc::new(State::new(events.clone()));
    let pace = Arc::new(Pace::default());
    let mut backoff = Backoff::default();
    let mut gently = false;
    let mut failed = None;
    while !events.is_closed() {
        match open(&access, &state, &requests).await {
            Ok((client, hints)) => {
                if let Some(problem) = failed.take() {
                    state.opened(&problem).await;
                }
                let (events, state, pace) = (events.clone(), state.clone(), pace.clone());
                let begun = Instant::now();
                let session = Session { client, events, state, pace, hints, gently };
                watch_all(&session, &scope, &mut outbox).await;
                if begun.elapsed() > STEADY {
                    backoff.reset();
                }
                gently = true;
            }
            Err(error) => {
                // Each of these errors reads "what is wrong; what to do".
                let text = error.to_string();
                let (what, next) = text.split_once("; ").unwrap_or((&text, "correct it"));
                let problem = Problem::new("login to the API server", what, next);
                state.set_all(problem.clone()).await;
                failed = Some(problem);
            }
        }
        tokio::select! {
            () = pace.wait(backoff.next(Duration::ZERO, draw())) => {}
            () = events.closed() => {}
        }
    }
}

/// Finds out at start what no waiting puts right ([`LoginError::is_final`]).
///
/// # Errors
/// There is no login, and there will be none.
pub async fn check(access: &Access) -> Result<(), LoginError> {
    match login(access.kubeconfig.as_deref(), access.master.as_deref(), &access.environment).await {
        Err(error) if error.is_final() => Err(error),
        _ => Ok(()),
    }
}

/// Whether a request asks for a watch, which lasts.
fn is_watch<B>(request: &http::Request<B>) -> bool {
    request.uri().query().is_some_and(|query| query.contains("watch=true"))
}

async fn open(
    access: &Access,
    state: &Arc<State>,
    requests: &Requests,
) -> Result<(Client, login::Hints), LoginError> {
    let Login { config, token, hints } =
        login(access.kubeconfig.as_deref(), access.master.as_deref(), &access.environment).await?;
    let wrong = |error| LoginError::unusable(&hints, error);
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let counted = CountLayer { requests: requests.clone(), host };
    let builder = ClientBuilder::try_from(config).map_err(wrong)?.with_layer(&counted);
    let builder = builder.with_layer(&StateLayer(state.clone()));
    let client = match token {
        Some(path) => builder.with_layer(&TokenLayer(Arc::new(Token::new(path)))).build(),
        None => builder.build(),
    };
    Ok((client, hints))
}

/// Returns when one of the watches asks for a new login, or the receiver is gone.
async fn watch_all(session: &Session, scope: &Scope, outbox: &mut Outbox) {
    let services = Selector {
        labels: Some("!service.kubernetes.io/service-proxy-name".to_owned()),
        fields: Some("spec.clusterIP!=None".to_owned()),
        fields_optional: true,
        ..Selector::default()
    };
    let slices = Selector {
        labels: Some("!service.kubernetes.io/headless".to_owned()),
        fields_optional: true,
        ..Selector::default()
    };
    let nodes = Selector { fields: Some(format!("metadata.name={}", scope.node)), ..Selector::default() };
    let ranges = Selector { kind_optional: true, ..Selector::default() };
    tokio::select! {
        () = watch::follow::<Service, _>(session, &services, |s| s.name.clone(), Event::Services) => {}
        () = watch::follow::<Slice, _>(session, &slices, |s| s.name.clone(), Event::Slices) => {}
        () = watch::follow::<Node, _>(session, &nodes, |n| n.name.clone(), Event::Nodes) => {}
        () = watch::follow::<ServiceCidr, _>(session, &ranges, |r| r.name.clone(), Event::ServiceCidrs),
            if scope.service_cidrs => {}
        () = outbox.send(session) => {}
    }
}
