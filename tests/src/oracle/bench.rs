//! Two identical beds under one configuration: Sluice in one, kube-proxy in the other.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::case::merge;
use super::cell::added_address;
use super::change::sentinel;
use super::{KubeProxy, Plane, Variant, matrix};
use crate::api::Uplink;
use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{CLUSTER_CIDR, Family, Who, Wiring, cluster_ip};
use crate::lab::wiring::host_device;
use crate::lab::{Backend, Bed, BedConfig};
use crate::traffic::{Answering, Dial, Outcome, Server};
use crate::wait::{poll, until};
use crate::wire::Transport;

/// kube-proxy's mode; for Sluice the set of defaults that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    pub const BOTH: [Self; 2] = [Self::Nftables, Self::Iptables];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

/// How long a proxy may take to follow.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pods whose port of the bridge sends back what came from it, as CNI plugins are told to for kube-proxy's sake.
/// The third one shows what becomes of the others.
const HAIRPIN: [Who; 2] = [Who::Pa, Who::Pb];

/// The pair. Fields are dropped in this order: proxies before the beds they work in.
pub struct Bench {
    pub mode: Mode,
    pub wiring: Wiring,
    pub kube_proxy: KubeProxy,
    _sctp: Vec<Answering>,
    /// Where Sluice serves.
    pub ours: Bed,
    /// Where kube-proxy does.
    pub theirs: Bed,
    _uplinks: [Uplink; 2],
}

impl Bench {
    /// Builds both beds and starts both proxies; both serve every object when this returns.
    ///
    /// # Errors
    /// A bed cannot be built, or a proxy does not come up.
    pub fn build(plane: &Plane, mode: Mode, wiring: Wiring, variant: Variant) -> Result<Self> {
        let (mut ours, theirs) = (bed(wiring)?, bed(wiring)?);
        let uplinks = [plane.connect(ours.namespace("n1"))?, plane.connect(theirs.namespace("n1"))?];
        let write = |directory: &Path, config: Value| {
            let path = directory.join("config.json");
            std::fs::write(&path, config.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
            anyhow::Ok(path)
        };
        let own_config = write(ours.directory(), with(plane, mode, &variant.own_config(mode, wiring)))?;
        let path = write(theirs.directory(), config(plane, mode, wiring, variant))?;
        ours.home().flags = vec!["--config".into(), own_config.display().to_string()];
        ours.start_agent()?;
        let kube_proxy = kube_proxy(&theirs, mode, &path)?;
        let sctp = [sctp_servers(&ours)?, sctp_servers(&theirs)?].into_iter().flatten().collect();
        Ok(Self { mode, wiring, kube_proxy, _sctp: sctp, ours, theirs, _uplinks: uplinks })
    }

    /// Gives both nodes another address.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_address(&self) -> Result<()> {
        for (family, length) in [(Family::V4, "24"), (Family::V6, "64 nodad")] {
            let line = format!("addr add {}/{length} dev eth0", added_address(family));
            self.ours.ip("n1", &line)?;
            self.theirs.ip("n1", &line)?;
        }
        Ok(())
    }

    /// Waits until both serve the sentinel in both families.
    ///
    /// # Errors
    /// One does not.
    pub fn settle(&self) -> Result<()> {
        let sentinel = sentinel();
        for (name, bed) in [("Sluice", &self.ours), ("kube-proxy", &self.theirs)] {
            for family in Family::BOTH {
                let to = (cluster_ip(family, sentinel.number), SERVICE_PORT).into();
                let dial = Dial::new(bed.place(Who::Pa), to, Transport::Tcp).patience(PATIENCE / 10);
                until(&format!("{name} serves the sentinel"), PATIENCE, || dial.probe().ok())?;
            }
        }
        Ok(())
    }
}

/// Starts of kube-proxy.
const STARTS: usize = 5;
/// How long its rules may be behind what it knows.
const DELAY: Duration = Duration::from_secs(5);
/// Connections that must all go to one of two endpoints.
const LOOKS: usize = 16;

/// Starts kube-proxy until it is one that knows its node's zone: where the informer tells of the Node before the proxiers have
/// registered (`NodeTopologyConfig` in v1.36's pkg/proxy/config/config.go), they hear of it only once its labels change.
fn kube_proxy(bed: &Bed, mode: Mode, config: &Path) -> Result<KubeProxy> {
    let log = bed.directory().join("kube-proxy.log");
    for _ in 0..STARTS {
        let mut kube_proxy = KubeProxy::start(bed.namespace("n1"), mode, config, &log)?;
        kube_proxy.ready()?;
        if poll(DELAY, || follows_hints(bed).then_some(())).is_some() {
            return Ok(kube_proxy);
        }
    }
    bail!("kube-proxy has not learnt its node's zone in any of {STARTS} starts")
}

/// Whether a pod's connections go to the endpoint that is meant for its zone, and to no other.
fn follows_hints(bed: &Bed) -> bool {
    let hinted = matrix::cases().into_iter().find(|case| case.name == matrix::HINTED);
    let expected = Backend::new(Who::Pb, super::case::TARGET_PORT).id();
    hinted.is_some_and(|case| {
        Family::BOTH.into_iter().all(|family| {
            let to = (cluster_ip(family, case.number), SERVICE_PORT).into();
            let dial = Dial::new(bed.place(Who::Pa), to, Transport::Tcp);
            (0..LOOKS).all(|_| matches!(dial.probe(), Outcome::Ok(answer) if answer.backend == expected))
        })
    })
}

/// kube-proxy's configuration file.
pub(crate) fn config(plane: &Plane, mode: Mode, wiring: Wiring, variant: Variant) -> Value {
    with(plane, mode, &variant.config(mode, wiring))
}

fn with(plane: &Plane, mode: Mode, special: &Value) -> Value {
    let mut config = plain(plane, mode);
    merge(&mut config, special);
    config
}

/// Nothing of kube-proxy's that the laboratory's namespaces cannot give: table size and priority are the machine's.
fn plain(plane: &Plane, mode: Mode) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode.to_string(),
        "hostnameOverride": "n1",
        "clusterCIDR": CLUSTER_CIDR,
        "clientConnection": {"kubeconfig": plane.kubeconfig()},
        "conntrack": {"maxPerCore": 0, "min": 0},
        "oomScoreAdj": 0,
    })
}

/// Where the others are.
fn sctp_servers(bed: &Bed) -> Result<Vec<Answering>> {
    let all = Who::ALL.into_iter().flat_map(|who| Family::BOTH.map(|family| (who, family)));
    all.map(|(who, family)| {
        let backend = Backend::new(who, super::case::TARGET_PORT);
        Server::start(bed.namespace(who.namespace()), backend, family)?.run()
    })
    .collect()
}

fn bed(wiring: Wiring) -> Result<Bed> {
    let mut bed = Bed::build(BedConfig { watched: false, ..BedConfig::new(wiring) })?;
    if wiring == Wiring::Bridged {
        // kube-proxy needs it to see the answers of pods of one bridge to each other.
        bed.namespace("n1").sysctls(&[
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ])?;
        for pod in HAIRPIN {
            let device = host_device(wiring, pod.name());
            bed.ip("n1", &format!("link set {device} type bridge_slave hairpin on"))?;
        }
    }
    for who in Who::ALL {
        bed.serve(who, super::case::TARGET_PORT)?;
    }
    Ok(bed)
}
