//! `seeds TARGET DIRECTORY`: writes what fuzzing begins with. Called by `cargo xtask fuzz`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use sluice_tests::fuzz;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [target, directory] = arguments.as_slice() else {
        eprintln!("seeds TARGET DIRECTORY");
        return ExitCode::from(2);
    };
    match write(target, Path::new(directory)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("seeds: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn write(target: &str, directory: &Path) -> Result<()> {
    let target = fuzz::target(target).with_context(|| format!("{target}: no such target"))?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let file = directory.join(format!("seed-{number}"));
        std::fs::write(&file, seed).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
