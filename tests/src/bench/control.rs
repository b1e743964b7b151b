//! Scenario `control`: what it costs to program 10,000 Services with 10 endpoints each, and to change one endpoint.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proxy_common::abi::{Flow, FlowKey};
use proxy_userspace::cluster::types::{Service, Slice};
use proxy_userspace::cluster::{Change, Event};
use proxy_userspace::datapath::{Datapath, Named, Options, cleanup};
use proxy_userspace::model::{Model, Settings as ModelSettings};
use proxy_userspace::sync::{Report, Settings, Syncer};

use super::place::{self, Bpffs};
use super::report::{Aim, Row, Table, Unit};
use super::stats::{is_noisy, ratios, spread};
use super::{Effort, agent, cluster};

/// Changes of one endpoint measured after each filling.
const CHANGES: u32 = 200;
/// A/A of times this long is noisy beyond this.
const NOISE: f64 = 0.15;
const MIB: f64 = 1_048_576.0;

#[derive(Default)]
struct Samples {
    plan: Vec<f64>,
    write: Vec<f64>,
    all: Vec<f64>,
    change: Vec<f64>,
    pipeline: Vec<f64>,
    idle: Vec<f64>,
    kernel: Vec<f64>,
}

/// Measures pipeline and agent.
///
/// # Errors
/// Something is refused.
pub fn run(effort: Effort) -> Result<Table> {
    let rounds = effort.rounds(5, 15);
    let samples = place::apart(|bpffs| pipeline(bpffs, rounds))?;
    let agent = agent::memory()?;
    let odd: Vec<f64> = samples.all.iter().step_by(2).copied().collect();
    let even: Vec<f64> = samples.all.iter().skip(1).step_by(2).copied().collect();
    let same = spread(&ratios(&odd, &even));
    let most = |nanoseconds: f64| Aim::AtMost(nanoseconds);
    let time = Unit::Nanoseconds;
    Ok(Table {
        scenario: "control",
        method: format!(
            "{} Services x {} endpoints, real maps; median [quartiles] of {rounds} fillings, each with new maps, and of \
             {CHANGES} changes after each; resident memory of a `sluice run --manifests` after its first sync",
            cluster::SERVICES,
            cluster::ENDPOINTS
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
            Row::new("memory of the agent", Unit::Bytes, &[agent], &[most(60.0 * MIB), most(40.0 * MIB)])?,
            Row::new(
                "kernel memory of maps, without flows",
                Unit::Bytes,
                &samples.kernel,
                &[most(4.0 * MIB)],
            )?,
            Row::new("  of it: before anything is programmed", Unit::Bytes, &samples.idle, &[])?,
        ],
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes: Vec::new(),
    })
}

fn pipeline(bpffs: &Bpffs, rounds: u64) -> Result<Samples> {
    let (services, slices) = cluster::objects()?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        let options =
            Options { bpffs: Some(bpffs.directory(&format!("control-{round}"))?), ..Options::default() };
        let mut datapath = Datapath::load(&options)?;
        samples.idle.push(kernel_memory()?);
        let mut syncer = Syncer::adopt(&datapath, Settings::default())?;
        let (services, slices) = (services.clone(), slices.clone());
        let before = resident("self")?;
        let mut model = fill(&mut datapath, &mut syncer, services, slices, &mut samples)?;
        // The objects have moved into the model: what was there before is theirs.
        samples.pipeline.push((resident("self")? - before).max(0.0));
        samples.kernel.push(kernel_memory()?);
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
    let mut model = Model::new(ModelSettings { node_name: "node-1".into(), bind: None, external_ips: true });
    model.apply(Event::Services(Change::Snapshot(services)));
    model.apply(Event::Slices(Change::Snapshot(slices)));
    let changes = model.drain_changes();
    let planned = started.elapsed();
    let desired: Vec<_> = changes.into_iter().filter_map(|(id, state)| Some((id, state?))).collect();
    let count = desired.len();
    whole(&syncer.replace_all(datapath, desired, Duration::ZERO))?;
    let all = started.elapsed();
    if count != cluster::SERVICES as usize {
        bail!("{count} ports were planned, not {}", cluster::SERVICES);
    }
    samples.plan.push(nanoseconds(planned));
    samples.write.push(nanoseconds(all.saturating_sub(planned)));
    samples.all.push(nanoseconds(all));
    Ok(model)
}

/// One Service loses an endpoint.
fn change(datapath: &mut Datapath, syncer: &mut Syncer, model: &mut Model, number: u32) -> Result<f64> {
    let slice = cluster::changed(number % cluster::SERVICES, cluster::ENDPOINTS - 1)?;
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

/// Resident memory of a process, in bytes.
///
/// # Errors
/// There is no such process.
pub fn resident(process: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kilobytes * 1024.0)
}

/// What the kernel accounts for the maps that this process has open, those of flows and their rings left out: they are
/// of fixed size, whatever is programmed.
fn kernel_memory() -> Result<f64> {
    let mut seen = std::collections::BTreeSet::new();
    let mut sum = 0.0;
    for entry in std::fs::read_dir("/proc/self/fdinfo").context("cannot list descriptors")?.flatten() {
        let Some(map) = MapMemory::read(&entry.path()) else { continue };
        if !map.is_flows() && seen.insert(map.id) {
            sum += map.bytes;
        }
    }
    Ok(sum)
}

struct MapMemory {
    id: u32,
    key: u32,
    value: u32,
    bytes: f64,
}

impl MapMemory {
    /// `None` for descriptors that are no maps.
    fn read(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
                .trim()
                .parse::<u32>()
                .ok()
        };
        let (id, key, value) = (field("map_id")?, field("key_size")?, field("value_size")?);
        Some(Self { id, key, value, bytes: f64::from(field("memlock")?) })
    }

    /// Flow tables by the sizes of key and value. Only rings have no keys.
    fn is_flows(&self) -> bool {
        let flows = [
            (size_of::<FlowKey<1>>(), size_of::<Flow<1>>()),
            (size_of::<FlowKey<4>>(), size_of::<Flow<4>>()),
        ];
        self.key == 0 || flows.contains(&(self.key as usize, self.value as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_maps_is_read_from_their_descriptors() {
        let text = |key: u32, value: u32| {
            format!(
                "pos:\t0\nmap_type:\t1\nkey_size:\t{key}\nvalue_size:\t{value}\nmemlock:\t8192\nmap_id:\t7\n"
            )
        };
        let cases = [
            ("frontends", 8, 8, false),
            ("addresses v6", 16, 4, false),
            ("flows v4", 16, u32::try_from(size_of::<Flow<1>>()).unwrap(), true),
            ("rings v6", 0, 44, true),
        ];
        for (name, key, value, flows) in cases {
            let map = MapMemory::parse(&text(key, value)).unwrap();
            assert_eq!((map.id, map.bytes, map.is_flows()), (7, 8192.0, flows), "{name}");
        }
        assert!(MapMemory::parse("pos:\t0\nflags:\t02\n").is_none(), "a file");
    }
}
