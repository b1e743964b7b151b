//! What a command needs from the machine, and how it gets there.
//!
//! Every need is a probe that costs a few file look-ups, so that commands can ask each time; only what a probe
//! misses is installed. [`packages`] come from apt, [`compiler`] and [`linker`] make eBPF objects, [`golang`] and
//! [`kubernetes`] make the API server and upstream's proxy.

pub mod cargo_fuzz;
pub mod compiler;
mod golang;
mod kubernetes;
pub mod linker;
pub mod packages;

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{self, Workspace};
use packages::Package;

/// What a command is about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Compile the agent with the eBPF object inside.
    Build,
    /// Clippy for the eBPF target.
    Lint,
    /// Namespaces, devices, other people's rules.
    Laboratory,
    /// A real API server.
    Api,
    /// Upstream's proxy.
    Oracle,
    /// The container image.
    Image,
    /// libFuzzer.
    Fuzz,
}

/// Something that is not here: what it is, why it is wanted, how it comes.
#[derive(Debug)]
struct Missing {
    what: String,
    why: &'static str,
    how: &'static str,
}

impl From<&Package> for Missing {
    fn from(package: &Package) -> Self {
        Self { what: package.name.into(), why: package.why, how: "apt-get install" }
    }
}

/// Says what is missing; `false` if anything is.
pub fn check(workspace: &Workspace, groups: &[Group]) -> Result<bool> {
    let missing = missing(workspace, groups);
    for Missing { what, why, how } in &missing {
        println!("missing: {what}: {why} ({how})");
    }
    if missing.is_empty() {
        println!("nothing is missing");
    } else {
        println!("`cargo xtask setup` installs it");
    }
    Ok(missing.is_empty())
}

/// Installs what is missing, saying what and why; silent where nothing is.
pub fn ensure(workspace: &Workspace, groups: &[Group]) -> Result<()> {
    if missing(workspace, groups).is_empty() {
        return Ok(());
    }
    // Two commands at once must not build the same tool into the same place.
    std::fs::create_dir_all(&workspace.cache)
        .with_context(|| format!("cannot make {}", workspace.cache.display()))?;
    let path = workspace.cache.join("setup.lock");
    let lock = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    for Missing { what, why, how } in missing(workspace, groups) {
        println!("setup: {what}: {why} ({how})");
    }
    packages::install(&packages::missing(groups))?;
    if groups.contains(&Group::Build) {
        let compiler = compiler::find()?;
        if !linker::is_current(workspace) {
            linker::build(workspace, &compiler)?;
        }
    }
    if groups.contains(&Group::Fuzz) && !cargo_fuzz::is_here(workspace) {
        shell::run(&mut tool(workspace, "cargo-fuzz", cargo_fuzz::VERSION))?;
    }
    if !kubernetes::missing(workspace, groups).is_empty() {
        let go = golang::ensure()?;
        kubernetes::build(workspace, groups, &go)?;
    }
    let rest = missing(workspace, groups);
    if let Some(Missing { what, .. }) = rest.first() {
        bail!(
            "{what} is still missing after it was installed: run `cargo xtask setup --check` and see what hides it"
        );
    }
    Ok(())
}

/// `cargo install` of a tool of that version into the tools directory; what the caller's own build is set to does not count.
fn tool(workspace: &Workspace, name: &str, version: &str) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "--quiet", name, "--version", version, "--locked", "--force", "--root"]);
    cargo.arg(workspace.tools());
    for inherited in ["RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(inherited);
    }
    cargo
}

fn missing(workspace: &Workspace, groups: &[Group]) -> Vec<Missing> {
    let mut missing: Vec<Missing> = packages::missing(groups).into_iter().map(Missing::from).collect();
    if groups.contains(&Group::Build) && !linker::is_current(workspace) {
        missing.push(Missing {
            what: format!("bpf-linker {}", linker::VERSION),
            why: "links the eBPF object",
            how: "cargo install, half a minute",
        });
    }
    if groups.contains(&Group::Fuzz) && !cargo_fuzz::is_here(workspace) {
        missing.push(Missing {
            what: format!("cargo-fuzz {}", cargo_fuzz::VERSION),
            why: "drives libFuzzer",
            how: "cargo install, a minute",
        });
    }
    missing.extend(kubernetes::missing(workspace, groups).into_iter().map(|server| Missing {
        what: format!("{} {}", server.name, server.version),
        why: server.why,
        how: "go build from its module, minutes",
    }));
    missing
}
