use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::Defect;
use super::loose::{Defects, Loose, Nested};
use super::meta::{Kind, Meta, Metadata};

/// A Node, reduced to what the plan reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub name: Arc<str>,
    /// InternalIPs before ExternalIPs (I5).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (F6).
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone` (C11).
    pub zone: Option<Arc<str>>,
    /// Neither being deleted nor about to be taken away by the cluster autoscaler (H3).
    pub eligible: bool,
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
    taints: Loose<Vec<Loose<Nested<Taint>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Taint {
    key: Loose<String>,
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
        let mut spec = defects.nested(raw.spec, "spec");
        let status = defects.nested(raw.status, "status");
        let eligible = !meta.deleted && !leaving(std::mem::take(&mut spec.taints), &mut defects);
        let zone = defects.take(meta.labels.zone.clone(), "metadata.labels[topology.kubernetes.io/zone]");
        Self {
            name: meta.name.as_str().into(),
            addresses: addresses(status, &mut defects),
            pod_cidrs: pod_cidrs(spec, &mut defects),
            eligible,
            zone: zone.filter(|zone| !zone.is_empty()).map(Into::into),
            defects: defects.0,
        }
    }
}

/// H3: the taint's effect does not matter.
fn leaving(taints: Loose<Vec<Loose<Nested<Taint>>>>, defects: &mut Defects) -> bool {
    let keys: Vec<_> = defects
        .items(taints, "spec.taints")
        .into_iter()
        .filter_map(|(i, Nested(taint))| defects.take(taint.key, format_args!("spec.taints[{i}].key")))
        .collect();
    keys.iter().any(|key| key == "ToBeDeletedByClusterAutoscaler")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::types::Watched;

    #[test]
    fn h3_eligibility() {
        let cases = [
            ("plain", r#"{}"#, r#"{}"#, true),
            ("being deleted", r#"{"deletionTimestamp":"2026-01-31T12:00:00Z"}"#, r#"{}"#, false),
            ("taint", r#"{}"#, r#"{"taints":[{"key":"ToBeDeletedByClusterAutoscaler"}]}"#, false),
            ("other taint, cordoned", r#"{}"#, r#"{"unschedulable":true,"taints":[{"key":"a"},{}]}"#, true),
            ("taints of the wrong shape", r#"{}"#, r#"{"taints":[7,{"key":9}]}"#, true),
        ];
        for (name, metadata, spec, want) in cases {
            let text = format!(r#"{{"metadata":{metadata},"spec":{spec}}}"#);
            let node: Watched<Node> = serde_json::from_str(&text).unwrap();
            assert_eq!(node.object.eligible, want, "{name}");
        }
    }
}
