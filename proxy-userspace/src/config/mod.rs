//! kube-proxy's flags and configuration file, and Sluice's own flags, as one checked [`Config`]. The only I/O is
//! reading the file named by `--config`.

mod abi;
mod duration;
mod error;
mod file;
mod flags;
mod parse;
mod resolve;
mod sluice;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use abi::set_service_cidrs;
pub use error::ConfigError;
pub use flags::{IgnoredArgs, ProxyArgs, RunArgs, SluiceArgs};
pub use resolve::load;

/// What the agent was told to do, checked and with every default filled in.
#[derive(Clone, Debug)]
pub struct Config {
    pub action: Action,
    /// Where it comes from: `--config`.
    pub file: Option<PathBuf>,
    pub source: Source,
    /// `--hostname-override` or `hostnameOverride`, trimmed and lower-cased (I6); see [`Config::node_name`].
    pub hostname_override: Option<String>,
    /// This node's address (I5); `None` when unspecified.
    pub node_ip: Option<IpAddr>,
    /// `None`: disabled.
    pub healthz: Option<SocketAddr>,
    /// `None`: disabled.
    pub metrics: Option<SocketAddr>,
    /// A port that cannot be bound ends the agent.
    pub bind_hard_fail: bool,
    pub profile: Profile,
    /// Bit of the packet mark, 0 to 31 (F3).
    pub masquerade_bit: u8,
    /// F4.
    pub masquerade_all: bool,
    pub detect_local: DetectLocal,
    pub node_ports: NodePorts,
    /// Gate AllowServiceExternalIPs (A10).
    pub external_ips: bool,
    pub sync: SyncPeriods,
    pub conntrack: Conntrack,
    /// −1000 to 1000 (I19).
    pub oom_score_adj: i32,
    pub logging: Logging,
    pub cgroup: Option<PathBuf>,
    pub bpffs: Option<PathBuf>,
    pub run_dir: PathBuf,
    pub edges: Edges,
    pub sockets: Sockets,
    pub shortcuts: Shortcuts,
    /// Entries of the flow table; `None`: as kube-proxy sizes conntrack, by cores (J9).
    pub flows: Option<u32>,
    pub limits: Limits,
    /// One line each, to be logged once at start.
    pub warnings: Vec<String>,
}

impl Config {
    /// The node's name (I6): the override, else the host's own, trimmed and lower-cased.
    #[must_use]
    pub fn node_name(&self, host: &str) -> String {
        self.hostname_override.clone().unwrap_or_else(|| host.trim().to_lowercase())
    }
}

/// How much tables hold, where that was asked for (C-32).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub services: Option<u32>,
    pub frontends: Option<u32>,
    pub endpoints: Option<u32>,
    pub slots: Option<u32>,
    pub addresses: Option<u32>,
    pub ranges: Option<u32>,
    pub affinity: Option<u32>,
}

/// What to do instead of running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Run,
    /// `--cleanup` (I10).
    Cleanup,
    /// `--init-only` (I9).
    InitOnly,
    /// `--write-config-to`.
    WriteConfig(PathBuf),
}

/// Where Services and EndpointSlices come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of files, no API server.
    Manifests(PathBuf),
    /// An API server.
    Kubernetes {
        /// `None`: the pod's ServiceAccount.
        kubeconfig: Option<PathBuf>,
        /// `--master`: address in place of the kubeconfig's.
        master: Option<String>,
    },
}

/// kube-proxy's `mode`, here only the set of defaults that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Iptables,
    Ipvs,
    Nftables,
}

/// How ClusterIP traffic of local pods is told from other traffic (F5 … F8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Source inside the cluster's pod range; a family without one has no detector.
    ClusterCidr { v4: Option<Ipv4Net>, v6: Option<Ipv6Net> },
    /// Source inside the own Node's `podCIDRs`.
    NodeCidr,
    /// Packet came in by this bridge.
    BridgeInterface(String),
    /// Packet came in by a device whose name starts so.
    InterfaceNamePrefix(String),
}

/// Which addresses of the node serve NodePorts (E1 … E6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePorts {
    pub addresses: NodePortAddresses,
    /// Also on loopback addresses.
    pub localhost: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// Every address of the node.
    All,
    /// The node's IPs as known from the Node object or `bindAddress`.
    Primary,
    /// Addresses inside one of these; a family without an entry: all of its addresses.
    Cidrs(Vec<IpNet>),
}

/// I2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncPeriods {
    /// Retry after a failed write, and the health server's idea of "recently" (twice this).
    pub period: Duration,
    /// `minSyncPeriod` as given, for `/configz`. Rounds keep a gap of their own: one costs what has changed, not what there is.
    pub min: Duration,
}

/// The kernel's conntrack settings that kube-proxy owns; zero timeouts mean: leave alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    pub max_per_core: u32,
    pub min: u32,
    pub tcp_established: Duration,
    pub tcp_close_wait: Duration,
    pub tcp_be_liberal: bool,
    pub udp: Duration,
    pub udp_stream: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logging {
    pub json: bool,
    /// klog's verbosity: 0 and 1 are info, 2 to 4 debug, above trace.
    pub verbosity: u32,
}

/// Devices to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edges {
    Auto,
    Names(Vec<EdgePattern>),
}

/// A device's name, or the beginning of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgePattern {
    Name(String),
    Prefix(String),
}

impl EdgePattern {
    #[must_use]
    pub fn matches(&self, device: &str) -> bool {
        match self {
            Self::Name(name) => name == device,
            Self::Prefix(prefix) => device.starts_with(prefix),
        }
    }
}

impl fmt::Display for EdgePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Whose sockets are translated at connect time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets {
    Off,
    Host,
    All,
}

/// How much of the stack translated packets may skip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shortcuts {
    Off,
    /// Those of flows whose packets have just been seen to come out of it.
    Established,
    /// Those of all flows, their first packets too.
    Always,
}

impl Shortcuts {
    /// The word used by `--shortcuts` and in `status`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Established => "established",
            Self::Always => "always",
        }
    }
}
