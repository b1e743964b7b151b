//! A place of the bench's own: a thread with its network namespace, its mounts and a bpffs, on one CPU.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::lab::command;

/// A mounted bpffs that nobody else sees.
#[derive(Debug)]
pub struct Bpffs(PathBuf);

impl Bpffs {
    fn mount() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sl-{}-bench", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .context("cannot keep mounts apart")?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none).context("cannot mount a bpffs")?;
        Ok(Self(path))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A directory on it for one more node.
    ///
    /// # Errors
    /// As the file system says.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("bench: cannot unmount {}: {error}", self.0.display());
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Runs `work` there.
///
/// # Errors
/// The place cannot be made, or `work` fails.
pub fn apart<T: Send>(work: impl FnOnce(&Bpffs) -> Result<T> + Send) -> Result<T> {
    within(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS, || {
        command::run("ip", &["link", "set", "lo", "up"])?;
        work(&Bpffs::mount()?)
    })
}

/// Runs `work` in new namespaces, which go with it.
///
/// # Errors
/// They cannot be made, or `work` fails.
pub fn within<T: Send>(new: CloneFlags, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            unshare(new).context("cannot make namespaces; the bench needs root")?;
            work()
        });
        inside.join().map_err(|_| anyhow::anyhow!("a thread of the bench panicked"))?
    })
}

/// Takes the larger share of the CPUs as long as this process runs: what else runs on the machine disturbs less.
///
/// # Errors
/// No permission.
pub fn prefer() -> Result<()> {
    // Fails for the leader of a process group, which has a session's share already.
    let _ = nix::unistd::setsid();
    if let Err(error) = std::fs::write("/proc/self/autogroup", "-20") {
        // Kernels without autogroups have no such file.
        if error.kind() != std::io::ErrorKind::NotFound {
            return Err(error).context("cannot raise the share of CPU time of this session");
        }
    }
    crate::sys::set_nice(-20).context("cannot raise this process's priority")
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// There is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).with_context(|| format!("CPU {cpu} is out of range"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}
