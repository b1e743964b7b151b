//! Audit of what other people wrote.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};

use super::licence;
use crate::shell::{self, Workspace};

/// What `cargo tree` is asked to print for each package: name and version, licence, own source.
const FORMAT: &str = "{p}|{l}";

pub fn check(workspace: &Workspace) -> Result<bool> {
    let mut clean = own_check(workspace)?;
    let mut audited = false;
    if shell::program("cargo-deny").is_some() {
        clean &= shell::succeeds(workspace.cargo("deny").args(["check"]))?;
        audited = true;
    }
    if shell::program("cargo-audit").is_some() {
        let lock = workspace.root.join("Cargo.lock");
        clean &=
            shell::succeeds(std::process::Command::new("cargo-audit").args(["audit", "--file"]).arg(lock))?;
        audited = true;
    }
    if !audited {
        println!("not checked: published vulnerabilities (neither cargo-deny nor cargo-audit is installed)");
    }
    Ok(clean)
}

/// Licences, sources, and how many crates there are in several versions.
fn own_check(workspace: &Workspace) -> Result<bool> {
    let mut tree = workspace.cargo("tree");
    tree.args(["--workspace", "--locked", "--target=all", "--prefix=none", "--no-dedupe"]);
    let listing = shell::output(tree.args(["--edges=normal,build,dev", "--format", FORMAT]))?;
    let path = workspace.root.join("Cargo.lock");
    let lock = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let report = judge(&listing, &lock)?;
    for finding in &report.findings {
        println!("{finding}");
    }
    let repeated = report.repeated.iter().map(|(name, versions)| format!("{name} ({})", versions.join(", ")));
    let repeated: Vec<String> = repeated.collect();
    println!("{} crates of others, licences and sources looked at", report.crates);
    if !repeated.is_empty() {
        println!("in several versions: {}", repeated.join(", "));
    }
    Ok(report.findings.is_empty())
}

#[derive(Debug, PartialEq, Eq)]
struct Report {
    crates: usize,
    repeated: Vec<(String, Vec<String>)>,
    findings: Vec<String>,
}

fn judge(listing: &str, lock: &str) -> Result<Report> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut findings = BTreeSet::new();
    for line in listing.lines().filter(|line| !line.trim().is_empty()) {
        let (package, licence) =
            line.split_once('|').with_context(|| format!("`cargo tree` printed `{line}`"))?;
        let mut words = package.split_whitespace();
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            bail!("`cargo tree` printed `{line}`");
        };
        // Our own crates are the ones that lie in a directory.
        if words.any(|word| word.starts_with("(/")) {
            continue;
        }
        versions.entry(name).or_default().insert(version);
        if !licence::accepted(licence) {
            let stated = if licence.is_empty() { "none" } else { licence };
            findings.insert(format!(
                "{name} {version}: licence {stated}: not one that Sluice can be passed on under"
            ));
        }
    }
    if versions.is_empty() {
        bail!("`cargo tree` names no crate of others");
    }
    let foreign = lock.lines().filter(|line| line.starts_with("source = ") && !line.contains("\"registry+"));
    findings.extend(foreign.map(|line| format!("Cargo.lock: {line}: crates come from the registry only")));
    let crates = versions.values().map(BTreeSet::len).sum();
    let several = versions.into_iter().filter(|(_, versions)| versions.len() > 1);
    let several =
        several.map(|(name, versions)| (name.into(), versions.into_iter().map(String::from).collect()));
    Ok(Report { crates, repeated: several.collect(), findings: findings.into_iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "name = \"a\"\nsource = \"registry+https://index\"\n";

    #[test]
    fn crates_are_counted_and_judged() {
        let listing = "xtask v0.1.0 (/src/xtask)|Apache-2.0 OR MIT\na v1.0.0|MIT\na v2.0.0|MIT\na v1.0.0|MIT\n\n\
                       b v1.0.0 (proc-macro)|GPL-3.0-only\nc v1.0.0|\n";
        let report = judge(listing, LOCK).unwrap();
        assert_eq!(report.crates, 4);
        assert_eq!(report.repeated, [("a".into(), vec!["v1.0.0".into(), "v2.0.0".into()])]);
        assert_eq!(report.findings.len(), 2, "{:?}", report.findings);
        assert!(report.findings[0].starts_with("b v1.0.0: licence GPL-3.0-only"));
        assert!(report.findings[1].starts_with("c v1.0.0: licence none"));
    }

    #[test]
    fn sources_outside_the_registry_are_found() {
        let lock = format!("{LOCK}name = \"b\"\nsource = \"git+https://example.org/b\"\n");
        let report = judge("a v1.0.0|MIT\n", &lock).unwrap();
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    }

    #[test]
    fn listings_that_cannot_be_read_are_errors() {
        for listing in ["", "a v1.0.0 MIT\n", "a|MIT\n"] {
            assert!(judge(listing, LOCK).is_err(), "{listing}");
        }
    }
}
