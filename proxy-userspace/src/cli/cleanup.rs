//! `sluice cleanup`: the node as it was before.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::{CleanupArgs, Outcome, run};
use crate::agent::{Places, make_conntrack_liberal};
use crate::control::{ClientError, Lock, LockError, Request, RunDir, ask};
use crate::datapath::{self, Cleaned, Named, Options};
use crate::node::{Rules, remove_catch_all};

/// Longest wait for a running agent to end.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn cleanup(args: &CleanupArgs) -> Outcome {
    remove(&args.run_dir, args.cgroup.as_deref(), args.bpffs.as_deref(), args.kube_proxy)
}

/// Stops the agent of this run directory, then removes attachments, pins and files; with `all` also kube-proxy's rules in
/// nf_tables. What is not there is no error.
pub fn remove(run_dir: &Path, cgroup: Option<&Path>, bpffs: Option<&Path>, all: bool) -> Outcome {
    run::privileges()?;
    let dir = RunDir::new(run_dir);
    // Held to the end: no agent may start on what is being taken away.
    let lock = take_over(&dir)?;
    let named = Named { cgroup: cgroup.is_some(), bpffs: bpffs.is_some() };
    let Places { bpffs, cgroup } = Places::choose(cgroup, bpffs);
    let mut cleaned = datapath::cleanup(&Options { bpffs, cgroup, ..Options::default() }, named)?;
    let device = catch_all()?;
    let strict =
        cleaned.made_liberal && make_conntrack_liberal(false).map_err(|trouble| anyhow!("{trouble}"))?;
    let nf_tables = "nf_tables; see whether another program locks or limits it, and try again";
    let rules = Rules::look().context(nf_tables)?;
    let removed = rules.remove(all).context(nf_tables)?;
    if all {
        cleaned.left.extend(rules.left().iter().map(|left| left.trouble().to_string()));
    }
    dir.remove(lock)?;
    let more = [
        (device, "the catch-all device"),
        (removed, "rules in nf_tables"),
        (strict, "connection tracking's liberality in TCP"),
    ];
    let more: Vec<_> = more.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    writeln!(std::io::stdout(), "{}", told(&cleaned, &more))?;
    Ok(())
}

/// Whether there was a catch-all device.
fn catch_all() -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(remove_catch_all())?)
}

/// `more`: what else was taken away or put back.
fn told(cleaned: &Cleaned, more: &[&str]) -> String {
    let Cleaned { devices, sockets, pins, left, .. } = cleaned;
    let nothing = devices.is_empty() && *sockets == 0 && *pins == 0 && more.is_empty();
    let mut lines = vec![if nothing {
        "nothing of sluice was here".to_owned()
    } else {
        let devices = if devices.is_empty() { "no device".to_owned() } else { devices.join(", ") };
        let more: String = more.iter().map(|more| format!("; {more}")).collect();
        format!("removed: programs from {devices}; {sockets} socket programs; {pins} pins{more}")
    }];
    lines.extend(left.iter().map(|left| format!("left: {left}")));
    lines.join("\n")
}

/// The lock, from a running agent if need be. It is asked by its socket, not signalled by its number, which may be
/// of another PID namespace or long since somebody else's.
fn take_over(dir: &RunDir) -> anyhow::Result<Lock> {
    let taken = || dir.lock().and_then(Lock::alone);
    let held = match taken() {
        Err(held @ (LockError::Held { .. } | LockError::Serving { .. })) => held,
        other => return Ok(other?),
    };
    match ask(dir, &Request::Stop { netns: datapath::netns_cookie().ok() }) {
        // An agent that ends may hang up before it has answered.
        Ok(_) | Err(ClientError::Lost { .. }) => {}
        Err(ClientError::Refused(trouble)) => return Err(anyhow!("{}: {trouble}", dir.path().display())),
        Err(error) => {
            return Err(anyhow!("{error}")).context(format!("{held}, and it cannot be asked to stop"));
        }
    }
    let patience = Instant::now() + PATIENCE;
    loop {
        match taken() {
            Err(LockError::Held { .. } | LockError::Serving { .. }) if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(held @ (LockError::Held { .. } | LockError::Serving { .. })) => {
                return Err(anyhow!(held).context("the agent was asked to stop and did not end"));
            }
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_removed_and_what_was_left_is_told() {
        let some = Cleaned {
            devices: vec!["eth0".to_owned()],
            sockets: 8,
            pins: 3,
            made_liberal: true,
            left: Vec::new(),
        };
        let other = Cleaned { left: vec!["pins at /b".to_owned()], ..Cleaned::default() };
        let cases: [(_, &[&str], _); 4] = [
            (Cleaned::default(), &[], "nothing of sluice was here"),
            (some, &[], "removed: programs from eth0; 8 socket programs; 3 pins"),
            (
                Cleaned::default(),
                &["the catch-all device", "rules in nf_tables"],
                "removed: programs from no device; 0 socket programs; 0 pins; the catch-all device; rules in nf_tables",
            ),
            (other, &[], "nothing of sluice was here\nleft: pins at /b"),
        ];
        for (cleaned, more, want) in cases {
            assert_eq!(told(&cleaned, more), want);
        }
    }
}
