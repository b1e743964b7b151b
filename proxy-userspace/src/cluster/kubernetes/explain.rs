//! From a failed request to one line that says what to look at.

use std::error::Error;
use std::fmt::Display;

use kube::Error as KubeError;
use kube::client::AuthError;
use kube::error::Status;
use kube::runtime::watcher;

use super::login::{self, Hints};
use super::token::TokenError;
use crate::cluster::types::{Kind, Problem};

/// What a request was for.
#[derive(Clone, Copy, Debug)]
pub struct Resource {
    pub group: &'static str,
    pub plural: &'static str,
}

impl Resource {
    pub const fn of<T: Kind>() -> Self {
        Self { group: T::GROUP, plural: T::PLURAL }
    }
}

/// Why a list or watch failed, for people. The text never holds the token. A cause that has nothing to do with the
/// kind of object does not name it.
pub fn explain(error: &watcher::Error, resource: Resource, hints: &Hints) -> Problem {
    match error {
        watcher::Error::InitialListFailed(KubeError::Api(status)) => answer("list", status, resource, hints),
        watcher::Error::WatchStartFailed(KubeError::Api(status))
        | watcher::Error::WatchFailed(KubeError::Api(status)) => answer("watch", status, resource, hints),
        watcher::Error::WatchError(status) => answer("watch", status, resource, hints),
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => no_answer(error, hints),
        watcher::Error::NoResourceVersion => {
            Problem::new(server(hints), "an answer has no resourceVersion", NOT_AN_API_SERVER)
        }
    }
}

const NOT_AN_API_SERVER: &str = "check that the address is a Kubernetes API server's";

fn server(hints: &Hints) -> String {
    format!("API server {}", hints.server)
}

fn no_answer(error: &KubeError, hints: &Hints) -> Problem {
    let causes: Vec<_> = chain(error).collect();
    if let Some(token) = causes.iter().find_map(|cause| cause.downcast_ref::<TokenError>()) {
        return Problem::new(server(hints), token, "put a ServiceAccount's token there");
    }
    if let Some(refused) = causes.iter().find_map(|cause| cause.downcast_ref::<AuthError>()) {
        let next = format!("correct {}, or what it names", hints.identity);
        return Problem::new(server(hints), login::refused(refused), next);
    }
    let cause = match causes.last().map_or_else(|| error.to_string(), ToString::to_string) {
        timeout if timeout == "deadline has elapsed" => "no answer in time".to_owned(),
        cause => cause,
    };
    let has = |text: &str| causes.iter().any(|cause| cause.to_string().contains(text));
    let next = if has("UnknownIssuer") || has("BadSignature") {
        format!("check that {} is the cluster's CA", hints.ca)
    } else if has("NotValidForName") || has("not valid for name") {
        "use an address that the server's certificate names".to_owned()
    } else if has("certificate expired") || has("Expired") || has("not valid yet") {
        "renew the server's certificate or correct the clock".to_owned()
    } else if matches!(error, KubeError::SerdeError(_)) {
        NOT_AN_API_SERVER.to_owned()
    } else {
        format!("check that {} can be reached from this node", hints.server)
    };
    Problem::new(server(hints), one_line(&cause), next)
}

fn answer(verb: &str, status: &Status, resource: Resource, hints: &Hints) -> Problem {
    let group = if resource.group.is_empty() { "the core group" } else { resource.group };
    let Hints { server, identity, .. } = hints;
    let plural = resource.plural;
    let request = format!("API server {server}, {verb} {plural}");
    let message = one_line(&status.message);
    match status.code {
        401 => Problem::new(
            format_args!("API server {server}"),
            "401: the server does not know the agent",
            format_args!("check {identity}: it must hold a valid token of the agent's ServiceAccount"),
        ),
        403 => Problem::new(
            request,
            format_args!("403: {message}"),
            format_args!(
                "allow {verb} on {plural} in {group}: bind ClusterRole system:node-proxier to the agent's ServiceAccount"
            ),
        ),
        404 => Problem::new(
            request,
            format_args!("404: the server has no {plural} in {group}"),
            NOT_AN_API_SERVER,
        ),
        // kube's way to say that a line of a stream could not be read; after the list, a new one is asked for instead.
        0 => Problem::new(
            request,
            "an object cannot be read, left out",
            "correct the object: it is read when it changes",
        ),
        code => {
            let what = format_args!("{code} {}: {message}", status.reason);
            Problem::new(request, what, "nothing, the agent tries again")
        }
    }
}

fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

fn one_line(text: &impl Display) -> String {
    text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}
