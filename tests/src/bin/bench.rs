//! `bench [SCENARIO…] [--quick] [--json FILE] [--svg DIR]`: what Sluice costs, beside what it is to be compared with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sluice_tests::bench::{self, Effort, Outputs};
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
    /// Also write a plot of each scenario into this directory.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() -> ExitCode {
    let run = || {
        lab::enter()?;
        bench::place::prefer()?;
        let Arguments { scenarios, quick, json, svg } = Arguments::parse();
        let outputs = Outputs { json: json.as_deref(), svg: svg.as_deref() };
        bench::run(&scenarios, Effort { quick }, outputs)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
