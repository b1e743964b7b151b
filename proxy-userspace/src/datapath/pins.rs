//! Where maps and programs are pinned: a directory of a mounted bpffs, or a bpffs of our own that nobody sees.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use proxy_common::abi::{INHERITS_FROM, LAYOUT};

use super::error::DatapathError;
use super::specs::{CHUNKED, CHUNKS, GROWING, Spec, affinity};
use super::sys;

/// What the name of a directory ends with that is not in use yet.
const UNFINISHED: &str = "-new";

/// How the name begins of what was found in a map's place and is none of ours.
const ASIDE: &str = "damaged-";

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
        Self::made(Self::directory(bpffs)?)
    }

    fn made(dir: PathBuf) -> Result<Self, DatapathError> {
        std::fs::create_dir_all(&dir).map_err(|source| DatapathError::File {
            operation: "create directory",
            path: dir.clone(),
            source,
        })?;
        Ok(Self { dir, private: None })
    }

    /// A directory of this layout that [`Pins::finish`] puts into use.
    pub fn unfinished(bpffs: &Path) -> Result<Self, DatapathError> {
        Self::made(unfinished(&Self::directory(bpffs)?))
    }

    /// Takes away what starts that were killed have left unfinished, of whatever layout.
    pub fn sweep(bpffs: &Path) -> Result<(), DatapathError> {
        let layouts = Self::layouts(bpffs)?;
        layouts.into_iter().filter(Self::is_unfinished).try_for_each(|pins| pins.remove().map(drop))
    }

    pub fn is_unfinished(&self) -> bool {
        self.dir.to_string_lossy().ends_with(UNFINISHED)
    }

    /// Puts it into use, in one step.
    pub fn finish(&mut self) -> Result<(), DatapathError> {
        let name = self.dir.to_string_lossy().into_owned();
        let Some(used) = name.strip_suffix(UNFINISHED) else { return Ok(()) };
        let failed = |source| DatapathError::File { operation: "rename", path: self.dir.clone(), source };
        std::fs::rename(&self.dir, used).map_err(failed)?;
        self.dir = used.into();
        Ok(())
    }

    /// The directories of other layouts whose content can be taken over, the latest first.
    pub fn of_other_layouts(bpffs: &Path) -> Result<Vec<Self>, DatapathError> {
        let made = |pins: &Self| std::fs::metadata(&pins.dir).and_then(|data| data.modified()).ok();
        let mut others = Self::layouts(bpffs)?;
        others.retain(|pins| {
            let layout = pins.dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
            layout.is_some_and(|layout| layout >= INHERITS_FROM && layout != LAYOUT)
        });
        others.sort_by_key(|pins| std::cmp::Reverse(made(pins)));
        Ok(others)
    }

    /// Pins the maps that lie in others and are pinned here in `other`, too.
    pub fn share_inner(&self, other: &Self) -> Result<(), DatapathError> {
        let share = |path: &dyn Fn(&Self) -> PathBuf| match Self::open(&path(self))? {
            Some(fd) => Self::put(fd.as_fd(), &path(other)).map(|()| true),
            None => Ok(false),
        };
        for Spec { name, .. } in CHUNKED.into_iter().chain([affinity::<1>(), affinity::<4>()]) {
            for number in 0..CHUNKS {
                if !share(&|pins| pins.chunk(name, number))? {
                    break;
                }
            }
        }
        // Some arrays have been one map once.
        for Spec { name, .. } in GROWING.into_iter().chain(CHUNKED) {
            share(&|pins| pins.map(name))?;
        }
        for Spec { name, .. } in GROWING {
            share(&|pins| pins.grown(name))?;
        }
        Ok(())
    }

    /// Whether an agent has left the directory of this layout at `bpffs`.
    pub fn are_at(bpffs: &Path) -> bool {
        Self::directory(bpffs).is_ok_and(|dir| dir.exists())
    }

    /// Takes away what a start that failed has made at `bpffs`. What cannot be removed is left to `sluice cleanup`.
    pub fn abandon(bpffs: &Path) {
        if let Ok(dir) = Self::directory(bpffs) {
            drop(Self { dir: unfinished(&dir), private: None }.remove());
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

    /// Renames what is in a map's place to a name that no map has. The new one.
    pub fn put_aside(&self, name: &str) -> Result<PathBuf, DatapathError> {
        let path = self.map(name);
        let aside = |number| self.dir.join(format!("{ASIDE}{name}-{number}"));
        let aside = (0..).map(aside).find(|path| !path.exists()).unwrap_or_else(|| path.clone());
        match std::fs::rename(&path, &aside) {
            Ok(()) => Ok(aside),
            Err(source) => Err(DatapathError::File { operation: "put aside", path, source }),
        }
    }

    /// Pins a map that lies in another one, where pins outlive us: a later agent that lacks CAP_SYS_ADMIN cannot open it by id.
    pub fn keep(&self, fd: BorrowedFd<'_>, path: &Path) -> Result<(), DatapathError> {
        if self.is_private() { Ok(()) } else { Self::put(fd, path) }
    }

    /// The map with this id that lies in another one: by its pin, or else by its id, and then it is pinned.
    pub fn inner(&self, id: u32, path: &Path) -> Result<io::Result<OwnedFd>, DatapathError> {
        if let Some(fd) = Self::open(path)?
            && sys::map_info(fd.as_fd()).is_ok_and(|info| info.id == id)
        {
            return Ok(Ok(fd));
        }
        let found = sys::map_by_id(id);
        if let Ok(fd) = &found {
            self.keep(fd.as_fd(), path)?;
        }
        Ok(found)
    }

    /// Where a chunk of the array with this name is pinned. The kernel refuses dots in names on a bpffs.
    pub fn chunk(&self, name: &str, number: u32) -> PathBuf {
        self.dir.join(format!("{name}-{number}"))
    }

    /// Where a hash is pinned that is to take the place of the one with this name.
    pub fn grown(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-grown"))
    }

    pub fn program(&self, prefix: &str, id: u32) -> PathBuf {
        self.dir.join(format!("{prefix}{id}"))
    }

    /// Opens a pin, if there is one.
    pub fn open(path: &Path) -> Result<Option<OwnedFd>, DatapathError> {
        match sys::open_pin(path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) if path.is_dir() => Err(DatapathError::NoPin { path: path.to_owned() }),
            Err(source) => Err(DatapathError::of("open a pin", source, |source| DatapathError::File {
                operation: "open pin",
                path: path.to_owned(),
                source,
            })),
        }
    }

    /// Makes a map with so many entries, and pins it.
    pub fn make(&self, spec: &Spec, entries: u32) -> Result<(), DatapathError> {
        let fd = spec.make(spec.name, entries).map_err(|error| {
            let failed = |source| DatapathError::Map { operation: "make", map: spec.name, source };
            DatapathError::of("create maps", error, failed)
        })?;
        Self::put(fd.as_fd(), &self.map(spec.name))
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

    /// Takes all pins and the directory away, and the parent if that leaves it empty. The paths removed. One that stays keeps no other one.
    pub fn remove(self) -> Result<Vec<PathBuf>, DatapathError> {
        let failed =
            |path: &Path, source| DatapathError::File { operation: "remove", path: path.to_owned(), source };
        let (mut removed, mut stays) = (Vec::new(), None);
        for entry in std::fs::read_dir(&self.dir).map_err(|source| failed(&self.dir, source))? {
            let path = entry.map_err(|source| failed(&self.dir, source))?.path();
            match unlink(&path) {
                Ok(()) => removed.push(path),
                Err(error) => stays = stays.or(Some(error)),
            }
        }
        if let Some(error) = stays {
            return Err(error);
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

/// Where what becomes `dir` is made.
fn unfinished(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(UNFINISHED);
    name.into()
}

/// The directory that holds one directory a layout.
fn parent(bpffs: &Path) -> PathBuf {
    bpffs.join("sluice")
}

/// Removes a pin, which may be missing, or an empty directory in its place.
pub fn unlink(path: &Path) -> Result<(), DatapathError> {
    let removed = match std::fs::remove_file(path) {
        Err(source) if source.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir(path),
        removed => removed,
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DatapathError::File { operation: "remove pin", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
