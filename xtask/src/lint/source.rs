//! Rules about source files that no compiler checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::tokens::{code_only, lines_with};
use crate::shell::Workspace;

const LONGEST: usize = 500;
/// Where userspace may talk to the kernel past the type system.
const SYSTEM_CALLS: &str = "proxy-userspace/src/datapath/sys.rs";
/// Crates that may use `unsafe` anywhere, under clippy's rule of a SAFETY line for each block.
const WITH_UNSAFE: [&str; 2] = ["proxy-ebpf/", "tests/"];
/// Words that mark unfinished work. Written in halves: this file is read too.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
/// Macros that must not stay.
const LEFT_OVER: [&str; 3] = ["dbg", "todo", "unimplemented"];

pub fn check(workspace: &Workspace) -> Result<bool> {
    let mut files = Vec::new();
    collect(&workspace.root, &mut files)?;
    let mut clean = true;
    let mut count = 0;
    for path in files {
        let name = path.strip_prefix(&workspace.root).unwrap_or(&path).to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = if name.ends_with(".rs") {
            count += 1;
            rust(&name, &text)
        } else {
            manifest(&name, &text)
        };
        for finding in &found {
            println!("{finding}");
        }
        clean &= found.is_empty();
    }
    println!("{count} Rust files");
    Ok(clean)
}

/// Rust files below a directory.
pub fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(root, &mut files)?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    Ok(files)
}

/// Rust files and manifests below a directory.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            collect(&path, files)?;
        } else if kind.is_file() && (name.ends_with(".rs") || name == "Cargo.toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

/// Findings in one Rust file, each with its place.
fn rust(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let length = text.lines().count();
    if length > LONGEST {
        found.push(format!("{name}: {length} lines, at most {LONGEST}: split it by concern"));
    }
    let code = code_only(text);
    if name != SYSTEM_CALLS && !WITH_UNSAFE.iter().any(|dir| name.starts_with(dir)) {
        let lines = lines_with(&code, "unsafe");
        found.extend(lines.iter().map(|line| format!("{name}:{line}: unsafe belongs into {SYSTEM_CALLS}")));
    }
    for word in UNFINISHED {
        found.extend(
            lines_with(text, word).iter().map(|line| format!("{name}:{line}: {word}: finish it or file it")),
        );
    }
    for word in LEFT_OVER {
        let macros = lines_with(&code, word)
            .into_iter()
            .filter(|line| code.lines().nth(line - 1).is_some_and(|text| text.contains(&format!("{word}!"))));
        found.extend(macros.map(|line| format!("{name}:{line}: {word}! must not stay")));
    }
    found
}

/// A crate that does not take over the workspace's lints would escape them.
fn manifest(name: &str, text: &str) -> Vec<String> {
    let is_crate = text.lines().any(|line| line.trim() == "[package]");
    let section = text.split_once("[lints]").map_or("", |(_, after)| after);
    let inherits = section.lines().nth(1).is_some_and(|line| line.replace(' ', "") == "workspace=true");
    if is_crate && !inherits {
        return vec![format!(
            "{name}: does not inherit the workspace's lints: add `[lints]` with `workspace = true`"
        )];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_files() {
        let long = "\n".repeat(LONGEST + 1);
        let table = [
            ("proxy-common/src/lib.rs", "#![forbid(unsafe_code)]\n// unsafe is explained here\n", None),
            (
                "proxy-common/src/lib.rs",
                "fn f() {}\nunsafe {}",
                Some("proxy-common/src/lib.rs:2: unsafe belongs"),
            ),
            (
                "proxy-userspace/src/sync/mod.rs",
                "unsafe impl A for B {}",
                Some("sync/mod.rs:1: unsafe belongs"),
            ),
            (SYSTEM_CALLS, "unsafe {}", None),
            ("proxy-ebpf/src/packet.rs", "unsafe {}", None),
            ("tests/src/ns.rs", "unsafe {}", None),
            ("xtask/src/a.rs", concat!("// TO", "DO: later"), Some("xtask/src/a.rs:1: ")),
            ("xtask/src/a.rs", "dbg!(x);", Some("xtask/src/a.rs:1: dbg! must not stay")),
            ("xtask/src/a.rs", "let todo = 1; // dbg!(x)", None),
            ("xtask/src/a.rs", &long, Some("xtask/src/a.rs: 501 lines, at most 500")),
        ];
        for (name, text, expected) in table {
            let found = rust(name, text);
            match expected {
                None => assert!(found.is_empty(), "{name}: {found:?}"),
                Some(part) => assert!(found.len() == 1 && found[0].contains(part), "{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn manifests() {
        let table = [
            ("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n", true),
            ("[package]\nname = \"a\"\n", false),
            ("[package]\nname = \"a\"\n[lints]\nworkspace = false\n", false),
            ("[workspace]\nmembers = []\n", true),
        ];
        for (text, good) in table {
            assert_eq!(manifest("a/Cargo.toml", text).is_empty(), good, "{text}");
        }
    }
}
