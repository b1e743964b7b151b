use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::Defect;
use super::loose::{Defects, Loose, Nested};
use super::meta::{Kind, Meta, Metadata};

/// A ServiceCIDR: ranges that ClusterIPs come from (B15).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceCidr {
    pub name: Arc<str>,
    pub cidrs: Vec<IpNet>,
    pub defects: Vec<Defect>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: Metadata,
    spec: Loose<Nested<Spec>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    cidrs: Loose<Vec<Loose<String>>>,
}

impl Kind for ServiceCidr {
    const KIND: &'static str = "ServiceCIDR";
    const GROUP: &'static str = "networking.k8s.io";
    const PLURAL: &'static str = "servicecidrs";
    type Raw = Raw;

    fn metadata(raw: &mut Raw) -> &mut Metadata {
        &mut raw.metadata
    }

    fn from_raw(raw: Raw, meta: &Meta, mut defects: Defects) -> Self {
        let spec = defects.nested(raw.spec, "spec");
        let mut cidrs = Vec::new();
        for (i, text) in defects.items(spec.cidrs, "spec.cidrs") {
            match text.parse::<IpNet>() {
                Ok(net) if net.prefix_len() > 0 => cidrs.push(net),
                _ => {
                    let what = format_args!("spec.cidrs[{i}] {text:?} is no range of addresses, ignored");
                    defects.add(what, "write a prefix such as 10.96.0.0/16");
                }
            }
        }
        Self { name: meta.name.as_str().into(), cidrs, defects: defects.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::types::Watched;

    #[test]
    fn b15_ranges_are_read_and_what_is_none_is_named() {
        let cases = [
            (r#"["10.96.0.0/16","fd00:96::/112"]"#, "10.96.0.0/16 fd00:96::/112", 0),
            (r#"["10.96.0.0/16","0.0.0.0/0","much",7]"#, "10.96.0.0/16", 3),
            ("null", "", 0),
            (r#""10.96.0.0/16""#, "", 1),
        ];
        for (cidrs, want, defects) in cases {
            let text = format!(r#"{{"metadata":{{"name":"kubernetes"}},"spec":{{"cidrs":{cidrs}}}}}"#);
            let found: Watched<ServiceCidr> = serde_json::from_str(&text).unwrap();
            let got: Vec<_> = found.object.cidrs.iter().map(ToString::to_string).collect();
            assert_eq!((got.join(" ").as_str(), found.object.defects.len()), (want, defects), "{cidrs}");
        }
    }
}
