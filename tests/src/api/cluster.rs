//! The laboratory's bed under a real API server: the other place, beside a folder, that an [`App`]'s objects can be in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{ControlPlane, ServiceAccount, TokenDir, USER, Uplink};
use crate::lab::app::{App, Objects, node};
use crate::lab::namespace::Namespace;

/// The namespace of [`App`]s.
const SPACE: &str = "lab";
const LABEL: &str = "kubernetes.io/service-name";

/// A control plane that knows the bed's nodes, connected to its node n1.
pub struct Cluster {
    plane: ControlPlane,
    secrets: TokenDir,
    kubeconfig: PathBuf,
    _uplink: Uplink,
}

impl Cluster {
    /// Starts it, with the ServiceAccount `kube-system/kube-proxy` and a token for the agent. `n1` gets the device
    /// `plane0`.
    ///
    /// # Errors
    /// If a server does not come up or refuses.
    pub fn start(n1: &Namespace) -> Result<Self> {
        let plane = ControlPlane::start()?;
        let uplink = Uplink::connect(&plane, n1, "plane0")?;
        let admin = plane.admin();
        for name in ["n1", "n2"] {
            admin.create("/api/v1/nodes", &node(name))?;
        }
        let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}});
        admin.create("/api/v1/namespaces", &space)?;
        let token = ServiceAccount::set_up(admin)?.token()?;
        let secrets = TokenDir::new(&plane, &token.token)?;
        let kubeconfig = secrets.own_kubeconfig(&plane.url())?;
        Ok(Self { plane, secrets, kubeconfig, _uplink: uplink })
    }

    /// The servers.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Puts a fresh token in the old one's place, as a kubelet does before the old one expires.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn rotate_token(&self) -> Result<()> {
        let token = ServiceAccount::set_up(self.plane.admin())?.token()?;
        self.secrets.publish(Some(&token.token), Some(self.plane.authority().pem()))
    }

    /// How often the agent has asked for what, and with what answer: `(verb, group/resource, status)`.
    ///
    /// # Errors
    /// If the audit log cannot be read.
    pub fn asked(&self) -> Result<BTreeMap<(String, String, u16), usize>> {
        let mut counts = BTreeMap::new();
        for entry in self.plane.audit(0)?.iter().filter(|entry| entry.user.username == USER) {
            *counts.entry((entry.verb.clone(), entry.target(), entry.code())).or_default() += 1;
        }
        Ok(counts)
    }

    fn remove_slices(&self, app: &App, keep: &[String]) -> Result<()> {
        let folder = format!("/apis/discovery.k8s.io/v1/namespaces/{SPACE}/endpointslices");
        let list = self.plane.admin().get(&format!("{folder}?labelSelector={LABEL}%3D{}", app.name))?;
        for slice in list["items"].as_array().into_iter().flatten() {
            let name = slice["metadata"]["name"].as_str().context("a slice without a name")?;
            if !keep.iter().any(|kept| kept == name) {
                self.plane.admin().delete(&format!("{folder}/{name}"))?;
            }
        }
        Ok(())
    }
}

impl Objects for Cluster {
    fn apply(&self, app: &App) -> Result<()> {
        let mut names = Vec::new();
        for mut object in app.objects() {
            let (path, name) = place(&object)?;
            // The server gives these itself and takes others for a conflict.
            for given in ["uid", "creationTimestamp"] {
                object["metadata"].as_object_mut().context("an object without metadata")?.remove(given);
            }
            self.plane.admin().apply(&path, &object)?;
            if !object["status"].is_null() {
                let status = json!({"status": object["status"]});
                self.plane.admin().patch(&format!("{path}/status"), &status)?;
            }
            names.push(name);
        }
        self.remove_slices(app, &names)
    }

    fn delete(&self, app: &App) -> Result<()> {
        self.plane.admin().delete(&format!("/api/v1/namespaces/{SPACE}/services/{}", app.name))?;
        self.remove_slices(app, &[])
    }

    fn flags(&self) -> Vec<String> {
        vec!["--kubeconfig".to_owned(), self.kubeconfig.display().to_string()]
    }

    fn name(&self) -> &'static str {
        "a real API server"
    }
}

/// Where the API has an object, and its name.
fn place(object: &Value) -> Result<(String, String)> {
    let name = object["metadata"]["name"].as_str().context("an object without a name")?;
    let folder = match object["kind"].as_str() {
        Some("Service") => format!("/api/v1/namespaces/{SPACE}/services"),
        Some("EndpointSlice") => format!("/apis/discovery.k8s.io/v1/namespaces/{SPACE}/endpointslices"),
        other => bail!("{name}: no place for the kind {other:?}"),
    };
    Ok((format!("{folder}/{name}"), name.to_owned()))
}
