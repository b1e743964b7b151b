//! Scenarios `forwarding`, `crr`, `rr1`, `rr`, `udp` and `scale`: a Service of one endpoint, beside kube-proxy, beside no proxy and beside
//! redirects alone.
//!
//! ```text
//! settings.rs  circumstances, and what is aimed at there    beds.rs      a bed for each variant
//! load.rs      transactions                                 redirect.rs  the limit
//! forward.rs   packets without sockets                      findings.rs  from samples to a table
//! scale.rs     by the number of Services
//! ```

mod beds;
mod findings;
mod forward;
mod load;
mod redirect;
mod scale;
mod settings;

use std::time::Duration;

use anyhow::{Context, Result};

use super::Effort;
use super::report::Table;
use super::stats::order;
pub use beds::Beds;
use beds::Site;
use findings::Samples;
use forward::{Flows, Injector};
use load::Load;
pub use scale::run as scale;
use settings::Setting;
pub use settings::{CRR, FORWARDING, Kind, RR1, RR32, UDP};

/// A sample of every site in every setting in each round, in random order.
fn sample<'a>(
    beds: &'a Beds,
    settings: impl Iterator<Item = Setting>,
    rounds: u64,
    one: impl Fn(Setting, &Site) -> Result<f64>,
) -> Result<Vec<Samples<'a>>> {
    let mut all: Vec<_> = settings.map(|setting| beds.lanes(setting)).collect();
    let (mut bare, mut policy): (Vec<_>, Vec<_>) = all.iter_mut().partition(|own| !own.setting.policy);
    let turn = |some: &mut [&mut Samples<'a>], round| -> Result<()> {
        for index in order(some.len(), round) {
            if let Some(own) = some.get_mut(index) {
                sample_each(own, round, &one)?;
            }
        }
        Ok(())
    };
    for round in 0..rounds {
        turn(&mut bare, round)?;
        if !policy.is_empty() {
            beds.with_policy(|| turn(&mut policy, round))?;
        }
    }
    Ok(all)
}

/// One round of a setting.
fn sample_each(
    samples: &mut Samples<'_>,
    round: u64,
    one: impl Fn(Setting, &Site) -> Result<f64>,
) -> Result<()> {
    let setting = samples.setting;
    for lane in order(samples.of.len() + 1, round) {
        let (site, own) = match samples.of.get_mut(lane) {
            Some((site, own)) => (*site, own),
            None => match samples.of.last() {
                Some((site, _)) => (*site, &mut samples.again),
                None => continue,
            },
        };
        own.push(one(setting, site).with_context(|| format!("{}, {}", setting.name(), site.proxy.name()))?);
    }
    Ok(())
}

/// Measures what is asked for, everywhere.
///
/// # Errors
/// A transaction fails, or packets do not arrive.
pub fn run(scenario: &'static str, beds: &Beds, kind: Kind, effort: Effort) -> Result<Table> {
    let settings = Setting::all(kind, effort.quick);
    let (method, samples) = match kind {
        Kind::Packets => forwarding(beds, settings, effort)?,
        Kind::Load(load) => transactions(beds, settings, load, effort)?,
    };
    findings::table(scenario, method, beds, kind, &samples)
}

fn transactions<'a>(
    beds: &'a Beds,
    settings: impl Iterator<Item = Setting>,
    load: Load,
    effort: Effort,
) -> Result<(String, Vec<Samples<'a>>)> {
    let length = Duration::from_millis(effort.rounds(150, 250));
    let rounds = effort.rounds(7, 11);
    let what = match load {
        Load::Crr => "connections, one after the other, a byte each way".into(),
        Load::Rr { connections: 1 } => "a byte each way on one connection".into(),
        Load::Rr { connections } => format!("a byte each way on {connections} connections"),
        Load::Udp => "datagrams, each way one, from a new socket each".into(),
    };
    let method = format!(
        "{what}; client and server on one CPU; median [quartiles] of {rounds} rounds of {} ms in random order",
        length.as_millis()
    );
    let samples =
        sample(beds, settings, rounds, |setting, site| load::rate(site, setting.path, load, length))?;
    Ok((method, samples))
}

fn forwarding<'a>(
    beds: &'a Beds,
    settings: impl Iterator<Item = Setting>,
    effort: Effort,
) -> Result<(String, Vec<Samples<'a>>)> {
    let packets = effort.rounds(50_000, 150_000);
    let rounds = effort.rounds(9, 11);
    let method = format!(
        "datagrams of 1,024 flows as if received by the node, dropped beyond the device they leave by; nanoseconds a packet on one \
         CPU, median [quartiles] of {rounds} rounds of {packets} in random order"
    );
    let samples = sample(beds, settings, rounds, |setting, site| {
        let to = setting.path.target(site.proxy).context("nobody serves it")?;
        Injector::new(site, setting.path, to, Flows::KNOWN)?.nanoseconds(packets as u32)
    })?;
    Ok((method, samples))
}
