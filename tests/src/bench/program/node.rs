//! The programs under test, loaded by the agent's own code, with tables that its own syncer has filled.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, Queue};
use aya::programs::SchedClassifier;
use aya::util::nr_cpus;
use nix::sched::CloneFlags;
use proxy_common::abi::{Addr, Cidr, Config, Flow, FlowKey, FrontendKind, LAYOUT, Reason, Turn};
use proxy_userspace::datapath::{Datapath, Options, Sizes};
use proxy_userspace::model::{Family, PortFrontend, PortId, PortState, Protocol};
use proxy_userspace::node::{Edge, EdgeKind, Ways};
use proxy_userspace::sync::{Settings, Syncer};

use crate::bench::place::within;
use crate::packet::world;
use crate::sys::Wire;

/// Services of one endpoint, of each family and protocol: where a flow goes is known beforehand.
pub const SERVICES: u32 = 1024;
/// Services of ten endpoints.
pub const WIDE_SERVICES: u32 = 8192;

/// Port of every Service, and of every endpoint.
pub const SERVICE_PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8080;

/// Address number `n` of a plan, in words of reading order: what a driver writes is what the tables hold.
#[must_use]
pub const fn words(v6: bool, net: Net, n: u32) -> [u32; 4] {
    if v6 { [0xfd00_0000 | net.v6(), 0, 0, n] } else { [net.v4() + n, 0, 0, 0] }
}

/// The same as the library has it.
#[must_use]
pub fn ip(v6: bool, net: Net, n: u32) -> IpAddr {
    let [a, b, c, d] = words(v6, net, n);
    if v6 {
        let bits = u128::from(a) << 96 | u128::from(b) << 64 | u128::from(c) << 32 | u128::from(d);
        IpAddr::V6(bits.into())
    } else {
        IpAddr::V4(a.into())
    }
}

/// The bench's networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    /// Clients: pods of the cluster.
    Clients,
    Services,
    /// Their endpoints.
    Backends,
    Wide,
    WideBackends,
    /// Nobody.
    Strangers,
}

impl Net {
    const fn v4(self) -> u32 {
        u32::from_be_bytes(match self {
            Self::Clients => [10, 244, 0, 0],
            Self::Services => [10, 96, 0, 0],
            Self::Backends => [10, 245, 0, 0],
            Self::Wide => [10, 97, 0, 0],
            Self::WideBackends => [10, 246, 0, 0],
            Self::Strangers => [192, 0, 2, 0],
        })
    }

    const fn v6(self) -> u32 {
        match self {
            // The cluster's pods are fd00:10::/32.
            Self::Clients => 0x10,
            Self::Services => 0x96,
            Self::Backends => 0x45,
            Self::Wide => 0x97,
            Self::WideBackends => 0x46,
            Self::Strangers => 0x99,
        }
    }
}

/// Loaded programs with their tables.
pub struct Node {
    datapath: Datapath,
    ingress: OwnedFd,
    egress: OwnedFd,
    pins: PathBuf,
}

impl Node {
    /// Loads the programs with [`SERVICES`] and [`WIDE_SERVICES`] of each family and protocol, and a flow table of
    /// `flows` entries.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn load(bpffs: &Path, flows: u32) -> Result<Self> {
        let sizes = Sizes { flows, ..Sizes::default() };
        let options = Options { bpffs: Some(bpffs.to_owned()), sizes, ..Options::default() };
        // In one namespace the next one would take over what is attached, with its maps.
        let mut datapath = within(CloneFlags::CLONE_NEWNET, || {
            let mut datapath = Datapath::load(&options)?;
            datapath.set_config(&config())?;
            datapath.attach_edge(&loopback())?;
            Ok(datapath)
        })?;
        let mut syncer = Syncer::adopt(&datapath, Settings::default())?;
        let report = syncer.replace_all(&mut datapath, desired(), Duration::ZERO);
        if !report.is_clean() {
            bail!("the tables cannot be filled: {:?} {:?}", report.refused.first(), report.failed.first());
        }
        let pins = bpffs.join("sluice").join(LAYOUT.to_string());
        let program = |name| -> Result<OwnedFd> {
            let pinned = SchedClassifier::from_pin(newest(&pins, name)?)?;
            Ok(pinned.fd()?.as_fd().try_clone_to_owned()?)
        };
        Ok(Self { ingress: program("sluice_ingress")?, egress: program("sluice_egress")?, datapath, pins })
    }

    #[must_use]
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        if ingress { self.ingress.as_fd() } else { self.egress.as_fd() }
    }

    /// Takes every flow out, and its turn in the ring; in the order in which they came, as the ring does: their places in memory are
    /// given out again in order.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn forget_flows(&self) -> Result<()> {
        self.forget::<1>("FLOWS_V4", "RING_V4")?;
        self.forget::<4>("FLOWS_V6", "RING_V6")?;
        let map = MapData::from_pin(self.pins.join("RING_USED"))?;
        let mut used: Array<_, Wire<[u32; 2]>> = Map::Array(map).try_into()?;
        for family in 0..2 {
            used.set(family, Wire([0; 2]), 0)?;
        }
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
        let map = MapData::from_pin(self.pins.join("RING_PENDING"))?;
        let mut pending: PerCpuArray<_, u32> = Map::PerCpuArray(map).try_into()?;
        for family in 0..2 {
            pending.set(family, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
        Ok(())
    }

    fn forget<const N: usize>(&self, flows: &str, ring: &str) -> Result<()> {
        let map = MapData::from_pin(self.pins.join(flows))?;
        let mut flows: HashMap<_, Wire<FlowKey<N>>, Wire<Flow<N>>> = Map::HashMap(map).try_into()?;
        let map = MapData::from_pin(self.pins.join(ring))?;
        let mut ring: Queue<_, Wire<Turn<N>>> = Map::Queue(map).try_into()?;
        loop {
            let key = match ring.pop(0) {
                Ok(turn) => turn.0.key,
                Err(MapError::ElementNotFound) => break,
                Err(error) => return Err(error.into()),
            };
            let partner = flows.get(&Wire(key), 0)?.0.partner(&key);
            flows.remove(&Wire(partner))?;
            flows.remove(&Wire(key))?;
        }
        if let Some(key) = flows.keys().next() {
            bail!("a flow has no turn: {:?}", key?.0);
        }
        Ok(())
    }

    /// Flows opened, and packets dropped or rejected, since the programs were loaded.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn counted(&self) -> Result<(u64, u64)> {
        let counters = self.datapath.counters()?;
        let sum = |created: bool| {
            let wanted = counters.iter().filter(|(reason, _)| (*reason == Reason::FlowCreated) == created);
            wanted.map(|(_, count)| count).sum()
        };
        Ok((sum(true), sum(false)))
    }

    /// All that was counted so far, for an error.
    pub fn account(&self) -> Result<String> {
        let counters = self.datapath.counters()?;
        let some = counters.iter().filter(|(_, count)| *count > 0);
        Ok(some.map(|(reason, count)| format!("{reason:?} {count}")).collect::<Vec<_>>().join(", "))
    }
}

/// The pin of this name with the highest id.
fn newest(pins: &Path, name: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(pins).with_context(|| format!("cannot list {}", pins.display()))?;
    let id = |path: &PathBuf| -> Option<u32> {
        // Between them stands what tells makes apart.
        path.file_name()?.to_str()?.strip_prefix(name)?.strip_prefix('-')?.rsplit('-').next()?.parse().ok()
    };
    let found = entries.flatten().map(|entry| entry.path()).filter(|path| id(path).is_some()).max_by_key(id);
    found.with_context(|| format!("the agent has pinned no {name} in {}", pins.display()))
}

/// The clients are the cluster's pods: nothing is masqueraded (F5).
pub fn config() -> Config {
    Config {
        cluster_v4: Cidr {
            address: world::addr(ip(false, Net::Clients, 0)),
            mask: Addr::v4([255, 255, 0, 0]),
        },
        cluster_v6: Cidr { address: world::addr(ip(true, Net::Clients, 0)), mask: Addr([u32::MAX, 0, 0, 0]) },
        test_clock: 0,
        ..world::config()
    }
}

/// Test runs happen on the loopback device: as an edge it has an address to masquerade with.
fn loopback() -> Edge {
    Edge {
        name: "lo".into(),
        ifindex: world::IFINDEX,
        kind: EdgeKind::Veth,
        ethernet: true,
        masquerade_v4: Some([10, 244, 255, 1].into()),
        masquerade_v6: Some([0xfd00, 0x10, 0, 0, 0, 0, 0xffff, 1].into()),
        mtu: 1500,
        pod: true,
        address: Vec::new(),
        port: false,
        detected: false,
        ways: Ok(Ways { peer: true, neighbour: true }),
    }
}

fn desired() -> Vec<(PortId, PortState)> {
    let kinds =
        [(Net::Services, Net::Backends, SERVICES, 1), (Net::Wide, Net::WideBackends, WIDE_SERVICES, 10)];
    let mut desired = Vec::new();
    for (family, v6) in [(Family::V4, false), (Family::V6, true)] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (net, backends, services, count) in kinds {
                for n in 0..services {
                    let id = PortId {
                        namespace: "bench".into(),
                        service: format!("{net:?}-{n}").into(),
                        port: "".into(),
                        protocol,
                        family,
                    };
                    desired.push((id, port(v6, (net, n), backends, count)));
                }
            }
        }
    }
    desired
}

/// Service number `n` with endpoints number `n`, or ten of them.
fn port(v6: bool, (net, n): (Net, u32), backends: Net, count: u32) -> PortState {
    let address = ip(v6, net, n);
    let endpoints: Arc<[_]> =
        (0..count).map(|i| SocketAddr::new(ip(v6, backends, n * count + i), BACKEND_PORT)).collect();
    PortState {
        frontends: vec![PortFrontend { kind: FrontendKind::ClusterIp, address, port: SERVICE_PORT }],
        external: endpoints.clone(),
        internal: endpoints,
        ..PortState::default()
    }
}
