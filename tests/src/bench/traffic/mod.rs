//! Scenarios `forwarding`, `crr`, `rr` and `udp`: a Service of one endpoint, beside kube-proxy and beside no proxy.
//!
//! ```text
//! beds.rs     a bed for each variant    load.rs     transactions
//! forward.rs  packets without sockets
//! ```

mod beds;
mod forward;
mod load;

use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::report::{Figure, Row, Table, Unit};
use super::stats::{is_noisy, order, ratios, spread};
pub use beds::Beds;
use beds::{Path, SERVICES, Site, Translator};
use forward::Injector;
pub use load::Kind;

/// A/A wider than this says that the machine is too busy (performance.md: 5 % on one core, 10 % of forwarding).
const NOISE: f64 = 0.10;

/// The circumstances of some rows.
#[derive(Clone, Copy)]
struct Setting {
    path: Path,
    /// With the rules of a CNI on the node.
    policy: bool,
}

const fn bare(path: Path) -> Setting {
    Setting { path, policy: false }
}

const fn policy(path: Path) -> Setting {
    Setting { path, policy: true }
}

/// For transactions; a quick run measures the first two.
const SETTINGS: [Setting; 7] = [
    bare(Path::LOCAL),
    policy(Path::LOCAL),
    bare(Path::LOCAL_V6),
    bare(Path::REMOTE),
    bare(Path::NODE_PORT_LOCAL),
    bare(Path::NODE_PORT_REMOTE),
    policy(Path::NODE_PORT_REMOTE),
];

/// For packets; a quick run measures the first one.
const FORWARDED: [Setting; 5] = [
    bare(Path::LOCAL),
    policy(Path::LOCAL),
    bare(Path::REMOTE),
    bare(Path::NODE_PORT_LOCAL),
    bare(Path::NODE_PORT_REMOTE),
];

/// Samples of those who serve a setting, round by round; the last one of them, which is ours by default, is measured twice.
struct Samples<'a> {
    of: Vec<(&'a Site, Vec<f64>)>,
    again: Vec<f64>,
}

/// A sample of every site in each round, in random order.
fn sample<'a>(
    beds: &'a Beds,
    setting: Setting,
    rounds: u64,
    mut one: impl FnMut(&Site) -> Result<f64>,
) -> Result<Samples<'a>> {
    let serving = beds.sites.iter().filter(|site| setting.path.target(site.proxy).is_some());
    let of: Vec<_> = serving.map(|site| (site, Vec::new())).collect();
    let mut samples = Samples { of, again: Vec::new() };
    let lanes = samples.of.len() + 1;
    for round in 0..rounds {
        for lane in order(lanes, round) {
            let (site, own) = match samples.of.get_mut(lane) {
                Some((site, own)) => (*site, own),
                None => match samples.of.last() {
                    Some((site, _)) => (*site, &mut samples.again),
                    None => continue,
                },
            };
            own.push(one(site).with_context(|| format!("{}, {}", setting.path.name, site.proxy.name()))?);
        }
    }
    Ok(samples)
}

/// [`sample`], with the setting's rules.
fn sample_in<'a>(
    beds: &'a Beds,
    setting: Setting,
    rounds: u64,
    one: impl FnMut(&Site) -> Result<f64>,
) -> Result<Samples<'a>> {
    if setting.policy {
        beds.with_policy(|| sample(beds, setting, rounds, one))
    } else {
        sample(beds, setting, rounds, one)
    }
}

/// Measures transactions.
///
/// # Errors
/// One fails.
pub fn transactions(beds: &Beds, kind: Kind, effort: Effort) -> Result<Table> {
    let length = Duration::from_millis(effort.rounds(150, 400));
    let rounds = effort.rounds(7, 11);
    let (scenario, what) = match kind {
        Kind::Crr => ("crr", "connections, one after the other, a byte each way"),
        Kind::Rr => ("rr", "a byte each way on 32 connections"),
        Kind::Udp => ("udp", "datagrams, each way one, from a new socket each"),
    };
    let method = format!(
        "{what}; client and server on one CPU; median [quartiles] of {rounds} rounds of {} ms in random order",
        length.as_millis()
    );
    let mut table = Findings::new(scenario, method, beds, Unit::PerSecond);
    let count = effort.rounds(2, SETTINGS.len() as u64);
    for setting in SETTINGS.into_iter().take(count as usize) {
        let samples = sample_in(beds, setting, rounds, |site| load::rate(site, setting.path, kind, length))?;
        table.add(setting, &samples)?;
    }
    Ok(table.finish())
}

/// Measures packets.
///
/// # Errors
/// They cannot be injected, or do not arrive.
pub fn forwarding(beds: &Beds, effort: Effort) -> Result<Table> {
    let packets = effort.rounds(50_000, 200_000);
    let rounds = effort.rounds(9, 15);
    let method = format!(
        "datagrams of 1,024 flows as if received by the node, dropped beyond the device they leave by; nanoseconds a packet on one \
         CPU, median [quartiles] of {rounds} rounds of {packets} in random order"
    );
    let mut table = Findings::new("forwarding", method, beds, Unit::Nanoseconds);
    let count = effort.rounds(1, FORWARDED.len() as u64);
    for setting in FORWARDED.into_iter().take(count as usize) {
        let samples = sample_in(beds, setting, rounds, |site| {
            let injector = Injector::new(site, setting.path)?;
            let before = injector.arrived()?;
            let took = injector.dropping(|| injector.nanoseconds(packets as u32))?;
            let arrived = injector.arrived()? - before;
            // All but what waits for a neighbour's address the first time.
            anyhow::ensure!(arrived >= packets, "{arrived} of {packets} packets arrived");
            Ok(took)
        })?;
        table.add(setting, &samples)?;
    }
    Ok(table.finish())
}

/// A table in the making.
struct Findings {
    table: Table,
    unit: Unit,
    same: Vec<f64>,
}

impl Findings {
    fn new(scenario: &'static str, how: String, beds: &Beds, unit: Unit) -> Self {
        let column = if unit == Unit::Nanoseconds { "a packet" } else { "rate" };
        let table = Table {
            scenario,
            method: format!(
                "{how}; {SERVICES} Services of one endpoint; ratios are those within a round, above 1 is faster; kube-proxy: the \
                 better of its modes; Sluice with each mode of `--shortcuts`"
            ),
            columns: vec![column, "to no proxy", "to kube-proxy"],
            rows: Vec::new(),
            noisy: false,
            same: None,
            notes: beds.missing.iter().cloned().collect(),
        };
        Self { table, unit, same: Vec::new() }
    }

    fn add(&mut self, setting: Setting, samples: &Samples<'_>) -> Result<()> {
        let is_time = self.unit == Unit::Nanoseconds;
        // How much faster `of` is.
        let faster = |of: &[f64], to: &[f64]| if is_time { ratios(to, of) } else { ratios(of, to) };
        let figure = |unit, samples: &[f64]| -> Result<Figure> {
            Ok(Figure { unit, spread: spread(samples).context("no samples")? })
        };
        let nobody = samples.of.iter().find(|(site, _)| site.proxy == Translator::Nobody);
        let best = best(samples, is_time);
        let house = if setting.policy { "policy" } else { "bare" };
        for (site, own) in &samples.of {
            let mut figures = vec![figure(self.unit, own)?];
            for base in [nobody.map(|(_, nobody)| nobody.as_slice()), best] {
                // A figure each column: without a base there is nothing to compare with.
                let ratios = base.map_or_else(|| vec![f64::NAN], |base| faster(own, base));
                figures.push(figure(Unit::Ratio, &ratios)?);
            }
            let what = format!("{}, {house}: {}", setting.path.name, site.proxy.name());
            self.table.rows.push(Row { what, figures, aims: Vec::new() });
        }
        if let Some((_, own)) = samples.of.last() {
            self.same.extend(ratios(&samples.again, own));
        }
        Ok(())
    }

    fn finish(mut self) -> Table {
        self.table.same = spread(&self.same);
        self.table.noisy = self.table.same.is_some_and(|same| is_noisy(&same, NOISE));
        self.table
    }
}

/// The samples of kube-proxy's better mode.
fn best<'a>(samples: &'a Samples<'_>, is_time: bool) -> Option<&'a [f64]> {
    let modes = samples.of.iter().filter(|(site, _)| matches!(site.proxy, Translator::KubeProxy(_)));
    let by_median = modes.filter_map(|(_, own)| Some((spread(own)?.median, own)));
    let compare = |a: &(f64, &Vec<f64>), b: &(f64, &Vec<f64>)| a.0.total_cmp(&b.0);
    let found = if is_time { by_median.min_by(compare) } else { by_median.max_by(compare) };
    found.map(|(_, own)| own.as_slice())
}
