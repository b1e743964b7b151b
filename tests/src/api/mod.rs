//! A real control plane for tests and for the demo: etcd and kube-apiserver in a network namespace of their own, with
//! RBAC, an audit log, and the ServiceAccount that kubeadm gives to kube-proxy. Nothing here imitates an API server.
//!
//! A story reads from [`ControlPlane`] (the servers) through [`Admin`] (who writes objects), [`ServiceAccount`] and
//! [`TokenDir`] (who the agent is) to [`Agent`] (the process under test) and [`audit`] (what it asked for).

mod admin;
mod agent;
pub mod audit;
mod bed;
mod cluster;
mod control_plane;
mod flows;
mod identity;
pub mod objects;
mod pki;
mod process;
mod scratch;
mod uplink;

pub use admin::{Admin, Login, kubeconfig, refusal};
pub use agent::{Agent, AgentOptions, SECRETS, in_cluster};
pub use bed::Bed;
pub use cluster::Cluster;
pub use control_plane::{Binaries, ControlPlane, PLANE_ADDRESS, PLANE_ADDRESS6};
pub use flows::{Flows, HELD_PORT};
pub use identity::{BoundToken, ServiceAccount, TokenDir, USER};
pub use pki::Authority;
pub use process::Process;
pub use scratch::Scratch;
pub use uplink::Uplink;
