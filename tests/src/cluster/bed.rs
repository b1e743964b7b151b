use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::held::end;
use super::kubectl::until;
use super::{KUBE_PROXY, Kubectl, SYSTEM, Settings};
use crate::lab::command;

/// Namespace of everything that the suite makes, but for what it changes in kube-proxy's DaemonSet.
const NAMESPACE: &str = "sluice-suite";

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    Pod,
    Node,
    /// On a machine that is no node.
    Outside,
}

/// Somebody who dials Services.
#[derive(Clone, Debug)]
pub struct Client {
    /// The pod to run things in; of those outside, what to call them.
    pub name: String,
    /// Empty outside.
    pub node: String,
    pub place: Where,
}

/// A node and its addresses, one of each family that it has.
#[derive(Clone, Debug)]
pub struct Node {
    pub name: String,
    pub addresses: Vec<IpAddr>,
}

/// An address and the ports on it that the servers answer at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub address: IpAddr,
    pub tcp: u16,
    pub udp: u16,
}

/// Servers on every node behind a Service, and clients in pods and on nodes.
#[derive(Debug)]
pub struct Bed {
    pub kubectl: Kubectl,
    settings: Settings,
    /// The image that the DaemonSet had.
    upstream: String,
    pub clients: Vec<Client>,
    pub nodes: Vec<Node>,
    /// ClusterIPs of the servers on every node, one for each family of the cluster.
    cluster_ips: Vec<Frontend>,
    /// NodePorts for TCP and UDP.
    node_ports: (u16, u16),
}

impl Bed {
    /// # Errors
    /// The cluster does not answer, has no kube-proxy DaemonSet, or does not start the pods.
    pub fn make(settings: Settings) -> Result<Self> {
        let kubectl = Kubectl::new(&settings)?;
        let set = kubectl.json(&["-n", SYSTEM, "get", "daemonset", KUBE_PROXY])?;
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
            cluster_ips: Vec::new(),
            node_ports: (0, 0),
        };
        bed.settle()?;
        Ok(bed)
    }

    fn settle(&mut self) -> Result<()> {
        for set in ["daemonset/web", "daemonset/pod", "daemonset/node", "deployment/moved"] {
            self.kubectl.rolled_out(NAMESPACE, set)?;
        }
        self.cluster_ips = self.cluster_ips("web")?;
        let service = self.kubectl.json(&["-n", NAMESPACE, "get", "service", "web"])?;
        let node_port = |at: usize| -> Result<u16> {
            let port = service.pointer(&format!("/spec/ports/{at}/nodePort")).and_then(Value::as_u64);
            Ok(u16::try_from(port.context("no nodePort")?)?)
        };
        self.node_ports = (node_port(0)?, node_port(1)?);
        for (label, place) in [("app=pod", Where::Pod), ("app=node", Where::Node)] {
            for pod in items(&self.kubectl.json(&["-n", NAMESPACE, "get", "pods", "-l", label])?) {
                let field = |path| text(&pod, path).with_context(|| format!("a pod without {path}"));
                let node = field("/spec/nodeName")?;
                if place == Where::Node {
                    let addresses = items_of(&pod, "/status/hostIPs").iter();
                    let addresses: Vec<IpAddr> =
                        addresses.filter_map(|ip| text(ip, "/ip")?.parse().ok()).collect();
                    self.nodes.push(Node { name: node.clone(), addresses });
                }
                self.clients.push(Client { name: field("/metadata/name")?, node, place });
            }
        }
        if self.settings.outside.is_some() {
            let (name, node) = ("outside".to_owned(), String::new());
            self.clients.push(Client { name, node, place: Where::Outside });
        }
        ensure!(!self.nodes.is_empty(), "no node runs the suite's pods");
        Ok(())
    }

    /// Where a Service of the suite is dialled in the cluster.
    ///
    /// # Errors
    /// There is no such Service.
    pub fn cluster_ips(&self, service: &str) -> Result<Vec<Frontend>> {
        let service = self.kubectl.json(&["-n", NAMESPACE, "get", "service", service])?;
        let addresses = items_of(&service, "/spec/clusterIPs");
        let frontend = |address: &Value| -> Result<Frontend> {
            let address = address.as_str().context("an address that is no text")?.parse()?;
            Ok(Frontend { address, tcp: 80, udp: 81 })
        };
        addresses.iter().map(frontend).collect()
    }

    /// Where the servers on every node are dialled by a client: their ClusterIPs, unless it is outside, and the NodePorts of all
    /// nodes but its own.
    pub fn frontends(&self, client: &Client) -> impl Iterator<Item = Frontend> {
        let cluster_ips = self.cluster_ips.iter().filter(|_| client.place != Where::Outside).copied();
        let others = self.nodes.iter().filter(|node| node.name != client.node);
        let (tcp, udp) = self.node_ports;
        let node_ports = others
            .flat_map(move |node| node.addresses.iter().map(move |&address| Frontend { address, tcp, udp }));
        cluster_ips.chain(node_ports)
    }

    /// Runs a shell's line where a client is.
    ///
    /// # Errors
    /// It fails.
    pub fn shell(&self, client: &Client, line: &str) -> Result<String> {
        match (client.place, &self.settings.outside) {
            (Where::Outside, Some(outside)) => {
                let mut words = outside.split_whitespace();
                let program = words.next().context("SLUICE_OUTSIDE is empty")?;
                let arguments: Vec<&str> = words.chain(["sh", "-c", line]).collect();
                command::run(program, &arguments)
            }
            _ => self.kubectl.shell(NAMESPACE, &client.name, line),
        }
    }

    /// The image's name.
    #[must_use]
    pub fn image(&self) -> &str {
        &self.settings.image
    }

    /// Swaps Sluice in, by the image's name alone, and waits until every node's agent is in sync.
    ///
    /// # Errors
    /// It does not come up.
    pub fn swap_in(&self) -> Result<()> {
        self.set_image(&self.settings.image)?;
        self.synced("k8s-app=kube-proxy")
    }

    /// Waits until every node has an agent that says it is in sync, in a pod with this label.
    ///
    /// # Errors
    /// One is not.
    pub fn synced(&self, label: &str) -> Result<()> {
        until(60, "every agent is in sync", || {
            let pods = items(&self.kubectl.json(&["-n", SYSTEM, "get", "pods", "-l", label])?);
            let statuses = pods.iter().map(|pod| self.status(pod)).collect::<Result<Vec<_>>>()?;
            Ok(statuses.len() == self.nodes.len() && statuses.iter().all(|status| status["synced"] == true))
        })
    }

    /// What the agent in a pod says of itself.
    fn status(&self, pod: &Value) -> Result<Value> {
        let name = text(pod, "/metadata/name").context("a pod without a name")?;
        let sluice = ["-n", SYSTEM, "exec", &name, "--", "/usr/local/bin/sluice", "status", "-o", "json"];
        Ok(serde_json::from_str(&self.kubectl.run(&sluice)?)?)
    }

    /// Gives the DaemonSet the image back that it had.
    ///
    /// # Errors
    /// It does not come up.
    pub fn swap_back(&self) -> Result<()> {
        self.set_image(&self.upstream)
    }

    fn set_image(&self, image: &str) -> Result<()> {
        let set = format!("daemonset/{KUBE_PROXY}");
        self.kubectl.run(&["-n", SYSTEM, "set", "image", &set, &format!("{KUBE_PROXY}={image}")])?;
        self.kubectl.rolled_out(SYSTEM, &set)?;
        // "Rolled out" counts pods that end as well.
        until(60, "no other pod is left", || {
            let pods = self.kubectl.json(&["-n", SYSTEM, "get", "pods", "-l", "k8s-app=kube-proxy"])?;
            let of = |pod: &Value| text(pod, "/spec/containers/0/image").as_deref() == Some(image);
            Ok(items(&pods).iter().all(of))
        })
    }

    /// Puts new endpoints in place of all those of a workload, as `daemonset/web`.
    ///
    /// # Errors
    /// They do not start.
    pub fn replace_endpoints(&self, workload: &str) -> Result<()> {
        self.kubectl.run(&["-n", NAMESPACE, "rollout", "restart", workload])?;
        self.kubectl.rolled_out(NAMESPACE, workload)
    }

    /// Names of a Service's endpoints, which are pods.
    ///
    /// # Errors
    /// kubectl fails.
    pub fn endpoints(&self, service: &str) -> Result<Vec<String>> {
        let label = format!("app={service}");
        let pods = self.kubectl.json(&["-n", NAMESPACE, "get", "pods", "-l", &label])?;
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
        // What runs in pods ends with them.
        let outside = self.clients.iter().filter(|client| client.place == Where::Outside);
        let ended = outside.map(|client| self.shell(client, &end())).collect::<Result<Vec<_>>>();
        let back = self.swap_back();
        let gone = self.kubectl.run(&["delete", "namespace", NAMESPACE, "--wait=false"]);
        for trouble in [ended.err(), back.err(), gone.err()].into_iter().flatten() {
            eprintln!("the cluster is not as it was: {trouble:#}");
        }
    }
}

fn text(value: &Value, path: &str) -> Option<String> {
    value.pointer(path).and_then(Value::as_str).map(str::to_owned)
}

fn items(list: &Value) -> Vec<Value> {
    items_of(list, "/items").to_vec()
}

fn items_of<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}
