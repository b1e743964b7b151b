//! Scenarios `forwarding`, `crr`, `rr` and `udp`: a pod that dials a Service of the same node, beside kube-proxy and beside no proxy.
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
use super::stats::{Spread, is_noisy, order, ratios, spread};
pub use beds::Beds;
use beds::{SERVICES, Site, Translator};
use forward::Injector;
pub use load::Kind;

/// A/A wider than this says that the machine is too busy (performance.md: 5 % on one core, 10 % of forwarding).
const NOISE: f64 = 0.10;

/// What is measured: one site each round, and a second time the first one.
struct Samples {
    of: Vec<Vec<f64>>,
    again: Vec<f64>,
}

/// A sample of every site in each round, in random order.
fn sample(sites: usize, rounds: u64, mut one: impl FnMut(usize) -> Result<f64>) -> Result<Samples> {
    let mut samples = Samples { of: vec![Vec::new(); sites], again: Vec::new() };
    for round in 0..rounds {
        for lane in order(sites + 1, round) {
            match samples.of.get_mut(lane) {
                Some(own) => own.push(one(lane)?),
                None => samples.again.push(one(0)?),
            }
        }
    }
    Ok(samples)
}

/// Measures transactions.
///
/// # Errors
/// One fails.
pub fn transactions(beds: &Beds, kind: Kind, effort: Effort) -> Result<Table> {
    let length = Duration::from_millis(effort.rounds(200, 500));
    let rounds = effort.rounds(7, 21);
    let samples = sample(beds.sites.len(), rounds, |site| {
        let site = &beds.sites[site];
        load::rate(site, kind, length).with_context(|| site.proxy.name())
    })?;
    let (scenario, what) = match kind {
        Kind::Crr => ("crr", "connections, one after the other, a byte each way"),
        Kind::Rr => ("rr", "a byte each way on 32 connections"),
        Kind::Udp => ("udp", "datagrams, each way one, from a new socket each"),
    };
    let method = format!(
        "{what}, IPv4, pod to a Service of one endpoint on the same node, {SERVICES} Services; client and server on one CPU; \
         median [quartiles] of {rounds} rounds of {} ms in random order; ratios are those within a round",
        length.as_millis()
    );
    table(scenario, method, beds, &samples, Unit::PerSecond)
}

/// Measures packets.
///
/// # Errors
/// They cannot be injected, or do not arrive.
pub fn forwarding(beds: &Beds, effort: Effort) -> Result<Table> {
    let packets = effort.rounds(50_000, 200_000);
    let rounds = effort.rounds(9, 31);
    let injectors = beds.sites.iter().map(Injector::new).collect::<Result<Vec<_>>>()?;
    let samples = sample(injectors.len(), rounds, |site| {
        let injector = &injectors[site];
        let before = injector.arrived()?;
        let took = injector.dropping(|| injector.nanoseconds(packets as u32))?;
        let arrived = injector.arrived()? - before;
        // All but what waits for a neighbour's address the first time.
        anyhow::ensure!(arrived >= packets, "{}: {arrived} packets arrived", beds.sites[site].proxy.name());
        Ok(took)
    })?;
    let method = format!(
        "datagrams of 1,024 flows, IPv4, as if received from a pod's device, to a Service of one endpoint on the same node, \
         {SERVICES} Services, dropped at the endpoint's device; nanoseconds a packet on one CPU, median [quartiles] of {rounds} \
         rounds of {packets} in random order; ratios are those within a round, above 1 is faster"
    );
    table("forwarding", method, beds, &samples, Unit::Nanoseconds)
}

fn table(
    scenario: &'static str,
    method: String,
    beds: &Beds,
    samples: &Samples,
    unit: Unit,
) -> Result<Table> {
    let is_time = unit == Unit::Nanoseconds;
    // How much faster `of` is.
    let faster = |of: &[f64], to: &[f64]| if is_time { ratios(to, of) } else { ratios(of, to) };
    let figure = |unit, samples: &[f64]| -> Result<Figure> {
        Ok(Figure { unit, spread: spread(samples).context("no samples")? })
    };
    let [nobody, ..] = &samples.of[..] else { anyhow::bail!("no variant") };
    let best = best(&beds.sites, samples, is_time);
    let mut rows = Vec::new();
    for (site, own) in beds.sites.iter().zip(&samples.of) {
        let mut figures = vec![figure(unit, own)?, figure(Unit::Ratio, &faster(own, nobody))?];
        if let Some(best) = best {
            figures.push(figure(Unit::Ratio, &faster(own, best))?);
        }
        rows.push(Row { what: site.proxy.name().into(), figures, aims: Vec::new() });
    }
    let same: Option<Spread> = spread(&ratios(&samples.again, nobody));
    Ok(Table {
        scenario,
        method,
        columns: vec![if is_time { "a packet" } else { "rate" }, "to no proxy", "to kube-proxy"],
        rows,
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes: beds.missing.iter().cloned().collect(),
    })
}

/// The samples of kube-proxy's better mode.
fn best<'a>(sites: &[Site], samples: &'a Samples, is_time: bool) -> Option<&'a [f64]> {
    let modes =
        sites.iter().zip(&samples.of).filter(|(site, _)| matches!(site.proxy, Translator::KubeProxy(_)));
    let by_median = modes.filter_map(|(_, own)| Some((spread(own)?.median, own)));
    let compare = |a: &(f64, &Vec<f64>), b: &(f64, &Vec<f64>)| a.0.total_cmp(&b.0);
    let found = if is_time { by_median.min_by(compare) } else { by_median.max_by(compare) };
    found.map(|(_, own)| own.as_slice())
}
