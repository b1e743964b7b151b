//! Scenario `scale`: what the number of Services costs flows and connections, beside kube-proxy with many of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_userspace::config::Shortcuts;

use super::beds::{Path, Proxied, SPACE, Site, Translator, lacking, plane};
use super::findings::faster;
use super::forward::{Flows, Injector};
use super::load::{Load, rate};
use crate::bench::Effort;
use crate::bench::cluster::{Cluster, SERVICE_PORT};
use crate::bench::report::{Aim, Figure, Row, Table, Unit};
use crate::bench::stats::{is_noisy, order, ratios, spread};
use crate::lab::Wiring;
use crate::oracle::Mode;
use crate::wire::Transport;

const NOISE: f64 = 0.10;
/// New flows a sample. All of them have ports of their own, in seven rounds of two samples of two measures: they share an
/// endpoint, which could not tell them apart.
const OPENED: u32 = 2_048;
const ROUNDS: u64 = 7;
/// Services where kube-proxy is measured too.
const MANY: u32 = 10_000;
const MOST: u32 = 100_000;
const PATH: Path = Path::LOCAL;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// First datagrams of flows to one Service.
    New,
    /// The same to each Service in turn: what a Service costs may depend on its place among the others.
    Turns,
    /// Datagrams of flows that exist.
    Known,
    Load(Load),
}

const MEASURES: [Measure; 5] = [
    Measure::New,
    Measure::Turns,
    Measure::Known,
    Measure::Load(Load::Crr),
    Measure::Load(Load::Rr { connections: 32 }),
];

impl Measure {
    const fn name(self) -> &'static str {
        match self {
            Self::New => "new flow",
            Self::Turns => "new flow, each Service in turn",
            Self::Known => "established",
            Self::Load(Load::Crr) => "connections",
            Self::Load(_) => "round trips",
        }
    }

    const fn unit(self) -> Unit {
        match self {
            Self::Load(_) => Unit::PerSecond,
            _ => Unit::Nanoseconds,
        }
    }
}

/// Measures.
///
/// # Errors
/// A proxy does not come to serve, or something fails there.
pub fn run(effort: Effort) -> Result<Table> {
    let sizes: &[u32] = if effort.quick { &[0, MANY] } else { &[0, MANY, MOST] };
    let missing = lacking();
    let mut lanes = Vec::new();
    if missing.is_none() && !effort.quick {
        lanes.extend(kube_proxies()?);
    }
    for services in sizes {
        let mut site = Site::sluice(Shortcuts::Always, Wiring::Routed, cluster(*services))?;
        if let Some(last) = last(*services) {
            site.answers(PATH, last, Transport::Udp)?;
        }
        lanes.push(Lane { site, services: *services });
    }
    let mut rows = Vec::new();
    let mut same = Vec::new();
    for measure in MEASURES {
        let samples = sample(&lanes, measure, effort).with_context(|| measure.name())?;
        rows.extend(table_rows(measure, &lanes, &samples)?);
        if let [.., last, again] = samples.as_slice() {
            same.extend(ratios(again, last));
        }
    }
    let same = spread(&same);
    Ok(Table {
        scenario: "scale",
        method: format!(
            "a pod dials a Service on its node, beside so many others of one UDP port; datagrams and connections as in the other \
             scenarios, new flows are {OPENED} datagrams of one each; median [quartiles] of {ROUNDS} rounds in random order; ratios \
             are those within a round, above 1 is faster"
        ),
        columns: vec!["figure", "to nftables", "to iptables", "to one Service"],
        rows,
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes: missing.into_iter().collect(),
    })
}

/// Services beside the one that is dialled.
fn cluster(services: u32) -> Cluster {
    let shared = match PATH.server.address(PATH.family) {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    Cluster { protocol: "UDP", shared, ..Cluster::new(services, 1) }
}

/// The last one of these.
fn last(services: u32) -> Option<SocketAddr> {
    let number = services.checked_sub(1)?;
    Some((cluster(services).address(number), SERVICE_PORT).into())
}

/// Both modes with many Services. These come while kube-proxy runs: nftables takes minutes for as many at once.
fn kube_proxies() -> Result<Vec<Lane>> {
    let (plane, many) = (plane()?, cluster(MANY));
    let mut proxied = Mode::BOTH
        .map(|mode| Proxied::start(&plane, mode, Wiring::Routed))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    plane.add(SPACE, many.values())?;
    for proxied in &mut proxied {
        let last = last(MANY).context("no Service")?;
        proxied.site.answers(PATH, last, Transport::Udp)?;
    }
    let lane = |proxied: Proxied| Ok(Lane { site: proxied.site.served()?, services: MANY });
    proxied.into_iter().map(lane).collect()
}

/// Samples of each lane, and once more of the last one.
fn sample(lanes: &[Lane], measure: Measure, effort: Effort) -> Result<Vec<Vec<f64>>> {
    let mut samples = vec![Vec::new(); lanes.len() + 1];
    for round in 0..ROUNDS {
        for turn in order(samples.len(), round) {
            let again = turn == lanes.len();
            let lane = if again { lanes.last() } else { lanes.get(turn) };
            if let (Some(lane), Some(own)) = (lane, samples.get_mut(turn)) {
                // Flows that nobody has seen.
                let turns = u32::from(measure == Measure::Turns);
                let new = (4 * round as u32 + 2 * turns + u32::from(again)) * OPENED;
                own.extend(lane.sample(measure, new, effort).with_context(|| lane.name())?);
            }
        }
    }
    Ok(samples)
}

fn table_rows(measure: Measure, lanes: &[Lane], samples: &[Vec<f64>]) -> Result<Vec<Row>> {
    let unit = measure.unit();
    let of = |wanted: &dyn Fn(&Lane) -> bool| {
        lanes.iter().zip(samples).find(|(lane, _)| wanted(lane)).map(|(_, own)| own.as_slice())
    };
    let kube_proxy = |mode| of(&move |lane: &Lane| lane.site.proxy == Translator::KubeProxy(mode));
    let alone = of(&|lane: &Lane| lane.services == 0);
    let mut rows = Vec::new();
    for (lane, own) in lanes.iter().zip(samples).filter(|(_, own)| !own.is_empty()) {
        let ours = matches!(lane.site.proxy, Translator::Sluice(_));
        let row3 = ours && lane.services == MANY && measure == Measure::Turns;
        let row9 = ours && lane.services == MOST;
        let bases = [
            (kube_proxy(Mode::Nftables), row3.then_some(1.8)),
            (kube_proxy(Mode::Iptables), row3.then_some(100.0)),
            (alone.filter(|_| ours), row9.then_some(0.98)),
        ];
        let mut figures = vec![Figure::of(unit, own)?];
        for (base, least) in bases {
            let base = base.filter(|base| !base.is_empty());
            let ratios = base.map_or_else(|| vec![f64::NAN], |base| faster(unit, own, base));
            let aims: Vec<_> = least.map(Aim::AtLeast).into_iter().collect();
            figures.push(Figure::of(Unit::Ratio, &ratios)?.aiming(&aims));
        }
        rows.push(Row { what: format!("{}, {}", measure.name(), lane.name()), figures });
    }
    Ok(rows)
}

/// A node with so many Services beside the one that is dialled.
struct Lane {
    site: Site,
    services: u32,
}

impl Lane {
    fn name(&self) -> String {
        format!("{} more Services: {}", self.services, self.site.proxy.name())
    }

    /// `None`: there is nothing to measure. Flows from number `new` on are new.
    fn sample(&self, measure: Measure, new: u32, effort: Effort) -> Result<Option<f64>> {
        let to = PATH.target(self.site.proxy).context("nobody serves it")?;
        let site = &self.site;
        let opened = |to, services| {
            Injector::new(site, PATH, to, Flows { ports: 1 << 16, services, new: Some(new) })?
                .nanoseconds(OPENED)
        };
        let figure = match measure {
            Measure::New => opened(to, 1)?,
            Measure::Turns if self.services == 0 => return Ok(None),
            Measure::Turns => {
                let first = cluster(self.services).address(0);
                opened((first, SERVICE_PORT).into(), 1 << self.services.ilog2())?
            }
            Measure::Known => Injector::new(site, PATH, to, Flows::KNOWN)?
                .nanoseconds(effort.rounds(50_000, 150_000) as u32)?,
            Measure::Load(load) => rate(site, PATH, load, Duration::from_millis(effort.rounds(150, 250)))?,
        };
        Ok(Some(figure))
    }
}
