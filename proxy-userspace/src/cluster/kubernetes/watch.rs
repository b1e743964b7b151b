//! One kind of object, listed and watched for ever.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher::{self, Event as WatchEvent};
use kube::{Api, Client, Error as KubeError};
use tokio::sync::mpsc;

use super::explain::{Resource, explain};
use super::login::Hints;
use super::pace::{Backoff, Pace};
use super::state::State;
use crate::cluster::types::{Kind, Watched};
use crate::cluster::{Change, Event};

/// A watch is renewed this often, so that a server which has gone silent is noticed within a minute (C-05).
pub const WATCH_SECONDS: u32 = 50;

/// A server that streams lists sends something within this time; one that does not know them may stay silent.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How a kind is asked for; each step down is taken when the server refuses the one before (C-07, A1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Stream,
    List,
    /// Without the field selector, which servers before 1.31 do not know.
    ListAll,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Go on with the same watcher.
    Continue,
    /// Begin with a list, by this method.
    Restart(Method),
    /// The identity is not accepted: log in anew.
    Login,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Selector {
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// Whether the watch makes sense without the field selector.
    pub fields_optional: bool,
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
    let mut list = Vec::new();
    let mut listed = false;
    loop {
        let silent = async {
            if method == Method::Stream && !listed {
                tokio::time::sleep(FIRST_LIST).await;
            } else {
                std::future::pending().await
            }
        };
        let event = tokio::select! {
            event = stream.next() => event?,
            () = silent => return Some(Next::Restart(Method::List)),
            () = session.events.closed() => return None,
        };
        let change = match event {
            Ok(WatchEvent::Init) => {
                list.clear();
                listed = false;
                continue;
            }
            Ok(WatchEvent::InitApply(watched)) => {
                list.push(watched.object);
                continue;
            }
            Ok(WatchEvent::InitDone) => {
                listed = true;
                Change::Snapshot(std::mem::take(&mut list))
            }
            Ok(WatchEvent::Apply(watched)) => Change::Apply(watched.object),
            Ok(WatchEvent::Delete(watched)) => Change::Delete(name(&watched.object)),
            Err(error) => {
                let next = judge(&error, method, listed, selector);
                if let Next::Restart(_) = next {
                    // Nothing is wrong: the server has forgotten the version, or is an older one.
                    backoff.reset();
                } else {
                    let problem = explain(&error, Resource::of::<T>(), &session.hints);
                    session.state.set(T::PLURAL, Err(problem)).await;
                }
                if next == Next::Login {
                    return Some(next);
                }
                session.pace.wait(backoff.next(retry_after(&error), draw())).await;
                if next == Next::Continue {
                    continue;
                }
                return Some(next);
            }
        };
        backoff.reset();
        session.events.send(wrap(change)).await.ok()?;
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
        _ => return Next::Continue,
    };
    match (code, method) {
        (401, _) => Next::Login,
        (410 | 504, _) if listed => Next::Restart(method),
        (400 | 405 | 406 | 422, Method::Stream) if !listed => Next::Restart(Method::List),
        (400, Method::List) if !listed && selector.fields_optional => Next::Restart(Method::ListAll),
        _ => Next::Continue,
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
