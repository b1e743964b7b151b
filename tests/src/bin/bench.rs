//! `bench [SCENARIO…] [--quick] [--json FILE]`: what Sluice costs, beside what it is to be compared with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sluice_tests::bench::{self, Effort};
use sluice_tests::lab;

/// Measures; prints a table for each scenario.
#[derive(Parser)]
struct Arguments {
    /// All, if none is named.
    scenarios: Vec<String>,
    /// Fewer and shorter rounds: half a minute for each scenario.
    #[arg(long)]
    quick: bool,
    /// Also write the figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let run = || {
        lab::enter()?;
        bench::place::prefer()?;
        let Arguments { scenarios, quick, json } = Arguments::parse();
        bench::run(&scenarios, Effort { quick }, json.as_deref())
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
