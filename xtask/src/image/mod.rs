//! `cargo xtask image`: the container image as an OCI archive, made of files only: no engine, no base image.
//!
//! What is in it: the agent, linked statically, under both of its names, and the licences. Layout:
//! <https://github.com/opencontainers/image-spec>.

mod archive;
mod elf;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::setup::{self, Group};
use crate::shell::{self, Workspace};
use archive::{Image, write};

/// What `image` shall make.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The image's full name; default [`default_name`].
    pub name: Option<String>,
    /// The archive; default `target/image/sluice.tar`.
    pub output: Option<PathBuf>,
}

/// As a container runtime knows an image that comes from nowhere. A tag other than `latest`: the kubelet does not
/// ask a registry for it.
fn default_name() -> String {
    format!("docker.io/library/sluice:{}", env!("CARGO_PKG_VERSION"))
}

/// What was made.
#[derive(Debug)]
pub struct Made {
    pub archive: PathBuf,
    pub name: String,
}

pub fn make(workspace: &Workspace, wanted: &Wanted) -> Result<Made> {
    setup::ensure(workspace, &[Group::Build, Group::Image])?;
    let binary = build(workspace)?;
    let folder = workspace.target().join("image");
    let root = folder.join("root");
    fill(workspace, &root, &binary)?;
    let output = wanted.output.clone().unwrap_or_else(|| folder.join("sluice.tar"));
    let name = wanted.name.clone().unwrap_or_else(default_name);
    let image = Image {
        name: &name,
        version: env!("CARGO_PKG_VERSION"),
        source: env!("CARGO_PKG_REPOSITORY"),
        architecture: architecture(std::env::consts::ARCH)?,
    };
    write(&image, &root, &folder.join("layout"), &output)?;
    let size = std::fs::metadata(&output).map_or(0, |file| file.len());
    println!("made {} ({:.1} MiB): {name}", output.display(), size as f64 / f64::from(1 << 20));
    println!("load it: ctr -n k8s.io images import FILE, kind load image-archive FILE, docker load -i FILE");
    Ok(Made { archive: output, name })
}

/// The names that Go gives to processors are the ones that images bear.
fn architecture(rust: &str) -> Result<&'static str> {
    Ok(match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image for {other}: Sluice is built for x86_64 and aarch64"),
    })
}

/// The agent without shared libraries: there is nothing else in the image.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let version = shell::output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let target = host.context("`rustc -vV` names no host")?.to_owned();
    let mut cargo = workspace.cargo("build");
    // With a target given, the flags are the agent's alone: compiler plug-ins cannot be linked so.
    cargo
        .args(["--release", "--package", "proxy-userspace", "--bin", "sluice", "--target", &target])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    shell::run(&mut cargo)?;
    let binary = workspace.target().join(&target).join("release/sluice");
    let content = std::fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    if elf::needs_loader(&content).with_context(|| format!("{} is no program", binary.display()))? {
        bail!(
            "{} needs a dynamic loader, of which there is none in the image: the C library of {target} has no static form here; install it (libc6-dev)",
            binary.display()
        );
    }
    Ok(binary)
}

/// The tree that becomes the only layer.
fn fill(workspace: &Workspace, root: &Path, binary: &Path) -> Result<()> {
    if root.exists() {
        std::fs::remove_dir_all(root).with_context(|| format!("cannot empty {}", root.display()))?;
    }
    let bin = root.join("usr/local/bin");
    let licences = root.join("usr/share/licenses/sluice");
    // /run for the control socket, where nothing is mounted there; /tmp as everywhere.
    for folder in [&bin, &licences, &root.join("etc"), &root.join("run"), &root.join("tmp")] {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let copies = [
        (binary.to_owned(), bin.join("sluice")),
        (workspace.root.join("LICENSE-APACHE"), licences.join("LICENSE-APACHE")),
        (workspace.root.join("LICENSE-MIT"), licences.join("LICENSE-MIT")),
        (workspace.root.join("proxy-ebpf/LICENSE-GPL-2.0"), licences.join("LICENSE-GPL-2.0")),
    ];
    for (from, to) in copies {
        std::fs::copy(&from, &to)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    // The API server may have a name: /etc/hosts first, then DNS.
    std::fs::write(root.join("etc/nsswitch.conf"), "hosts: files dns\n")
        .context("cannot write etc/nsswitch.conf")?;
    let name = bin.join("kube-proxy");
    std::os::unix::fs::symlink("sluice", &name).with_context(|| format!("cannot make {}", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors() {
        assert_eq!(architecture("x86_64").unwrap(), "amd64");
        assert_eq!(architecture("aarch64").unwrap(), "arm64");
        assert!(architecture("mips").is_err());
    }
}
