//! kube-proxy's HTTP end points: health for load balancers and the kubelet, metrics and debugging for operators.

mod configz;
pub mod health;
mod server;

pub use configz::configuration;
pub use server::{Clock, Health, Snapshot, health_routes, metrics_routes, serve};
