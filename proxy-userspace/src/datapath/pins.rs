//! Where maps and programs are pinned: a directory of a mounted bpffs, or a bpffs of our own that nobody sees.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use proxy_common::abi::LAYOUT;

use super::error::DatapathError;
use super::sys;
use crate::model::Family;

/// A directory that maps are pinned in.
#[derive(Debug)]
pub struct Pins {
    dir: PathBuf,
    /// The bpffs that `dir` leads into, if it is mounted nowhere.
    private: Option<OwnedFd>,
}

impl Pins {
    /// The directory of this layout on the bpffs mounted at `bpffs`; made if missing.
    pub fn shared(bpffs: &Path) -> Result<Self, DatapathError> {
        let dir = Self::directory(bpffs)?;
        std::fs::create_dir_all(&dir).map_err(|source| DatapathError::File {
            operation: "create directory",
            path: dir.clone(),
            source,
        })?;
        Ok(Self { dir, private: None })
    }

    /// Whether an agent has left the directory of this layout at `bpffs`.
    pub fn are_at(bpffs: &Path) -> bool {
        Self::directory(bpffs).is_ok_and(|dir| dir.exists())
    }

    /// Takes away what a start that failed has made at `bpffs`. What cannot be removed is left to `sluice cleanup`.
    pub fn abandon(bpffs: &Path) {
        if let Ok(dir) = Self::directory(bpffs) {
            drop(Self { dir, private: None }.remove());
        }
    }

    /// The directories of all layouts that agents have left on the bpffs mounted at `bpffs`.
    pub fn layouts(bpffs: &Path) -> Result<Vec<Self>, DatapathError> {
        Self::directory(bpffs)?;
        let dir = parent(bpffs);
        let failed = |source| DatapathError::File { operation: "list", path: dir.clone(), source };
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let pins = |entry: io::Result<std::fs::DirEntry>| {
            Ok(Self { dir: entry.map_err(failed)?.path(), private: None })
        };
        entries.map(pins).collect()
    }

    fn directory(bpffs: &Path) -> Result<PathBuf, DatapathError> {
        match statfs(bpffs) {
            Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => {
                Ok(parent(bpffs).join(LAYOUT.to_string()))
            }
            Ok(_) => Err(DatapathError::NotBpffs { path: bpffs.to_owned() }),
            Err(source) => Err(DatapathError::File {
                operation: "look at",
                path: bpffs.to_owned(),
                source: source.into(),
            }),
        }
    }

    /// A bpffs of our own. Pins in it last as long as this value.
    pub fn private() -> Result<Self, DatapathError> {
        let fd = sys::private_bpffs().map_err(|source| {
            DatapathError::of("make a private BPF file system", source, |source| {
                DatapathError::PrivateBpffs { source }
            })
        })?;
        let dir = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(Self { dir, private: Some(fd) })
    }

    /// Whether what is pinned here outlives the agent.
    pub const fn is_private(&self) -> bool {
        self.private.is_some()
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The kernel refuses dots in names on a bpffs.
    pub fn chunk(&self, family: Family, index: u32) -> PathBuf {
        let version = match family {
            Family::V4 => 4,
            Family::V6 => 6,
        };
        self.dir.join(format!("SLOTS_V{version}-{index}"))
    }

    pub fn program(&self, name: &str, id: u32) -> PathBuf {
        self.dir.join(format!("{name}-{id}"))
    }

    /// Opens a pin, if there is one.
    pub fn open(path: &Path) -> Result<Option<OwnedFd>, DatapathError> {
        match sys::open_pin(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DatapathError::of("open a pin", source, |source| DatapathError::File {
                operation: "open pin",
                path: path.to_owned(),
                source,
            })),
        }
    }

    /// Pins `fd`, in place of what was pinned there.
    pub fn put(fd: BorrowedFd<'_>, path: &Path) -> Result<(), DatapathError> {
        unlink(path)?;
        sys::pin(fd, path).map_err(|source| DatapathError::File {
            operation: "pin",
            path: path.to_owned(),
            source,
        })
    }

    /// Every program pinned here: its pin and a descriptor. Pins that are no programs of ours are left out.
    pub fn programs(&self) -> Result<Vec<(PathBuf, OwnedFd)>, DatapathError> {
        let failed = |source| DatapathError::File { operation: "list", path: self.dir.clone(), source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let ours = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("sluice_"));
            if let Some(fd) = if ours { Self::open(&path)? } else { None } {
                found.push((path, fd));
            }
        }
        Ok(found)
    }

    /// Takes all pins and the directory away, and the parent if that leaves it empty. The paths removed.
    pub fn remove(self) -> Result<Vec<PathBuf>, DatapathError> {
        let failed =
            |path: &Path, source| DatapathError::File { operation: "remove", path: path.to_owned(), source };
        let mut removed = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(|source| failed(&self.dir, source))? {
            let path = entry.map_err(|source| failed(&self.dir, source))?.path();
            unlink(&path)?;
            removed.push(path);
        }
        std::fs::remove_dir(&self.dir).map_err(|source| failed(&self.dir, source))?;
        if let Some(parent) = self.dir.parent() {
            match std::fs::remove_dir(parent) {
                Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
                    return Err(failed(parent, source));
                }
                _ => {}
            }
        }
        removed.push(self.dir);
        Ok(removed)
    }
}

/// The directory that holds one directory a layout.
fn parent(bpffs: &Path) -> PathBuf {
    bpffs.join("sluice")
}

/// Removes a pin, which may be missing.
pub fn unlink(path: &Path) -> Result<(), DatapathError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::File { operation: "remove pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
