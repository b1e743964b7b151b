//! One kind of object, listed and watched for ever.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event as WatchEvent};
use kube::{Api, Client, Error as KubeError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::explain::{Resource, explain};
use super::login::Hints;
use super::pace::{Backoff, Pace};
use super::state::State;
use crate::cluster::types::{Kind, Watched};
use crate::cluster::{Change, Event};

/// A watch is renewed this often, so that a server which has gone silent is noticed within a minute (C-05).
pub const WATCH_SECONDS: u32 = 50;

/// A server that streams lists sends something within this time; one that does not know them may stay silent, or send what
/// happens until its watch ends.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How a kind is asked for; each step down is taken when the server refuses the one before (C-07, A1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Stream,
    List,
    /// Without the field selector, which servers before 1.31 do not know.
    ListAll,
}

/// A watch that has lasted this long was a good one. Longer than an attempt to connect.
const STEADY: Duration = Duration::from_secs(12);

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Go on with the same watcher.
    Continue,
    /// Begin with a list, by this method.
    Restart(Method),
    /// The identity is not accepted: log in anew.
    Login,
    /// The server, an older one, has no such kind: there is nothing to follow until the next login.
    Rest,
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// Whether the watch makes sense without the field selector.
    pub fields_optional: bool,
    /// Whether a server may do without the kind.
    pub kind_optional: bool,
}

/// What all watches of one login share.
pub struct Session {
    pub client: Client,
    pub events: mpsc::Sender<Event>,
    pub state: Arc<State>,
    pub pace: Arc<Pace>,
    pub hints: Hints,
    /// The login before was refused: begin with one request a second.
    pub gently: bool,
}

/// Follows one kind until the receiver is gone or the login is refused.
pub async fn follow<T: Kind, N>(
    session: &Session,
    selector: &Selector,
    name: fn(&T) -> N,
    wrap: fn(Change<T, N>) -> Event,
) {
    let mut method = Method::Stream;
    let mut backoff = Backoff::default();
    if session.gently {
        session.pace.wait(Duration::ZERO).await;
    }
    loop {
        match watch(session, selector, method, &mut backoff, name, wrap).await {
            Some(Next::Restart(other)) => method = other,
            Some(Next::Continue) => {}
            Some(Next::Rest) => session.events.closed().await,
            Some(Next::Login) | None => return,
        }
    }
}

/// One watcher's life. `None`: the receiver is gone.
async fn watch<T: Kind, N>(
    session: &Session,
    selector: &Selector,
    method: Method,
    backoff: &mut Backoff,
    name: fn(&T) -> N,
    wrap: fn(Change<T, N>) -> Event,
) -> Option<Next> {
    let api: Api<Watched<T>> = Api::all(session.client.clone());
    let mut stream = pin!(watcher::watcher(api, config(selector, method)));
    let mut fold = Fold { list: Vec::new(), begun: false, listed: false, name };
    let mut begun = Instant::now();
    loop {
        let patience = if method == Method::Stream && !fold.listed { FIRST_LIST } else { Duration::MAX };
        let event = tokio::select! {
            event = tokio::time::timeout(patience, stream.next()) => match event {
                Ok(event) => event?,
                Err(_) => return Some(Next::Restart(Method::List)),
            },
            () = session.events.closed() => return None,
        };
        match event {
            // Its stream has ended before its list: what is too long for one, or never ends, is asked for as a list.
            Ok(WatchEvent::Init) if method == Method::Stream && fold.begun && !fold.listed => {
                session.pace.wait(backoff.next(Duration::ZERO, draw())).await;
                return Some(Next::Restart(Method::List));
            }
            Ok(event) => {
                if let Some(change) = fold.event(event) {
                    backoff.reset();
                    session.events.send(wrap(change)).await.ok()?;
                }
            }
            Err(error) => {
                let next = judge(&error, method, fold.listed, selector);
                failed::<T>(session, &error, next, begun, backoff).await;
                if next != Next::Continue {
                    return Some(next);
                }
                begun = Instant::now();
            }
        }
    }
}

/// Collects a list until it is complete.
struct Fold<T, N> {
    list: Vec<T>,
    begun: bool,
    listed: bool,
    name: fn(&T) -> N,
}

impl<T, N> Fold<T, N> {
    fn event(&mut self, event: WatchEvent<Watched<T>>) -> Option<Change<T, N>> {
        match event {
            WatchEvent::Init => {
                self.list.clear();
                self.begun = true;
                self.listed = false;
                None
            }
            WatchEvent::InitApply(watched) => {
                self.list.push(watched.object);
                None
            }
            WatchEvent::InitDone => {
                self.listed = true;
                Some(Change::Snapshot(std::mem::take(&mut self.list)))
            }
            WatchEvent::Apply(watched) => Some(Change::Apply(watched.object)),
            WatchEvent::Delete(watched) => Some(Change::Delete((self.name)(&watched.object))),
        }
    }
}

/// Tells what went wrong since `begun`, and waits until the next request may be made.
async fn failed<T: Kind>(
    session: &Session,
    error: &watcher::Error,
    next: Next,
    begun: Instant,
    backoff: &mut Backoff,
) {
    // To restart is nothing wrong: the server has forgotten the version, or is an older one. And in a quiet cluster
    // nothing but its length tells that a watch was a good one.
    let restart = matches!(next, Next::Restart(_) | Next::Rest);
    if restart || begun.elapsed() > STEADY || is_gone(error) {
        backoff.reset();
    }
    if !restart {
        let problem = explain(error, Resource::of::<T>(), &session.hints);
        session.state.set(T::PLURAL, Err(problem)).await;
    }
    // A new login has delays of its own.
    if !matches!(next, Next::Login | Next::Rest) {
        let asked = retry_after(error).max(session.state.asked(T::PLURAL));
        session.pace.wait(backoff.next(asked, draw())).await;
    }
}

fn config(selector: &Selector, method: Method) -> watcher::Config {
    let mut config = watcher::Config::default().timeout(WATCH_SECONDS);
    config.label_selector.clone_from(&selector.labels);
    if method != Method::ListAll {
        config.field_selector.clone_from(&selector.fields);
    }
    match method {
        Method::Stream => config.streaming_lists(),
        Method::List | Method::ListAll => config,
    }
}

/// kube goes on with a version that the server no longer has when a watch is refused with 410 (C-06), and does not
/// step down from streaming lists (C-07).
fn judge(error: &watcher::Error, method: Method, listed: bool, selector: &Selector) -> Next {
    let code = match error {
        watcher::Error::InitialListFailed(KubeError::Api(status))
        | watcher::Error::WatchStartFailed(KubeError::Api(status))
        | watcher::Error::WatchFailed(KubeError::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        // The CA file is read again at once: it may have been replaced together with the server's certificate (C-12).
        _ if is_distrust(error) => return Next::Login,
        _ => return Next::Continue,
    };
    match (code, method) {
        (401, _) => Next::Login,
        (404, _) if selector.kind_optional => Next::Rest,
        (410 | 504, _) if listed => Next::Restart(method),
        // An event that could not be read: only a list tells what it was about.
        (0, _) if listed => Next::Restart(method),
        (400 | 405 | 406 | 422, Method::Stream) if !listed => Next::Restart(Method::List),
        (400, Method::List) if !listed && selector.fields_optional => Next::Restart(Method::ListAll),
        _ => Next::Continue,
    }
}

/// The server's certificate was not accepted.
fn is_distrust(error: &watcher::Error) -> bool {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("invalid peer certificate") {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The version to go on from is gone (410): a fresh list is due, and no reason to wait for it.
fn is_gone(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(KubeError::Api(status)) | watcher::Error::WatchError(status) => {
            status.code == 410
        }
        _ => false,
    }
}

fn retry_after(error: &watcher::Error) -> Duration {
    let status = match error {
        watcher::Error::InitialListFailed(KubeError::Api(status))
        | watcher::Error::WatchStartFailed(KubeError::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return Duration::ZERO,
    };
    Duration::from_secs(status.details.as_ref().map_or(0, |details| details.retry_after_seconds).into())
}

/// A number from 0 to 1 that differs between agents and moments; no more is asked of it.
pub fn draw() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let bits = RandomState::new().hash_one(0_u8);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
