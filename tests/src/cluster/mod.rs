//! A cluster that somebody else has set up: kubeadm's kube-proxy DaemonSet, three nodes or one. Everything goes by kubectl.

mod bed;
mod held;
mod kubectl;
mod own;

pub use bed::{Bed, Client, Frontend, Where};
pub use held::Held;
pub use kubectl::{Kubectl, until};
pub use own::Own;

use std::env;

use crate::harness::Skip;

/// Where kubeadm's DaemonSet is.
const SYSTEM: &str = "kube-system";
/// Its name.
const KUBE_PROXY: &str = "kube-proxy";

/// What the suite is told about the cluster, by the environment.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `SLUICE_KUBECONFIG`.
    pub kubeconfig: String,
    /// `SLUICE_KUBECTL`: kubectl, with words before it where it must run elsewhere; default `kubectl`.
    pub kubectl: String,
    /// `SLUICE_LOAD_IMAGE`: a command that takes an image archive as its last word and loads it into all nodes.
    pub load: String,
    /// `SLUICE_IMAGE`: the archive, made by `cargo xtask image`.
    pub archive: String,
    /// `SLUICE_IMAGE_NAME`.
    pub image: String,
    /// `SLUICE_OUTSIDE`: words before `sh -c LINE` that run the line on a machine that is no node and reaches the nodes (`env`:
    /// this one); none: nobody asks from outside.
    pub outside: Option<String>,
    /// `SLUICE_CLIENT_IMAGE`: agnhost, or another image with `agnhost`, a shell, nc and curl.
    pub client: String,
}

impl Settings {
    /// # Errors
    /// No cluster is given.
    pub fn of_environment() -> Result<Self, Skip> {
        let required = |name: &str| {
            let value = env::var(name).ok().filter(|value| !value.is_empty());
            value.ok_or_else(|| Skip(format!("no cluster is given: {name} is not set")))
        };
        let or = |name: &str, default: &str| required(name).unwrap_or_else(|_| default.to_owned());
        Ok(Self {
            kubeconfig: required("SLUICE_KUBECONFIG")?,
            load: required("SLUICE_LOAD_IMAGE")?,
            archive: required("SLUICE_IMAGE")?,
            image: required("SLUICE_IMAGE_NAME")?,
            outside: required("SLUICE_OUTSIDE").ok(),
            kubectl: or("SLUICE_KUBECTL", "kubectl"),
            client: or("SLUICE_CLIENT_IMAGE", "registry.k8s.io/e2e-test-images/agnhost:2.53"),
        })
    }
}
