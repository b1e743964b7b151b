//! etcd, kube-apiserver and kube-proxy, built from their own modules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use super::{Group, golang};
use crate::shell::{self, Workspace};

/// A server program and the module that it comes from.
#[derive(Debug, PartialEq, Eq)]
pub struct Server {
    pub name: &'static str,
    pub version: &'static str,
    module: &'static str,
    package: &'static str,
    /// What it is wanted for.
    pub why: &'static str,
    group: Group,
}

const SERVERS: [Server; 3] = [
    Server {
        name: "etcd",
        version: "3.6.16",
        module: "go.etcd.io/etcd/server/v3",
        package: "go.etcd.io/etcd/server/v3",
        why: API,
        group: Group::Api,
    },
    Server {
        name: "kube-apiserver",
        version: "1.36.3",
        module: "k8s.io/kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        why: API,
        group: Group::Api,
    },
    Server {
        name: "kube-proxy",
        version: "1.36.3",
        module: "k8s.io/kubernetes",
        package: "k8s.io/kubernetes/cmd/kube-proxy",
        why: "what Sluice is compared with in the suite `oracle`",
        group: Group::Oracle,
    },
];

const API: &str = "the API server of the suites `api` and `oracle` and of `demo --api`";

/// Servers of these groups that are not there in their version.
pub fn missing(workspace: &Workspace, groups: &[Group]) -> Vec<&'static Server> {
    let dir = workspace.kubernetes();
    let wanted = SERVERS.iter().filter(|server| groups.contains(&server.group));
    wanted.filter(|server| !server.is_current(&dir)).collect()
}

/// Builds what is missing.
pub fn build(workspace: &Workspace, groups: &[Group], go: &Path) -> Result<()> {
    let dir = workspace.kubernetes();
    for server in missing(workspace, groups) {
        let start = Instant::now();
        server.build(&dir, go)?;
        println!("setup: {} {} built in {} s", server.name, server.version, start.elapsed().as_secs());
    }
    Ok(())
}

impl Server {
    fn stamp(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.version", self.name))
    }

    /// By its stamp, which a program put there by hand gets when it says the right version.
    fn is_current(&self, dir: &Path) -> bool {
        let binary = dir.join(self.name);
        if !binary.exists() {
            return false;
        }
        let stamp = self.stamp(dir);
        if let Ok(version) = fs::read_to_string(&stamp) {
            return version.trim() == self.version;
        }
        let answer = Command::new(&binary).arg("--version").stderr(Stdio::null()).output();
        let current = answer.is_ok_and(|answer| says(&String::from_utf8_lossy(&answer.stdout), self.version));
        if current {
            // Where no stamp can be written the question is asked again, nothing worse.
            let _ = fs::write(&stamp, self.version);
        }
        current
    }

    fn build(&self, dir: &Path, go: &Path) -> Result<()> {
        let module = dir.join("build").join(self.name);
        fs::create_dir_all(&module).with_context(|| format!("cannot make {}", module.display()))?;
        let wanted = format!("{}@v{}", self.module, self.version);
        let answer = shell::output(golang::command(go).args(["mod", "download", "-json", &wanted]))?;
        let upstream = shell::json_field(&answer, "GoMod").context("`go mod download` names no go.mod")?;
        let upstream = fs::read_to_string(upstream).with_context(|| format!("cannot read {upstream}"))?;
        let own = module.join("go.mod");
        fs::write(&own, go_mod(&upstream, self.module, self.version))
            .with_context(|| format!("cannot write {}", own.display()))?;

        let fresh = dir.join(format!("{}.new", self.name));
        let symbol = "k8s.io/component-base/version";
        let version = self.version;
        let minor = version.split('.').nth(1).unwrap_or_default();
        let mut build = golang::command(go);
        build.current_dir(&module).args(["build", "-trimpath", "-o"]).arg(&fresh).arg(format!(
            "-ldflags=-s -w -X {symbol}.gitVersion=v{version} -X {symbol}.gitMajor=1 -X {symbol}.gitMinor={minor}"
        ));
        shell::run(build.arg(self.package))?;
        let binary = dir.join(self.name);
        fs::rename(&fresh, &binary).with_context(|| format!("cannot put {} in place", binary.display()))?;
        let stamp = self.stamp(dir);
        fs::write(&stamp, version).with_context(|| format!("cannot write {}", stamp.display()))
    }
}

/// Whether `--version`'s answer names exactly this version.
fn says(answer: &str, version: &str) -> bool {
    answer.split_whitespace().any(|word| word.trim_start_matches('v') == version)
}

/// A module of our own that requires one module: replacements count in the main module only, so those that point
/// into the required module's tree (`./staging/...`) are repeated as the versions under which they are published.
fn go_mod(upstream: &str, module: &str, version: &str) -> String {
    let mut text = format!("module sluice.invalid/build\n\nrequire {module} v{version}\n\n");
    let staging = version.split_once('.').map_or_else(String::new, |(_, rest)| format!("v0.{rest}"));
    for line in upstream.lines() {
        let line = line.trim();
        if line.starts_with("go ") || line.starts_with("godebug default=") {
            text.push_str(&format!("{line}\n"));
        }
        if let Some((name, target)) = line.trim_start_matches("replace ").split_once(" => ")
            && target.starts_with("./staging/")
        {
            text.push_str(&format!("replace {name} => {name} {staging}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_answers() {
        let table = [
            ("Kubernetes v1.36.3\n", "1.36.3", true),
            ("etcd Version: 3.6.16\nGit SHA: none\n", "3.6.16", true),
            ("etcd Version: 3.6.160\n", "3.6.16", false),
            ("Kubernetes v1.36.3-dirty\n", "1.36.3", false),
            ("", "1.36.3", false),
        ];
        for (answer, version, expected) in table {
            assert_eq!(says(answer, version), expected, "{answer}");
        }
    }

    #[test]
    fn own_module_repeats_staging_replacements_as_published_versions() {
        let upstream = "module k8s.io/kubernetes\n\ngo 1.26.0\n\ngodebug default=go1.26\n\nrequire (\n\tk8s.io/api v0.0.0\n)\n\n\
                        replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/kms => ./staging/src/k8s.io/kms\n)\n";
        assert_eq!(
            go_mod(upstream, "k8s.io/kubernetes", "1.36.3"),
            "module sluice.invalid/build\n\nrequire k8s.io/kubernetes v1.36.3\n\ngo 1.26.0\ngodebug default=go1.26\n\
             replace k8s.io/api => k8s.io/api v0.36.3\nreplace k8s.io/kms => k8s.io/kms v0.36.3\n"
        );
    }

    #[test]
    fn own_module_leaves_replacements_by_neighbours_out() {
        let upstream =
            "module go.etcd.io/etcd/server/v3\n\ngo 1.25\n\nreplace go.etcd.io/etcd/api/v3 => ../api\n";
        assert_eq!(
            go_mod(upstream, "go.etcd.io/etcd/server/v3", "3.6.16"),
            "module sluice.invalid/build\n\nrequire go.etcd.io/etcd/server/v3 v3.6.16\n\ngo 1.25\n"
        );
    }
}
