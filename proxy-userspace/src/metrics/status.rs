//! What the agent's status knows, as metrics.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use proxy_common::abi::Reason;

use crate::status::Status;

/// What is read when somebody asks, and has its truth elsewhere.
#[derive(Debug)]
pub struct StatusMetrics(pub Arc<Mutex<Status>>);

impl Collector for StatusMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let gauges = [
            ("sluice_flows", "Entries in the flow tables", status.flows.used),
            ("sluice_flows_max", "Size of the flow tables", status.flows.max),
            ("sluice_synced", "1 if all that the source told is installed", status.synced.into()),
            ("sluice_source_connected", "1 if the source can be reached", status.source.connected.into()),
            ("sluice_services", "Services known", status.services as u64),
            ("sluice_endpoints", "Endpoint addresses known", status.endpoints as u64),
            ("sluice_degraded", "Entries under `degraded` in the status", status.degraded.len() as u64),
        ];
        for (name, help, value) in gauges {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)?;
        }
        let served = status.edges.iter().filter(|edge| !edge.hooks.is_empty()).count();
        let help = "Devices, by whether they are served";
        let mut edges = encoder.encode_descriptor("sluice_edges", help, None, MetricType::Gauge)?;
        for (label, count) in [("true", served), ("false", status.edges.len() - served)] {
            edges.encode_family(&[("served", label)])?.encode_gauge(&(count as i64))?;
        }
        let counters = [
            ("sluice_flows_created", "Flows created", Reason::FlowCreated),
            ("sluice_shortcut_packets", "Packets that have passed the node's stack by", Reason::Shortcut),
        ];
        for (name, help, reason) in counters {
            let count = status.counts.get(reason.name()).copied().unwrap_or_default();
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<[(&str, &str); 0], _, u64>(&count, None)?;
        }
        let help = "Packets dropped, rejected or passed on untranslated by reason";
        let mut drops = encoder.encode_descriptor("sluice_drops", help, None, MetricType::Counter)?;
        for (reason, count) in &status.drops {
            drops
                .encode_family(&[("reason", reason.as_str())])?
                .encode_counter::<[(&str, &str); 0], _, u64>(count, None)?;
        }
        Ok(())
    }
}
