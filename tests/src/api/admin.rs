//! A client of the API server for the tests' own hand: blocking, plain JSON, from inside the server's namespace.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::lab::namespace::{Namespace, enter};

/// Longest time for one request; an API server under load still answers well within it.
const LIMIT: Duration = Duration::from_secs(10);

/// How the client says who it is.
pub enum Login<'a> {
    /// Client certificate and key, as files.
    Certificate(&'a Path, &'a Path),
    /// Bearer token.
    Token(&'a str),
}

struct Job {
    request: Request<Vec<u8>>,
    answer: Sender<Result<Value>>,
}

/// A logged-in client. Its connections are made by a thread of its own inside the API server's namespace.
pub struct Admin {
    jobs: Sender<Job>,
}

impl Admin {
    /// A client for `server` (URL) that trusts the authority in the file `ca`; connects at the first request.
    ///
    /// # Errors
    /// If the login is unusable.
    pub fn new(netns: &Namespace, server: &str, ca: &Path, login: &Login<'_>) -> Result<Self> {
        let config = kubeconfig(server, ca, login);
        let config: Kubeconfig = serde_json::from_value(config).context("bad kubeconfig")?;
        let netns = netns.path().to_owned();
        let (jobs, inbox) = channel();
        let (ready, outcome) = channel();
        thread::spawn(move || serve(&netns, config, &inbox, &ready));
        outcome.recv().context("the client's thread died")??;
        Ok(Self { jobs })
    }

    /// Sends one request and returns the answer's JSON.
    ///
    /// # Errors
    /// [`kube::Error::Api`] for a refusal, anything else if there was no answer.
    pub fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        self.send(method, path, kind, body)
    }

    fn send(&self, method: Method, path: &str, kind: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(Value::to_string).unwrap_or_default().into_bytes();
        let request = Request::builder().method(&method).uri(path).header("content-type", kind);
        let request = request.body(body).with_context(|| format!("bad request for {path}"))?;
        let (answer, outcome) = channel();
        self.jobs.send(Job { request, answer }).map_err(|_| anyhow!("the client's thread is gone"))?;
        let answer = outcome.recv().context("the client's thread died")?;
        answer.with_context(|| format!("{method} {path}"))
    }

    /// Reads one object or list.
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None)
    }

    /// Creates `object` in the collection at `path` and returns what the server stored.
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.request(Method::POST, path, Some(object))
    }

    /// Creates or replaces the object at `path` (server-side apply).
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn apply(&self, path: &str, object: &Value) -> Result<Value> {
        let path = format!("{path}?fieldManager=laboratory&force=true");
        self.send(Method::PATCH, &path, "application/apply-patch+yaml", Some(object))
    }

    /// Merges `patch` into the object at `path` (RFC 7396: null removes).
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        self.request(Method::PATCH, path, Some(patch))
    }

    /// Deletes the object at `path`.
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn delete(&self, path: &str) -> Result<()> {
        self.request(Method::DELETE, path, None).map(drop)
    }
}

/// The HTTP status of a refusal, if `error` is one.
pub fn refusal(error: &anyhow::Error) -> Option<u16> {
    error.chain().find_map(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.code),
        _ => None,
    })
}

/// A kubeconfig with one context; also fit for `kubectl`, since JSON is YAML.
pub fn kubeconfig(server: &str, ca: &Path, login: &Login<'_>) -> Value {
    let user = match login {
        Login::Certificate(certificate, key) => {
            json!({"client-certificate": certificate, "client-key": key})
        }
        Login::Token(token) => json!({"token": token}),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": "default", "user": user}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    })
}

fn serve(netns: &Path, config: Kubeconfig, inbox: &Receiver<Job>, ready: &Sender<Result<()>>) {
    let started = enter(netns).and_then(|()| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(config, &options).await?;
            config.proxy_url = None;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok((runtime, client))
    });
    let (runtime, client) = match started {
        Ok(started) => started,
        Err(error) => return drop(ready.send(Err(error))),
    };
    let _ = ready.send(Ok(()));
    for Job { request, answer } in inbox {
        let outcome = runtime.block_on(async {
            let answer = tokio::time::timeout(LIMIT, client.request::<Value>(request)).await;
            Ok(answer.with_context(|| format!("no answer within {LIMIT:?}"))??)
        });
        // Nobody waits any more: the test that asked has panicked.
        let _ = answer.send(outcome);
    }
}
