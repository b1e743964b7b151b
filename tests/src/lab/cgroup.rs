//! A node's own subtree of cgroup v2.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// A cgroup directory with its children, emptied and removed when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes `name` below the root of cgroup v2.
    ///
    /// # Errors
    /// No cgroup v2 is mounted, or it is not writable.
    pub fn create(name: &str) -> Result<Self> {
        let path = mount_point()?.join(name);
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(Self(path))
    }

    /// Makes a child and returns its directory.
    ///
    /// # Errors
    /// As the file system says.
    pub fn child(&self, name: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        Ok(path)
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        remove(&self.0);
    }
}

/// Where cgroup v2 is mounted.
///
/// # Errors
/// Nowhere.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let line = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = line.filter(|f| f.get(2) == Some(&"cgroup2")).find_map(|f| f.get(1).map(PathBuf::from));
    found.context("no cgroup v2 is mounted; mount it with: mount -t cgroup2 none /sys/fs/cgroup")
}

/// Kills what runs in the subtree and removes it. A killed process leaves its cgroup a little later, which no file
/// tells without inotify, so removal is tried until it works.
pub fn remove(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let end = Instant::now() + Duration::from_secs(5);
    while path.exists() && Instant::now() < end {
        remove_tree(path);
        if path.exists() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    if path.exists() {
        eprintln!("laboratory: the cgroup {} is still in use and stays", path.display());
    }
}

fn remove_tree(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    for child in children.filter(|c| c.file_type().is_ok_and(|t| t.is_dir())) {
        remove_tree(&child.path());
    }
    let _ = fs::remove_dir(path);
}
