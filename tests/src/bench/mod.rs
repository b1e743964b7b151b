//! The bench: what packets, connections, changes and starts cost, each beside what it is to be compared with.
//!
//! ```text
//! stats.rs             figures; report.rs, svg.rs: tables and plots of them; pure
//! place.rs             namespaces of the bench's own
//! program/             the programs alone
//! cluster.rs           many Services, as objects and as files
//! control.rs           programming them
//! memory.rs            what agent and kernel hold
//! agent.rs             starts of the real agent
//! flood.rs             live flows beside strangers' floods
//! traffic/             Services beside kube-proxy, beside no proxy and beside redirects alone
//! ```

mod agent;
mod cluster;
mod control;
mod flood;
mod memory;
pub mod place;
pub mod program;
pub mod report;
pub mod stats;
mod svg;
mod traffic;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use report::{Report, Table};
use traffic::{Beds, CRR, FORWARDING, Kind, RR1, RR32, UDP};

/// Bytes.
const MIB: f64 = 1_048_576.0;

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    pub quick: bool,
}

impl Effort {
    /// The one of two numbers.
    #[must_use]
    pub const fn rounds(self, quick: u64, full: u64) -> u64 {
        if self.quick { quick } else { full }
    }
}

/// What scenarios of one run have in common.
struct Session {
    effort: Effort,
    beds: Option<Beds>,
}

impl Session {
    /// The beds of all variants, built when they are first asked for.
    fn beds(&mut self) -> Result<&Beds> {
        if self.beds.is_none() {
            self.beds = Some(Beds::build(self.effort)?);
        }
        self.beds.as_ref().context("they have just been built")
    }

    fn traffic(&mut self, scenario: &'static str, kind: Kind) -> Result<Table> {
        let effort = self.effort;
        traffic::run(scenario, self.beds()?, kind, effort)
    }
}

type Scenario = fn(&mut Session) -> Result<Table>;

/// Every scenario, by its name. Those that share beds come last: the others have the machine to themselves.
const SCENARIOS: [(&str, Scenario); 11] = [
    ("program", |session| program::run(session.effort)),
    ("control", |session| control::run(session.effort)),
    ("memory", |session| memory::run(session.effort)),
    ("start", |session| agent::run(session.effort)),
    ("flood", |session| flood::run(session.effort)),
    ("scale", |session| traffic::scale(session.effort)),
    ("forwarding", |session| session.traffic("forwarding", FORWARDING)),
    ("crr", |session| session.traffic("crr", CRR)),
    ("rr1", |session| session.traffic("rr1", RR1)),
    ("rr", |session| session.traffic("rr", RR32)),
    ("udp", |session| session.traffic("udp", UDP)),
];

/// Names of all scenarios, in the order in which they run.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.iter().map(|(name, _)| *name)
}

/// Where results go beside the terminal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outputs<'a> {
    /// A file.
    pub json: Option<&'a Path>,
    /// A directory, for a plot a scenario.
    pub svg: Option<&'a Path>,
}

/// Runs scenarios (none: all), prints their tables, and writes JSON and plots where asked.
///
/// # Errors
/// The first scenario that cannot be measured.
pub fn run(names: &[String], effort: Effort, outputs: Outputs<'_>) -> Result<()> {
    let mut report = Report {
        version: env!("CARGO_PKG_VERSION"),
        machine: machine(),
        quick: effort.quick,
        scenarios: vec![],
    };
    if let Some(unknown) = names.iter().find(|name| !self::names().any(|known| known == *name)) {
        bail!("{unknown}: no such scenario; there are: {}", self::names().collect::<Vec<_>>().join(", "));
    }
    println!("{}\n", report.machine);
    let write = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let mut session = Session { effort, beds: None };
    for (name, scenario) in
        SCENARIOS.iter().filter(|(name, _)| names.is_empty() || names.iter().any(|n| n == name))
    {
        let started = Instant::now();
        let table = scenario(&mut session).with_context(|| format!("scenario {name}"))?;
        println!("{}  took {:.0} s\n", table.text(), started.elapsed().as_secs_f64());
        if let Some(directory) = outputs.svg {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
            write(&directory.join(format!("{name}.svg")), svg::plot(&table))?;
        }
        report.scenarios.push(table);
    }
    if let Some(path) = outputs.json {
        write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}

/// Processor, cores, kernel and load: figures of two machines are not comparable.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = read("/proc/loadavg");
    format!(
        "{}, {cores} cores, Linux {}, load {} when started",
        model.trim_start_matches([' ', '\t', ':']),
        read("/proc/sys/kernel/osrelease").trim(),
        load.split(' ').next().unwrap_or("unknown")
    )
}
