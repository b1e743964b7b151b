//! Adding up, in libtest's words.

use std::process::ExitCode;
use std::time::Instant;

use sluice_tests::oracle::declared::DIFFERENCES;

/// What has come out so far.
pub struct Report {
    start: Instant,
    /// Nothing was filtered out: then every declared difference must show.
    whole: bool,
    pub passed: usize,
    pub failed: usize,
    pub ignored: usize,
    /// Cells that each declared difference was needed for.
    uses: Vec<usize>,
}

impl Report {
    pub fn new(start: Instant, whole: bool) -> Self {
        Self { start, whole, passed: 0, failed: 0, ignored: 0, uses: vec![0; DIFFERENCES.len()] }
    }

    /// Notes the differences that a cell was reconciled by.
    pub fn declared(&mut self, used: &[usize]) {
        used.iter().for_each(|number| self.uses[*number] += 1);
    }

    /// Tells the sums; a declared difference that no cell shows any more fails the run.
    pub fn finish(mut self) -> ExitCode {
        for (difference, uses) in DIFFERENCES.iter().zip(&self.uses) {
            println!("declared ({}): {}: {uses} cells", difference.row, difference.situation);
            if *uses == 0 && self.whole && self.ignored == 0 {
                println!(
                    "test oracle::declared::{} ... FAILED\n    no cell shows it: take it out",
                    difference.row
                );
                self.failed += 1;
            }
        }
        let Self { start, passed, failed, ignored, .. } = self;
        println!(
            "\ntest result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; 0 filtered out; finished in {:.2}s\n",
            if failed == 0 { "ok" } else { "FAILED" },
            start.elapsed().as_secs_f64(),
        );
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
