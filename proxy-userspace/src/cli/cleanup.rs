//! `sluice cleanup`: the node as it was before.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::{CleanupArgs, Outcome, run};
use crate::agent::Places;
use crate::control::{ClientError, Lock, LockError, Request, RunDir, ask};
use crate::datapath::{self, Cleaned, Options};
use crate::node::remove_catch_all;

/// Longest wait for a running agent to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn cleanup(args: &CleanupArgs) -> Outcome {
    remove(&args.run_dir, args.cgroup.as_deref(), args.bpffs.as_deref())
}

/// Stops the agent of this run directory, then removes attachments, pins and files. What is not there is no error.
pub fn remove(run_dir: &Path, cgroup: Option<&Path>, bpffs: Option<&Path>) -> Outcome {
    run::privileges()?;
    let dir = RunDir::new(run_dir);
    // Held to the end: no agent may start on what is being taken away.
    let lock = take_over(&dir)?;
    let Places { bpffs, cgroup } = Places::choose(cgroup, bpffs);
    let cleaned = datapath::cleanup(&Options { bpffs, cgroup, ..Options::default() })?;
    let device = catch_all()?;
    dir.remove(lock)?;
    writeln!(std::io::stdout(), "{}", told(&cleaned, device))?;
    Ok(())
}

/// Whether there was a catch-all device.
fn catch_all() -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(remove_catch_all())?)
}

fn told(cleaned: &Cleaned, device: bool) -> String {
    if *cleaned == Cleaned::default() && !device {
        return "nothing of sluice was here".to_owned();
    }
    let devices =
        if cleaned.devices.is_empty() { "no device".to_owned() } else { cleaned.devices.join(", ") };
    let device = if device { "; the catch-all device" } else { "" };
    format!(
        "removed: programs from {devices}; {} socket programs; {} pins{device}",
        cleaned.sockets, cleaned.pins
    )
}

/// The lock, from a running agent if need be. It is asked by its socket, not signalled by its number, which may be
/// of another PID namespace or long since somebody else's.
fn take_over(dir: &RunDir) -> anyhow::Result<Lock> {
    let held = match dir.lock() {
        Err(held @ LockError::Held { .. }) => held,
        other => return Ok(other?),
    };
    match ask(dir, &Request::Stop) {
        // An agent that ends may hang up before it has answered.
        Ok(_) | Err(ClientError::Lost { .. }) => {}
        Err(error) => {
            return Err(anyhow!("{error}")).context(format!("{held}, and it cannot be asked to stop"));
        }
    }
    let patience = Instant::now() + PATIENCE;
    loop {
        match dir.lock() {
            Err(LockError::Held { .. }) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(held @ LockError::Held { .. }) => {
                return Err(anyhow!(held).context("the agent was asked to stop and did not end"));
            }
            other => return Ok(other?),
        }
    }
}
