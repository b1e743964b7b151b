//! `cargo xtask lint`: every check runs, each says what it found.

mod dependencies;
mod licence;
mod object;
mod source;
mod tokens;

use anyhow::Result;

use crate::setup::{self, Group, compiler};
use crate::shell::{self, Workspace};
pub use source::rust_files;

/// A named check; `false` after it printed what is wrong.
type Check = (&'static str, fn(&Workspace) -> Result<bool>);

const CHECKS: [Check; 6] = [
    ("formatting", formatting),
    ("sources", source::check),
    ("clippy for the host", clippy_host),
    ("clippy for eBPF", clippy_ebpf),
    ("eBPF object", object::check),
    ("dependencies", dependencies::check),
];

/// `true` if nothing was found.
pub fn run(workspace: &Workspace) -> Result<bool> {
    setup::ensure(workspace, &[Group::Build, Group::Lint])?;
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        println!("== {name} ==");
        match check(workspace) {
            Ok(true) => (),
            Ok(false) => failed.push(name),
            Err(error) => {
                println!("{error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        println!("\nlint: {} checks, nothing found", CHECKS.len());
    } else {
        println!("\nlint: failed: {}", failed.join(", "));
    }
    Ok(failed.is_empty())
}

fn formatting(workspace: &Workspace) -> Result<bool> {
    shell::succeeds(workspace.cargo("fmt").args(["--all", "--check"]))
}

fn clippy_host(workspace: &Workspace) -> Result<bool> {
    let mut clippy = workspace.cargo("clippy");
    clippy.args(["--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
    shell::succeeds(&mut clippy)
}

fn clippy_ebpf(workspace: &Workspace) -> Result<bool> {
    let mut clippy = compiler::find()?.cargo("clippy");
    // Its own directory: two compilers in one would throw out each other's work.
    clippy.current_dir(&workspace.root).arg("--target-dir").arg(workspace.target().join("ebpf-lint"));
    shell::succeeds(clippy.args(["--locked", "--", "-D", "warnings"]))
}
