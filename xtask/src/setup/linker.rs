//! bpf-linker, which no distribution packages: built once against the LLVM that the compiler itself uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};

use super::compiler::Compiler;
use super::tool;
use crate::shell::{self, Workspace};

pub const VERSION: &str = "0.13.0";

/// Whether a linker is in PATH, or one of this version stands in the tools directory and suits the compiler.
pub fn is_current(workspace: &Workspace) -> bool {
    if shell::program("bpf-linker").is_some() {
        return true;
    }
    let tools = workspace.tools();
    let stamp = fs::read_to_string(stamp_file(&tools)).unwrap_or_default();
    let mut lines = stamp.lines();
    lines.next() == Some(&stamp_head())
        && lines.next().is_some_and(|library| Path::new(library).exists())
        && tools.join("bin/bpf-linker").exists()
}

/// Builds it into the tools directory.
pub fn build(workspace: &Workspace, compiler: &Compiler) -> Result<()> {
    let llvm = compiler.llvm()?;
    let Some(library) = llvm_library(llvm) else {
        bail!(
            "no libLLVM.so.{llvm} to build bpf-linker {VERSION} with: install libllvm{llvm}, or put bpf-linker in PATH"
        );
    };
    let tools = workspace.tools();
    // The linker's build wants a prefix with lib/libLLVM.so, which only the large development package has.
    let prefix = tools.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib")).with_context(|| format!("cannot make {}", prefix.display()))?;
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| format!("cannot replace {}", link.display()))?;
    }
    std::os::unix::fs::symlink(&library, &link).with_context(|| format!("cannot make {}", link.display()))?;

    let mut cargo = tool(workspace, "bpf-linker", VERSION);
    cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]);
    // Unoptimised it is there in half the time, and links no slower that one would notice.
    cargo.env("LLVM_PREFIX", &prefix).env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0");
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_STRIP", "symbols");
    shell::run(&mut cargo)?;
    fs::remove_dir_all(&prefix).with_context(|| format!("cannot remove {}", prefix.display()))?;
    let stamp = stamp_file(&tools);
    fs::write(&stamp, format!("{}\n{}\n", stamp_head(), library.display()))
        .with_context(|| format!("cannot write {}", stamp.display()))
}

fn stamp_file(tools: &Path) -> PathBuf {
    tools.join("bpf-linker.stamp")
}

/// The version, and when the compiler last changed: an upgrade may bring another LLVM.
fn stamp_head() -> String {
    let changed = fs::metadata("/usr/bin/rustc").and_then(|file| file.modified()).ok();
    let changed =
        changed.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |time| time.as_secs());
    format!("bpf-linker {VERSION}, compiler of {changed}")
}

/// The shared library of that LLVM as distributions lay it down.
fn llvm_library(major: u32) -> Option<PathBuf> {
    let mut dirs = vec![PathBuf::from("/usr/lib64"), PathBuf::from("/usr/lib")];
    let entries = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    dirs.extend(entries.filter(|path| path.to_string_lossy().ends_with("-linux-gnu")));
    let files =
        dirs.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten().map(|entry| entry.path());
    let wanted = format!("libLLVM.so.{major}.");
    files
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&wanted)))
}
