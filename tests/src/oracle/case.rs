//! A Service of the matrix, as the API has it.

use serde_json::{Value, json};

use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{Family, Who, cluster_ip, external_ip, load_balancer_ip};
use crate::wire::Transport;

/// The namespace of all of them.
pub const SPACE: &str = "oracle";
/// Where every server listens.
pub const TARGET_PORT: u16 = 8_080;

/// The conditions of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    Ready,
    NotReady,
    /// Terminating, and still serving.
    Terminating,
    /// Terminating, and serving no more.
    Ending,
}

/// One endpoint of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    pub who: Who,
    pub state: State,
    /// Zones that topology hints name.
    pub zones: &'static [&'static str],
    /// Nodes that topology hints name.
    pub nodes: &'static [&'static str],
}

impl Endpoint {
    #[must_use]
    pub const fn new(who: Who, state: State) -> Self {
        Self { who, state, zones: &[], nodes: &[] }
    }

    fn object(&self, family: Family) -> Value {
        let (ready, serving, terminating) = match self.state {
            State::Ready => (true, true, false),
            State::NotReady => (false, false, false),
            State::Terminating => (false, true, true),
            State::Ending => (false, false, true),
        };
        let mut object = json!({
            "addresses": [self.who.address(family).to_string()],
            "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        });
        if self.who != Who::Client {
            object["nodeName"] = json!(self.who.node());
        }
        let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        if !self.zones.is_empty() {
            object["hints"]["forZones"] = json!(named(self.zones));
        }
        if !self.nodes.is_empty() {
            object["hints"]["forNodes"] = json!(named(self.nodes));
        }
        object
    }
}

/// A Service with every kind of address and its slices.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// From 1 to 99; all its addresses and ports follow from it.
    pub number: u8,
    pub endpoints: Vec<Endpoint>,
    /// Merged into the Service's `spec`; null takes a field away.
    pub spec: Value,
    /// The Service's labels.
    pub labels: Value,
    /// `ipMode` of its LoadBalancer addresses.
    pub ip_mode: &'static str,
}

impl Case {
    #[must_use]
    pub fn new(name: impl Into<String>, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self {
            name: name.into(),
            number: 0,
            endpoints: endpoints.into_iter().collect(),
            spec: json!({}),
            labels: json!({}),
            ip_mode: "VIP",
        }
    }

    /// With these fields of its `spec`.
    #[must_use]
    pub fn spec(mut self, spec: Value) -> Self {
        merge(&mut self.spec, &spec);
        self
    }

    /// Clients stick to a backend.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        self.spec["sessionAffinity"] == "ClientIP"
    }

    /// The NodePort, the same for TCP and UDP.
    #[must_use]
    pub fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// The Service as it is created.
    #[must_use]
    pub fn service(&self) -> Value {
        let both =
            |f: fn(Family, u8) -> std::net::IpAddr| Family::BOTH.map(|family| f(family, self.number).to_string());
        let ports: Vec<_> = Transport::BOTH
            .iter()
            .map(|transport| {
                json!({
                    "name": transport.to_string(), "protocol": transport.name(),
                    "port": SERVICE_PORT, "targetPort": TARGET_PORT, "nodePort": self.node_port(),
                })
            })
            .collect();
        let mut spec = json!({
            "type": "LoadBalancer", "ports": ports,
            "clusterIP": cluster_ip(Family::V4, self.number).to_string(), "clusterIPs": both(cluster_ip),
            "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
            "externalIPs": both(external_ip),
        });
        merge(&mut spec, &self.spec);
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": SPACE, "name": self.name, "labels": self.labels},
            "spec": spec,
        })
    }

    /// Its LoadBalancer's addresses; none for Services of another type.
    #[must_use]
    pub fn status(&self) -> Option<Value> {
        let ingress = Family::BOTH
            .map(|family| json!({"ip": load_balancer_ip(family, self.number).to_string(), "ipMode": self.ip_mode}));
        let balanced = self.service()["spec"]["type"] == "LoadBalancer";
        balanced.then(|| json!({"status": {"loadBalancer": {"ingress": ingress}}}))
    }

    /// Its slices, one a family.
    #[must_use]
    pub fn slices(&self) -> Vec<Value> {
        let slice = |family: Family| {
            let ports = Transport::BOTH.map(|transport| {
                json!({"name": transport.to_string(), "protocol": transport.name(), "port": TARGET_PORT})
            });
            let endpoints: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.object(family)).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": SPACE, "name": format!("{}-{family}", self.name),
                    "labels": {"kubernetes.io/service-name": self.name},
                },
                "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
                "ports": ports, "endpoints": endpoints,
            })
        };
        Family::BOTH.map(slice).to_vec()
    }
}

fn merge(object: &mut Value, more: &Value) {
    match (object, more) {
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                if value.is_null() {
                    object.remove(key);
                } else {
                    merge(object.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
        }
        (object, more) => *object = more.clone(),
    }
}
