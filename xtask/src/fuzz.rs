//! `cargo xtask fuzz`: libFuzzer on the targets of `tests/src/fuzz`, by cargo-fuzz.

use std::process::Command;

use anyhow::Result;

use crate::setup::{self, Group, cargo_fuzz};
use crate::shell::{self, Workspace};

/// As named in `tests/fuzz/Cargo.toml`.
pub const TARGETS: [&str; 4] = ["packet", "manifest", "watch", "maps"];

/// What `fuzz` shall do; no target means all.
#[derive(Debug, PartialEq, Eq)]
pub struct Fuzz {
    pub targets: Vec<&'static str>,
    /// For each target.
    pub seconds: u64,
}

/// Runs one target after the other; `false` if one has a finding, which libFuzzer has printed and put aside as a file.
pub fn run(workspace: &Workspace, fuzz: &Fuzz) -> Result<bool> {
    setup::ensure(workspace, &[Group::Build, Group::Fuzz])?;
    let all = TARGETS.to_vec();
    let targets = if fuzz.targets.is_empty() { &all } else { &fuzz.targets };
    let mut found = Vec::new();
    for target in targets {
        println!("\n== {target} ==");
        let corpus = workspace.target().join("fuzz/corpus").join(target);
        let mut seeds = workspace.cargo("run");
        seeds.args(["--quiet", "--package", "sluice-tests", "--bin", "seeds", "--", target]).arg(&corpus);
        shell::run(&mut seeds)?;
        let mut fuzzing = Command::new(cargo_fuzz::program(workspace));
        fuzzing.current_dir(&workspace.root).args(["fuzz", "run", "--fuzz-dir", "tests/fuzz"]);
        // Sanitizers need a nightly compiler. Without `unsafe` they would find little; panics are what is looked for.
        fuzzing.args(["--sanitizer", "none", "--target-dir"]).arg(workspace.target().join("fuzz/build"));
        fuzzing.arg(target).arg(&corpus);
        fuzzing.args(["--", "-rss_limit_mb=4096", &format!("-max_total_time={}", fuzz.seconds)]);
        if !shell::succeeds(&mut fuzzing)? {
            found.push(*target);
        }
    }
    if found.is_empty() {
        println!("\nfuzz: {} targets, {} s each, no finding", targets.len(), fuzz.seconds);
    } else {
        println!("\nfuzz: findings in {}: make each a seed in tests/src/fuzz", found.join(", "));
    }
    Ok(found.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::TARGETS;

    #[test]
    fn each_target_has_its_program() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/targets");
        let files = std::fs::read_dir(directory).expect("there are programs");
        let stem =
            |file: std::fs::DirEntry| file.path().file_stem().map(|stem| stem.to_string_lossy().into_owned());
        let programs: BTreeSet<String> = files.map(|file| file.expect("readable")).filter_map(stem).collect();
        assert_eq!(programs, TARGETS.map(String::from).into());
    }
}
