//! Configurations that both proxies are started with, beside the plain one.

use serde_json::{Value, json};

use super::{Case, Mode};
use crate::lab::plan::{CLUSTER_CIDR, Family, Wiring};

/// A configuration with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Defaults, and pods told by their prefix.
    Plain,
    /// The same, asked after objects have changed.
    Changed,
    /// Sluice is told otherwise than kube-proxy: the suite must find out.
    Skewed,
    /// F4.
    MasqueradeAll,
    /// F8, C10: pods are not told from others.
    NoDetector,
    /// F5: pods are told by prefix in one family only.
    FourOnlyDetector,
    /// F6.
    NodeCidr,
    /// F7: by the bridge, or by the name of the device.
    Device,
    /// E3, P-34: one address of one family; all of the other.
    NodePortPrefix,
    /// E2: what is nftables mode's default, said in iptables mode.
    NodePortPrimary,
    /// A10: the feature gate that takes external IPs away.
    NoExternalIps,
}

impl Variant {
    /// All that only some cases are asked under.
    pub const SPECIAL: [Self; 8] = [
        Self::MasqueradeAll,
        Self::NoDetector,
        Self::FourOnlyDetector,
        Self::NodeCidr,
        Self::Device,
        Self::NodePortPrefix,
        Self::NodePortPrimary,
        Self::NoExternalIps,
    ];

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Changed => "changed",
            Self::Skewed => "skewed",
            Self::MasqueradeAll => "masquerade_all",
            Self::NoDetector => "no_detector",
            Self::FourOnlyDetector => "four_only_detector",
            Self::NodeCidr => "node_cidr",
            Self::Device => "device",
            Self::NodePortPrefix => "node_port_prefix",
            Self::NodePortPrimary => "node_port_primary",
            Self::NoExternalIps => "no_external_ips",
        }
    }

    /// Whether the case is asked under it.
    #[must_use]
    pub fn concerns(self, case: &Case) -> bool {
        let some = [
            "local",
            "both",
            "none",
            "node",
            "local-external-local",
            "remote-external-local",
            "both-all-local",
        ];
        match self {
            Self::Plain => true,
            Self::Changed => case.change.is_some(),
            Self::Skewed => case.name == "local",
            _ => some.contains(&case.name.as_str()),
        }
    }

    /// Whether nothing tells pods of this family from others.
    #[must_use]
    pub const fn lacks_detector(self, family: Family) -> bool {
        matches!((self, family), (Self::NoDetector, _) | (Self::FourOnlyDetector, Family::V6))
    }

    /// Those of Sluice's, which are the same but where the suite itself is on trial.
    #[must_use]
    pub fn own_config(self, mode: Mode, wiring: Wiring) -> Value {
        let same_as = if self == Self::Skewed { Self::MasqueradeAll } else { self };
        same_as.config(mode, wiring)
    }

    /// Fields of kube-proxy's configuration that differ from the plain ones.
    #[must_use]
    pub fn config(self, mode: Mode, wiring: Wiring) -> Value {
        match (self, wiring) {
            (Self::Plain | Self::Changed | Self::Skewed, _) => json!({}),
            (Self::MasqueradeAll, _) => json!({mode.to_string(): {"masqueradeAll": true}}),
            (Self::NoDetector, _) => json!({"clusterCIDR": ""}),
            (Self::FourOnlyDetector, _) => {
                json!({"clusterCIDR": CLUSTER_CIDR.split(',').next().unwrap_or_default()})
            }
            (Self::NodeCidr, _) => json!({"detectLocalMode": "NodeCIDR"}),
            (Self::Device, Wiring::Routed) => {
                json!({"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cali"}})
            }
            (Self::Device, Wiring::Bridged) => {
                json!({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}})
            }
            (Self::NodePortPrefix, _) => json!({"nodePortAddresses": ["192.0.2.111/32"]}),
            (Self::NodePortPrimary, _) => json!({"nodePortAddresses": ["primary"]}),
            (Self::NoExternalIps, _) => json!({"featureGates": {"AllowServiceExternalIPs": false}}),
        }
    }
}
