//! cargo-fuzz, which drives libFuzzer.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::shell::{self, Workspace};

pub const VERSION: &str = "0.13.2";

/// The one in PATH, else ours.
pub fn program(workspace: &Workspace) -> PathBuf {
    shell::program("cargo-fuzz").unwrap_or_else(|| workspace.tools().join("bin/cargo-fuzz"))
}

pub fn is_here(workspace: &Workspace) -> bool {
    program(workspace).is_file()
}

/// Builds it into the tools directory.
pub fn build(workspace: &Workspace) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "--quiet", "cargo-fuzz", "--version", VERSION, "--locked", "--force", "--root"]);
    cargo.arg(workspace.tools());
    for inherited in ["RUSTFLAGS", "CARGO_TARGET_DIR", "RUSTC_WORKSPACE_WRAPPER"] {
        cargo.env_remove(inherited);
    }
    shell::run(&mut cargo)
}
