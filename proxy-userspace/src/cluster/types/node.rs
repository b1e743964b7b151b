use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::Defect;
use super::loose::{Defects, Loose, Nested};
use super::meta::{Kind, Meta, Metadata};

/// A Node, reduced to what the plan reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Arc<str>,
    /// InternalIPs before ExternalIPs (I5).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (F6).
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone` (C11).
    pub zone: Option<Arc<str>>,
    pub defects: Vec<Defect>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: Metadata,
    spec: Loose<Nested<Spec>>,
    status: Loose<Nested<Status>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Loose<Vec<Loose<String>>>,
    #[serde(rename = "podCIDR")]
    pod_cidr: Loose<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    addresses: Loose<Vec<Loose<Nested<Address>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Address {
    r#type: Loose<String>,
    address: Loose<String>,
}

impl Kind for Node {
    const KIND: &'static str = "Node";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "nodes";
    type Raw = Raw;

    fn metadata(raw: &mut Raw) -> &mut Metadata {
        &mut raw.metadata
    }

    fn from_raw(raw: Raw, meta: &Meta, mut defects: Defects) -> Self {
        let spec = defects.nested(raw.spec, "spec");
        let status = defects.nested(raw.status, "status");
        let zone = defects.take(meta.labels.zone.clone(), "metadata.labels[topology.kubernetes.io/zone]");
        Self {
            name: meta.name.as_str().into(),
            addresses: addresses(status, &mut defects),
            pod_cidrs: pod_cidrs(spec, &mut defects),
            zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
            defects: defects.0,
        }
    }
}

fn addresses(status: Status, defects: &mut Defects) -> Vec<IpAddr> {
    let (mut internal, mut external) = (Vec::new(), Vec::new());
    for (i, Nested(raw)) in defects.items(status.addresses, "status.addresses") {
        let path = format!("status.addresses[{i}]");
        let kind = defects.take(raw.r#type, format_args!("{path}.type"));
        let list = match kind.as_deref() {
            Some("InternalIP") => &mut internal,
            Some("ExternalIP") => &mut external,
            _ => continue,
        };
        let text = defects.take(raw.address, format_args!("{path}.address")).unwrap_or_default();
        match text.parse() {
            Ok(address) => list.push(address),
            Err(_) => {
                let what = format_args!("{path}.address {text:?} is no IP address, ignored");
                defects.add(what, "write an IPv4 or IPv6 address");
            }
        }
    }
    internal.append(&mut external);
    internal
}

fn pod_cidrs(spec: Spec, defects: &mut Defects) -> Vec<IpNet> {
    let mut texts: Vec<_> =
        defects.items(spec.pod_cidrs, "spec.podCIDRs").into_iter().map(|(_, t)| t).collect();
    if texts.is_empty() {
        texts.extend(defects.take(spec.pod_cidr, "spec.podCIDR").filter(|text| !text.is_empty()));
    }
    let mut nets = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(net) => nets.push(net),
            Err(_) => {
                let what = format_args!("spec.podCIDRs: {text:?} is no CIDR, ignored");
                defects.add(what, "write a prefix such as 10.244.1.0/24");
            }
        }
    }
    nets
}
