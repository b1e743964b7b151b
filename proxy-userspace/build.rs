//! Builds the BPF object and hands it to the crate as `OUT_DIR/sluice.o`.
//!
//! The object has a compiler of its own: Debian's `rustc-web`, which brings `core` for BPF ready made; where it is
//! missing, a rustup nightly with `rust-src`. `cargo xtask setup` installs the former and the linker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("..");
    for dir in ["proxy-ebpf", "proxy-common"] {
        println!("cargo::rerun-if-changed={}", root.join(dir).join("src").display());
        println!("cargo::rerun-if-changed={}", root.join(dir).join("Cargo.toml").display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(message) = build(&root, &out) {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build(root: &Path, out: &Path) -> Result<(), String> {
    let target_dir = out.join("bpf");
    // Headers lie at odd places: without the feature every word of a packet is read and written byte by byte.
    let misaligned = "-Clink-arg=--cpu-features=+allows-misaligned-mem-access";
    let mut flags = vec!["-Cdebuginfo=2", "-Ctarget-cpu=v3", "-Clink-arg=--btf", misaligned];
    let mut cargo = match Toolchain::find()? {
        Toolchain::Debian => {
            let mut cargo = Command::new("/usr/bin/cargo");
            cargo
                .env("RUSTC", "/usr/bin/rustc")
                .env("CARGO", "/usr/bin/cargo")
                .env("RUSTC_BOOTSTRAP", "aya_ebpf");
            cargo.arg("build");
            cargo
        }
        Toolchain::Nightly => {
            let mut cargo = Command::new("rustup");
            cargo
                .args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"])
                .env_remove("RUSTC")
                .env_remove("CARGO");
            flags.push("-Cpanic=abort");
            cargo
        }
    };
    for inherited in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(inherited);
    }
    if env::var_os("CARGO_FEATURE_NEXT_LAYOUT").is_some() {
        cargo.args(["--features", "next-layout"]);
    }
    let output = cargo
        .current_dir(root)
        .args(["--package", "proxy-ebpf", "--release", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker()?)
        .output()
        .map_err(|error| format!("cannot start the BPF compiler: {error}; run `cargo xtask setup`"))?;
    if !output.status.success() {
        return Err(format!("the BPF programs do not compile:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let object = target_dir.join(TARGET).join("release").join("proxy-ebpf");
    let failed = |error| format!("cannot copy {}: {error}", object.display());
    let whole = std::fs::read(&object).map_err(failed)?;
    let stripped = strip(&whole).ok_or_else(|| format!("{} is no ELF object", object.display()))?;
    std::fs::write(out.join("sluice.o"), stripped).map_err(failed)
}

/// Leaves out the sections of debug information, four fifths of the object: BTF was made from them. Their headers stay, as
/// empty ones, so that no number of a section changes. Layout: elf(5), 64 bits, little-endian.
fn strip(object: &[u8]) -> Option<Vec<u8>> {
    const OFFSET_OF_HEADERS: usize = 0x28;
    const HEADER: usize = 64;
    let u16_at = |at: usize| Some(u16::from_le_bytes(object.get(at..at + 2)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_le_bytes(object.get(at..at + 4)?.try_into().ok()?) as usize);
    let u64_at =
        |at: usize| usize::try_from(u64::from_le_bytes(object.get(at..at + 8)?.try_into().ok()?)).ok();
    let headers = u64_at(OFFSET_OF_HEADERS)?;
    let (count, names) = (usize::from(u16_at(0x3c)?), usize::from(u16_at(0x3e)?));
    let names = u64_at(headers + names * HEADER + 24)?;
    let mut stripped = object.get(..HEADER)?.to_vec();
    let mut table = Vec::new();
    for number in 0..count {
        let at = headers + number * HEADER;
        let mut header = object.get(at..at + HEADER)?.to_vec();
        let name = object.get(names + u32_at(at)?..)?;
        let is_debug = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
        if is_debug || name.starts_with(b".rel.BTF.ext\0") {
            // SHT_NULL, without content.
            header[4..8].fill(0);
            header[24..40].fill(0);
        } else if u32_at(at + 4)? != 0 {
            let mut content = object.get(u64_at(at + 24)?..)?.get(..u64_at(at + 32)?)?.to_vec();
            if name.starts_with(b".BTF.ext\0") {
                leave_out_lines(&mut content)?;
                header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            }
            stripped.resize(stripped.len().next_multiple_of(8), 0);
            header[24..32].copy_from_slice(&(stripped.len() as u64).to_le_bytes());
            stripped.extend(content);
        }
        table.extend_from_slice(&header);
    }
    stripped.resize(stripped.len().next_multiple_of(8), 0);
    let headers = (stripped.len() as u64).to_le_bytes();
    stripped[OFFSET_OF_HEADERS..OFFSET_OF_HEADERS + 8].copy_from_slice(&headers);
    stripped.extend(table);
    Some(stripped)
}

/// Cuts a `.BTF.ext` behind what it says about functions (`struct btf_ext_header` of libbpf). Where each instruction comes from would take the kernel
/// 16 bytes for each, in every program, and a tenth of the time that loading takes. `None`: there is anything behind them, or nothing to be cut.
fn leave_out_lines(section: &mut Vec<u8>) -> Option<()> {
    const LENGTH: usize = 4;
    const FUNCTIONS: usize = 8;
    const LINES: usize = 16;
    let u32_at = |at: usize| Some(u32::from_le_bytes(section.get(at..at + 4)?.try_into().ok()?) as usize);
    let (length, lines) = (u32_at(LENGTH)?, u32_at(LINES)?);
    if u32_at(FUNCTIONS)? + u32_at(FUNCTIONS + 4)? > lines {
        return None;
    }
    // Their length, and place and length of relocations against the kernel's types: there are none.
    section.get_mut(LINES + 4..length)?.fill(0);
    section.truncate(length + lines);
    Some(())
}

enum Toolchain {
    Debian,
    Nightly,
}

impl Toolchain {
    fn find() -> Result<Self, String> {
        if Path::new("/usr/lib/rustlib").join(TARGET).exists() && Path::new("/usr/bin/cargo").exists() {
            return Ok(Self::Debian);
        }
        let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).output();
        if let Ok(output) = nightly
            && output.status.success()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("lib/rustlib/src/rust").exists()
        {
            return Ok(Self::Nightly);
        }
        Err("no compiler for BPF: run `cargo xtask setup` (Debian, Ubuntu), or install a rustup nightly with `rustup \
             toolchain install nightly --component rust-src`"
            .into())
    }
}

/// `bpf-linker` from PATH, else from where `cargo xtask setup` puts it.
fn linker() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join("bpf-linker"));
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .unwrap_or_default();
    in_path
        .chain([cache.join("sluice/tools/bin/bpf-linker")])
        .find(|path| path.exists())
        .ok_or_else(|| "bpf-linker not found: run `cargo xtask setup`".into())
}
