//! One bed for each variant: the same node, pods and Services, served differently.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::api::Binaries;
use crate::lab::app::{App, Backend, Via};
use crate::lab::{Bed, BedConfig, Family, Who, Wiring};
use crate::oracle::case::{Case, Endpoint, State, TARGET_PORT};
use crate::oracle::{KubeProxy, Mode, Plane, Variant, bench::config};
use crate::traffic::Dial;
use crate::wait::until;
use crate::wire::Transport;

/// Services of one endpoint each; the last one is dialled.
pub const SERVICES: u8 = 90;
/// Who dials, and who serves all of them.
pub const CLIENT: Who = Who::Pa;
pub const SERVER: Who = Who::Pb;

/// How long a proxy may take until it serves.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Translator {
    /// Nobody: the endpoint itself is dialled, on a node without any rule.
    Nobody,
    KubeProxy(Mode),
    Sluice,
}

impl Translator {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nobody => "no proxy",
            Self::KubeProxy(Mode::Nftables) => "kube-proxy, nftables",
            Self::KubeProxy(Mode::Iptables) => "kube-proxy, iptables",
            Self::Sluice => "Sluice",
        }
    }
}

/// A bed, and what is dialled in it.
pub struct Site {
    pub proxy: Translator,
    pub bed: Bed,
    pub to: SocketAddr,
}

/// All variants, and why some are missing.
pub struct Beds {
    pub sites: Vec<Site>,
    pub missing: Option<String>,
}

impl Beds {
    /// Builds all of them. What a proxy has written stays when it ends, so kube-proxy and its API server do so before
    /// anything is measured.
    ///
    /// # Errors
    /// A bed cannot be built, or a proxy does not come to serve.
    pub fn build() -> Result<Self> {
        let lacks = |name| Binaries::cached(name).err();
        let missing = ["etcd", "kube-apiserver", "kube-proxy"].into_iter().find_map(lacks);
        let mut sites = vec![Site::nobody()?];
        if missing.is_none() {
            let plane = Plane::start(&cases())?;
            for mode in Mode::BOTH {
                sites.push(Site::kube_proxy(&plane, mode)?);
            }
        }
        sites.push(Site::sluice()?);
        let missing = missing.map(|error| format!("without kube-proxy: {error:#}"));
        Ok(Self { sites, missing })
    }
}

impl Site {
    fn nobody() -> Result<Self> {
        let bed = bed()?;
        let to = (SERVER.address(Family::V4), TARGET_PORT).into();
        Self { proxy: Translator::Nobody, bed, to }.served()
    }

    fn kube_proxy(plane: &Plane, mode: Mode) -> Result<Self> {
        let bed = bed()?;
        let _uplink = plane.connect(bed.namespace("n1"))?;
        let plain = config(plane, mode, Wiring::Routed, Variant::Plain);
        let path = bed.directory().join("config.json");
        std::fs::write(&path, plain.to_string())
            .with_context(|| format!("cannot write {}", path.display()))?;
        let log = bed.directory().join("kube-proxy.log");
        let mut proxy = KubeProxy::start(bed.namespace("n1"), mode, &path, &log)?;
        proxy.ready()?;
        Self { proxy: Translator::KubeProxy(mode), bed, to: service() }.served()
    }

    fn sluice() -> Result<Self> {
        let mut bed = bed()?;
        bed.start_agent()?;
        for number in 1..SERVICES {
            bed.apply_unawaited(&app(number))?;
        }
        bed.apply(&app(SERVICES))?;
        Self { proxy: Translator::Sluice, bed, to: service() }.served()
    }

    /// Itself, once what it dials answers.
    fn served(mut self) -> Result<Self> {
        let server = self.bed.serve(SERVER, TARGET_PORT)?;
        let dial = Dial::new(self.bed.place(CLIENT), self.to, Transport::Tcp).patience(PATIENCE / 10);
        until(&format!("{} serves", self.proxy.name()), PATIENCE, || dial.probe().ok())?;
        // The port is the loads' from now on.
        self.bed.servers.stop(server)?;
        Ok(self)
    }
}

fn bed() -> Result<Bed> {
    Bed::build(BedConfig { watched: false, offload: true, ..BedConfig::new(Wiring::Routed) })
}

fn name(number: u8) -> String {
    format!("bench-{number}")
}

fn app(number: u8) -> App {
    App::new(&name(number), number, [Backend::new(SERVER, TARGET_PORT)])
}

fn service() -> SocketAddr {
    app(SERVICES).address(Via::ClusterIp, Family::V4)
}

/// The same Services as the API has them.
fn cases() -> Vec<Case> {
    let case = |number| {
        let mut case = Case::new(name(number), [Endpoint::new(SERVER, State::Ready)]);
        case.number = number;
        case
    };
    (1..=SERVICES).map(case).collect()
}
