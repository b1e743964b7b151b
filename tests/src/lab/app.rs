//! Applications as Kubernetes sees them, and the folder the agent reads them from.

use std::net::IpAddr;

use anyhow::Result;
use serde_json::{Value, json};

use super::plan::{Family, Who, cluster_ip, external_ip, load_balancer_ip};

/// Port of every ClusterIP, external IP and LoadBalancer address.
pub const SERVICE_PORT: u16 = 80;

/// A server: a pod (or the node itself) and the port it listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Backend {
    pub who: Who,
    pub port: u16,
}

impl Backend {
    #[must_use]
    pub const fn new(who: Who, port: u16) -> Self {
        Self { who, port }
    }

    /// What the server calls itself.
    #[must_use]
    pub fn id(&self) -> String {
        format!("{}:{}", self.who.name(), self.port)
    }
}

/// A Service with all kinds of addresses, for TCP and UDP and both families, and its endpoints.
#[derive(Clone, Debug)]
pub struct App {
    pub name: String,
    /// From 1 to 99; all its addresses and ports follow from it.
    pub number: u8,
    pub backends: Vec<Backend>,
    /// Also for SCTP.
    pub sctp: bool,
    /// Fields of the Service's spec in place of the usual ones.
    pub spec: serde_json::Map<String, Value>,
}

/// The ways a client can reach an [`App`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    ClusterIp,
    /// On n1's first address.
    NodePort,
    /// On n1's second address.
    NodePortSecond,
    ExternalIp,
    LoadBalancer,
}

impl Via {
    pub const ALL: [Self; 5] =
        [Self::ClusterIp, Self::NodePort, Self::NodePortSecond, Self::ExternalIp, Self::LoadBalancer];

    /// For test names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "cluster_ip",
            Self::NodePort => "node_port",
            Self::NodePortSecond => "node_port_on_second_address",
            Self::ExternalIp => "external_ip",
            Self::LoadBalancer => "load_balancer",
        }
    }
}

impl App {
    #[must_use]
    pub fn new(name: &str, number: u8, backends: impl IntoIterator<Item = Backend>) -> Self {
        Self {
            name: name.into(),
            number,
            backends: backends.into_iter().collect(),
            sctp: false,
            spec: serde_json::Map::new(),
        }
    }

    /// With this field in the Service's spec.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        self.spec.insert(field.to_owned(), value);
        self
    }

    /// With a port of SCTP.
    #[must_use]
    pub fn and_sctp(mut self) -> Self {
        self.sctp = true;
        self
    }

    /// Names of its ports, and their protocols.
    #[must_use]
    pub fn ports(&self) -> Vec<(&'static str, &'static str)> {
        let mut ports = vec![("tcp", "TCP"), ("udp", "UDP")];
        if self.sctp {
            ports.push(("sctp", "SCTP"));
        }
        ports
    }

    /// The NodePort, the same for all protocols.
    #[must_use]
    pub fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// Address and port to dial.
    #[must_use]
    pub fn address(&self, via: Via, family: Family) -> std::net::SocketAddr {
        let n = self.number;
        let (ip, port): (IpAddr, u16) = match via {
            Via::ClusterIp => (cluster_ip(family, n), SERVICE_PORT),
            Via::NodePort => (Who::Host.address(family), self.node_port()),
            Via::NodePortSecond => (super::plan::second_address(family), self.node_port()),
            Via::ExternalIp => (external_ip(family, n), SERVICE_PORT),
            Via::LoadBalancer => (load_balancer_ip(family, n), SERVICE_PORT),
        };
        (ip, port).into()
    }

    /// The Service and its slices, as the API would give them.
    #[must_use]
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.service()];
        for family in Family::BOTH {
            let mut ports: Vec<u16> = self.backends.iter().map(|backend| backend.port).collect();
            ports.sort_unstable();
            ports.dedup();
            objects.extend(ports.into_iter().map(|port| self.slice(family, port)));
        }
        objects
    }

    fn service(&self) -> Value {
        let both =
            |f: fn(Family, u8) -> IpAddr| Family::BOTH.map(|family| f(family, self.number).to_string());
        let port = |(name, protocol)| {
            json!({
                "name": name, "protocol": protocol,
                "port": SERVICE_PORT, "nodePort": self.node_port(),
            })
        };
        let ports: Vec<_> = self.ports().into_iter().map(port).collect();
        let ingress: Vec<_> =
            both(load_balancer_ip).iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let mut service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "namespace": "lab", "name": self.name, "uid": format!("00000000-0000-4000-8000-0000000000{:02}", self.number),
                "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", self.number % 60),
            },
            "spec": {
                "type": "LoadBalancer", "ports": ports,
                "clusterIP": cluster_ip(Family::V4, self.number).to_string(), "clusterIPs": both(cluster_ip),
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "externalIPs": both(external_ip),
                "externalTrafficPolicy": "Cluster", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        for (field, value) in &self.spec {
            service["spec"][field] = value.clone();
        }
        service
    }

    fn slice(&self, family: Family, port: u16) -> Value {
        let endpoints: Vec<_> = self
            .backends
            .iter()
            .filter(|backend| backend.port == port)
            .map(|backend| {
                json!({
                    "addresses": [backend.who.address(family).to_string()], "nodeName": backend.who.node(),
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                })
            })
            .collect();
        let numbered = |(name, protocol)| json!({"name": name, "protocol": protocol, "port": port});
        let ports: Vec<_> = self.ports().into_iter().map(numbered).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "lab", "name": format!("{}-{family}-{port}", self.name),
                "labels": {"kubernetes.io/service-name": self.name},
            },
            "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
            "ports": ports, "endpoints": endpoints,
        })
    }
}

/// A Node object.
#[must_use]
pub fn node(name: &str) -> Value {
    let (v4, v6) = if name == "n1" { ("192.0.2.11", "fd00:2::11") } else { ("192.0.3.12", "fd00:3::12") };
    let number = &name[1..];
    let pods = [format!("10.244.{number}.0/24"), format!("fd00:10:{number}::/64")];
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": pods[0], "podCIDRs": pods},
        "status": {"addresses": [
            {"type": "InternalIP", "address": v4}, {"type": "InternalIP", "address": v6},
            {"type": "Hostname", "address": name},
        ]},
    })
}

/// A place that Services come from: the seam between the laboratory and its two kinds of control plane.
pub trait Objects: Send + Sync {
    /// Creates or replaces an application's objects.
    ///
    /// # Errors
    /// The place refuses.
    fn apply(&self, app: &App) -> Result<()>;

    /// Removes an application's objects.
    ///
    /// # Errors
    /// The place refuses.
    fn delete(&self, app: &App) -> Result<()>;

    /// The agent's flags that make it read from here.
    fn flags(&self) -> Vec<String>;

    /// What it is, for people.
    fn name(&self) -> &'static str;
}

impl<T: Objects + ?Sized> Objects for std::sync::Arc<T> {
    fn apply(&self, app: &App) -> Result<()> {
        (**self).apply(app)
    }

    fn delete(&self, app: &App) -> Result<()> {
        (**self).delete(app)
    }

    fn flags(&self) -> Vec<String> {
        (**self).flags()
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}
