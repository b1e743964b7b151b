//! Paths and child processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Where things lie.
#[derive(Debug)]
pub struct Workspace {
    /// The repository's root.
    pub root: PathBuf,
    /// `$XDG_CACHE_HOME/sluice`, else `~/.cache/sluice`: what is built once and outlives `target/`.
    pub cache: PathBuf,
}

impl Workspace {
    pub fn find() -> Result<Self> {
        let manifest = std::env::var_os("CARGO_MANIFEST_DIR")
            .context("CARGO_MANIFEST_DIR is not set: start as `cargo xtask`")?;
        let root = Path::new(&manifest)
            .parent()
            .context("CARGO_MANIFEST_DIR has no parent directory")?
            .to_path_buf();
        let base = match env_path("XDG_CACHE_HOME") {
            Some(cache) => cache,
            None => env_path("HOME")
                .context("neither XDG_CACHE_HOME nor HOME is set: no place for tools")?
                .join(".cache"),
        };
        Ok(Self { root, cache: base.join("sluice") })
    }

    /// Tools that no package brings.
    pub fn tools(&self) -> PathBuf {
        self.cache.join("tools")
    }

    /// etcd and kube-apiserver.
    pub fn kubernetes(&self) -> PathBuf {
        self.cache.join("k8s")
    }

    pub fn target(&self) -> PathBuf {
        env_path("CARGO_TARGET_DIR").unwrap_or_else(|| self.root.join("target"))
    }

    /// The cargo that started us, on this workspace, in the caller's directory.
    pub fn cargo(&self, verb: &str) -> Command {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.arg(verb).arg("--manifest-path").arg(self.root.join("Cargo.toml"));
        // What cargo set for xtask itself would make every crate that reads it look changed.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
                cargo.env_remove(name.as_ref());
            }
        }
        cargo
    }
}

fn env_path(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The first executable of that name in PATH, or in the places of root's programs that a user's PATH may lack.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Whether this process may do what only root may: judged by the owner of its entry in /proc.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

/// Runs to the end with our own output; `false` when it failed.
pub fn succeeds(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    Ok(status.success())
}

/// Like [`succeeds`], with a failure as an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status}): see its messages above", line(command));
    }
    Ok(())
}

/// Standard output of a command whose messages go to ours.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({}): see its messages above", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` printed no UTF-8", line(command)))
}

/// The command as somebody would type it, for messages.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The first string value of that field in JSON text written by cargo or go, whose paths need no unescaping.
pub fn json_field<'a>(json: &'a str, field: &str) -> Option<&'a str> {
    let after = json.split_once(&format!("\"{field}\":"))?.1.trim_start();
    after.strip_prefix('"')?.split_once('"').map(|(value, _)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_fields() {
        let table = [
            (r#"{"a":"x","out_dir":"/t/out"}"#, "out_dir", Some("/t/out")),
            ("{\n\t\"GoMod\": \"/m/go.mod\",\n}", "GoMod", Some("/m/go.mod")),
            (r#"{"executable":null,"b":"c"}"#, "executable", None),
            (r#"{"a":"x"}"#, "b", None),
        ];
        for (json, field, expected) in table {
            assert_eq!(json_field(json, field), expected, "{json}");
        }
    }

    #[test]
    fn commands_read_as_typed() {
        assert_eq!(line(Command::new("apt-get").args(["install", "-y"])), "apt-get install -y");
    }
}
