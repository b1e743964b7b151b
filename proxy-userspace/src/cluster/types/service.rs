use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::loose::{Defects, Loose, Nested};
use super::meta::{Kind, Meta, Metadata};
use super::recent::shared;
use super::{Defect, ObjectName};
use crate::model::{Family, Protocol};

/// A Service, reduced to what the plan reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    pub name: ObjectName,
    /// Seconds since 1970; the oldest wins a shared address (A17).
    pub created: i64,
    pub kind: ServiceType,
    /// Label `service.kubernetes.io/service-proxy-name`: another proxy's (A3).
    pub other_proxy: bool,
    /// Empty for a headless Service.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs` (A10).
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[]` with an IP that is not in mode `Proxy` (A11).
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    pub source_ranges: SourceRanges,
    /// `spec.healthCheckNodePort`; 0: none.
    pub health_check_node_port: u16,
    /// Seconds; 0: no session affinity.
    pub affinity_timeout: u32,
    pub ports: Box<[ServicePort]>,
    pub defects: Box<[Defect]>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Empty for an unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

/// `spec.loadBalancerSourceRanges` (A12).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SourceRanges {
    pub ranges: Box<[IpNet]>,
    /// Some could not be read: they must not open what they were to close.
    pub unreadable: bool,
}

impl SourceRanges {
    /// The ranges for one family; `None`: open to everybody. A range of all addresses opens it, and so does a list that has
    /// ranges of the other family only.
    #[must_use]
    pub fn of(&self, family: Family) -> Option<Vec<IpNet>> {
        let same = self.ranges.iter().filter(|net| Family::of(&net.addr()) == family);
        let mut ranges: Vec<_> = same.map(IpNet::trunc).collect();
        if ranges.iter().any(|net| net.prefix_len() == 0) || (ranges.is_empty() && !self.unreadable) {
            return None;
        }
        ranges.sort_unstable();
        ranges.dedup();
        Some(ranges)
    }
}

/// `spec.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Raw {
    metadata: Metadata,
    spec: Loose<Nested<Spec>>,
    status: Loose<Nested<Status>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    r#type: Loose<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Loose<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Loose<Vec<Loose<String>>>,
    #[serde(rename = "externalIPs")]
    external_ips: Loose<Vec<Loose<String>>>,
    external_traffic_policy: Loose<String>,
    internal_traffic_policy: Loose<String>,
    load_balancer_source_ranges: Loose<Vec<Loose<String>>>,
    health_check_node_port: Loose<i64>,
    session_affinity: Loose<String>,
    session_affinity_config: Loose<Nested<AffinityConfig>>,
    ports: Loose<Vec<Loose<Nested<Port>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Loose<Nested<ClientIp>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: Loose<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Port {
    name: Loose<String>,
    protocol: Loose<String>,
    port: Loose<i64>,
    node_port: Loose<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    load_balancer: Loose<Nested<LoadBalancer>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    ingress: Loose<Vec<Loose<Nested<Ingress>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Ingress {
    ip: Loose<String>,
    ip_mode: Loose<String>,
}

/// The API's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_DEFAULT: i64 = 10_800;

impl Kind for Service {
    const KIND: &'static str = "Service";
    const GROUP: &'static str = "";
    const PLURAL: &'static str = "services";
    type Raw = Raw;

    fn metadata(raw: &mut Raw) -> &mut Metadata {
        &mut raw.metadata
    }

    fn from_raw(raw: Raw, meta: &Meta, mut defects: Defects) -> Self {
        let spec = defects.nested(raw.spec, "spec");
        let status = defects.nested(raw.status, "status");
        let kind = service_type(spec.r#type, &mut defects);
        Self {
            name: meta.object_name(),
            created: meta.created,
            kind,
            other_proxy: !meta.labels.service_proxy_name.is_missing(),
            cluster_ips: cluster_ips(spec.cluster_ip, spec.cluster_ips, kind, &mut defects).into(),
            external_ips: addresses(spec.external_ips, "spec.externalIPs", &mut defects).into(),
            load_balancer_ips: ingress(status, &mut defects).into(),
            external_local: local(spec.external_traffic_policy, "spec.externalTrafficPolicy", &mut defects),
            internal_local: local(spec.internal_traffic_policy, "spec.internalTrafficPolicy", &mut defects),
            source_ranges: source_ranges(spec.load_balancer_source_ranges, &mut defects),
            health_check_node_port: health_check(spec.health_check_node_port, &mut defects),
            affinity_timeout: affinity(spec.session_affinity, spec.session_affinity_config, &mut defects),
            ports: ports(spec.ports, &mut defects).into(),
            defects: defects.0.into(),
        }
    }
}

fn service_type(field: Loose<String>, defects: &mut Defects) -> ServiceType {
    match defects.take(field, "spec.type").as_deref() {
        None | Some("ClusterIP" | "") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            defects.add(
                format_args!("spec.type {other:?} is not known, taken as ClusterIP"),
                "update the agent",
            );
            ServiceType::ClusterIp
        }
    }
}

/// `clusterIPs`, or `clusterIP` alone, as older objects have it. An API server allocates a missing one, for a
/// manifest nobody does.
fn cluster_ips(
    one: Loose<String>,
    all: Loose<Vec<Loose<String>>>,
    kind: ServiceType,
    defects: &mut Defects,
) -> Vec<IpAddr> {
    let one = defects.take(one, "spec.clusterIP").filter(|ip| !ip.is_empty());
    if one.as_deref() == Some("None") {
        return Vec::new();
    }
    let texts = defects.items(all, "spec.clusterIPs");
    if texts.is_empty() && one.is_none() && kind != ServiceType::ExternalName {
        defects.add("spec.clusterIP is missing, not served", "write an address, or None if that is meant");
    }
    if texts.is_empty() {
        return one.and_then(|text| address(&text, "spec.clusterIP", defects)).into_iter().collect();
    }
    parse_all(texts, "spec.clusterIPs", defects)
}

fn addresses(field: Loose<Vec<Loose<String>>>, path: &'static str, defects: &mut Defects) -> Vec<IpAddr> {
    let texts = defects.items(field, path);
    parse_all(texts, path, defects)
}

fn parse_all(texts: Vec<(usize, String)>, path: &'static str, defects: &mut Defects) -> Vec<IpAddr> {
    let texts = texts.into_iter().filter(|(_, text)| text != "None");
    texts.filter_map(|(i, text)| address(&text, format_args!("{path}[{i}]"), defects)).collect()
}

fn address(text: &str, path: impl std::fmt::Display, defects: &mut Defects) -> Option<IpAddr> {
    let parsed = text.trim().parse().ok();
    if parsed.is_none() {
        defects
            .add(format_args!("{path} {text:?} is no IP address, ignored"), "write an IPv4 or IPv6 address");
    }
    parsed
}

fn ingress(status: Status, defects: &mut Defects) -> Vec<IpAddr> {
    let balancer = defects.nested(status.load_balancer, "status.loadBalancer");
    let entries = defects.items(balancer.ingress, "status.loadBalancer.ingress");
    let mut addresses = Vec::new();
    for (i, Nested(entry)) in entries {
        let path = format!("status.loadBalancer.ingress[{i}]");
        let mode = defects.take(entry.ip_mode, format_args!("{path}.ipMode"));
        let ip = defects.take(entry.ip, format_args!("{path}.ip")).filter(|ip| !ip.is_empty());
        if mode.as_deref() != Some("Proxy") {
            addresses.extend(ip.and_then(|ip| address(&ip, format_args!("{path}.ip"), defects)));
        }
    }
    addresses
}

fn source_ranges(field: Loose<Vec<Loose<String>>>, defects: &mut Defects) -> SourceRanges {
    let path = "spec.loadBalancerSourceRanges";
    let before = defects.0.len();
    let mut ranges = Vec::new();
    for (i, text) in defects.items(field, path) {
        match text.trim().parse() {
            Ok(net) => ranges.push(net),
            Err(_) => {
                let what = format_args!("{path}[{i}] {text:?} is no CIDR, admits nobody");
                defects.add(what, "write a prefix such as 192.0.2.0/24");
            }
        }
    }
    SourceRanges { ranges: ranges.into(), unreadable: defects.0.len() > before }
}

fn health_check(field: Loose<i64>, defects: &mut Defects) -> u16 {
    let path = "spec.healthCheckNodePort";
    let number = defects.take(field, path).filter(|number| *number != 0);
    number.and_then(|number| defects.port(number, path)).unwrap_or(0)
}

fn local(field: Loose<String>, path: &'static str, defects: &mut Defects) -> bool {
    match defects.take(field, path).as_deref() {
        Some("Local") => true,
        None | Some("Cluster" | "") => false,
        Some(other) => {
            defects.add(
                format_args!("{path} {other:?} is not known, taken as Cluster"),
                "write Cluster or Local",
            );
            false
        }
    }
}

fn affinity(kind: Loose<String>, config: Loose<Nested<AffinityConfig>>, defects: &mut Defects) -> u32 {
    match defects.take(kind, "spec.sessionAffinity").as_deref() {
        None | Some("None" | "") => return 0,
        Some("ClientIP") => {}
        Some(other) => {
            let what = format_args!("spec.sessionAffinity {other:?} is not known, taken as None");
            defects.add(what, "write None or ClientIP");
            return 0;
        }
    }
    let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    let config = defects.nested(config, "spec.sessionAffinityConfig");
    let client = defects.nested(config.client_ip, "spec.sessionAffinityConfig.clientIP");
    let seconds = defects.take(client.timeout_seconds, path).unwrap_or(AFFINITY_DEFAULT);
    u32::try_from(seconds).ok().filter(|s| (1..=86_400).contains(s)).unwrap_or_else(|| {
        let what = format_args!("{path} is {seconds}, taken as {AFFINITY_DEFAULT}");
        defects.add(what, "write seconds from 1 to 86400");
        10_800
    })
}

fn ports(field: Loose<Vec<Loose<Nested<Port>>>>, defects: &mut Defects) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::new();
    for (i, Nested(raw)) in defects.items(field, "spec.ports") {
        let path = format!("spec.ports[{i}]");
        let name = defects.take(raw.name, format_args!("{path}.name")).unwrap_or_default();
        let Some(protocol) = protocol(raw.protocol, &path, defects) else { continue };
        let Some(number) = defects.take(raw.port, format_args!("{path}.port")) else {
            defects.add(format_args!("{path} has no port, ignored"), "write port: a number from 1 to 65535");
            continue;
        };
        let Some(port) = defects.port(number, format_args!("{path}.port")) else { continue };
        let node_port = defects.take(raw.node_port, format_args!("{path}.nodePort")).filter(|n| *n != 0);
        let node_port = node_port.and_then(|n| defects.port(n, format_args!("{path}.nodePort"))).unwrap_or(0);
        if ports.iter().any(|p| *p.name == *name && p.protocol == protocol) {
            let what = format_args!("{path} repeats the name {name:?}, the first counts");
            defects.add(what, "give every port its own name");
            continue;
        }
        ports.push(ServicePort { name: shared(&name), protocol, port, node_port });
    }
    ports
}

/// TCP when missing, as the API server fills it in.
pub fn protocol(field: Loose<String>, path: &str, defects: &mut Defects) -> Option<Protocol> {
    match defects.take(field, format_args!("{path}.protocol")).as_deref() {
        None | Some("TCP" | "") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(other) => {
            defects.add(
                format_args!("{path}.protocol {other:?} is not known, port ignored"),
                "write TCP, UDP or SCTP",
            );
            None
        }
    }
}
