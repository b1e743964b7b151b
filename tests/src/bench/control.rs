//! Scenario `control`: what it costs to program 10,000 Services with 10 endpoints each, and to change one endpoint.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use proxy_userspace::cluster::types::{Service, Slice};
use proxy_userspace::cluster::{Change, Event};
use proxy_userspace::datapath::{Datapath, Named, Options, cleanup};
use proxy_userspace::model::{Model, Settings as ModelSettings};
use proxy_userspace::sync::{Report, Settings, Syncer};

use super::Effort;
use super::cluster::Cluster;
use super::memory::resident;
use super::place::{self, Bpffs};
use super::report::{Aim, Row, Table, Unit};
use super::stats::{is_noisy, ratios, spread};

/// Changes of one endpoint measured after each filling.
const CHANGES: u32 = 200;
/// A/A of times this long is noisy beyond this.
const NOISE: f64 = 0.15;
const CLUSTER: Cluster = Cluster::USUAL;

#[derive(Default)]
struct Samples {
    plan: Vec<f64>,
    write: Vec<f64>,
    all: Vec<f64>,
    change: Vec<f64>,
    pipeline: Vec<f64>,
}

/// Measures pipeline and agent.
///
/// # Errors
/// Something is refused.
pub fn run(effort: Effort) -> Result<Table> {
    let rounds = effort.rounds(5, 15);
    let samples = place::apart(|bpffs| pipeline(bpffs, rounds))?;
    let odd: Vec<f64> = samples.all.iter().step_by(2).copied().collect();
    let even: Vec<f64> = samples.all.iter().skip(1).step_by(2).copied().collect();
    let same = spread(&ratios(&odd, &even));
    let most = |nanoseconds: f64| Aim::AtMost(nanoseconds);
    let time = Unit::Nanoseconds;
    Ok(Table {
        scenario: "control",
        method: format!(
            "{} Services x {} endpoints, real maps; median [quartiles] of {rounds} fillings, each with new maps, and of \
             {CHANGES} changes after each",
            CLUSTER.services, CLUSTER.endpoints
        ),
        columns: vec!["figure"],
        rows: vec![
            Row::new(
                "objects in memory to last map write",
                time,
                &samples.all,
                &[most(0.3e9), most(0.15e9)],
            )?,
            Row::new("  of it: model and plan", time, &samples.plan, &[])?,
            Row::new("  of it: difference and map writes", time, &samples.write, &[])?,
            Row::new(
                "one endpoint, event to last map write",
                time,
                &samples.change,
                &[most(5e6), most(0.25e6)],
            )?,
            Row::new("memory of model and syncer alone", Unit::Bytes, &samples.pipeline, &[])?,
        ],
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes: Vec::new(),
    })
}

fn pipeline(bpffs: &Bpffs, rounds: u64) -> Result<Samples> {
    let (services, slices) = CLUSTER.objects()?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        let options =
            Options { bpffs: Some(bpffs.directory(&format!("control-{round}"))?), ..Options::default() };
        let mut datapath = Datapath::load(&options)?;
        let mut syncer = Syncer::adopt(&datapath, Settings::default())?;
        let (services, slices) = (services.clone(), slices.clone());
        let before = resident("self")?;
        let mut model = fill(&mut datapath, &mut syncer, services, slices, &mut samples)?;
        // The objects have moved into the model: what was there before is theirs.
        samples.pipeline.push((resident("self")? - before).max(0.0));
        for number in 0..CHANGES {
            samples.change.push(change(&mut datapath, &mut syncer, &mut model, number * 37)?);
        }
        drop((syncer, datapath));
        cleanup(&options, Named::ALL)?;
    }
    Ok(samples)
}

fn fill(
    datapath: &mut Datapath,
    syncer: &mut Syncer,
    services: Vec<Service>,
    slices: Vec<Slice>,
    samples: &mut Samples,
) -> Result<Model> {
    let started = Instant::now();
    let mut model = Model::new(ModelSettings::of_node("node-1"));
    model.apply(Event::Services(Change::Snapshot(services)));
    model.apply(Event::Slices(Change::Snapshot(slices)));
    let changes = model.drain_changes();
    let planned = started.elapsed();
    let desired: Vec<_> = changes.into_iter().filter_map(|(id, state)| Some((id, state?))).collect();
    let count = desired.len();
    whole(&syncer.replace_all(datapath, desired, Duration::ZERO))?;
    let all = started.elapsed();
    if count != CLUSTER.services as usize {
        bail!("{count} ports were planned, not {}", CLUSTER.services);
    }
    samples.plan.push(nanoseconds(planned));
    samples.write.push(nanoseconds(all.saturating_sub(planned)));
    samples.all.push(nanoseconds(all));
    Ok(model)
}

/// One Service loses an endpoint.
fn change(datapath: &mut Datapath, syncer: &mut Syncer, model: &mut Model, number: u32) -> Result<f64> {
    let slice = CLUSTER.changed(number % CLUSTER.services, CLUSTER.endpoints - 1)?;
    let started = Instant::now();
    model.apply(Event::Slices(Change::Apply(slice)));
    let report = syncer.apply(datapath, model.drain_changes(), Duration::ZERO);
    let took = started.elapsed();
    whole(&report)?;
    if report.steps == 0 {
        bail!("the change of Service {number} was none");
    }
    Ok(nanoseconds(took))
}

fn whole(report: &Report) -> Result<()> {
    if report.is_clean() {
        return Ok(());
    }
    bail!("not everything could be written: {:?} {:?}", report.refused.first(), report.failed.first())
}

/// A duration as a sample.
#[must_use]
pub fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}
