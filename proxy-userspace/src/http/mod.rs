//! kube-proxy's HTTP end points: health for load balancers and the kubelet, metrics and debugging for operators.

mod configz;
mod connections;
pub mod health;
mod node_ports;
mod server;

pub use configz::configuration;
pub use node_ports::{Checks, Places, serve_node_ports};
pub use server::{Clock, Health, Server, Snapshot, health_routes, metrics_routes, serve};
