//! Clusters of many Services as the API has them: objects for the pipeline, files for the agent.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, Result};
use proxy_userspace::cluster::types::{Kind, Service, Slice, Watched};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Objects a file: what an operator's tool would split.
const PER_FILE: usize = 500;

/// Number 0 of Services and of endpoints.
const FIRST_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 97, 0, 0);
const FIRST_ENDPOINT: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 0);
pub const SERVICE_PORT: u16 = 80;
const TARGET_PORT: u16 = 8_080;

/// How large a cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cluster {
    pub services: u32,
    /// Of each Service.
    pub endpoints: u32,
    pub protocol: &'static str,
    /// The only endpoint of all Services.
    pub shared: Option<Ipv4Addr>,
}

impl Cluster {
    /// What most figures are about.
    pub const USUAL: Self = Self::new(10_000, 10);
    /// Endpoints by the hundred thousand.
    pub const WIDE: Self = Self::new(1_000, 100);

    #[must_use]
    pub const fn new(services: u32, endpoints: u32) -> Self {
        Self { services, endpoints, protocol: "TCP", shared: None }
    }

    /// The address of a Service.
    #[must_use]
    pub fn address(self, number: u32) -> IpAddr {
        offset(FIRST_SERVICE, number).into()
    }

    fn service(self, number: u32) -> Value {
        let address = self.address(number);
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": format!("service-{number}"), "namespace": "bench",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address, "clusterIPs": [address],
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": self.protocol, "port": SERVICE_PORT, "targetPort": TARGET_PORT}],
            },
        })
    }

    fn slice(self, number: u32, endpoints: u32) -> Value {
        let endpoint = |i| {
            let own = || offset(FIRST_ENDPOINT, number * self.endpoints + i + 1);
            json!({
                "addresses": [self.shared.unwrap_or_else(own)], "nodeName": format!("node-{}", number % 100),
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
            "ports": [{"name": "http", "protocol": self.protocol, "port": TARGET_PORT}],
            "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        })
    }

    /// Each Service and its slice.
    pub fn values(self) -> impl Iterator<Item = [Value; 2]> {
        (0..self.services).map(move |number| [self.service(number), self.slice(number, self.endpoints)])
    }

    /// All Services and slices, as a source hands them over.
    ///
    /// # Errors
    /// An object cannot be decoded.
    pub fn objects(self) -> Result<(Vec<Service>, Vec<Slice>)> {
        let decoded = self.values().map(|[service, slice]| Ok((decode(service)?, decode(slice)?)));
        Ok(decoded.collect::<Result<Vec<_>>>()?.into_iter().unzip())
    }

    /// One Service's slice with another number of endpoints.
    ///
    /// # Errors
    /// As [`Cluster::objects`].
    pub fn changed(self, number: u32, endpoints: u32) -> Result<Slice> {
        decode(self.slice(number, endpoints))
    }

    /// Writes the same as files.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write(self, directory: &Path) -> Result<()> {
        let mut values = self.values().flatten().peekable();
        for number in 0.. {
            if values.peek().is_none() {
                break;
            }
            let items: Vec<_> = values.by_ref().take(PER_FILE).collect();
            let path = directory.join(format!("bench-{number}.json"));
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
            std::fs::write(&path, list.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn offset(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    (first.to_bits() + number).into()
}

fn decode<T: Kind>(value: Value) -> Result<T>
where
    Watched<T>: DeserializeOwned,
{
    Ok(serde_json::from_value::<Watched<T>>(value).context("an object of the bench's own")?.object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_read_as_meant() {
        let (services, slices) = Cluster::new(300, 10).objects().unwrap();
        let address = |number: usize| services[number].cluster_ips[0].to_string();
        assert_eq!((address(0), address(299)), ("10.97.0.0".to_owned(), "10.97.1.43".to_owned()));
        let slice = Cluster::USUAL.changed(7, 3).unwrap();
        let addresses: Vec<_> = slice.endpoints.iter().map(|e| e.address.to_string()).collect();
        assert_eq!(addresses, ["11.0.0.71", "11.0.0.72", "11.0.0.73"]);
        assert!(services.iter().all(|service| service.defects.is_empty()), "no field is refused");
        assert!(slices.iter().all(|slice| slice.defects.is_empty()), "no field is refused");
    }

    #[test]
    fn a_shared_endpoint_is_everybodys() {
        let shared = Some(Ipv4Addr::new(10, 244, 1, 6));
        let (_, slices) = Cluster { shared, ..Cluster::new(3, 1) }.objects().unwrap();
        let addresses: Vec<_> = slices.iter().map(|slice| slice.endpoints[0].address.to_string()).collect();
        assert_eq!(addresses, ["10.244.1.6"; 3]);
    }
}
