//! One API server with the matrix in it, for several nodes that all believe to be `n1`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Case;
use super::case::SPACE;
use crate::api::{Admin, ControlPlane, Login, Uplink, kubeconfig};
use crate::lab::app::node;
use crate::lab::namespace::Namespace;

/// Where the API has them.
pub(super) const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces";

/// The zones of n1 and n2.
pub const ZONES: [(&str, &str); 2] = [("n1", "east"), ("n2", "west")];

/// A running control plane.
pub struct Plane {
    plane: ControlPlane,
    kubeconfig: PathBuf,
}

impl Plane {
    /// Starts it with the Nodes and these Services.
    ///
    /// # Errors
    /// A server does not come up, or refuses an object.
    pub fn start(cases: &[Case]) -> Result<Self> {
        let plane = ControlPlane::start()?;
        let admin = plane.admin();
        for (name, zone) in ZONES {
            let mut object = node(name);
            object["metadata"]["labels"] =
                json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
            admin.create("/api/v1/nodes", &object)?;
        }
        let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SPACE}});
        admin.create("/api/v1/namespaces", &space)?;
        let login = Login::Certificate(&plane.file("admin.crt"), &plane.file("admin.key"));
        let config = kubeconfig(&plane.url(), &plane.file("both.crt"), &login);
        let path = plane.file("proxy.kubeconfig");
        std::fs::write(&path, config.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let plane = Self { plane, kubeconfig: path };
        cases.iter().try_for_each(|case| plane.create(case).with_context(|| case.name.clone()))?;
        Ok(plane)
    }

    pub(super) fn create(&self, case: &Case) -> Result<()> {
        let (admin, services) = (self.plane.admin(), format!("/api/v1/namespaces/{SPACE}/services"));
        admin.create(&services, &case.service())?;
        if let Some(status) = case.status() {
            admin.patch(&format!("{services}/{}/status", case.name), &status)?;
        }
        for slice in case.slices() {
            admin.create(&format!("{SLICES}/{SPACE}/endpointslices"), &slice)?;
        }
        Ok(())
    }

    /// Creates Services, each with its slice, in a namespace of theirs.
    ///
    /// # Errors
    /// The API server refuses one.
    pub fn add(&self, space: &str, objects: impl Iterator<Item = [Value; 2]>) -> Result<()> {
        let admin = self.plane.admin();
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": space}});
        admin.create("/api/v1/namespaces", &object)?;
        let services = format!("/api/v1/namespaces/{space}/services");
        let slices = format!("{SLICES}/{space}/endpointslices");
        for [service, slice] in objects {
            admin.create(&services, &service)?;
            admin.create(&slices, &slice)?;
        }
        Ok(())
    }

    /// Connects a node to the API server.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn connect(&self, node: &Namespace) -> Result<Uplink> {
        Uplink::connect(&self.plane, node, "plane0")
    }

    /// How proxies log in.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub(super) fn remove(&self, case: &Case) -> Result<()> {
        for slice in case.slices() {
            let name = slice["metadata"]["name"].as_str().unwrap_or_default();
            self.admin().delete(&format!("{SLICES}/{SPACE}/endpointslices/{name}"))?;
        }
        self.admin().delete(&format!("/api/v1/namespaces/{SPACE}/services/{}", case.name))
    }

    pub(super) fn admin(&self) -> &Admin {
        self.plane.admin()
    }
}
