//! Where the agent's orders come from: a Kubernetes API server or a folder of manifests. Both deliver the same
//! [`Event`]s through a channel.

pub mod manifests;
pub mod types;

use std::sync::Arc;

use types::{Node, ObjectName, Problem, Service, Slice};

/// What a source tells. Lists are whole: nothing may be removed before Services and EndpointSlices have each
/// delivered one (I1, C-35).
#[derive(Clone, Debug)]
pub enum Event {
    Services(Change<Service, ObjectName>),
    Slices(Change<Slice, ObjectName>),
    Nodes(Change<Node, Arc<str>>),
    /// The source's own problems (files that cannot be read, requests that are refused); replaces the previous list.
    Problems(Vec<Problem>),
    /// Whether the source can be reached at present.
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
