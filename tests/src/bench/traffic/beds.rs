//! One bed for each variant: the same node, pods and Services, served differently.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use proxy_userspace::config::Shortcuts;

use super::findings::Samples;
use super::redirect;
use super::settings::{SETTINGS, Setting};
use crate::api::{Binaries, Uplink};
use crate::bench::Effort;
use crate::bench::cluster::Cluster;
use crate::lab::app::{App, Backend, Via};
use crate::lab::{Bed, BedConfig, Family, Who, Wiring};
use crate::oracle::case::{Case, Endpoint, State, TARGET_PORT};
use crate::oracle::{KubeProxy, Mode, Plane, Variant, bench::config};
use crate::traffic::Dial;
use crate::wait::until;
use crate::wire::Transport;

/// Who serves on the node itself, and who does on another one.
const LOCAL: Who = Who::Pb;
const REMOTE: Who = Who::Pd;
/// Services with addresses of all kinds, each of one endpoint: those that are dialled. There are many more of one address.
const LOCAL_SERVICE: u8 = 1;
const REMOTE_SERVICE: u8 = 2;

/// From where to where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    pub name: &'static str,
    pub client: Who,
    pub server: Who,
    /// `None`: straight, by the server's own address.
    via: Option<Via>,
    pub family: Family,
}

impl Path {
    pub const LOCAL: Self =
        Self { name: "local", client: Who::Pa, server: LOCAL, via: Some(Via::ClusterIp), family: Family::V4 };
    pub const LOCAL_V6: Self = Self { name: "local, IPv6", family: Family::V6, ..Self::LOCAL };
    pub const REMOTE: Self = Self { name: "remote", server: REMOTE, ..Self::LOCAL };
    pub const NODE_PORT_LOCAL: Self =
        Self { name: "NodePort, local", client: Who::Client, via: Some(Via::NodePort), ..Self::LOCAL };
    pub const NODE_PORT_REMOTE: Self =
        Self { name: "NodePort, remote", server: REMOTE, ..Self::NODE_PORT_LOCAL };
    /// A pod dials a Service whose endpoint it is itself.
    pub const HAIRPIN: Self = Self { name: "hairpin", client: LOCAL, ..Self::LOCAL };
    /// A pod dials another one, which belongs to no Service.
    pub const STRAIGHT: Self = Self { name: "not for a Service", server: Who::Pc, via: None, ..Self::LOCAL };

    /// Where the server listens.
    #[must_use]
    pub fn listens(self) -> SocketAddr {
        (self.server.address(self.family), TARGET_PORT).into()
    }

    /// What is dialled. `None`: nobody serves it, as the way would not lead through the node.
    #[must_use]
    pub fn target(self, proxy: Translator) -> Option<SocketAddr> {
        let number = if self.server == REMOTE { REMOTE_SERVICE } else { LOCAL_SERVICE };
        match self.via {
            Some(via) if proxy.translates() => Some(app(number).address(via, self.family)),
            Some(_) if self == Self::NODE_PORT_REMOTE || self == Self::HAIRPIN => None,
            _ => Some(self.listens()),
        }
    }
}

/// The rules of a CNI with policies, in its usual order: connections that exist, invalid segments, then each pod's own.
const POLICY: &str = "table inet house {
  chain leaving { type nat hook postrouting priority 110;
    ip saddr 10.244.0.0/16 ip daddr != { 10.244.0.0/16, 192.0.0.0/16, 198.51.100.0/24 } masquerade; }
  chain passing { type filter hook forward priority 0; policy drop;
    ct state invalid drop
    ct state established,related accept
    ip daddr 10.244.1.6 accept
    ip6 daddr fd00:10:1::6 accept
    oifname eth0 accept; }
}";

/// A rule that needs conntrack, and finds nothing.
const TRACKED: &str =
    "table inet tracked { chain passing { type filter hook forward priority 0; ct state invalid drop; }; }";

/// How long a proxy may take until it serves, and a connection until it is tried again.
const PATIENCE: Duration = Duration::from_secs(180);
const DIAL: Duration = Duration::from_secs(3);
/// The API's namespace of the many Services.
pub const SPACE: &str = "bench";

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translator {
    /// Nobody: the endpoint itself is dialled, on a node without any rule.
    Nobody,
    /// Likewise, but a rule asks for conntrack.
    Conntrack,
    /// Likewise, and packets are redirected by their destination alone: the limit.
    Redirects,
    KubeProxy(Mode),
    /// With this mode of shortcuts.
    Sluice(Shortcuts),
}

impl Translator {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "no proxy",
            Self::Conntrack => "no proxy, conntrack",
            Self::Redirects => "redirects alone",
            Self::KubeProxy(Mode::Nftables) => "kube-proxy, nftables",
            Self::KubeProxy(Mode::Iptables) => "kube-proxy, iptables",
            Self::Sluice(Shortcuts::Off) => "Sluice, by the stack",
            Self::Sluice(Shortcuts::Established) => "Sluice, established",
            Self::Sluice(Shortcuts::Always) => "Sluice, always",
        }
    }

    const fn translates(self) -> bool {
        matches!(self, Self::KubeProxy(_) | Self::Sluice(_))
    }
}

/// A bed, and who serves it.
pub struct Site {
    pub proxy: Translator,
    pub bed: Bed,
}

/// All variants, and why some are missing.
pub struct Beds {
    pub sites: Vec<Site>,
    /// In each of them.
    pub services: u32,
    pub missing: Option<String>,
}

impl Beds {
    /// Builds all of them. What a proxy has written stays when it ends, so kube-proxy and its API server do so before
    /// anything is measured.
    ///
    /// # Errors
    /// A bed cannot be built, or a proxy does not come to serve.
    pub fn build(effort: Effort) -> Result<Self> {
        let services = effort.rounds(100, 1_000) as u32;
        let cluster = Cluster::new(services - u32::from(REMOTE_SERVICE), 1);
        let missing = lacking();
        let plane = if missing.is_none() { Some(plane()?) } else { None };
        plane.iter().try_for_each(|plane| plane.add(SPACE, cluster.values()))?;
        let mut sites = Vec::new();
        for wiring in Wiring::BOTH {
            if !Setting::need(wiring, effort.quick) {
                continue;
            }
            for proxy in [Translator::Nobody, Translator::Conntrack, Translator::Redirects] {
                sites.push(Site::alone(proxy, wiring)?);
            }
            for (plane, mode) in plane.iter().flat_map(|plane| Mode::BOTH.map(|mode| (plane, mode))) {
                sites.push(Proxied::start(plane, mode, wiring)?.site.served()?);
            }
            for mode in [Shortcuts::Off, Shortcuts::Always, Shortcuts::Established] {
                sites.push(Site::sluice(mode, wiring, cluster)?);
            }
        }
        Ok(Self { sites, services, missing })
    }

    /// All that serve a setting, without samples yet.
    #[must_use]
    pub fn lanes(&self, setting: Setting) -> Samples<'_> {
        let serves = |site: &&Site| {
            site.bed.config.wiring == setting.wiring && setting.path.target(site.proxy).is_some()
        };
        let of = self.sites.iter().filter(serves).map(|site| (site, Vec::new())).collect();
        Samples { setting, of, again: Vec::new() }
    }

    /// Runs `work` on nodes with a CNI's rules.
    ///
    /// # Errors
    /// nft refuses them, or `work` fails.
    pub fn with_policy<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.sites.iter().try_for_each(|site| site.bed.nft(POLICY))?;
        let done = work();
        self.sites.iter().try_for_each(|site| site.bed.nft("delete table inet house"))?;
        done
    }
}

/// A site of kube-proxy's that still follows the API server.
pub struct Proxied {
    pub site: Site,
    _proxy: KubeProxy,
    _uplink: Uplink,
}

impl Proxied {
    /// Starts it, and waits until it has written what is there.
    ///
    /// # Errors
    /// It does not.
    pub fn start(plane: &Plane, mode: Mode, wiring: Wiring) -> Result<Self> {
        let bed = bed(wiring)?;
        let uplink = plane.connect(bed.namespace("n1"))?;
        let plain = config(plane, mode, wiring, Variant::Plain);
        let path = bed.directory().join("config.json");
        std::fs::write(&path, plain.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let log = bed.directory().join("kube-proxy.log");
        let mut proxy = KubeProxy::start(bed.namespace("n1"), mode, &path, &log)?;
        proxy.ready()?;
        let site = Site { proxy: Translator::KubeProxy(mode), bed };
        Ok(Self { site, _proxy: proxy, _uplink: uplink })
    }
}

/// An API server with the Services that are dialled.
///
/// # Errors
/// It does not come up.
pub fn plane() -> Result<Plane> {
    Plane::start(&[LOCAL_SERVICE, REMOTE_SERVICE].map(case))
}

/// Why there is no kube-proxy.
#[must_use]
pub fn lacking() -> Option<String> {
    let lacks = |name| Binaries::cached(name).err();
    let error = ["etcd", "kube-apiserver", "kube-proxy"].into_iter().find_map(lacks)?;
    Some(format!("without kube-proxy: {error:#}"))
}

impl Site {
    /// Where nobody translates.
    fn alone(proxy: Translator, wiring: Wiring) -> Result<Self> {
        let bed = bed(wiring)?;
        match proxy {
            Translator::Conntrack => bed.nft(TRACKED)?,
            Translator::Redirects => redirect::attach(&bed)?,
            _ => {}
        }
        Self { proxy, bed }.served()
    }

    /// Where Sluice serves a cluster.
    ///
    /// # Errors
    /// It does not.
    pub fn sluice(mode: Shortcuts, wiring: Wiring, cluster: Cluster) -> Result<Self> {
        let mut bed = bed(wiring)?;
        let limits = format!("services={0},frontends={0}", 2 * cluster.services.max(1 << 16));
        bed.home().flags.extend(["--shortcuts".into(), mode.name().into(), "--limits".into(), limits]);
        cluster.write(bed.manifests.directory())?;
        for number in [LOCAL_SERVICE, REMOTE_SERVICE] {
            bed.apply_unawaited(&app(number))?;
        }
        bed.start_agent()?;
        Self { proxy: Translator::Sluice(mode), bed }.served()
    }

    /// Itself, once all that is dialled answers.
    ///
    /// # Errors
    /// Something never does.
    pub fn served(mut self) -> Result<Self> {
        let wiring = self.bed.config.wiring;
        for path in SETTINGS.iter().filter(|setting| setting.wiring == wiring).map(|setting| setting.path) {
            if let Some(to) = path.target(self.proxy) {
                self.answers(path, to, Transport::Tcp)?;
            }
        }
        Ok(self)
    }

    /// Waits until the path's server answers its client that dials `to`.
    ///
    /// # Errors
    /// It never does.
    pub fn answers(&mut self, path: Path, to: SocketAddr, transport: Transport) -> Result<()> {
        let server = self.bed.serve(path.server, TARGET_PORT)?;
        let dial = Dial::new(self.bed.place(path.client), to, transport).patience(DIAL);
        until(&format!("{} serves {}", self.proxy.name(), path.name), PATIENCE, || dial.probe().ok())?;
        // The port is the loads' from now on.
        self.bed.servers.stop(server)
    }
}

fn bed(wiring: Wiring) -> Result<Bed> {
    let bed = Bed::build(BedConfig { watched: false, offload: true, ..BedConfig::new(wiring) })?;
    // A server's port that waits for late segments answers another client's SYN from it with an acknowledgement, which costs that
    // client a second: at thousands of connections a second all ports do, whoever chooses them.
    for who in [LOCAL, REMOTE] {
        bed.namespace(who.namespace()).sysctls(&[("net/ipv4/tcp_max_tw_buckets", "0")])?;
    }
    if wiring == Wiring::Bridged {
        // As nodes for kube-proxy have it.
        bed.namespace("n1").sysctls(&[
            ("net/bridge/bridge-nf-call-iptables", "1"),
            ("net/bridge/bridge-nf-call-ip6tables", "1"),
        ])?;
    }
    Ok(bed)
}

fn name(number: u8) -> String {
    format!("bench-{number}")
}

fn app(number: u8) -> App {
    App::new(&name(number), number, [Backend::new(server(number), TARGET_PORT)])
}

const fn server(number: u8) -> Who {
    if number == REMOTE_SERVICE { REMOTE } else { LOCAL }
}

/// The same Service as the API has it.
fn case(number: u8) -> Case {
    let mut case = Case::new(name(number), [Endpoint::new(server(number), State::Ready)]);
    case.number = number;
    case
}
