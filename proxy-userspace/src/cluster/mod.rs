//! Where the agent's orders come from: a Kubernetes API server or a folder of manifests. Both deliver the same
//! [`Event`]s through a channel.

pub mod kubernetes;
pub mod manifests;
mod notice;
pub mod types;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::config::Source;
use crate::metrics::Requests;
pub use notice::{About, Notice, Notices, Told};
use types::{Node, ObjectName, Problem, Service, ServiceCidr, Slice};

/// What a source tells. Lists are whole: nothing may be removed before Services and EndpointSlices have each
/// delivered one (I1, C-35).
#[derive(Clone, Debug)]
pub enum Event {
    Services(Change<Service, ObjectName>),
    Slices(Change<Slice, ObjectName>),
    Nodes(Change<Node, Arc<str>>),
    ServiceCidrs(Change<ServiceCidr, Arc<str>>),
    /// The source's own problems (files that cannot be read, requests that are refused); replaces the previous list.
    Problems(Vec<Problem>),
    /// Whether the source can be reached, told when it changes; at first it counts as not reached.
    Connection {
        connected: bool,
    },
}

/// A change of one kind of object, named by `N`.
#[derive(Clone, Debug)]
pub enum Change<T, N> {
    /// The complete list; what is not in it is gone (C-04).
    Snapshot(Vec<T>),
    Apply(T),
    Delete(N),
}

/// What to look at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// This node's name.
    pub node: Arc<str>,
    /// Whether ServiceCIDRs matter.
    pub service_cidrs: bool,
}

/// What goes between a source and the rest of the agent.
#[derive(Debug)]
pub struct Channels {
    pub events: mpsc::Sender<Event>,
    /// Only a cluster can be told.
    pub notices: mpsc::Receiver<Notice>,
    pub requests: Requests,
}

/// Follows the configured source until the receiver of events is gone.
pub async fn follow(source: Source, scope: Scope, channels: Channels) {
    match source {
        Source::Manifests(folder) => manifests::follow(folder, channels.events).await,
        Source::Kubernetes { kubeconfig, master } => {
            kubernetes::follow(kubernetes::Access::new(kubeconfig, master), scope, channels).await;
        }
    }
}

/// What would make [`follow`] wait for ever: mistakes in flags, and in what they name.
///
/// # Errors
/// There is no such folder, or no way to log in.
pub async fn check(source: &Source) -> Result<(), SourceError> {
    match source {
        Source::Manifests(folder) => match std::fs::read_dir(folder) {
            Ok(_) => Ok(()),
            Err(source) => Err(SourceError::Folder { folder: folder.clone(), source }),
        },
        Source::Kubernetes { kubeconfig, master } => {
            let access = kubernetes::Access::new(kubeconfig.clone(), master.clone());
            Ok(kubernetes::check(&access).await?)
        }
    }
}

/// Why there is no source to follow.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("--manifests {}: {source}; it must name a directory with YAML or JSON files that the agent can read", folder.display())]
    Folder { folder: PathBuf, source: std::io::Error },
    #[error("login to the API server: {0}")]
    Login(#[from] kubernetes::login::LoginError),
}
