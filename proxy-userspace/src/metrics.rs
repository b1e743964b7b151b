//! Metrics: kube-proxy's mode-independent names, so that its dashboards keep working, and Sluice's own under `sluice_`.

mod client;
mod process;
mod status;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

pub use client::{Exchange, Requests};
use process::Process;
use status::StatusMetrics;

use crate::model::Family;
use crate::status::Status;

type Labels = [(&'static str, &'static str); 1];
type Histograms = Labelled<Labels, Histogram, fn() -> Histogram>;
type Seconds = Labelled<Labels, Gauge<f64, std::sync::atomic::AtomicU64>>;

/// Both families are synced together: each of kube-proxy's per-family metrics is told the same.
const FAMILIES: [Labels; 2] = [[("ip_family", "IPv4")], [("ip_family", "IPv6")]];

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    status: Arc<Mutex<Status>>,
    sync_seconds: Histograms,
    full_sync_seconds: Histograms,
    partial_sync_seconds: Histograms,
    programming_seconds: Histograms,
    /// There is no conntrack to reconcile with: zero, for those who sum over nodes.
    conntrack_seconds: Histograms,
    conntrack_deleted: Labelled<Labels, Counter>,
    last_sync: Seconds,
    last_queued: Seconds,
    service_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    healthz: Labelled<[(&'static str, String); 1], Counter>,
    livez: Labelled<[(&'static str, String); 1], Counter>,
    failed_writes: Counter,
    attach_seconds: Histogram,
    sockets_ended: Counter,
    failed_sweeps: Counter,
    failed_guards: Counter,
    refused: Gauge,
    no_local_endpoints: Labelled<[(&'static str, &'static str); 2], Gauge>,
    features: Labelled<[(&'static str, &'static str); 2], Gauge>,
    requests: Requests,
    /// Service level indicators, which have a page of their own.
    slis: Registry,
    check: Labelled<[(&'static str, &'static str); 2], Gauge>,
    checks: Labelled<[(&'static str, &'static str); 3], Counter>,
}

/// kube-proxy's buckets for a round.
fn rounds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Its buckets for programming latency.
fn programming() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

/// OpenMetrics as the older text format, for those who do not ask for the newer: counters bear their samples' names, and
/// there is no end mark.
#[must_use]
pub fn plain(page: &str) -> String {
    let mut counters = std::collections::HashSet::new();
    for line in page.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.insert(name);
        }
    }
    let mut text = String::with_capacity(page.len());
    for line in page.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(kind), Some(name), Some(rest)) if counters.contains(name) => {
                text += &format!("# {kind} {name}_total {rest}\n");
            }
            _ => {
                text += line;
                text.push('\n');
            }
        }
    }
    text
}

/// Which health path answered.
#[derive(Clone, Copy, Debug)]
pub enum HealthPath {
    Healthz,
    Livez,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            status: Arc::default(),
            sync_seconds: Histograms::new_with_constructor(rounds),
            full_sync_seconds: Histograms::new_with_constructor(rounds),
            partial_sync_seconds: Histograms::new_with_constructor(rounds),
            programming_seconds: Histograms::new_with_constructor(programming),
            conntrack_seconds: Histograms::new_with_constructor(rounds),
            conntrack_deleted: Labelled::default(),
            last_sync: Seconds::default(),
            last_queued: Seconds::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            healthz: Labelled::default(),
            livez: Labelled::default(),
            failed_writes: Counter::default(),
            attach_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 12)),
            sockets_ended: Counter::default(),
            failed_sweeps: Counter::default(),
            failed_guards: Counter::default(),
            refused: Gauge::default(),
            no_local_endpoints: Labelled::default(),
            features: Labelled::default(),
            requests: Requests::default(),
            slis: Registry::default(),
            check: Labelled::default(),
            checks: Labelled::default(),
        };
        // There from the start, for those who ask for rates.
        for family in &FAMILIES {
            for seconds in [
                &metrics.sync_seconds,
                &metrics.full_sync_seconds,
                &metrics.partial_sync_seconds,
                &metrics.programming_seconds,
                &metrics.conntrack_seconds,
            ] {
                drop(seconds.get_or_create(family));
            }
            drop(metrics.conntrack_deleted.get_or_create(family));
        }
        for answers in [&metrics.healthz, &metrics.livez] {
            for code in ["200", "503"] {
                drop(answers.get_or_create(&[("code", code.to_owned())]));
            }
        }
        for family in [Family::V4, Family::V6] {
            metrics.no_local_endpoints(family, [0, 0]);
        }
        metrics.register_kube_proxy();
        metrics.register_own();
        metrics.register_common();
        metrics
    }

    fn register_kube_proxy(&mut self) {
        let r = self.registry.sub_registry_with_prefix("kubeproxy");
        let name = "sync_proxy_rules_duration_seconds";
        r.register(name, "Duration of a round of map writes", self.sync_seconds.clone());
        let name = "sync_full_proxy_rules_duration_seconds";
        r.register(name, "Duration of a round that wrote all there is", self.full_sync_seconds.clone());
        let name = "sync_partial_proxy_rules_duration_seconds";
        r.register(
            name,
            "Duration of a round that wrote what had changed",
            self.partial_sync_seconds.clone(),
        );
        let name = "network_programming_duration_seconds";
        r.register(
            name,
            "From a change of endpoints in the cluster to its installation",
            self.programming_seconds.clone(),
        );
        let name = "conntrack_reconciler_sync_duration_seconds";
        r.register(name, "Always zero: nothing is deleted from conntrack", self.conntrack_seconds.clone());
        let name = "conntrack_reconciler_deleted_entries";
        r.register(name, "Always zero: nothing is deleted from conntrack", self.conntrack_deleted.clone());
        let name = "sync_proxy_rules_last_timestamp_seconds";
        r.register(name, "When everything was last installed", self.last_sync.clone());
        let name = "sync_proxy_rules_last_queued_timestamp_seconds";
        r.register(name, "When a change was last queued", self.last_queued.clone());
        let name = "sync_proxy_rules_service_changes";
        r.register(name, "Changes of Services received", self.service_changes.clone());
        let name = "sync_proxy_rules_service_changes_pending";
        r.register(name, "Changes of Services not yet installed", self.service_changes_pending.clone());
        let name = "sync_proxy_rules_endpoint_changes";
        r.register(name, "Changes of EndpointSlices received", self.endpoint_changes.clone());
        let name = "sync_proxy_rules_endpoint_changes_pending";
        r.register(
            name,
            "Changes of EndpointSlices not yet installed",
            self.endpoint_changes_pending.clone(),
        );
        let name = "sync_proxy_rules_no_local_endpoints_total";
        let help = "Service ports with a Local policy and endpoints on other nodes only";
        r.register(name, help, self.no_local_endpoints.clone());
        r.register("proxy_healthz", "Answers of /healthz by code", self.healthz.clone());
        r.register("proxy_livez", "Answers of /livez by code", self.livez.clone());
    }

    fn register_own(&mut self) {
        self.registry.register_collector(Box::new(StatusMetrics(self.status.clone())));
        let r = self.registry.sub_registry_with_prefix("sluice");
        r.register("map_writes_failed", "Failed rounds of map writes", self.failed_writes.clone());
        let help = "From a device's event to both of its programs attached";
        r.register("edge_attach_seconds", help, self.attach_seconds.clone());
        let help = "Connected UDP sockets that were ended because their endpoint had departed or they were older than their Service";
        r.register("sockets_ended", help, self.sockets_ended.clone());
        let help = "Failed attempts to find or end such sockets";
        r.register("socket_sweeps_failed", help, self.failed_sweeps.clone());
        let help = "Failed attempts to look for kube-proxy's rules or to remove them";
        r.register("kube_proxy_rules_failed", help, self.failed_guards.clone());
        let help = "Service ports that wait for room in the maps";
        r.register("ports_refused", help, self.refused.clone());
    }

    /// What every component of Kubernetes tells.
    fn register_common(&mut self) {
        self.requests.register(&mut self.registry);
        self.registry.register_collector(Box::new(Process::new()));
        let name = "kubernetes_feature_enabled";
        self.registry.register(name, "Feature gates that are heeded", self.features.clone());
        self.slis.register("kubernetes_healthcheck", "The last result of a check", self.check.clone());
        self.slis.register("kubernetes_healthchecks", "Results of checks", self.checks.clone());
    }

    /// Of requests to the API server.
    #[must_use]
    pub const fn requests(&self) -> &Requests {
        &self.requests
    }

    /// A feature gate that has long been there, and whether it is on.
    pub fn feature(&self, name: &'static str, enabled: bool) {
        self.features.get_or_create(&[("name", name), ("stage", "")]).set(enabled.into());
    }

    /// `/healthz` of the metrics server has answered, which it does as long as it lives.
    pub fn pinged(&self) {
        let (name, kind) = (("name", "ping"), ("type", "healthz"));
        self.check.get_or_create(&[name, kind]).set(1);
        self.checks.get_or_create(&[name, kind, ("status", "success")]).inc();
    }

    /// Ports that wait for room.
    pub fn refused(&self, count: usize) {
        self.refused.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Ports whose external, whose internal policy leaves nothing.
    pub fn no_local_endpoints(&self, family: Family, counts: [i64; 2]) {
        for (policy, count) in ["external", "internal"].into_iter().zip(counts) {
            let labels = [("ip_family", family.name()), ("traffic_policy", policy)];
            self.no_local_endpoints.get_or_create(&labels).set(count);
        }
    }

    /// A change of a Service came in.
    pub fn service_changed(&self, wall: Duration) {
        self.service_changes.inc();
        self.service_changes_pending.inc();
        self.queued(wall);
    }

    /// A change of an EndpointSlice came in.
    pub fn slice_changed(&self, wall: Duration) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
        self.queued(wall);
    }

    fn queued(&self, wall: Duration) {
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(wall.as_secs_f64());
        }
    }

    /// Everything that was handed over has been installed; `wall` is the time since 1970. `full`: it was all there is.
    pub fn synced(&self, took: Duration, full: bool, wall: Duration) {
        let (took, kind) =
            (took.as_secs_f64(), if full { &self.full_sync_seconds } else { &self.partial_sync_seconds });
        for family in &FAMILIES {
            self.sync_seconds.get_or_create(family).observe(took);
            kind.get_or_create(family).observe(took);
            self.last_sync.get_or_create(family).set(wall.as_secs_f64());
        }
    }

    /// A change of endpoints that happened so long ago is installed.
    pub fn programmed(&self, family: Family, took: Duration) {
        self.programming_seconds.get_or_create(&[("ip_family", family.name())]).observe(took.as_secs_f64());
    }

    /// Changes that came in by now are about to be handed over.
    pub fn taken(&self) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }

    pub fn write_failed(&self) {
        self.failed_writes.inc();
    }

    pub fn attached(&self, took: Duration) {
        self.attach_seconds.observe(took.as_secs_f64());
    }

    pub fn sockets_ended(&self, count: usize) {
        self.sockets_ended.inc_by(count as u64);
    }

    pub fn sweep_failed(&self) {
        self.failed_sweeps.inc();
    }

    pub fn guard_failed(&self) {
        self.failed_guards.inc();
    }

    pub fn health_answered(&self, path: HealthPath, code: u16) {
        let family = match path {
            HealthPath::Healthz => &self.healthz,
            HealthPath::Livez => &self.livez,
        };
        family.get_or_create(&[("code", code.to_string())]).inc();
    }

    /// OpenMetrics text. What the status knows is taken from `status`; without one (the agent is busy), from the last.
    ///
    /// # Errors
    /// None in practice: the text is written to memory.
    pub fn encode(&self, status: Option<Status>) -> Result<String, fmt::Error> {
        if let Some(status) = status {
            *self.status.lock().unwrap_or_else(PoisonError::into_inner) = status;
        }
        encoded(&self.registry)
    }

    /// The page of service level indicators.
    ///
    /// # Errors
    /// As above.
    pub fn encode_slis(&self) -> Result<String, fmt::Error> {
        encoded(&self.slis)
    }
}

fn encoded(registry: &Registry) -> Result<String, fmt::Error> {
    let mut page = String::new();
    text::encode(&mut page, registry)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Edge, Usage};

    #[test]
    fn h12_names_labels_and_values() {
        let metrics = Metrics::new();
        let wall = Duration::from_millis(1_500);
        metrics.service_changed(wall);
        metrics.slice_changed(wall);
        metrics.taken();
        metrics.slice_changed(wall);
        metrics.synced(Duration::from_millis(3), true, wall);
        metrics.programmed(Family::V6, Duration::from_millis(700));
        metrics.health_answered(HealthPath::Healthz, 503);
        metrics.health_answered(HealthPath::Livez, 200);
        metrics.attached(Duration::from_millis(5));
        metrics.sockets_ended(3);
        metrics.sweep_failed();
        metrics.guard_failed();
        metrics.refused(2);
        metrics.no_local_endpoints(Family::V6, [3, 1]);
        metrics.feature("AllowServiceExternalIPs", true);
        metrics.requests().note(&Exchange {
            host: "192.0.2.1:6443",
            method: "GET",
            code: Some(200),
            took: Some(Duration::from_millis(30)),
            sent: Some(0),
            received: Some(300),
        });
        let watch = Exchange { host: "h", method: "GET", code: None, took: None, sent: None, received: None };
        metrics.requests().note(&watch);
        let served = Edge { hooks: vec!["ingress".to_owned()], ..Edge::default() };
        let status = Status {
            edges: vec![served.clone(), served, Edge::default()],
            flows: Usage { used: 7, max: 1024 },
            drops: [("no_endpoint".to_owned(), 3), ("fragment".to_owned(), 1)].into(),
            counts: [("shortcut".to_owned(), 5)].into(),
            ..Status::default()
        };
        let page = metrics.encode(Some(status)).unwrap();
        let lines = [
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.004\",ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"0.5\",ip_family=\"IPv6\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"1.0\",ip_family=\"IPv6\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"115.0\",ip_family=\"IPv6\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"300.0\",ip_family=\"IPv6\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 0",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"} 1.5",
            "kubeproxy_sync_proxy_rules_service_changes_total 1",
            "kubeproxy_sync_proxy_rules_service_changes_pending 0",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 1",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_proxy_livez_total{code=\"200\"} 1",
            "sluice_edge_attach_seconds_count 1",
            "sluice_sockets_ended_total 3",
            "sluice_socket_sweeps_failed_total 1",
            "sluice_kube_proxy_rules_failed_total 1",
            "sluice_ports_refused 2",
            "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"external\"} 3",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv6\",traffic_policy=\"internal\"} 1",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"internal\"} 0",
            "kubernetes_feature_enabled{name=\"AllowServiceExternalIPs\",stage=\"\"} 1",
            "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"192.0.2.1:6443\"} 1",
            "rest_client_requests_total{code=\"<error>\",method=\"GET\",host=\"h\"} 1",
            "rest_client_request_duration_seconds_bucket{le=\"0.1\",verb=\"GET\",host=\"192.0.2.1:6443\"} 1",
            "rest_client_request_size_bytes_bucket{le=\"64.0\",verb=\"GET\",host=\"192.0.2.1:6443\"} 1",
            "rest_client_response_size_bytes_bucket{le=\"256.0\",verb=\"GET\",host=\"192.0.2.1:6443\"} 0",
            "# TYPE process_cpu_seconds counter",
            "# TYPE process_start_time_seconds gauge",
            "sluice_flows 7",
            "sluice_flows_max 1024",
            "sluice_flows_created_total 0",
            "sluice_shortcut_packets_total 5",
            "sluice_drops_total{reason=\"fragment\"} 1",
            "sluice_drops_total{reason=\"no_endpoint\"} 3",
            "sluice_edges{served=\"true\"} 2",
            "sluice_edges{served=\"false\"} 1",
        ];
        for line in lines {
            assert!(page.lines().any(|l| l == line), "missing {line} in\n{page}");
        }
        let plain = plain(&page);
        for line in [
            "# TYPE kubeproxy_proxy_healthz_total counter",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "# TYPE kubeproxy_sync_proxy_rules_duration_seconds histogram",
            "# TYPE sluice_drops_total counter",
        ] {
            assert!(plain.lines().any(|l| l == line), "missing {line} in\n{plain}");
        }
        assert!(
            !plain.contains("# EOF") && plain.contains("# HELP kubeproxy_proxy_healthz_total "),
            "{plain}"
        );
        assert_eq!(page.matches("# TYPE sluice_edges gauge").count(), 1, "{page}");
        assert!(page.contains("kubernetes_build_info{") && page.contains("process_resident_memory_bytes "));
        assert!(metrics.encode(None).unwrap().contains("sluice_flows 7\n"), "the last status serves again");
    }
}
