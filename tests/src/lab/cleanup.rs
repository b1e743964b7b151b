//! Taking everything away: at the end, on signals, and after runs that died without doing so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};

use super::{cgroup, command};

/// Everything of the laboratory is named `sl-<process id>-…`.
const PREFIX: &str = "sl-";

/// Name prefix of this process's things.
#[must_use]
pub fn own_prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Directory below which beds keep files.
#[must_use]
pub fn directory() -> PathBuf {
    std::env::temp_dir()
}

/// Removes what processes that no longer exist have left behind.
pub fn leftovers() {
    for name in names() {
        if owner(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            take_away(&name);
        }
    }
}

/// Removes everything of this process.
pub fn everything() {
    let own = own_prefix();
    names().into_iter().filter(|name| name.starts_with(&own)).for_each(|name| take_away(&name));
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

/// Names of all the laboratory's things: processes' cgroups first, so that nothing is in use later.
fn names() -> Vec<String> {
    let places = [cgroup::mount_point().unwrap_or_default(), PathBuf::from("/run/netns"), directory()];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect()
}

fn take_away(name: &str) {
    if let Ok(root) = cgroup::mount_point()
        && root.join(name).exists()
    {
        cgroup::remove(&root.join(name));
    }
    if Path::new("/run/netns").join(name).exists() {
        // Somebody else may have been quicker.
        let _ = command::run("ip", &["netns", "del", name]);
    }
    let files = directory().join(name);
    if files.exists() {
        remove_files(&files);
    }
}

/// Removes a bed's directory, with the bpffs that may be mounted in it.
pub fn remove_files(files: &Path) {
    let bpffs = files.join("bpf");
    if bpffs.exists() {
        // Not mounted is fine.
        let _ = nix::mount::umount2(&bpffs, nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(files);
}

/// Held while something is being made, so that a signal does not end the process between a thing and its record.
static ENDING: Mutex<()> = Mutex::new(());

/// Runs `work` without being interrupted by [`on_signals`].
pub fn undisturbed<T>(work: impl FnOnce() -> T) -> T {
    let _held = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    work()
}

/// Starts a thread that waits for SIGINT and SIGTERM, takes everything away and ends the process.
///
/// # Errors
/// The thread or the signal handlers cannot be set up.
pub fn on_signals() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let (Ok(mut interrupt), Ok(mut terminate)) =
                    (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
                else {
                    return;
                };
                let status = tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 };
                let _held = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
                everything();
                std::process::exit(status);
            });
        })
        .context("cannot start the thread that cleans up on signals")?;
    Ok(())
}
