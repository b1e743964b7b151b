//! Kubernetes objects as JSON, and the hand that writes them into one namespace.

use anyhow::Result;
use serde_json::{Value, json};

use super::Admin;

/// A namespace of one test: its objects cannot collide with another test's.
pub struct Space<'a> {
    admin: &'a Admin,
    name: String,
}

impl<'a> Space<'a> {
    /// Creates the namespace `name`.
    ///
    /// # Errors
    /// If the API server refuses, for example because it exists.
    pub fn new(admin: &'a Admin, name: &str) -> Result<Self> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        admin.create("/api/v1/namespaces", &object)?;
        Ok(Self { admin, name: name.to_owned() })
    }

    /// The namespace `name`, which exists.
    pub fn existing(admin: &'a Admin, name: &str) -> Self {
        Self { admin, name: name.to_owned() }
    }

    /// `NAMESPACE/SERVICE`, the name by which the agent prints it.
    pub fn key(&self, service: &str) -> String {
        format!("{}/{service}", self.name)
    }

    /// Creates a Service of one TCP port 80 with target port 8080 and returns its cluster address, which the API server
    /// chooses. `more` is merged into the object.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn service(&self, name: &str, more: &Value) -> Result<String> {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}]},
        });
        merge(&mut object, more);
        let stored = self.admin.create(&self.services(), &object)?;
        Ok(stored["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned())
    }

    /// Merges `patch` into a Service and returns what is stored then.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn patch_service(&self, name: &str, patch: &Value) -> Result<Value> {
        self.admin.patch(&format!("{}/{name}", self.services()), patch)
    }

    /// Deletes a Service.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn delete_service(&self, name: &str) -> Result<()> {
        self.admin.delete(&format!("{}/{name}", self.services()))
    }

    /// Creates the EndpointSlice `SERVICE-1` with ready endpoints at port 8080. The family is that of the first address.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn slice(&self, service: &str, addresses: &[&str]) -> Result<()> {
        self.slice_as(&format!("{service}-1"), service, addresses)
    }

    /// As [`Space::slice`], under a name of its own.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn slice_as(&self, name: &str, service: &str, addresses: &[&str]) -> Result<()> {
        self.admin.create(&self.slices(), &slice(name, service, addresses)).map(drop)
    }

    /// Replaces the endpoints of a Service's slice.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn set_endpoints(&self, service: &str, addresses: &[&str]) -> Result<()> {
        let patch = json!({"endpoints": slice("", service, addresses)["endpoints"]});
        self.patch_slice(service, &patch)
    }

    /// Merges `patch` into a Service's slice.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn patch_slice(&self, service: &str, patch: &Value) -> Result<()> {
        self.admin.patch(&format!("{}/{service}-1", self.slices()), patch).map(drop)
    }

    /// Deletes a Service's slice.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn delete_slice(&self, service: &str) -> Result<()> {
        self.admin.delete(&format!("{}/{service}-1", self.slices()))
    }

    fn services(&self) -> String {
        format!("/api/v1/namespaces/{}/services", self.name)
    }

    fn slices(&self) -> String {
        format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", self.name)
    }
}

/// Creates the Node `name` with one internal address.
///
/// # Errors
/// If the API server refuses.
pub fn create_node(admin: &Admin, name: &str, address: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"addresses": [
            {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
        ]},
    });
    admin.create("/api/v1/nodes", &object).map(drop)
}

fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let ipv6 = addresses.first().is_some_and(|address| address.contains(':'));
    let endpoints: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true, "serving": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "addressType": if ipv6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

fn merge(object: &mut Value, more: &Value) {
    match (object, more) {
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                merge(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, more) => *object = more.clone(),
    }
}
