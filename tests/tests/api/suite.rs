//! Runs tests in order on one control plane. (libtest would start them in threads and end with the last one, without a
//! place to stop the servers.)

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, anyhow};
use sluice_tests::api::{Binaries, ControlPlane};
use sluice_tests::lab;

/// A named test.
pub type Test = (&'static str, fn(&mut ControlPlane) -> Result<()>);

/// Runs those of `tests` whose names hold one of the program's arguments, all without arguments.
pub fn run(tests: &[Test]) -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let tests: Vec<&Test> = tests.iter().filter(|(name, _)| wanted(name)).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        tests.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", tests.len());
    let started = Instant::now();
    let outcomes = match prepare() {
        Ok(mut plane) => tests.iter().map(|test| run_one(&mut plane, test)).collect(),
        Err(Obstacle::Skip(reason)) => {
            tests.iter().for_each(|(name, _)| println!("skipped: {name}: {reason}"));
            Vec::new()
        }
        Err(Obstacle::Failure(error)) => {
            println!("the control plane does not start:\n{}", causes(&error));
            tests.iter().map(|(name, _)| report(name, &Err(anyhow!("no control plane")))).collect()
        }
    };
    let passed = outcomes.iter().filter(|good| **good).count();
    let failed = outcomes.len() - passed;
    let (verdict, skipped) = (if failed == 0 { "ok" } else { "FAILED" }, tests.len() - outcomes.len());
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {skipped} ignored; 0 measured; 0 filtered out; \
         finished in {seconds:.2}s\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

enum Obstacle {
    /// The machine lacks something.
    Skip(String),
    /// It should have worked.
    Failure(anyhow::Error),
}

fn prepare() -> Result<ControlPlane, Obstacle> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Obstacle::Skip("network namespaces need root".to_owned()));
    }
    Binaries::find().map_err(|error| Obstacle::Skip(format!("{error:#}")))?;
    lab::enter().and_then(|()| ControlPlane::start()).map_err(Obstacle::Failure)
}

fn run_one(plane: &mut ControlPlane, (name, test): &Test) -> bool {
    let outcome = catch_unwind(AssertUnwindSafe(|| test(plane)));
    let outcome = outcome.unwrap_or_else(|_| Err(anyhow!("panicked, see above")));
    let good = report(name, &outcome);
    // A test that fails half-way may leave the server stopped; the next one must not suffer from it.
    if !good && let Err(error) = plane.ensure_api() {
        println!("the API server does not come back:\n{}", causes(&error));
    }
    good
}

fn report(name: &str, outcome: &Result<()>) -> bool {
    match outcome {
        Ok(()) => println!("test {name} ... ok"),
        Err(error) => println!("{}\ntest {name} ... FAILED", causes(error)),
    }
    outcome.is_ok()
}

/// What failed and why, one cause a line; without anyhow's backtrace, which only shows this runner.
fn causes(error: &anyhow::Error) -> String {
    let causes: Vec<String> = error.chain().map(|cause| format!("  {cause}")).collect();
    causes.join("\n")
}
