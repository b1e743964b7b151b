//! Scenario `program`: nanoseconds a packet costs in the programs alone, by BPF_PROG_TEST_RUN.
//!
//! ```text
//! cases.rs    what is measured      node.rs  programs and tables, by the agent's own code
//! driver.rs   the next flow's packet each time
//! ```

mod cases;
mod driver;
mod node;
mod socket;

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};

use super::Effort;
use super::place::{self, Bpffs};
use super::report::{Figure, Row, Table, Unit};
use super::stats::{differences, is_noisy, order, ratios, spread};
use crate::bpf::{Asm, Type};
use crate::sys::{Run, test_run};
use cases::{Case, Pass};
use driver::Driver;
use node::Node;

/// Entries of the flow table: issue's figure for new flows.
const FLOWS: u32 = 65_536;
/// Flows opened in a round: with two entries each, half of the table.
const OPENED: u32 = 16_384;
/// Differences below this share of a figure mean nothing if A/A is wider.
const NOISE: f64 = 0.10;
/// What the programs return for a packet that goes on: TC_ACT_UNSPEC.
const GOES_ON: u32 = u32::MAX;

/// Measures all cases.
///
/// # Errors
/// The place cannot be made, or the programs do not do what is to be measured.
pub fn run(effort: Effort) -> Result<Table> {
    place::apart(|bpffs| {
        place::pin(0)?;
        measure(bpffs, effort)
    })
}

/// A case with everything loaded.
struct Bench<'a> {
    case: Case,
    node: &'a Node,
    driver: Driver,
    /// The same driver before the empty program.
    floor: Driver,
    before: Vec<Driver>,
    /// Next flow number of cases that open flows.
    next: u64,
    samples: Samples,
}

#[derive(Default)]
struct Samples {
    with: Vec<f64>,
    floor: Vec<f64>,
    again: Vec<f64>,
}

fn measure(bpffs: &Bpffs, effort: Effort) -> Result<Table> {
    let steady = Node::load(&bpffs.directory("steady")?, FLOWS)?;
    let fresh = Node::load(&bpffs.directory("fresh")?, FLOWS)?;
    let empty = Asm::default().exit(-1).load_as(Type::Classifier, "bench_empty")?;
    let mut benches = Vec::new();
    for case in cases::all() {
        let node = if case.opens { &fresh } else { &steady };
        benches.push(Bench::load(case, node, &empty)?);
    }
    let mut notes = Vec::new();
    for round in 0..effort.rounds(15, 61) {
        for index in order(benches.len(), round) {
            if let Some(bench) = benches.get_mut(index) {
                bench.round(effort)?;
            }
        }
    }
    let again: Vec<f64> = benches
        .iter()
        .filter(|b| !b.case.opens)
        .flat_map(|b| ratios(&b.samples.again, &b.samples.with))
        .collect();
    let same = spread(&again);
    let mut rows = benches.iter().filter_map(|bench| bench.row(&mut notes)).collect::<Vec<_>>();
    rows.push(socket::row(bpffs, effort)?);
    Ok(Table {
        scenario: "program",
        method: format!(
            "BPF_PROG_TEST_RUN on one CPU, median [quartiles] of {} rounds in random order; a driver of a dozen \
             instructions puts the next flow's tuple into the packet, then tail-calls the program; floor: the same \
             before an empty program; net: their difference within a round",
            effort.rounds(15, 61)
        ),
        columns: vec!["with driver", "floor", "net"],
        rows,
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes,
    })
}

impl<'a> Bench<'a> {
    fn load(case: Case, node: &'a Node, empty: &OwnedFd) -> Result<Self> {
        let driver = |pass: &Pass, program| {
            Driver::load(&pass.drive, program)
                .with_context(|| format!("cannot load the driver of {}", case.what))
        };
        Ok(Self {
            driver: driver(&case.measured, node.program(case.measured.ingress))?,
            floor: driver(&case.measured, empty.as_fd())?,
            before: case
                .before
                .iter()
                .map(|pass| driver(pass, node.program(pass.ingress)))
                .collect::<Result<_>>()?,
            case,
            node,
            next: 0,
            samples: Samples::default(),
        })
    }

    /// The passes before, over every flow.
    fn prepare(&mut self) -> Result<()> {
        let flows = if self.case.opens { FLOWS / 2 } else { self.case.measured.drive.flows };
        for (driver, pass) in self.before.iter().zip(&self.case.before) {
            driver.begin(self.next)?;
            once(driver, pass, flows)?;
        }
        if self.case.opens {
            self.next += u64::from(flows);
            return Ok(());
        }
        self.check()
    }

    /// Whether the program does to a packet what the case says.
    fn check(&self) -> Result<()> {
        let pass = &self.case.measured;
        self.driver.begin(0)?;
        let mut out = vec![0; pass.packet.len()];
        let run = Run { packet: &pass.packet, repeat: 1, ..Run::default() };
        test_run(self.driver.as_fd(), &run, &mut out)?;
        // From the addresses to the ports: what a rewrite changes.
        let tuple = if pass.drive.v6 { 22..58 } else { 26..38 };
        let changed = out.get(tuple.clone()) != pass.packet.get(tuple);
        if changed == self.before.is_empty() {
            bail!("{}: {}", self.case.what, if changed { "rewritten" } else { "not rewritten" });
        }
        Ok(())
    }

    /// One sample of each.
    fn round(&mut self, effort: Effort) -> Result<()> {
        if self.case.opens {
            return self.opening_round();
        }
        // A case has the table to itself.
        self.node.forget_flows()?;
        self.prepare()?;
        let repeat = effort.rounds(20_000, 50_000) as u32;
        // The caches belong to the case that was measured before.
        self.sample(&self.driver, self.case.measured.drive.flows, 0)?;
        let before = self.node.counted()?;
        let with = self.sample(&self.driver, repeat, 0)?;
        let floor = self.sample(&self.floor, repeat, 0)?;
        let again = self.sample(&self.driver, repeat, 0)?;
        if self.node.counted()? != before {
            bail!("{}: flows were opened or packets dropped where none should be", self.case.what);
        }
        self.keep(with, floor, Some(again));
        Ok(())
    }

    fn opening_round(&mut self) -> Result<()> {
        self.node.forget_flows()?;
        if self.case.full {
            self.prepare()?;
        }
        let (opened, _) = self.node.counted()?;
        let with = self.sample(&self.driver, OPENED, self.next)?;
        let (after, _) = self.node.counted()?;
        self.next += u64::from(OPENED);
        let floor = self.sample(&self.floor, OPENED, self.next)?;
        // A round in which flows were refused measured something else.
        if after - opened == u64::from(OPENED) {
            self.keep(with, floor, None);
        }
        Ok(())
    }

    fn sample(&self, driver: &Driver, repeat: u32, first: u64) -> Result<f64> {
        driver.begin(first)?;
        let (returned, took) = once(driver, &self.case.measured, repeat)?;
        if returned != GOES_ON && !self.case.opens {
            let account = self.node.account()?;
            bail!("{}: the packet did not go on, the program returned {returned}; {account}", self.case.what);
        }
        Ok(took)
    }

    fn keep(&mut self, with: f64, floor: f64, again: Option<f64>) {
        self.samples.with.push(with);
        self.samples.floor.push(floor);
        self.samples.again.extend(again);
    }

    fn row(&self, notes: &mut Vec<String>) -> Option<Row> {
        let net = differences(&self.samples.with, &self.samples.floor);
        let figures = [&self.samples.with, &self.samples.floor, &net]
            .map(|samples| Figure::of(Unit::Nanoseconds, samples).ok());
        let [Some(with), Some(floor), Some(net)] = figures else {
            notes.push(format!("{}: not measured, flows were refused", self.case.what));
            return None;
        };
        let figures = vec![with, floor, net.aiming(&self.case.aims)];
        Some(Row { what: self.case.what.clone(), figures })
    }
}

/// What the last of `repeat` runs returned, and nanoseconds a run.
fn once(driver: &Driver, pass: &Pass, repeat: u32) -> Result<(u32, f64)> {
    let run = Run { packet: &pass.packet, repeat, ..Run::default() };
    let (returned, nanoseconds) = test_run(driver.as_fd(), &run, &mut []).context("test run")?;
    Ok((returned, f64::from(nanoseconds)))
}
