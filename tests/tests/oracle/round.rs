//! One pair of beds and all the questions asked of it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use anyhow::Result;
use sluice_tests::lab::Bed;
use sluice_tests::lab::plan::{Who, Wiring};
use sluice_tests::oracle::cell::{Cell, Way};
use sluice_tests::oracle::observe::{Effort, GLANCE, Observation, STARE, observe};
use sluice_tests::oracle::reconcile::reconcile;
use sluice_tests::oracle::{Bench, Case, Mode, Plane, Variant, matrix};

use super::report::Report;

/// Cells that are asked at once. Most wait for an answer that does not come.
const ASKERS: usize = 256;
/// Looks at a cell after the first one.
const STARES: usize = 3;
/// Cells that differ whose cause is shown; more of them mostly have the same one.
const SHOWN: usize = 8;

/// A configuration that both proxies run under.
pub struct Round {
    pub mode: Mode,
    pub wiring: Wiring,
    pub variant: Variant,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oracle::{}::{}::{}", self.mode, self.wiring, self.variant.name())
    }
}

/// A cell in which the proxies differ.
struct Finding<'a> {
    cell: Cell<'a>,
    ours: Observation,
    theirs: Observation,
}

impl Round {
    /// Those of its cells whose full names hold all filters.
    pub fn select<'a>(&self, cases: &'a [Case], filters: &[String]) -> Vec<Cell<'a>> {
        let wanted = |cell: &Cell<'_>| {
            let name = format!("{self}::{cell}");
            filters.iter().all(|filter| name.contains(filter.as_str()))
        };
        matrix::cells(cases, self.wiring, self.variant).into_iter().filter(wanted).collect()
    }

    /// Builds the beds, asks, and tells what differs.
    pub fn run(&self, plane: &Plane, cases: &[Case], cells: Vec<Cell<'_>>, report: &mut Report) {
        let (start, count) = (Instant::now(), cells.len());
        let bench = match self.prepare(plane, cases) {
            Ok(bench) => bench,
            Err(error) => {
                println!("test {self} ... FAILED\nthe beds could not be set up: {error:#}");
                report.failed += count;
                return;
            }
        };
        let findings = self.ask(&bench, cells, report);
        if self.variant == Variant::Skewed {
            self.trial(&findings, count, report);
            return;
        }
        let differing = findings.len();
        for (number, finding) in findings.iter().enumerate() {
            self.show(&bench, finding, number < SHOWN);
        }
        report.failed += differing;
        report.passed += count - differing;
        if self.variant == Variant::Changed
            && let Err(error) = plane.restore(cases)
        {
            println!("test {self}::restore ... FAILED\nthe objects could not be changed back: {error:#}");
            report.failed += 1;
        }
        let seconds = start.elapsed().as_secs();
        println!("{self}: {count} cells, {differing} of them differ, {seconds} s");
    }

    /// Where Sluice masquerades everything and kube-proxy does not, pods must be found to be seen under other addresses.
    fn trial(&self, findings: &[Finding<'_>], count: usize, report: &mut Report) {
        let masqueraded = |finding: &Finding<'_>| {
            finding.cell.way == Way::ClusterIp
                && finding.cell.client == Who::Pa
                && finding.ours != finding.theirs
        };
        if findings.iter().any(masqueraded) {
            println!("{self}: {count} cells, {} of them differ, as they must", findings.len());
            report.passed += 1;
        } else {
            println!("test {self} ... FAILED\n    proxies that differ are not told apart");
            report.failed += 1;
        }
    }

    fn prepare(&self, plane: &Plane, cases: &[Case]) -> Result<Bench> {
        let bench = Bench::build(plane, self.mode, self.wiring, self.variant)?;
        if self.variant == Variant::Changed {
            bench.add_address()?;
            plane.change(cases)?;
            bench.settle()?;
        }
        Ok(bench)
    }

    fn ask<'a>(&self, bench: &Bench, cells: Vec<Cell<'a>>, report: &mut Report) -> Vec<Finding<'a>> {
        let (queue, findings) = (Mutex::new(cells), Mutex::new(Vec::new()));
        let report = Mutex::new(report);
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        std::thread::scope(|scope| {
            for _ in 0..ASKERS {
                scope.spawn(|| {
                    while let Some(cell) = next() {
                        match self.compare(bench, cell) {
                            Ok(used) => report.lock().unwrap_or_else(PoisonError::into_inner).declared(&used),
                            Err(finding) => {
                                findings.lock().unwrap_or_else(PoisonError::into_inner).push(*finding)
                            }
                        }
                    }
                });
            }
        });
        let mut findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        findings.sort_by_key(|finding| finding.cell.to_string());
        findings
    }

    /// Looks at both; what seems to differ is looked at again, longer. It does not differ if one look or all of them
    /// together show the same: chance may have hidden a backend, a busy machine an answer.
    fn compare<'a>(&self, bench: &Bench, cell: Cell<'a>) -> Result<Vec<usize>, Box<Finding<'a>>> {
        let agree = |ours: &Observation, theirs: &Observation| {
            reconcile((self.mode, self.wiring, self.variant), &cell, ours, theirs)
        };
        let (mut ours, mut theirs) = look(bench, &cell, GLANCE);
        if let Some(used) = agree(&ours, &theirs) {
            return Ok(used);
        }
        for _ in 0..STARES {
            let (again, there) = look(bench, &cell, STARE);
            if let Some(used) = agree(&again, &there) {
                return Ok(used);
            }
            ours.0.extend(again.0);
            theirs.0.extend(there.0);
            if let Some(used) = agree(&ours, &theirs) {
                return Ok(used);
            }
        }
        Err(Box::new(Finding { cell, ours, theirs }))
    }

    fn show(&self, bench: &Bench, finding: &Finding<'_>, thoroughly: bool) {
        let Finding { cell, ours, theirs } = finding;
        println!("test {self}::{cell} ... FAILED\n    Sluice:     {ours}\n    kube-proxy: {theirs}");
        if thoroughly {
            let name = format!("oracle/{}", cell.case.name);
            let installed = bench.ours.agent().and_then(|agent| agent.home.json(&["services", &name]));
            let installed = installed.map_or_else(|error| format!("{error:#}"), |list| list.to_string());
            println!("    sluice explain: {}", explain(&bench.ours, cell));
            println!("    sluice services {name}: {installed}");
            println!("    kube-proxy's rules:\n{}", bench.kube_proxy.rules(&name));
        }
    }
}

/// What the installed programs say about the cell's first packet.
fn explain(bed: &Bed, cell: &Cell<'_>) -> String {
    let from = cell.client.address(cell.family).to_string();
    let to = cell.targets().first().map(ToString::to_string).unwrap_or_default();
    let question = ["explain", "--from", &from, "--to", &to, "--protocol", &cell.transport.to_string()];
    match bed.agent().and_then(|agent| agent.home.ask(&question)) {
        Ok((_, said, complained)) => format!("{said}{complained}"),
        Err(error) => format!("{error:#}"),
    }
}

/// Both at the same time.
fn look(bench: &Bench, cell: &Cell<'_>, effort: Effort) -> (Observation, Observation) {
    std::thread::scope(|scope| {
        let ours = scope.spawn(|| observe(&bench.ours, cell, effort));
        let theirs = observe(&bench.theirs, cell, effort);
        // A panic there is a finding: nothing was observed.
        (ours.join().unwrap_or_default(), theirs)
    })
}
