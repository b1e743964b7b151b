//! cargo-fuzz, which drives libFuzzer.

use std::path::PathBuf;

use crate::shell::{self, Workspace};

pub const VERSION: &str = "0.13.2";

/// The one in PATH, else ours.
pub fn program(workspace: &Workspace) -> PathBuf {
    shell::program("cargo-fuzz").unwrap_or_else(|| workspace.tools().join("bin/cargo-fuzz"))
}

pub fn is_here(workspace: &Workspace) -> bool {
    program(workspace).is_file()
}
