//! The kinds of objects that the agent reads, reduced to what it needs: about a tenth of the full types'
//! memory. The same types serve the API and manifests.

mod loose;
mod meta;
mod node;
mod recent;
mod service;
mod service_cidr;
mod slice;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

pub use meta::{Kind, Watched};
pub use node::Node;
pub use service::{Service, ServicePort, ServiceType, SourceRanges};
pub use service_cidr::ServiceCidr;
pub use slice::{Hints, Places, Slice, SliceEndpoint, SlicePort};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectName {
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: recent::shared(namespace), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Something in an object that cannot be served, without the object's name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Defect {
    pub what: String,
    pub next: String,
}

/// Something that keeps the agent from serving all that it was told to serve, for status and log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The object: `Service default/web`, a file, or a resource of the API.
    pub object: String,
    /// What is wrong, and what became of it.
    pub what: String,
    /// What to do about it.
    pub next: String,
}

impl Problem {
    #[must_use]
    pub fn new(object: impl fmt::Display, what: impl fmt::Display, next: impl fmt::Display) -> Self {
        Self { object: object.to_string(), what: what.to_string(), next: next.to_string() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.object, self.what, self.next)
    }
}
