//! Running other programs, with errors that tell what was run and what it said.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// It cannot be started, or ends with another status than 0.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    with_input(program, arguments, "")
}

/// The same with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let told = || format!("{program} {}", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}; is it installed?", told()))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A command that ends early closes its input; its status tells why.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(told)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} ended with {}: {}", told(), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a batch of iproute2 lines, in a named namespace or in this process's.
///
/// # Errors
/// As [`run`]; iproute2 names the line's number, the error shows the lines.
pub fn ip_batch(netns: Option<&str>, lines: &[String]) -> Result<()> {
    let mut arguments = netns.map_or_else(Vec::new, |name| vec!["-n", name]);
    arguments.extend(["-batch", "-"]);
    with_input("ip", &arguments, &lines.join("\n")).map(drop).with_context(|| lines.join("\n"))
}

/// Runs a command inside a network namespace. Mounts stay as they are (`ip netns exec` would hide bpffs).
///
/// # Errors
/// As [`run`].
pub fn run_in(netns: &Path, program: &str, arguments: &[&str]) -> Result<String> {
    let net = format!("--net={}", netns.display());
    let mut all = vec![net.as_str(), program];
    all.extend(arguments);
    run("nsenter", &all)
}
