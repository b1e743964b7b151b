//! A cluster of many Services as the API has it: objects for the pipeline, files for the agent.

use std::path::Path;

use anyhow::{Context, Result};
use proxy_userspace::cluster::types::{Kind, Service, Slice, Watched};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Services of the scenarios, and endpoints of each.
pub const SERVICES: u32 = 10_000;
pub const ENDPOINTS: u32 = 10;

/// Objects a file: what an operator's tool would split.
const PER_FILE: usize = 500;

fn address(net: u8, number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("{net}.{a}.{b}.{c}")
}

fn service(number: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": format!("service-{number}"), "namespace": "bench",
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address(10, number + 1), "clusterIPs": [address(10, number + 1)],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
        },
    })
}

fn slice(number: u32, endpoints: u32) -> Value {
    let endpoint = |i| {
        json!({
            "addresses": [address(11, number * ENDPOINTS + i + 1)], "nodeName": format!("node-{}", number % 100),
            "conditions": {"ready": true, "serving": true, "terminating": false},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("service-{number}-a1b2c"), "namespace": "bench",
            "labels": {"kubernetes.io/service-name": format!("service-{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

fn decode<T: Kind>(value: Value) -> Result<T>
where
    Watched<T>: DeserializeOwned,
{
    Ok(serde_json::from_value::<Watched<T>>(value).context("an object of the bench's own")?.object)
}

/// All Services and slices, as a source hands them over.
///
/// # Errors
/// An object cannot be decoded.
pub fn objects() -> Result<(Vec<Service>, Vec<Slice>)> {
    let services = (0..SERVICES).map(|number| decode(service(number))).collect::<Result<_>>()?;
    let slices = (0..SERVICES).map(|number| decode(slice(number, ENDPOINTS))).collect::<Result<_>>()?;
    Ok((services, slices))
}

/// One Service's slice with another number of endpoints.
///
/// # Errors
/// As [`objects`].
pub fn changed(number: u32, endpoints: u32) -> Result<Slice> {
    decode(slice(number, endpoints))
}

/// Writes the same as files.
///
/// # Errors
/// As the file system says.
pub fn write(directory: &Path) -> Result<()> {
    let items: Vec<Value> =
        (0..SERVICES).flat_map(|number| [service(number), slice(number, ENDPOINTS)]).collect();
    for (number, items) in items.chunks(PER_FILE).enumerate() {
        let path = directory.join(format!("bench-{number}.json"));
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        std::fs::write(&path, list.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_meant() {
        let (first, last): (Service, Service) =
            (decode(service(0)).unwrap(), decode(service(SERVICES - 1)).unwrap());
        assert_eq!((first.cluster_ips[0].to_string(), last.cluster_ips[0].to_string()), {
            ("10.0.0.1".to_owned(), "10.0.39.16".to_owned())
        });
        let slice = changed(7, 3).unwrap();
        let addresses: Vec<_> = slice.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["11.0.0.71", "11.0.0.72", "11.0.0.73"]);
        assert!(first.defects.is_empty() && slice.defects.is_empty(), "no field is refused");
    }
}
