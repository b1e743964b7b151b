use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use foldhash::HashMap;
use serde::Deserialize;

use super::loose::{Defects, Loose, Nested, Shape};
use super::meta::{Kind, Meta, Metadata};
use super::recent::shared;
use super::service::protocol;
use super::{Defect, ObjectName};
use crate::model::{Family, Protocol};

/// An EndpointSlice, reduced to what the plan reads.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`; a slice without it belongs to nobody (A6).
    pub service: Option<Arc<str>>,
    /// Label `service.kubernetes.io/headless` (A3).
    pub headless: bool,
    /// When the change behind it happened, since 1970; for the metric of programming latency.
    pub triggered: Option<Duration>,
    /// `None` for host names (`FQDN`), which nothing serves (A6).
    pub family: Option<Family>,
    pub ports: Box<[SlicePort]>,
    /// What most of a cluster consists of: 24 bytes each, and the model keeps them as they are.
    pub endpoints: Box<[SliceEndpoint]>,
    /// Different nodes, and different hints, that endpoints refer to by their place, from 1 on.
    pub nodes: Vec<Arc<str>>,
    pub hints: Vec<Hints>,
    pub defects: Vec<Defect>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlicePort {
    /// Joined with the Service port's name, never by number (A4).
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SliceEndpoint {
    /// The first address; the others are ignored (A6).
    pub address: IpAddr,
    /// Defaults of A8 are filled in.
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Place in [`Slice::nodes`]; 0: none.
    pub node: u16,
    /// Place in [`Slice::hints`]; 0: no hints of either kind.
    pub hints: u16,
}

/// Whom an endpoint should serve (C11 … C13). An empty list: there is no hint of that kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    pub zones: Vec<String>,
    pub nodes: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Raw {
    metadata: Metadata,
    address_type: Loose<String>,
    ports: Loose<Vec<Loose<Nested<Port>>>>,
    endpoints: Loose<Vec<Loose<Nested<Endpoint>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Loose<String>,
    protocol: Loose<String>,
    port: Loose<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Endpoint {
    addresses: Loose<Vec<Loose<Address>>>,
    conditions: Loose<Nested<Conditions>>,
    node_name: Loose<String>,
    hints: Loose<Nested<RawHints>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawHints {
    for_zones: Loose<Vec<Loose<Nested<Named>>>>,
    for_nodes: Loose<Vec<Loose<Nested<Named>>>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: Loose<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: Loose<bool>,
    serving: Loose<bool>,
    terminating: Loose<bool>,
}

/// Parsed where it is read: a text for each endpoint of the cluster would be most of the decoder's allocations.
#[derive(Clone, Debug)]
enum Address {
    Ip(IpAddr),
    Other(String),
}

impl Shape for Address {
    const NAME: &'static str = "an IP address";

    fn text(text: &str) -> Option<Self> {
        Some(text.parse().map_or_else(|_| Self::Other(text.to_owned()), Self::Ip))
    }
}

impl Kind for Slice {
    const KIND: &'static str = "EndpointSlice";
    const GROUP: &'static str = "discovery.k8s.io";
    const PLURAL: &'static str = "endpointslices";
    type Raw = Raw;

    fn metadata(raw: &mut Raw) -> &mut Metadata {
        &mut raw.metadata
    }

    fn from_raw(raw: Raw, meta: &Meta, mut defects: Defects) -> Self {
        let service =
            defects.take(meta.labels.service_name.clone(), "metadata.labels[kubernetes.io/service-name]");
        let family = family(raw.address_type, &mut defects);
        let mut slice = Self {
            name: meta.object_name(),
            service: service.filter(|name| !name.is_empty()).map(Into::into),
            headless: !meta.labels.headless.is_missing(),
            triggered: meta.triggered,
            family,
            ports: ports(raw.ports, &mut defects).into(),
            endpoints: Box::default(),
            nodes: Vec::new(),
            hints: Vec::new(),
            defects: Vec::new(),
        };
        if family.is_some() {
            slice.set_endpoints(raw.endpoints, &mut defects);
        }
        slice.defects = defects.0;
        slice
    }
}

impl Slice {
    fn set_endpoints(&mut self, field: Loose<Vec<Loose<Nested<Endpoint>>>>, defects: &mut Defects) {
        let items = defects.items(field, "endpoints");
        let (mut nodes, mut hints) = (Places::default(), Places::default());
        let endpoint = |(i, Nested(raw))| endpoint(i, raw, defects, &mut nodes, &mut hints);
        self.endpoints = items.into_iter().filter_map(endpoint).collect();
        (self.nodes, self.hints) = (nodes.into_list(), hints.into_list());
    }
}

fn endpoint(
    i: usize,
    raw: Endpoint,
    defects: &mut Defects,
    nodes: &mut Places<Arc<str>>,
    known_hints: &mut Places<Hints>,
) -> Option<SliceEndpoint> {
    let path = format!("endpoints[{i}]");
    let list = defects.take(raw.addresses, format_args!("{path}.addresses")).unwrap_or_default();
    let Some(first) = list.into_iter().next() else {
        defects.add(format_args!("{path} has no address, ignored"), "write one address");
        return None;
    };
    let address = match defects.take(first, format_args!("{path}.addresses[0]"))? {
        Address::Ip(address) => address,
        Address::Other(text) => {
            let what = format_args!("{path}.addresses[0] {text:?} is no IP address, ignored");
            defects.add(what, "write an address of the slice's addressType");
            return None;
        }
    };
    let conditions = defects.nested(raw.conditions, format_args!("{path}.conditions"));
    let node = defects.take(raw.node_name, format_args!("{path}.nodeName"));
    let hints = hints(raw.hints, &path, defects);
    Some(SliceEndpoint {
        address,
        ready: defects.take(conditions.ready, format_args!("{path}.conditions.ready")).unwrap_or(true),
        serving: defects.take(conditions.serving, format_args!("{path}.conditions.serving")).unwrap_or(true),
        terminating: defects
            .take(conditions.terminating, format_args!("{path}.conditions.terminating"))
            .unwrap_or(false),
        node: node.map_or(0, |name| nodes.place(name.into())),
        hints: hints.map_or(0, |hints| known_hints.place(hints)),
    })
}

/// Different items, each with its place from 1 on. A slice has a thousand endpoints at most; an item beyond what a place can
/// name counts as missing.
#[derive(Debug)]
pub struct Places<T>(HashMap<T, u16>);

impl<T> Default for Places<T> {
    fn default() -> Self {
        Self(HashMap::default())
    }
}

impl<T: Hash + Eq> Places<T> {
    /// The item's place; it is given one if it has none.
    pub fn place(&mut self, item: T) -> u16 {
        match u16::try_from(self.0.len() + 1) {
            Ok(next) => *self.0.entry(item).or_insert(next),
            Err(_) => self.0.get(&item).copied().unwrap_or_default(),
        }
    }

    /// The items in the order of their places.
    pub fn into_list(self) -> Vec<T> {
        let mut items: Vec<_> = self.0.into_iter().collect();
        items.sort_unstable_by_key(|(_, place)| *place);
        items.into_iter().map(|(item, _)| item).collect()
    }
}

fn family(field: Loose<String>, defects: &mut Defects) -> Option<Family> {
    match defects.take(field, "addressType").as_deref() {
        Some("IPv4") => Some(Family::V4),
        Some("IPv6") => Some(Family::V6),
        Some("FQDN") => None,
        other => {
            let what =
                format_args!("addressType {:?} is not known, slice ignored", other.unwrap_or_default());
            defects.add(what, "write IPv4 or IPv6");
            None
        }
    }
}

/// Name and protocol default as the API server fills them in. A port without a number means "all ports" in the API;
/// nobody implements it (A6).
fn ports(field: Loose<Vec<Loose<Nested<Port>>>>, defects: &mut Defects) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for (i, Nested(raw)) in defects.items(field, "ports") {
        let path = format!("ports[{i}]");
        let name = defects.take(raw.name, format_args!("{path}.name")).unwrap_or_default();
        let Some(protocol) = protocol(raw.protocol, &path, defects) else { continue };
        let Some(number) = defects.take(raw.port, format_args!("{path}.port")) else {
            defects.add(format_args!("{path} has no number, ignored"), "write a number from 1 to 65535");
            continue;
        };
        if let Some(port) = defects.port(number, format_args!("{path}.port")) {
            ports.push(SlicePort { name: shared(&name), protocol, port });
        }
    }
    ports
}

fn hints(field: Loose<Nested<RawHints>>, path: &str, defects: &mut Defects) -> Option<Hints> {
    if field.is_missing() {
        return None;
    }
    let raw = defects.nested(field, format_args!("{path}.hints"));
    let mut names = |list, kind: &str| -> Vec<String> {
        let path = format!("{path}.hints.{kind}");
        let items = defects.items(list, &path);
        let name = |(i, Nested(named)): (usize, Nested<Named>)| {
            defects.take(named.name, format_args!("{path}[{i}].name")).filter(|name| !name.is_empty())
        };
        items.into_iter().filter_map(name).collect()
    };
    let hints = Hints { zones: names(raw.for_zones, "forZones"), nodes: names(raw.for_nodes, "forNodes") };
    (hints != Hints::default()).then_some(hints)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_begin_at_one_and_end_with_their_type() {
        let mut places = Places::default();
        assert_eq!(["a", "b", "a"].map(|item| places.place(item.to_owned())), [1, 2, 1]);
        assert_eq!(places.into_list(), ["a", "b"]);
        let mut places = Places::default();
        for item in 1..=u16::MAX {
            assert_eq!(places.place(u32::from(item)), item);
        }
        assert_eq!([70_000, 70_000, 65_535].map(|item| places.place(item)), [0, 0, u16::MAX]);
    }
}
