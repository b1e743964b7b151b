//! Requests to the API server, told as client-go tells of its own (`rest_client_*`).

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family as Labelled;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type By<const N: usize> = [(&'static str, String); N];
type Histograms = Labelled<By<2>, Histogram, fn() -> Histogram>;

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Exchange<'a> {
    pub host: &'a str,
    pub method: &'a str,
    /// `None`: there was no answer.
    pub code: Option<u16>,
    /// Until the answer began; `None` for watches, which client-go does not time.
    pub took: Option<Duration>,
    pub sent: Option<u64>,
    /// As far as the server says so before it sends.
    pub received: Option<u64>,
}

/// All requests so far.
#[derive(Clone, Debug)]
pub struct Requests {
    count: Labelled<By<3>, Counter>,
    seconds: Histograms,
    sent: Histograms,
    received: Histograms,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            count: Labelled::default(),
            seconds: Histograms::new_with_constructor(seconds),
            sent: Histograms::new_with_constructor(bytes),
            received: Histograms::new_with_constructor(bytes),
        }
    }
}

/// client-go's buckets for durations.
fn seconds() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

/// Its buckets for sizes.
fn bytes() -> Histogram {
    let kib = |n: u32| f64::from(n << 10);
    let large = [1, 4, 16, 64, 256, 1024, 4096, 16_384].map(kib);
    Histogram::new([64.0, 256.0, 512.0].into_iter().chain(large))
}

impl Requests {
    pub(super) fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("rest_client");
        r.register("requests", "Requests to the API server by code, method and host", self.count.clone());
        let help = "From a request to the beginning of its answer";
        r.register("request_duration_seconds", help, self.seconds.clone());
        r.register("request_size_bytes", "Sizes of requests' bodies", self.sent.clone());
        let help = "Sizes of answers' bodies, where the server tells them before";
        r.register("response_size_bytes", help, self.received.clone());
    }

    /// An exchange has ended, or for a watch begun.
    pub fn note(&self, exchange: &Exchange<'_>) {
        let Exchange { host, method, code, took, sent, received } = exchange;
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        let labels = [("code", code), ("method", (*method).to_owned()), ("host", (*host).to_owned())];
        self.count.get_or_create(&labels).inc();
        let by = [("verb", (*method).to_owned()), ("host", (*host).to_owned())];
        if let Some(took) = took {
            self.seconds.get_or_create(&by).observe(took.as_secs_f64());
        }
        for (sizes, size) in [(&self.sent, sent), (&self.received, received)] {
            if let Some(size) = size {
                sizes.get_or_create(&by).observe(*size as f64);
            }
        }
    }
}
