//! Go, new enough for the API server's module.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::packages;
use crate::shell;

/// What the API server's module asks for.
const NEEDED: (u32, u32) = (1, 26);
/// The toolchain taken where the machine's Go is too old to take one by itself.
const TOOLCHAIN: &str = "1.26.8";
/// The first Go that replaces itself by what a module asks for.
const SELF_RENEWING: (u32, u32) = (1, 21);

/// A `go` that builds modules of version [`NEEDED`]: the machine's; or, fetched as the module that it is, a newer one.
pub fn ensure() -> Result<PathBuf> {
    if shell::program("go").is_none() {
        println!("setup: golang-go: builds etcd and kube-apiserver (apt-get install)");
        packages::install_names(&["golang-go"])?;
    }
    let go = shell::program("go").context("go is not in PATH after golang-go was installed")?;
    let text = shell::output(Command::new(&go).arg("version").env("GOTOOLCHAIN", "local"))?;
    match version(&text) {
        None => bail!("`{} version` names no version: {}", go.display(), text.trim()),
        Some(have) if have >= SELF_RENEWING => Ok(go),
        Some(_) => fetch(&go),
    }
}

/// Environment in which any Go from 1.21 on takes the toolchain that a module asks for.
pub fn command(go: &Path) -> Command {
    let mut command = Command::new(go);
    command.env("GOTOOLCHAIN", "auto").env("GOFLAGS", "-mod=mod -buildvcs=false").env("CGO_ENABLED", "0");
    command
}

fn fetch(go: &Path) -> Result<PathBuf> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => {
            bail!("no Go toolchain known for {other}: put Go {}.{} or newer in PATH", NEEDED.0, NEEDED.1)
        }
    };
    let module = format!("golang.org/toolchain@v0.0.1-go{TOOLCHAIN}.linux-{arch}");
    println!("setup: go {TOOLCHAIN}: the machine's own is too old for kube-apiserver (module {module})");
    let answer = shell::output(command(go).args(["mod", "download", "-json", &module]))?;
    let dir =
        PathBuf::from(shell::json_field(&answer, "Dir").context("`go mod download` names no directory")?);
    // Modules are unpacked without execute permission.
    for sub in ["bin", &format!("pkg/tool/linux_{arch}")] {
        let tools = dir.join(sub);
        for entry in fs::read_dir(&tools).with_context(|| format!("cannot read {}", tools.display()))? {
            let path = entry.with_context(|| format!("cannot read {}", tools.display()))?.path();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555))
                .with_context(|| format!("cannot make {} executable", path.display()))?;
        }
    }
    Ok(dir.join("bin/go"))
}

/// Major and minor version in what `go version` prints.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts =
        text.split_whitespace().find_map(|word| word.strip_prefix("go1."))?.split(['.', 'r', 'b', '-']);
    Some((1, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_versions() {
        let table = [
            ("go version go1.26.8 linux/amd64", Some((1, 26))),
            ("go version go1.19 linux/arm64", Some((1, 19))),
            ("go version go1.27rc1 linux/amd64", Some((1, 27))),
            ("go version devel linux/amd64", None),
        ];
        for (text, expected) in table {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
