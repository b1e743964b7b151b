//! The compiler of the eBPF programs: Debian's, else a rustup nightly with the library's source.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::shell;

/// The kernel's machine as rustc names it.
pub const TARGET: &str = "bpfel-unknown-none";
/// Where Debian puts `core` for it.
pub const BPF_LIBRARY: &str = "/usr/lib/rustlib/bpfel-unknown-none";
/// What to do where Debian's compiler cannot be had.
pub const INSTEAD: &str = "for the eBPF compiler `rustup toolchain install nightly --component rust-src` does as well, \
                           with bpf-linker in PATH";

/// A compiler that can make eBPF objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compiler {
    Debian,
    Nightly,
}

pub fn find() -> Result<Compiler> {
    if ["/usr/bin/rustc", "/usr/bin/cargo", BPF_LIBRARY].iter().all(|path| Path::new(path).exists()) {
        return Ok(Compiler::Debian);
    }
    if nightly().is_some() {
        return Ok(Compiler::Nightly);
    }
    bail!("no compiler for eBPF: run `cargo xtask setup` as root on Debian; {INSTEAD}")
}

/// The sysroot of a nightly that has the library's source.
pub fn nightly() -> Option<PathBuf> {
    let rustc = ["run", "nightly", "rustc", "--print", "sysroot"];
    let output = Command::new("rustup").args(rustc).stderr(Stdio::null()).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    (output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core").exists()).then_some(sysroot)
}

impl Compiler {
    /// `cargo VERB` for the programs' crate, as the build script of proxy-userspace calls it.
    pub fn cargo(self, verb: &str) -> Command {
        let mut cargo = match self {
            Self::Debian => {
                // Debian's `cargo clippy` finds its compiler through PATH, where rustup's may stand first.
                let path = std::env::var("PATH").unwrap_or_default();
                let mut cargo = Command::new("/usr/bin/cargo");
                cargo.env("PATH", format!("/usr/bin:{path}")).env("RUSTC_BOOTSTRAP", "aya_ebpf").arg(verb);
                cargo
            }
            Self::Nightly => {
                let mut cargo = Command::new("rustup");
                cargo.args(["run", "nightly", "cargo", verb, "-Zbuild-std=core"]);
                cargo
            }
        };
        for inherited in
            ["RUSTC", "CARGO", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"]
        {
            cargo.env_remove(inherited);
        }
        cargo.args(["--package", "proxy-ebpf", "--release", "--target", TARGET]);
        cargo
    }

    /// The major version of the LLVM whose bitcode it writes: the linker must have the same.
    pub fn llvm(self) -> Result<u32> {
        let mut rustc = match self {
            Self::Debian => Command::new("/usr/bin/rustc"),
            Self::Nightly => Command::new("rustup"),
        };
        if self == Self::Nightly {
            rustc.args(["run", "nightly", "rustc"]);
        }
        let text = shell::output(rustc.arg("-vV"))?;
        llvm_major(&text).with_context(|| format!("`{}` names no LLVM version", shell::line(&rustc)))
    }
}

/// The major version in what `rustc -vV` prints.
pub fn llvm_major(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_versions() {
        let table = [
            ("rustc 1.96.0\nhost: x\nLLVM version: 22.1.8\n", Some(22)),
            ("LLVM version: 21.1\n", Some(21)),
            ("rustc 1.96.0\n", None),
            ("LLVM version: new\n", None),
        ];
        for (text, expected) in table {
            assert_eq!(llvm_major(text), expected, "{text}");
        }
    }
}
