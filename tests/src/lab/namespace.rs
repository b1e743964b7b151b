//! One network namespace.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::command::run;

/// A named network namespace, removed when dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
}

impl Namespace {
    /// Makes it. Duplicate address detection is off: addresses are usable at once.
    ///
    /// # Errors
    /// The name is taken, or the kernel refuses.
    pub fn create(name: String) -> Result<Self> {
        run("ip", &["netns", "add", &name])?;
        let path = Path::new("/run/netns").join(&name);
        let namespace = Self { name, path };
        namespace.sysctls(&[
            ("net/ipv6/conf/all/accept_dad", "0"),
            ("net/ipv6/conf/default/accept_dad", "0"),
            ("net/ipv6/conf/default/dad_transmits", "0"),
            ("net/ipv6/conf/default/accept_ra", "0"),
            // Tests provoke more errors than hosts like to report.
            ("net/ipv4/icmp_ratelimit", "0"),
            ("net/ipv6/icmp/ratelimit", "0"),
            // Nor may the limit for all peers together count any type of them.
            ("net/ipv4/icmp_ratemask", "0"),
            ("net/ipv6/icmp/ratemask", "255"),
        ])?;
        run("ip", &["-n", &namespace.name, "link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` in the namespace, on a thread of its own: a thread that has entered never leaves.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&self.path)?;
                work()
            });
            inside.join().map_err(|_| anyhow::anyhow!("a thread in {} panicked", self.name))?
        })
    }

    /// Sets sysctls by their path below `/proc/sys`.
    ///
    /// # Errors
    /// An unknown name or a refused value.
    pub fn sysctls(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.within(|| {
            settings.iter().try_for_each(|(name, value)| {
                std::fs::write(Path::new("/proc/sys").join(name), value)
                    .with_context(|| format!("cannot set {name} to {value} in {}", self.name))
            })
        })
    }
}

/// Puts the calling thread into a network namespace, for good.
///
/// # Errors
/// No such namespace, or no permission.
pub fn enter(netns: &Path) -> Result<()> {
    let told = || format!("cannot enter the namespace {}", netns.display());
    setns(File::open(netns).with_context(told)?, CloneFlags::CLONE_NEWNET).with_context(told)
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run("ip", &["netns", "del", &self.name]) {
            eprintln!("laboratory: {error:#}");
        }
    }
}
