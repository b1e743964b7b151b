//! Debian and Ubuntu packages.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use super::{Group, compiler};
use crate::shell;

/// A package, and the file by whose presence it is judged: other distributions have the file without the package.
#[derive(Debug, PartialEq, Eq)]
pub struct Package {
    pub name: &'static str,
    pub why: &'static str,
    group: Group,
    probe: Probe,
}

#[derive(Debug, PartialEq, Eq)]
enum Probe {
    /// A name looked for in PATH.
    Program(&'static str),
    /// Debian's compiler, which a nightly toolchain may stand in for.
    Compiler(&'static str),
}

const fn package(name: &'static str, group: Group, probe: Probe, why: &'static str) -> Package {
    Package { name, why, group, probe }
}

const PACKAGES: [Package; 15] = [
    package("gcc", Group::Build, Probe::Program("cc"), "links host programs"),
    package("rustc-web", Group::Build, Probe::Compiler("/usr/bin/rustc"), "compiles the eBPF programs"),
    package("cargo-web", Group::Build, Probe::Compiler("/usr/bin/cargo"), "compiles the eBPF programs"),
    package(
        "libstd-rust-web-dev-bpf",
        Group::Build,
        Probe::Compiler(compiler::BPF_LIBRARY),
        "the core library for eBPF, ready made",
    ),
    package(
        "rust-web-clippy",
        Group::Lint,
        Probe::Compiler("/usr/bin/clippy-driver"),
        "lints the eBPF programs",
    ),
    package("iproute2", Group::Laboratory, Probe::Program("ip"), "namespaces and devices of the laboratory"),
    package("nftables", Group::Laboratory, Probe::Program("nft"), "neighbours' rules in the laboratory"),
    package("iptables", Group::Laboratory, Probe::Program("iptables"), "neighbours' rules in the laboratory"),
    package(
        "ethtool",
        Group::Laboratory,
        Probe::Program("ethtool"),
        "checksum offload of the laboratory's devices",
    ),
    package("procps", Group::Laboratory, Probe::Program("sysctl"), "kernel settings in the laboratory"),
    package("tar", Group::Image, Probe::Program("tar"), "packs the image"),
    package("g++", Group::Fuzz, Probe::Program("c++"), "compiles libFuzzer"),
    package("gzip", Group::Image, Probe::Program("gzip"), "packs the image"),
    package("coreutils", Group::Image, Probe::Program("sha256sum"), "names the image's parts"),
    package("util-linux", Group::Laboratory, Probe::Program("nsenter"), "enters the laboratory's namespaces"),
];

/// Packages of these groups whose files are not here.
pub fn missing(groups: &[Group]) -> Vec<&'static Package> {
    let wanted = PACKAGES.iter().filter(|package| groups.contains(&package.group));
    let mut missing: Vec<_> = wanted.filter(|package| !is_here(&package.probe)).collect();
    let compiler = |package: &&Package| matches!(package.probe, Probe::Compiler(_));
    if missing.iter().any(compiler) && compiler::nightly().is_some() {
        missing.retain(|package| !compiler(package));
    }
    missing
}

fn is_here(probe: &Probe) -> bool {
    match probe {
        Probe::Program(name) => shell::program(name).is_some(),
        Probe::Compiler(path) => Path::new(path).exists(),
    }
}

/// Installs packages by apt. Nothing installed is removed for them: Debian's own `rustup` package, for one,
/// conflicts with its compiler.
pub fn install(packages: &[&Package]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    install_names(&packages.iter().map(|package| package.name).collect::<Vec<_>>())
}

/// Installs packages by their names.
pub fn install_names(names: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get install --no-install-recommends {}", names.join(" "));
    if shell::program("apt-get").is_none() {
        bail!("no apt-get here: install what `{by_hand}` would bring on Debian; {}", compiler::INSTEAD);
    }
    if !shell::is_root() {
        bail!(
            "packages are missing and only root installs them: run `{by_hand}` as root, or this command as root"
        );
    }
    // One archive of several out of reach does not mean that the packages are.
    if !shell::succeeds(apt().arg("update").stdout(Stdio::null()))? {
        println!("setup: not all package lists could be refreshed; going on with those that are here");
    }
    let mut unknown = Vec::new();
    for name in names {
        let mut known = Command::new("apt-cache");
        known.args(["show", name]).stdout(Stdio::null()).stderr(Stdio::null());
        if !shell::succeeds(&mut known)? {
            unknown.push(*name);
        }
    }
    if !unknown.is_empty() {
        bail!(
            "the package sources of this machine have no {}: on Debian, have the -security suite among them; {}",
            unknown.join(", "),
            compiler::INSTEAD
        );
    }
    let options = ["install", "-y", "--no-install-recommends", "--no-remove"];
    shell::run(apt().args(options).args(names).stdout(Stdio::null()))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.arg("-qq").env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_asks_for_its_own_packages_only() {
        for group in [Group::Build, Group::Lint, Group::Laboratory] {
            assert!(PACKAGES.iter().any(|package| package.group == group), "{group:?}");
            assert!(missing(&[group]).iter().all(|package| package.group == group), "{group:?}");
        }
        assert!(missing(&[]).is_empty());
    }
}
