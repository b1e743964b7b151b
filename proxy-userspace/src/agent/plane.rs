//! The loop's view of the data plane: orders to the thread that owns it, and what comes back.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use crate::control::{FlowFilter, Query};
use crate::model::PortChange;
use crate::node::NodeEvent;
use crate::status::{Edge, Explanation, FlowView, Latest, Mode, ServiceView, TraceView, Trouble, Usage};

/// What the thread is told to do. BPF and netlink calls block, for short; they must not hold up the runtime.
#[derive(Debug)]
pub enum Order {
    Install {
        changes: Vec<PortChange>,
        /// This is all there is: what else is installed goes (I1, C-35).
        complete: bool,
        done: oneshot::Sender<Installed>,
    },
    /// What the cluster knows of this node.
    OwnNode(OwnNode),
    /// All ranges that ClusterIPs come from.
    ServiceCidrs(Vec<IpNet>),
    /// The kernel's devices or addresses have changed; when that was heard.
    Node(Vec<NodeEvent>, Instant),
    /// Look whether everything is still attached as it should be.
    Check,
    /// All is installed: kube-proxy's rules are needed no more (L-07).
    TakeOver,
    /// Asks for a sign of life; housekeeping on the way.
    Beat(oneshot::Sender<()>),
    Report(oneshot::Sender<PlaneReport>),
    /// `NAMESPACE/NAME`, or all.
    Services(Option<String>, oneshot::Sender<Result<Vec<ServiceView>, Trouble>>),
    Flows(FlowFilter, oneshot::Sender<Result<Vec<FlowView>, Trouble>>),
    /// What would become of a packet.
    Explain(Box<Query>, oneshot::Sender<Result<Explanation, Trouble>>),
    /// Trace an address for so long, or nothing any more.
    Trace(Option<IpAddr>, Duration, oneshot::Sender<Result<Option<TraceView>, Trouble>>),
}

/// The part of the Node that the data plane depends on; followed live (E10, F6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNode {
    /// I5.
    pub ips: Vec<IpAddr>,
    /// `None`: the Node is not known.
    pub pod_cidrs: Option<Vec<IpNet>>,
}

/// What came of [`Order::Install`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// Why some of it could not be written. It is kept, and tried again with the next order.
    pub failed: Option<String>,
}

/// The data plane's part of the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PlaneReport {
    /// A write has failed and has not been made good.
    pub unwritten: bool,
    pub addresses: Vec<IpAddr>,
    pub edges: Vec<Edge>,
    pub sockets: Mode,
    pub checksums: Mode,
    pub shortcuts: Mode,
    pub flows: Usage,
    pub drops: std::collections::BTreeMap<String, u64>,
    pub counts: std::collections::BTreeMap<String, u64>,
    pub trace: Option<TraceView>,
    pub degraded: Vec<Trouble>,
    pub latest: Latest,
}

/// Sends orders.
#[derive(Clone, Debug)]
pub struct Plane(mpsc::UnboundedSender<Order>);

impl Plane {
    #[must_use]
    pub const fn new(orders: mpsc::UnboundedSender<Order>) -> Self {
        Self(orders)
    }

    /// An order without an answer. A thread that has ended is noticed by the loop's next installation or beat.
    pub fn tell(&self, order: Order) {
        drop(self.0.send(order));
    }

    /// An order with an answer.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn ask<T>(&self, order: impl FnOnce(oneshot::Sender<T>) -> Order) -> Result<T, Trouble> {
        let (answer, wait) = oneshot::channel();
        self.tell(order(answer));
        wait.await.map_err(|_| gone())
    }

    #[must_use]
    pub fn install(&self, changes: Vec<PortChange>, complete: bool) -> oneshot::Receiver<Installed> {
        let (done, wait) = oneshot::channel();
        self.tell(Order::Install { changes, complete, done });
        wait
    }
}

pub fn gone() -> Trouble {
    Trouble::new("the data plane's thread", "it has ended", "see the log; the agent has to be restarted")
}
