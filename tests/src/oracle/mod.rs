//! Upstream's kube-proxy beside Sluice: same objects, identical beds, same probes.
//!
//! A [`Plane`] is one API server with every [`Case`] of the matrix in it. A [`Bench`] is two beds under it: in one
//! Sluice serves the node, in the other kube-proxy, both started with the same configuration file. A [`Cell`] is one
//! client that dials one address; [`observe`] tells what becomes of it, [`declared`] holds the differences that are
//! meant, and [`reconcile`](reconcile::reconcile) looks for others.

pub mod bench;
pub mod case;
pub mod cell;
pub mod change;
pub mod declared;
mod kube_proxy;
pub mod matrix;
pub mod observe;
pub mod plane;
pub mod reconcile;
mod variant;

pub use bench::{Bench, Mode};
pub use case::Case;
pub use cell::Cell;
pub use kube_proxy::KubeProxy;
pub use observe::{Fate, Observation};
pub use plane::Plane;
pub use variant::Variant;
