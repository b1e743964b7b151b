//! `test --coverage`: line coverage of the workspace's own crates.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use super::Suite;
use crate::setup::{compiler, packages};
use crate::shell::{self, Workspace};

/// Where instrumented programs lie, what they wrote, and the tools that read it.
#[derive(Debug)]
pub struct Coverage {
    target: PathBuf,
    profiles: PathBuf,
    llvm: u32,
}

/// When cargo calls us in the compiler's place (`RUSTC_WORKSPACE_WRAPPER`), that is the first argument. Only the
/// workspace's own crates come this way, so that dependencies are neither slowed down nor compiled again.
pub fn as_compiler(args: &[String]) -> Option<ExitCode> {
    let rustc = args.first().filter(|first| first.ends_with("/rustc") || *first == "rustc")?;
    match Command::new(rustc).args(&args[1..]).arg("-Cinstrument-coverage").status() {
        Ok(status) if status.success() => Some(ExitCode::SUCCESS),
        Ok(_) => Some(ExitCode::FAILURE),
        Err(error) => {
            eprintln!("xtask: cannot start {rustc}: {error}");
            Some(ExitCode::FAILURE)
        }
    }
}

impl Coverage {
    pub fn prepare(workspace: &Workspace) -> Result<Self> {
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let version = shell::output(Command::new(rustc).arg("-vV"))?;
        let llvm = compiler::llvm_major(&version).context("rustc names no LLVM version")?;
        if shell::program(&format!("llvm-cov-{llvm}")).is_none() {
            println!("setup: llvm-{llvm}: reads coverage (apt-get install)");
            packages::install_names(&[&format!("llvm-{llvm}")])?;
        }
        let target = workspace.target().join("coverage");
        let profiles = target.join("profiles");
        if profiles.exists() {
            fs::remove_dir_all(&profiles).with_context(|| format!("cannot empty {}", profiles.display()))?;
        }
        fs::create_dir_all(&profiles).with_context(|| format!("cannot make {}", profiles.display()))?;
        Ok(Self { target, profiles, llvm })
    }

    /// Has cargo instrument what it builds, and programs write where we look.
    pub fn apply(&self, cargo: &mut Command) {
        if let Ok(own) = std::env::current_exe() {
            cargo.env("RUSTC_WORKSPACE_WRAPPER", own);
        }
        cargo.env("CARGO_TARGET_DIR", &self.target);
        cargo.env("LLVM_PROFILE_FILE", self.profiles.join("%m-%p.profraw"));
    }

    /// Prints what the suites that ran have covered.
    pub fn report(&self, workspace: &Workspace, suites: &[Suite]) -> Result<()> {
        let entries = fs::read_dir(&self.profiles)
            .with_context(|| format!("cannot read {}", self.profiles.display()))?;
        let raw: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        if raw.is_empty() {
            println!("coverage: no instrumented program ran to its end");
            return Ok(());
        }
        let merged = self.target.join("merged.profdata");
        let mut merge = Command::new(format!("llvm-profdata-{}", self.llvm));
        shell::run(merge.args(["merge", "--sparse", "--output"]).arg(&merged).args(raw))?;
        let mut report = Command::new(format!("llvm-cov-{}", self.llvm));
        report.args(["report", "--show-region-summary=false", "--show-branch-summary=false"]);
        report.arg("--ignore-filename-regex=(registry|rustlib|/rustc/|^/usr/|/tests/)");
        report.arg(format!("--instr-profile={}", merged.display()));
        for object in self.executables(workspace, suites) {
            report.arg(format!("--object={object}"));
        }
        println!("\n== coverage ==");
        shell::run(&mut report)
    }

    /// Test programs of these suites as far as they build, and the agent.
    fn executables(&self, workspace: &Workspace, suites: &[Suite]) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for arguments in suites.iter().flat_map(|suite| suite.calls()) {
            let mut list = workspace.cargo("test");
            list.args(["--no-run", "--quiet", "--message-format=json"]).args(arguments);
            self.apply(&mut list);
            // A suite that does not build has been counted as failed already.
            let Ok(messages) = shell::output(&mut list) else { continue };
            found.extend(
                messages.lines().filter_map(|line| shell::json_field(line, "executable")).map(String::from),
            );
        }
        let agent = self.target.join("debug/sluice");
        found.extend(agent.exists().then(|| agent.display().to_string()));
        found
    }
}
