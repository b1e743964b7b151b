//! A Service of the matrix, as the API has it.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::cell::{Transport, Way};
use super::change::Change;
use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{Family, Who, cluster_ip, external_ip, load_balancer_ip};

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

    pub(super) fn object(&self, family: Family) -> Value {
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

/// A ready endpoint.
pub(super) const fn ready(who: Who) -> Endpoint {
    Endpoint::new(who, State::Ready)
}

/// One ready endpoint of each node.
pub(super) fn both() -> Vec<Endpoint> {
    vec![ready(Who::Pb), ready(Who::Pd)]
}

/// A Service with every kind of address and its slices.
#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    /// From 1 to 99; all its addresses and ports follow from it.
    pub number: u8,
    pub endpoints: Vec<Endpoint>,
    /// Those that it has a ClusterIP of.
    pub families: &'static [Family],
    /// Merged into the Service's `spec`; null takes a field away.
    pub spec: Value,
    /// The Service's labels.
    pub labels: Value,
    /// The slices' labels, beside their Service's name.
    pub slice_labels: Value,
    /// The Service's ports.
    pub serves: &'static [Transport],
    /// The slices' ports.
    pub transports: &'static [Transport],
    /// `ipMode` of its LoadBalancer addresses.
    pub ip_mode: &'static str,
    /// Its LoadBalancer's address.
    pub balancer: fn(Family, u8) -> IpAddr,
    /// What clients dial.
    pub ways: Vec<Way>,
    pub clients: &'static [Who],
    /// What becomes of it while proxies run.
    pub change: Option<Change>,
}

impl Case {
    #[must_use]
    pub fn new(name: impl Into<String>, endpoints: impl IntoIterator<Item = Endpoint>) -> Self {
        Self {
            name: name.into(),
            number: 0,
            endpoints: endpoints.into_iter().collect(),
            families: &Family::BOTH,
            spec: json!({}),
            labels: json!({}),
            slice_labels: json!({}),
            serves: &Transport::BOTH,
            transports: &Transport::BOTH,
            ip_mode: "VIP",
            balancer: load_balancer_ip,
            ways: Way::USUAL.to_vec(),
            clients: &super::matrix::CLIENTS,
            change: None,
        }
    }

    /// With these fields of its `spec`.
    #[must_use]
    pub fn spec(mut self, spec: Value) -> Self {
        merge(&mut self.spec, &spec);
        self
    }

    /// Dialled in these ways.
    #[must_use]
    pub fn ways(mut self, ways: &[Way]) -> Self {
        self.ways = ways.to_vec();
        self
    }

    /// For SCTP too.
    #[must_use]
    pub fn and_sctp(mut self) -> Self {
        self.serves = &[Transport::Tcp, Transport::Udp, Transport::Sctp];
        self.transports = self.serves;
        self
    }

    /// Of these families only; the other's external addresses stay.
    #[must_use]
    pub fn families(mut self, families: &'static [Family]) -> Self {
        self.families = families;
        self
    }

    /// Clients stick to a backend, before its change or after it.
    #[must_use]
    pub fn is_sticky(&self, changed: bool) -> bool {
        let becomes = || self.change.as_ref().is_some_and(Change::makes_sticky);
        self.spec["sessionAffinity"] == "ClientIP" || changed && becomes()
    }

    /// Whether the Service has a port of this protocol.
    #[must_use]
    pub fn has(&self, transport: Transport) -> bool {
        let ports = self.service()["spec"]["ports"].clone();
        ports.as_array().is_some_and(|ports| ports.iter().any(|port| port["protocol"] == transport.name()))
    }

    /// The NodePort, the same for all protocols.
    #[must_use]
    pub fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// Another one, for a Service that changes it.
    #[must_use]
    pub fn moved_node_port(&self) -> u16 {
        self.node_port() + 1_000
    }

    /// The Service as it is created.
    #[must_use]
    pub fn service(&self) -> Value {
        let both =
            |f: fn(Family, u8) -> IpAddr| Family::BOTH.map(|family| f(family, self.number).to_string());
        let ports: Vec<_> = self
            .serves
            .iter()
            .map(|transport| {
                json!({
                    "name": transport.to_string(), "protocol": transport.name(),
                    "port": SERVICE_PORT, "targetPort": TARGET_PORT, "nodePort": self.node_port(),
                })
            })
            .collect();
        let cluster_ips: Vec<_> =
            self.families.iter().map(|family| cluster_ip(*family, self.number).to_string()).collect();
        let families: Vec<_> = self.families.iter().map(|family| address_type(*family)).collect();
        let mut spec = json!({
            "type": "LoadBalancer", "ports": ports,
            "clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ipFamilies": families,
            "ipFamilyPolicy": if families.len() == 2 { "RequireDualStack" } else { "SingleStack" },
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
        let ingress = Family::BOTH.map(
            |family| json!({"ip": (self.balancer)(family, self.number).to_string(), "ipMode": self.ip_mode}),
        );
        let balanced = self.service()["spec"]["type"] == "LoadBalancer";
        balanced.then(|| json!({"status": {"loadBalancer": {"ingress": ingress}}}))
    }

    /// Its slices, one a family.
    #[must_use]
    pub fn slices(&self) -> Vec<Value> {
        let slice = |family: Family| {
            let port = |transport: &Transport| json!({"name": transport.to_string(), "protocol": transport.name(), "port": TARGET_PORT});
            let ports: Vec<_> = self.transports.iter().map(port).collect();
            let mut labels = self.slice_labels.clone();
            labels["kubernetes.io/service-name"] = json!(self.name);
            let endpoints: Vec<_> = self.endpoints.iter().map(|endpoint| endpoint.object(family)).collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "namespace": SPACE, "name": format!("{}-{family}", self.name), "labels": labels,
                },
                "addressType": address_type(family),
                "ports": ports, "endpoints": endpoints,
            })
        };
        Family::BOTH.map(slice).to_vec()
    }
}

const fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// Merges `more` into `object`; null takes a field away.
pub(super) fn merge(object: &mut Value, more: &Value) {
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
