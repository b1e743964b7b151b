//! Builds the agent, and runs the programs of the `tests` crate that are not tests.

use anyhow::Result;

use crate::cli::Bench;
use crate::setup::{self, Group};
use crate::shell::{self, Workspace};

/// `target/release/sluice`, with the eBPF object inside.
pub fn build(workspace: &Workspace) -> Result<()> {
    setup::ensure(workspace, &[Group::Build])?;
    shell::run(workspace.cargo("build").args(["--release", "--package", "proxy-userspace"]))?;
    println!("built {}", workspace.target().join("release/sluice").display());
    Ok(())
}

pub fn demo(workspace: &Workspace, args: &[String]) -> Result<bool> {
    let mut groups = vec![Group::Laboratory];
    if args.iter().any(|arg| arg == "--api") {
        groups.push(Group::Api);
    }
    run(workspace, "demo", &groups, args)
}

pub fn bench(workspace: &Workspace, bench: &Bench) -> Result<bool> {
    let mut args: Vec<String> = bench.scenarios.iter().copied().map(String::from).collect();
    args.extend(bench.quick.then(|| "--quick".into()));
    for (option, path) in [("--json", &bench.json), ("--svg", &bench.svg)] {
        args.extend(path.iter().flat_map(|path| [option.into(), path.clone()]));
    }
    run(workspace, "bench", &[Group::Laboratory], &args)
}

/// The release build throughout: one set of dependencies, and what is shown or measured is what is shipped.
fn run(workspace: &Workspace, program: &str, groups: &[Group], args: &[String]) -> Result<bool> {
    setup::ensure(workspace, groups)?;
    build(workspace)?;
    let mut cargo = workspace.cargo("run");
    cargo.args(["--release", "--quiet", "--package", "sluice-tests", "--bin", program, "--"]).args(args);
    shell::succeeds(&mut cargo)
}
