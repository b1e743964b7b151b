//! From a Service and its slices to what should be installed: a pure function.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use proxy_common::abi::{CHUNK, FrontendKind, service_flags};

use super::addresses::{endpoint_refusal, frontend_refusal};
use super::claims::{ClaimKey, Claims};
use super::desired::{Family, HealthCheck, PortFrontend, PortId, PortState, Protocol};
use super::select::{Candidate, Policy, Selection, merge, select, unlisted};
use super::store::StoredSlice;
use crate::cluster::types::{ObjectName, Problem, Service, ServicePort, ServiceType, SliceEndpoint};

/// A frontend that a Service asks for, before it is known whether it gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    pub kind: FrontendKind,
    pub key: ClaimKey,
}

impl Service {
    /// Whether this proxy serves the Service at all (A2, A3).
    #[must_use]
    pub fn is_served(&self) -> bool {
        !self.other_proxy && self.kind != ServiceType::ExternalName && !self.cluster_ips.is_empty()
    }

    /// Families with a ClusterIP; nothing of the other family is served (A15).
    fn families(&self) -> impl Iterator<Item = Family> {
        let has = |family| self.cluster_ips.iter().any(|ip| Family::of(ip) == family);
        [Family::V4, Family::V6].into_iter().filter(move |family| has(*family))
    }

    /// A14: a policy for external traffic counts only if there is such traffic.
    fn policy(&self) -> Policy {
        let reachable = matches!(self.kind, ServiceType::NodePort | ServiceType::LoadBalancer);
        let reachable = reachable || !self.external_ips.is_empty();
        Policy { external_local: self.external_local && reachable, internal_local: self.internal_local }
    }
}

/// Where this node stands.
#[derive(Clone, Debug, Default)]
pub struct Place<'a> {
    /// C11.
    pub zone: Option<&'a str>,
    /// One of each family (I5).
    pub ips: Vec<IpAddr>,
}

/// C16, C17: who may dial the LoadBalancer addresses of one family, and the flags that go with it.
fn admission(service: &Service, family: Family, place: &Place<'_>) -> (Vec<IpNet>, u32) {
    let of_family = |ip: &IpAddr| Family::of(ip) == family;
    let has_balancer = service.load_balancer_ips.iter().any(of_family);
    let Some(ranges) = service.source_ranges.of(family).filter(|_| has_balancer) else {
        return (Vec::new(), 0);
    };
    let node = place.ips.iter().any(|ip| ranges.iter().any(|range| range.contains(ip)));
    let node = if node { service_flags::NODE_IN_RANGES } else { 0 };
    (ranges, service_flags::SOURCE_RANGES | node)
}

/// What one Service comes to.
#[derive(Debug, Default)]
pub struct Planned {
    pub health: Option<HealthCheck>,
    pub ports: Vec<(PortId, PortState)>,
    pub problems: Vec<Problem>,
}

/// Every frontend that a port asks for, once per address: what a Service says twice is what comes first here.
/// Refused addresses are left out.
pub fn frontends<'a>(service: &'a Service, port: &'a ServicePort) -> Vec<Frontend> {
    let mut list: Vec<Frontend> = Vec::new();
    if !service.is_served() {
        return list;
    }
    let mut add = |kind, address: IpAddr, number| {
        let key = ClaimKey { address, protocol: port.protocol, port: number };
        let fit = kind == FrontendKind::NodePort || frontend_refusal(&address).is_none();
        if fit && !list.iter().any(|f| f.key == key) {
            list.push(Frontend { kind, key });
        }
    };
    for family in service.families() {
        let of =
            |addresses: &'a [IpAddr]| addresses.iter().copied().filter(move |ip| Family::of(ip) == family);
        of(&service.cluster_ips).for_each(|ip| add(FrontendKind::ClusterIp, ip, port.port));
        of(&service.load_balancer_ips).for_each(|ip| add(FrontendKind::LoadBalancer, ip, port.port));
        of(&service.external_ips).for_each(|ip| add(FrontendKind::ExternalIp, ip, port.port));
        if port.node_port != 0 {
            add(FrontendKind::NodePort, unspecified(family), port.node_port);
        }
    }
    list
}

const fn unspecified(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// Everything that follows from one Service and its slices for this node.
pub fn plan<'a>(
    service: &Service,
    slices: impl Iterator<Item = (&'a ObjectName, &'a StoredSlice)> + Clone,
    claims: &Claims,
    place: &Place<'_>,
) -> Planned {
    let mut planned = Planned { problems: service_problems(service), ..Planned::default() };
    if !service.is_served() {
        return planned;
    }
    planned.problems.extend(slices.clone().flat_map(|(name, slice)| slice_problems(name, slice)));
    planned.health = health(service, slices.clone().map(|(_, slice)| slice));
    planned.ports.reserve_exact(service.ports.len() * service.families().count());
    let mut taken = BTreeSet::new();
    for port in &service.ports {
        let mut asked = frontends(service, port);
        asked.retain(|frontend| {
            taken.insert(frontend.key) || repeated(service, frontend, &mut planned.problems)
        });
        for family in service.families() {
            let id = PortId {
                namespace: service.name.namespace.clone(),
                service: service.name.name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            let own = asked.iter().filter(|f| Family::of(&f.key.address) == family);
            let frontends = granted(service, own, claims, &mut planned.problems);
            let candidates: Vec<_> =
                slices.clone().flat_map(|(_, slice)| candidates(slice, port, family, place.zone)).collect();
            let candidates = merge(candidates);
            let selection = select(&candidates, service.policy());
            let selection = within_chunk(selection, &id, &mut planned.problems);
            let is_udp = port.protocol == Protocol::Udp;
            let kept = if is_udp { unlisted(&candidates, &selection) } else { Vec::new() };
            let (ranges, admission) = admission(service, family, place);
            let state = PortState {
                frontends,
                external: selection.external,
                internal: selection.internal,
                cluster: selection.cluster,
                kept,
                ranges,
                flags: selection.flags | admission,
                affinity_timeout: service.affinity_timeout,
            };
            planned.ports.push((id, state));
        }
    }
    planned
}

/// H7: LoadBalancer Services under policy Local (A14). Terminating endpoints do not count.
fn health<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a StoredSlice> + Clone,
) -> Option<HealthCheck> {
    let port = service.health_check_node_port;
    if service.kind != ServiceType::LoadBalancer || !service.external_local || port == 0 {
        return None;
    }
    let ready = |family| {
        let slices = slices.clone().filter(move |s| s.family == Some(family) && !s.ports.is_empty());
        let fit = |slice: &StoredSlice, e: &SliceEndpoint| {
            e.ready && slice.is_local(e) && endpoint_refusal(&e.address, family).is_none()
        };
        let ready = |s: &'a StoredSlice| s.endpoints.iter().filter(move |e| fit(s, e)).map(|e| e.address);
        slices.flat_map(ready).collect::<BTreeSet<_>>()
    };
    let families = service.families().map(|family| (family, ready(family).len())).collect();
    Some(HealthCheck { port, ready: families })
}

/// A frontend that an earlier port of the same Service has: left out.
fn repeated(service: &Service, frontend: &Frontend, problems: &mut Vec<Problem>) -> bool {
    let ClaimKey { address, protocol, port } = frontend.key;
    problems.push(Problem::new(
        format_args!("Service {}", service.name),
        format_args!(
            "{} is named by two ports, the first counts",
            spell(frontend.kind, address, port, protocol)
        ),
        "give each port its own number",
    ));
    false
}

fn granted<'a>(
    service: &Service,
    asked: impl Iterator<Item = &'a Frontend>,
    claims: &Claims,
    problems: &mut Vec<Problem>,
) -> Vec<PortFrontend> {
    let mut list = Vec::new();
    for frontend in asked {
        let ClaimKey { address, protocol, port } = frontend.key;
        match claims.owner(&service.name, frontend) {
            None => list.push(PortFrontend { kind: frontend.kind, address, port }),
            Some(owner) => problems.push(Problem::new(
                format_args!("Service {}", service.name),
                format_args!(
                    "{} belongs to Service {owner}, not served here",
                    spell(frontend.kind, address, port, protocol)
                ),
                "give each Service its own address or port",
            )),
        }
    }
    list.sort_unstable();
    list
}

fn spell(kind: FrontendKind, address: IpAddr, port: u16, protocol: Protocol) -> String {
    match kind {
        FrontendKind::ClusterIp => format!("ClusterIP {address} port {port}/{protocol}"),
        FrontendKind::NodePort => format!("NodePort {port}/{protocol}"),
        FrontendKind::ExternalIp => format!("external IP {address} port {port}/{protocol}"),
        FrontendKind::LoadBalancer => format!("LoadBalancer address {address} port {port}/{protocol}"),
    }
}

/// A slice's endpoints for a Service port, joined by name and protocol (A4, A5).
fn candidates<'a>(
    slice: &'a StoredSlice,
    port: &'a ServicePort,
    family: Family,
    zone: Option<&'a str>,
) -> impl Iterator<Item = Candidate> + 'a {
    let fits = slice.family == Some(family);
    let numbers =
        slice.ports.iter().filter(move |p| fits && p.name == port.name && p.protocol == port.protocol);
    numbers.flat_map(move |number| {
        let fit = slice.endpoints.iter().filter(move |e| endpoint_refusal(&e.address, family).is_none());
        fit.map(move |endpoint| {
            let [node, zone] = slice.hints(endpoint, zone);
            Candidate {
                address: SocketAddr::new(endpoint.address, number.port),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                local: slice.is_local(endpoint),
                zone,
                node,
            }
        })
    })
}

/// A list that does not fit into one run of slots is cut: the rest of the Service goes on (C-32).
fn within_chunk(mut selection: Selection, id: &PortId, problems: &mut Vec<Problem>) -> Selection {
    let most = CHUNK as usize;
    let longest = selection.external.len().max(selection.internal.len()).max(selection.cluster.len());
    if longest > most {
        problems.push(Problem::new(
            format_args!("Service {id}"),
            format_args!("{longest} endpoints, the first {most} are used"),
            "split the Service",
        ));
        for list in [&mut selection.external, &mut selection.internal, &mut selection.cluster] {
            if list.len() > most {
                *list = list.iter().take(most).copied().collect();
            }
        }
    }
    selection
}

fn service_problems(service: &Service) -> Vec<Problem> {
    let object = format!("Service {}", service.name);
    let mut problems: Vec<_> =
        service.defects.iter().map(|d| Problem::new(&object, &d.what, &d.next)).collect();
    if !service.is_served() {
        return problems;
    }
    let lists = [
        ("ClusterIP", &service.cluster_ips),
        ("external IP", &service.external_ips),
        ("LoadBalancer address", &service.load_balancer_ips),
    ];
    for (kind, addresses) in lists {
        for (address, why) in addresses.iter().filter_map(|a| Some((a, frontend_refusal(a)?))) {
            let what = format_args!("{kind} {address} is {why}, refused");
            problems.push(Problem::new(&object, what, "give it an address that clients may use"));
        }
    }
    problems
}

fn slice_problems(name: &ObjectName, slice: &StoredSlice) -> Vec<Problem> {
    // Few slices have any.
    let object = || format!("EndpointSlice {name}");
    let mut problems: Vec<_> =
        slice.defects.iter().map(|d| Problem::new(object(), &d.what, &d.next)).collect();
    let family = slice.family.unwrap_or(Family::V4);
    for endpoint in &*slice.endpoints {
        if let Some(why) = endpoint_refusal(&endpoint.address, family) {
            let what = format_args!("endpoint {} is {why}, refused", endpoint.address);
            problems.push(Problem::new(object(), what, "write the address of a pod or a host"));
        }
    }
    capped(object, problems)
}

/// A slice may hold a thousand endpoints with one and the same fault.
fn capped(object: impl Fn() -> String, mut problems: Vec<Problem>) -> Vec<Problem> {
    const MOST: usize = 8;
    if problems.len() > MOST {
        let more = problems.len() - MOST;
        problems.truncate(MOST);
        problems.push(Problem::new(
            object(),
            format_args!("{more} more faults"),
            "correct the ones listed first",
        ));
    }
    problems
}
