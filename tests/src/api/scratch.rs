//! Folders and namespaces of one control plane. They carry the laboratory's prefix, so that its clean-up finds what a
//! killed run leaves behind.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::lab::cleanup;
use crate::lab::namespace::Namespace;

/// A name that nothing else on this machine has.
pub(super) fn unique(what: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("{}api{}-{what}", cleanup::own_prefix(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// A new namespace for `what`.
pub(super) fn namespace(what: &str) -> Result<Namespace> {
    cleanup::undisturbed(|| Namespace::create(unique(what)))
}

/// A folder that is removed with its owner.
pub struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty one.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn new() -> Result<Self> {
        let path = cleanup::directory().join(unique("files"));
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes `text` to the file `name` in it and returns the file's path.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.0.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        cleanup::remove_files(&self.0);
    }
}
