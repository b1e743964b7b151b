//! From a failed request to one line that says what to look at.

use std::error::Error;
use std::fmt::Display;

use kube::Error as KubeError;
use kube::error::Status;
use kube::runtime::watcher;

use super::login::Hints;
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

/// Why a list or watch failed, for people. The text never holds the token.
pub fn explain(error: &watcher::Error, resource: Resource, hints: &Hints) -> Problem {
    let (verb, what, next) = match error {
        watcher::Error::InitialListFailed(error) => request("list", error, resource, hints),
        watcher::Error::WatchStartFailed(error) | watcher::Error::WatchFailed(error) => {
            request("watch", error, resource, hints)
        }
        watcher::Error::WatchError(status) => answer("watch", status, resource, hints),
        watcher::Error::NoResourceVersion => {
            ("watch", "the answer has no resourceVersion".to_owned(), unreachable_server(hints))
        }
    };
    Problem::new(format_args!("API server {}, {verb} {}", hints.server, resource.plural), what, next)
}

type Told = (&'static str, String, String);

fn request(verb: &'static str, error: &KubeError, resource: Resource, hints: &Hints) -> Told {
    if let KubeError::Api(status) = error {
        return answer(verb, status, resource, hints);
    }
    let causes: Vec<_> = chain(error).collect();
    if let Some(token) = causes.iter().find_map(|cause| cause.downcast_ref::<TokenError>()) {
        return (verb, token.to_string(), "put a ServiceAccount's token there".to_owned());
    }
    let cause = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
    let has = |text: &str| causes.iter().any(|cause| cause.to_string().contains(text));
    let next = if has("UnknownIssuer") || has("BadSignature") {
        format!("check that {} is the cluster's CA", hints.ca)
    } else if has("NotValidForName") || has("not valid for name") {
        "use an address that the server's certificate names".to_owned()
    } else if has("certificate expired") || has("Expired") || has("not valid yet") {
        "renew the server's certificate or correct the clock".to_owned()
    } else if matches!(error, KubeError::SerdeError(_)) {
        "check that the address is a Kubernetes API server's".to_owned()
    } else {
        unreachable_server(hints)
    };
    (verb, one_line(&cause), next)
}

fn answer(verb: &'static str, status: &Status, resource: Resource, hints: &Hints) -> Told {
    let group = if resource.group.is_empty() { "the core group" } else { resource.group };
    let (what, next) = match status.code {
        401 => (
            "401: the server does not know the agent".to_owned(),
            format!("check {}: it must hold a valid token of the agent's ServiceAccount", hints.identity),
        ),
        403 => (
            format!("403: {}", one_line(&status.message)),
            format!(
                "allow {verb} on {} in {group}: bind ClusterRole system:node-proxier to the agent's ServiceAccount",
                resource.plural
            ),
        ),
        404 => (
            format!("404: the server has no {} in {group}", resource.plural),
            "check that the address is a Kubernetes API server's and its version is supported".to_owned(),
        ),
        code => (
            format!("{code} {}: {}", status.reason, one_line(&status.message)),
            "nothing, the agent tries again".to_owned(),
        ),
    };
    (verb, what, next)
}

fn unreachable_server(hints: &Hints) -> String {
    format!("check that {} can be reached from this node", hints.server)
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
