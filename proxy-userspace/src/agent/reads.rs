//! What the data plane's thread tells about itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proxy_common::abi::{AddressClass, Reason, protocol, service_flags};

use super::edges::{self, Served};
use super::plane::PlaneReport;
use super::start::ASKED_OFF;
use super::worker::Worker;
use crate::config::Shortcuts;
use crate::control::{FlowFilter, service_view};
use crate::datapath::{DatapathError, FlowInfo};
use crate::model::Family;
use crate::node::EdgeKind;
use crate::status::{Edge, FlowView, Mode, ServiceView, Trouble, Usage, story};
use crate::sync::Store;

/// By reason.
type Counts = BTreeMap<String, u64>;

impl Worker {
    /// Addresses that serve NodePorts, read back from the maps.
    pub fn served_node_ports(&self) -> Result<Vec<IpAddr>, DatapathError> {
        let classes = self.datapath.addresses()?;
        Ok(classes
            .into_iter()
            .filter(|(_, bits)| bits & AddressClass::NODE_PORT != 0)
            .map(|(ip, _)| ip)
            .collect())
    }

    /// Counted anew at most every few seconds: scrapes and people who look often must not cost packets.
    fn usage(&mut self) -> Result<Usage, DatapathError> {
        const FRESH: Duration = Duration::from_secs(5);
        let now = self.clock.now();
        if let Some((_, usage)) = self.usage.filter(|(counted, _)| now < *counted + FRESH) {
            return Ok(usage);
        }
        let usage = self.datapath.flow_usage()?;
        let usage = Usage { used: usage.used, max: usage.max };
        self.usage = Some((now, usage));
        Ok(usage)
    }

    /// Reasons that have occurred: those of packets that were lost, and the others.
    fn counters(&self) -> Result<(Counts, Counts), DatapathError> {
        let counters = self.datapath.counters()?.into_iter().filter(|(_, n)| *n > 0);
        let (lost, others): (Vec<_>, Vec<_>) = counters.partition(|(reason, _)| reason.verdict() != "count");
        let named = |list: Vec<(Reason, u64)>| {
            list.into_iter().map(|(reason, n)| (reason.name().to_owned(), n)).collect()
        };
        Ok((named(lost), named(others)))
    }

    /// Ports with a Local policy whose endpoints are all on other nodes.
    fn count_silent(&self) {
        for family in [Family::V4, Family::V6] {
            let mut counts = [0; 2];
            for flags in self.syncer.flags(family) {
                counts[0] += i64::from(flags & service_flags::DROP_EXTERNAL != 0);
                counts[1] += i64::from(flags & service_flags::DROP_INTERNAL != 0);
            }
            self.metrics.no_local_endpoints(family, counts);
        }
    }

    pub fn report(&mut self) -> PlaneReport {
        self.count_silent();
        let mut degraded: Vec<_> = self.edges.values().filter_map(edges::trouble).collect();
        degraded.extend(self.refusals());
        if !["", ASKED_OFF].contains(&self.sockets.why.as_str()) {
            let next = "mount cgroup2 and name it with --cgroup, or ask for --sockets off";
            degraded.push(Trouble::new("sockets of the node's own processes", &self.sockets.why, next));
        }
        degraded.extend(self.misnamed());
        degraded.extend(self.unwritten.clone());
        degraded.extend(self.shortcuts.trouble.clone());
        degraded.extend(self.sweep_trouble.clone());
        degraded.extend(self.guard_troubles.iter().cloned());
        degraded.extend(self.catch_all.troubles());
        if self.lacks_pod_cidrs() {
            degraded.push(Trouble::new(
                "detectLocalMode NodeCIDR",
                "this Node's spec.podCIDRs are not known: what they were before counts, without any no traffic to ClusterIPs is masqueraded",
                "have the range allocated, or choose another detectLocalMode",
            ));
        }
        degraded.extend(self.unguarded.iter().map(|range| {
            let what = "too many ranges of ClusterIPs: what no Service has of this one is routed on";
            Trouble::new(format_args!("ServiceCIDR range {range}"), what, "use fewer, larger ranges")
        }));
        let (flows, counters) = (self.usage(), self.counters());
        let unread = [flows.as_ref().err(), counters.as_ref().err()].into_iter().flatten();
        degraded.extend(unread.map(unreadable));
        let (drops, counts) = counters.unwrap_or_default();
        let mut addresses: Vec<_> =
            self.addresses.iter().filter(|a| a.global && a.usable).map(|address| address.ip).collect();
        addresses.sort_unstable();
        addresses.dedup();
        PlaneReport {
            unwritten: self.unwritten.is_some(),
            addresses,
            edges: self.edges.values().map(|served| self.edge_view(served)).collect(),
            sockets: self.sockets.clone(),
            checksums: self.checksums(),
            shortcuts: self.shortcuts.mode.clone(),
            flows: flows.unwrap_or_default(),
            drops,
            counts,
            trace: self.traced(),
            degraded,
            latest: self.latest.clone(),
        }
    }

    fn checksums(&self) -> Mode {
        match self.datapath.unsummed() {
            None => Mode { mode: "programs".to_owned(), why: String::new() },
            Some(why) => Mode { mode: "helper".to_owned(), why: why.to_owned() },
        }
    }

    fn edge_view(&self, served: &Served) -> Edge {
        let mut view = edges::view(served);
        let may_have = self.asked_shortcuts != Shortcuts::Off && served.edge.kind != EdgeKind::CatchAll;
        if let (Err(why), true) = (served.ways(), may_have && view.why.is_empty()) {
            view.why = format!("no shortcuts: {why}");
        }
        if served.edge.kind == EdgeKind::CatchAll && view.why.is_empty() {
            view.why = self.catch_all_note();
        }
        view
    }

    /// Read back from the maps.
    pub fn services(&self, name: Option<&str>) -> Result<Vec<ServiceView>, Trouble> {
        let installed = self.syncer.installed(&self.datapath).map_err(|error| unreadable(&error))?;
        let node_port = self.served_node_ports().map_err(|error| unreadable(&error))?;
        let mut views: Vec<_> = installed.iter().map(|port| service_view(port, &node_port)).collect();
        views.retain(|view| name.is_none_or(|name| view.name == name));
        views.sort();
        Ok(views)
    }

    pub fn flows(&self, filter: &FlowFilter) -> Result<Vec<FlowView>, Trouble> {
        let flows = self.datapath.flows().map_err(|error| unreadable(&error))?;
        let names = self.syncer.names();
        let views =
            flows.iter().map(|flow| flow_view(flow, names.get(&flow.service).map(ToString::to_string)));
        Ok(views.filter(|view| filter.matches(view)).collect())
    }
}

fn flow_view(flow: &FlowInfo, service: Option<String>) -> FlowView {
    let protocol = match flow.protocol {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    };
    FlowView {
        client: flow.client,
        frontend: flow.frontend,
        backend: flow.backend,
        masquerade: flow.masquerade,
        protocol,
        service,
        state: flow.state.name().to_owned(),
        age: flow.age.as_secs(),
        idle: flow.idle.as_secs(),
        path: if flow.shortcut { "shortcut" } else { "stack" }.to_owned(),
    }
}

fn unreadable(error: &DatapathError) -> Trouble {
    Trouble::new("the maps", story(error), "restart the agent; the data plane goes on meanwhile")
}
