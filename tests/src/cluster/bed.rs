use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::until;
use super::{Kubectl, Settings};
use crate::lab::command;

/// Namespace of everything that the suite makes, but for what it changes in kube-proxy's DaemonSet.
const NAMESPACE: &str = "sluice-suite";
const SYSTEM: &str = "kube-system";
const DAEMON_SET: &str = "kube-proxy";

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Pod,
    Node,
}

/// A pod to run things in.
#[derive(Clone, Debug)]
pub struct Client {
    pub pod: String,
    pub node: String,
    pub place: Where,
}

/// Servers on every node behind a Service, and clients in pods and on nodes.
#[derive(Debug)]
pub struct Bed {
    pub kubectl: Kubectl,
    settings: Settings,
    /// The image that the DaemonSet had.
    upstream: String,
    pub clients: Vec<Client>,
    pub nodes: Vec<(String, String)>,
    pub cluster_ip: String,
    pub node_port: u16,
}

impl Bed {
    /// # Errors
    /// The cluster does not answer, has no kube-proxy DaemonSet, or does not start the pods.
    pub fn make(settings: Settings) -> Result<Self> {
        let kubectl = Kubectl::new(&settings)?;
        let set = kubectl.json(&["-n", SYSTEM, "get", "daemonset", DAEMON_SET])?;
        let upstream =
            text(&set, "/spec/template/spec/containers/0/image").context("no image in the DaemonSet")?;
        let load: Vec<&str> = settings.load.split_whitespace().chain([settings.archive.as_str()]).collect();
        let (program, arguments) = load.split_first().context("SLUICE_LOAD_IMAGE is empty")?;
        command::run(program, arguments)?;
        let manifest = include_str!("bed.yaml").replace("CLIENT_IMAGE", &settings.client);
        kubectl.with_input(&["apply", "-f", "-"], &manifest)?;
        let mut bed = Self {
            kubectl,
            settings,
            upstream,
            clients: Vec::new(),
            nodes: Vec::new(),
            cluster_ip: String::new(),
            node_port: 0,
        };
        bed.settle()?;
        Ok(bed)
    }

    fn settle(&mut self) -> Result<()> {
        for set in ["web", "pod", "node"] {
            self.rolled_out(NAMESPACE, &format!("daemonset/{set}"))?;
        }
        let service = self.kubectl.json(&["-n", NAMESPACE, "get", "service", "web"])?;
        self.cluster_ip = text(&service, "/spec/clusterIP").context("no clusterIP")?;
        let port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64);
        self.node_port = u16::try_from(port.context("no nodePort")?)?;
        for (label, place) in [("app=pod", Where::Pod), ("app=node", Where::Node)] {
            for pod in items(&self.kubectl.json(&["-n", NAMESPACE, "get", "pods", "-l", label])?) {
                let field = |path| text(&pod, path).with_context(|| format!("a pod without {path}"));
                let node = field("/spec/nodeName")?;
                if place == Where::Node {
                    self.nodes.push((node.clone(), field("/status/hostIP")?));
                }
                self.clients.push(Client { pod: field("/metadata/name")?, node, place });
            }
        }
        ensure!(!self.nodes.is_empty(), "no node runs the suite's pods");
        Ok(())
    }

    fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        self.kubectl.run(&["-n", namespace, "rollout", "status", what, "--timeout=180s"]).map(drop)
    }

    /// Runs a shell's line where a client is.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, client: &Client, line: &str) -> Result<String> {
        self.kubectl.shell(NAMESPACE, &client.pod, line)
    }

    /// Swaps Sluice in, by the image's name alone, and waits until every node's agent is in sync.
    ///
    /// # Errors
    /// It does not come up.
    pub fn swap_in(&self) -> Result<()> {
        self.set_image(&self.settings.image)?;
        until(60, "every agent is in sync", || {
            let statuses = self.statuses()?;
            Ok(statuses.len() == self.nodes.len() && statuses.iter().all(|status| status["synced"] == true))
        })
    }

    /// What each node's agent says of itself.
    ///
    /// # Errors
    /// One cannot be asked.
    pub fn statuses(&self) -> Result<Vec<Value>> {
        let pods = self.kubectl.json(&["-n", SYSTEM, "get", "pods", "-l", "k8s-app=kube-proxy"])?;
        let ask = |pod: &Value| {
            let name = text(pod, "/metadata/name").context("a pod without a name")?;
            let sluice = ["-n", SYSTEM, "exec", &name, "--", "/usr/local/bin/sluice", "status", "-o", "json"];
            Ok(serde_json::from_str(&self.kubectl.run(&sluice)?)?)
        };
        items(&pods).iter().map(ask).collect()
    }

    /// Gives the DaemonSet the image back that it had.
    ///
    /// # Errors
    /// It does not come up.
    pub fn swap_back(&self) -> Result<()> {
        self.set_image(&self.upstream)
    }

    fn set_image(&self, image: &str) -> Result<()> {
        let set = format!("daemonset/{DAEMON_SET}");
        self.kubectl.run(&["-n", SYSTEM, "set", "image", &set, &format!("{DAEMON_SET}={image}")])?;
        self.rolled_out(SYSTEM, &set)?;
        // "Rolled out" counts pods that end as well.
        until(60, "no other pod is left", || {
            let pods = self.kubectl.json(&["-n", SYSTEM, "get", "pods", "-l", "k8s-app=kube-proxy"])?;
            let of = |pod: &Value| text(pod, "/spec/containers/0/image").as_deref() == Some(image);
            Ok(items(&pods).iter().all(of))
        })
    }

    /// Puts new endpoints in place of all.
    ///
    /// # Errors
    /// They do not start.
    pub fn replace_endpoints(&self) -> Result<()> {
        self.kubectl.run(&["-n", NAMESPACE, "rollout", "restart", "daemonset/web"])?;
        self.rolled_out(NAMESPACE, "daemonset/web")
    }

    /// Names of the endpoints' pods.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn endpoints(&self) -> Result<Vec<String>> {
        let pods = self.kubectl.json(&["-n", NAMESPACE, "get", "pods", "-l", "app=web"])?;
        let names = items(&pods).iter().filter_map(|pod| text(pod, "/metadata/name")).collect::<Vec<_>>();
        Ok(names)
    }

    /// Whether the cluster has the DNS Service.
    #[must_use]
    pub fn has_dns(&self) -> bool {
        self.kubectl.run(&["-n", SYSTEM, "get", "service", "kube-dns"]).is_ok()
    }

    /// What `sluice cleanup` prints on a node.
    ///
    /// # Errors
    /// It does not run to a good end.
    pub fn clean(&self, node: &str) -> Result<String> {
        let manifest =
            include_str!("cleanup.yaml").replace("IMAGE", &self.settings.image).replace("NODE", node);
        self.kubectl.with_input(&["apply", "-f", "-"], &manifest)?;
        let pod = format!("pod/cleanup-{node}");
        let done = "--for=jsonpath={.status.phase}=Succeeded";
        let ended = self.kubectl.run(&["-n", NAMESPACE, "wait", done, &pod, "--timeout=60s"]);
        let told = self.kubectl.run(&["-n", NAMESPACE, "logs", &pod])?;
        ended.with_context(|| told.clone())?;
        self.kubectl.run(&["-n", NAMESPACE, "delete", &pod, "--wait"])?;
        Ok(told)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let back = self.swap_back();
        let gone = self.kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"]);
        for trouble in [back.err(), gone.err()].into_iter().flatten() {
            eprintln!("the cluster is not as it was: {trouble:#}");
        }
    }
}

fn text(value: &Value, path: &str) -> Option<String> {
    value.pointer(path).and_then(Value::as_str).map(str::to_owned)
}

fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().cloned().unwrap_or_default()
}
