//! A real control plane for tests and for the demo: etcd and kube-apiserver in a network namespace of their own, with
//! RBAC, an audit log, and the ServiceAccount that kubeadm gives to kube-proxy. Nothing here imitates an API server.
//!
//! A story reads from [`ControlPlane`] (the servers) through [`Admin`] (who writes objects), [`ServiceAccount`] and
//! [`TokenDir`] (who the agent is) to [`Agent`] (the process under test) and [`audit`] (what it asked for).

mod admin;
mod agent;
pub mod audit;
mod bed;
mod control_plane;
mod identity;
mod netns;
pub mod objects;
mod pki;
mod process;
mod scratch;
mod wait;

pub use admin::{Admin, Login, refusal};
pub use agent::{Agent, AgentOptions, SECRETS, sluice_binary};
pub use bed::{Bed, privatise_mounts};
pub use control_plane::{Binaries, ControlPlane, PLANE_ADDRESS};
pub use identity::{BoundToken, ServiceAccount, TokenDir, USER};
pub use netns::NetNs;
pub use pki::Authority;
pub use process::Process;
pub use scratch::Scratch;
pub use wait::{poll, until};
