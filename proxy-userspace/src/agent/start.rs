use std::io;
use std::sync::Arc;
use std::time::Duration;

use proxy_common::abi::{config_flags, flags};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::places::Places;
use super::plane::{Order, Plane};
use super::worker::{Tellers, Worker};
use crate::cluster::{self, Event, Notices};
use crate::config::{Config, Sockets};
use crate::datapath::{Datapath, DatapathError, Options, Sizes, netns_cookie};
use crate::http;
use crate::metrics::Metrics;
use crate::node::{Node, NodeError, NodeEvent};
use crate::status::{Mode, Trouble, story};

/// Nobody's sockets are translated.
pub const OFF: &str = "off";
/// Why sockets are off without anything being wrong.
pub const ASKED_OFF: &str = "asked for";

/// Why the data plane cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("network namespace: its cookie cannot be read, Linux 5.14 or later is needed")]
    Cookie { source: io::Error },
    #[error("threads cannot be started; see the limits of processes and memory")]
    Thread { source: io::Error },
}

/// The running data plane: its handle, and the task that follows the node's devices.
#[derive(Debug)]
pub struct Started {
    pub plane: Plane,
    pub follower: JoinHandle<Result<(), Trouble>>,
    /// Where health check node ports are open.
    pub places: watch::Receiver<http::Places>,
    pub listing: Listing,
}

/// The source, which has begun to list what there is.
#[derive(Debug)]
pub struct Listing {
    pub follower: JoinHandle<()>,
    pub events: mpsc::Receiver<Event>,
    /// What the cluster is to be told.
    pub notices: Notices,
}

/// Starts the source. What it tells waits for the agent's loop: objects are listed while programs are loaded, each of which takes
/// half of a start.
pub fn list(config: &Config, node: Arc<str>, metrics: &Metrics, runtime: &Handle) -> Listing {
    let (notices, told) = Notices::channel();
    let (events, heard) = mpsc::channel(1024);
    let scope = cluster::Scope { node, service_cidrs: config.guards_service_cidrs() };
    let channels = cluster::Channels { events, notices: told, requests: metrics.requests().clone() };
    let follower = runtime.spawn(cluster::follow(config.source.clone(), scope, channels));
    Listing { follower, events: heard, notices }
}

/// Loads or adopts the data plane in this thread's network namespace, attaches it everywhere, and hands it to a thread
/// of its own.
///
/// # Errors
/// It cannot be loaded, or the node cannot be looked at. A single device or cgroup hook that refuses is no error: the
/// status tells.
pub fn start(
    config: &Config,
    metrics: &Arc<Metrics>,
    listing: Listing,
    runtime: &Handle,
) -> Result<Started, StartError> {
    let places = Places::choose(config.cgroup.as_deref(), config.bpffs.as_deref());
    let sockets = sockets(config.sockets, places.cgroup.is_some());
    let off = sockets.mode == OFF;
    let options = Options {
        bpffs: places.bpffs,
        cgroup: places.cgroup.clone().filter(|_| !off),
        sizes: sizes(config),
        test_mode: false,
    };
    let datapath = Datapath::load(&options)?;
    for notice in datapath.notices() {
        warn!("{notice}");
    }
    set_config(config, &datapath)?;
    if let (true, Some(cgroup)) = (off, &places.cgroup) {
        let cleared = datapath.clear_sockets(cgroup)?;
        if cleared > 0 {
            info!(cgroup = %cgroup.display(), cleared, "sockets are off: an earlier agent's programs are removed");
        }
    }
    let node = runtime.block_on(Node::open(config.edges.clone(), config.detect_local.clone()))?;
    let tellers = Tellers { metrics: metrics.clone(), notices: listing.notices.clone() };
    let mut worker = Worker::new(config, datapath, sockets, tellers, runtime.clone())?;
    let places = worker.health_places();
    worker.begin(node.facts());
    info!(adopted = worker.adopted(), edges = node.facts().edges.len(), "the data plane is loaded");
    let (orders, received) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new().name("data-plane".to_owned());
    thread.spawn(move || worker.run(received)).map_err(|source| StartError::Thread { source })?;
    let plane = Plane::new(orders);
    let follower = runtime.spawn(follow(node, plane.clone()));
    Ok(Started { plane, follower, places, listing })
}

/// Between two attempts to list what the node has.
const LIST_AGAIN: Duration = Duration::from_secs(1);

async fn follow(mut node: Node, plane: Plane) -> Result<(), Trouble> {
    loop {
        if !hand_on(node.next().await, &plane)? {
            tokio::time::sleep(LIST_AGAIN).await;
        }
    }
}

/// Whether there was anything to hand on. A listing that failed is tried again, while the data plane serves on; a socket that is
/// closed is the end.
fn hand_on(told: Result<Vec<NodeEvent>, NodeError>, plane: &Plane) -> Result<bool, Trouble> {
    match told {
        Ok(events) => plane.tell(Order::Node(events, std::time::Instant::now())),
        Err(error @ NodeError::Closed) => {
            return Err(Trouble::new("netlink", error, "the agent has to be restarted"));
        }
        Err(error) => {
            warn!("netlink: {}; trying again", story(&error));
            return Ok(false);
        }
    }
    Ok(true)
}

fn sizes(config: &Config) -> Sizes {
    let (asked, default) = (&config.limits, Sizes::default());
    Sizes {
        services: asked.services.unwrap_or(default.services),
        frontends: asked.frontends.unwrap_or(default.frontends),
        endpoints: asked.endpoints.unwrap_or(default.endpoints),
        slots: asked.slots.unwrap_or(default.slots),
        addresses: asked.addresses.unwrap_or(default.addresses),
        ranges: asked.ranges.unwrap_or(default.ranges),
        affinity: asked.affinity.unwrap_or(default.affinity),
        flows: config.flows.unwrap_or(default.flows),
    }
}

/// Whose sockets are translated, and why nobody's.
fn sockets(asked: Sockets, cgroup: bool) -> Mode {
    let (mode, why) = match (asked, cgroup) {
        (Sockets::Off, _) => (OFF, ASKED_OFF),
        (_, false) => (OFF, "no cgroup v2 is mounted"),
        (Sockets::Host, true) => ("host", ""),
        (Sockets::All, true) => ("all", ""),
    };
    Mode { mode: mode.to_owned(), why: why.to_owned() }
}

/// The secret of the masquerade port order is drawn once and kept for as long as the maps live.
fn set_config(config: &Config, datapath: &Datapath) -> Result<(), StartError> {
    use std::hash::{BuildHasher, Hasher};
    let cookie = netns_cookie().map_err(|source| StartError::Cookie { source })?;
    let earlier = datapath.config()?;
    // L-07: as it was, or on the safe side, until the worker has looked.
    let fresh = earlier.seed == 0;
    let strays = fresh || earlier.flags & config_flags::STRAYS_PASS != 0;
    let seed = match earlier.seed {
        0 => std::hash::RandomState::new().build_hasher().finish() as u32 | 1,
        earlier => earlier,
    };
    let mut config = config.abi(&earlier, seed, cookie);
    config.flags |= flags([(strays, config_flags::STRAYS_PASS)]);
    Ok(datapath.set_config(&config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L-08: one listing that the kernel has broken off is no end of the agent.
    #[test]
    fn l08_a_listing_that_fails_is_tried_again() {
        let (orders, mut received) = mpsc::unbounded_channel();
        let plane = Plane::new(orders);
        let failed = NodeError::List { what: "links", source: Box::new(rtnetlink::Error::RequestFailed) };
        assert_eq!(hand_on(Err(failed), &plane), Ok(false));
        assert!(received.try_recv().is_err());
        assert_eq!(hand_on(Ok(Vec::new()), &plane), Ok(true));
        assert!(matches!(received.try_recv(), Ok(Order::Node(..))));
        assert!(hand_on(Err(NodeError::Closed), &plane).is_err());
    }

    #[test]
    fn sockets_are_off_for_a_reason() {
        let cases = [
            (Sockets::Off, true, "off", "asked for"),
            (Sockets::Off, false, "off", "asked for"),
            (Sockets::Host, true, "host", ""),
            (Sockets::All, true, "all", ""),
            (Sockets::Host, false, "off", "no cgroup v2 is mounted"),
        ];
        for (asked, cgroup, mode, why) in cases {
            let got = sockets(asked, cgroup);
            assert_eq!((got.mode.as_str(), got.why.as_str()), (mode, why), "{asked:?} {cgroup}");
        }
    }
}
