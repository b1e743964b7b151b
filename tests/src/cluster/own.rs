//! The overlay `own` in a cluster: Sluice's own DaemonSet where kube-proxy's has no node to run on.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::kubectl::until;
use super::{KUBE_PROXY, Kubectl, SYSTEM};
use crate::api::Scratch;
use crate::lab::command;

/// Installed while this lives. kube-proxy's DaemonSet runs nowhere meanwhile.
pub struct Own<'a> {
    kubectl: &'a Kubectl,
    folder: Scratch,
}

impl<'a> Own<'a> {
    /// Makes the two edits that the overlay asks for, applies it, and waits until it runs on every node.
    ///
    /// # Errors
    /// It does not come up.
    pub fn apply(kubectl: &'a Kubectl, image: &str) -> Result<Self> {
        let own = Self { kubectl, folder: Scratch::new()? };
        let folder = own.folder.path().display().to_string();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize/.");
        command::run("cp", &["-r", source, &folder])?;
        edit(&own.overlay().join("kubeconfig.conf"), "https://API-SERVER-ADDRESS:6443", &server(kubectl)?)?;
        let (name, tag) = image.rsplit_once(':').context("the image's name has no tag")?;
        let kustomization = own.overlay().join("kustomization.yaml");
        edit(&kustomization, "newName: docker.io/library/sluice", &format!("newName: {name}"))?;
        edit(&kustomization, "newTag: 0.1.0", &format!("newTag: \"{tag}\""))?;
        own.run_kube_proxy_on(r#"{"sluice-suite/kube-proxy":"nowhere"}"#)?;
        until(90, "kube-proxy runs nowhere", || {
            let pods =
                kubectl.run(&["-n", SYSTEM, "get", "pods", "-l", "k8s-app=kube-proxy", "-o", "name"])?;
            Ok(pods.trim().is_empty())
        })?;
        kubectl.run(&["apply", "-k", &own.overlay().display().to_string()])?;
        kubectl.rolled_out(SYSTEM, "daemonset/sluice")?;
        Ok(own)
    }

    fn overlay(&self) -> std::path::PathBuf {
        self.folder.path().join("own")
    }

    /// Adds to kube-proxy's node selector; `null` takes away.
    fn run_kube_proxy_on(&self, selector: &str) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        self.kubectl.run(&["-n", SYSTEM, "patch", "daemonset", KUBE_PROXY, "-p", &patch]).map(drop)
    }

    fn remove(&self) -> Result<()> {
        let overlay = self.overlay().display().to_string();
        self.kubectl.run(&["delete", "-k", &overlay, "--ignore-not-found", "--wait"])?;
        self.run_kube_proxy_on(r#"{"sluice-suite/kube-proxy":null}"#)?;
        self.kubectl.rolled_out(SYSTEM, &format!("daemonset/{KUBE_PROXY}"))
    }
}

impl Drop for Own<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the cluster is not as it was: {error:#}");
        }
    }
}

/// The API server as kubeadm tells kube-proxy where it is.
fn server(kubectl: &Kubectl) -> Result<String> {
    let map = kubectl.json(&["-n", SYSTEM, "get", "configmap", KUBE_PROXY])?;
    let file =
        map["data"]["kubeconfig.conf"].as_str().context("kube-proxy's ConfigMap has no kubeconfig.conf")?;
    let server = file.lines().find_map(|line| line.trim().strip_prefix("server: "));
    Ok(server.context("no server in kube-proxy's kubeconfig.conf")?.to_owned())
}

fn edit(path: &Path, from: &str, to: &str) -> Result<()> {
    let before = fs::read_to_string(path)?;
    ensure!(before.contains(from), "{} does not say {from}", path.display());
    fs::write(path, before.replace(from, to)).with_context(|| path.display().to_string())
}
