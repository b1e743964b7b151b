use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt};

/// The files of one node's agent.
#[derive(Clone, Debug)]
pub struct RunDir(PathBuf);

impl RunDir {
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    #[must_use]
    pub fn lock_file(&self) -> PathBuf {
        self.0.join("agent.lock")
    }

    /// Takes the lock for the life of the returned value (L-05). The kernel lets go of it when the process ends,
    /// however it ends.
    ///
    /// # Errors
    /// Another process holds it, or the directory cannot be used.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.lock_file();
        let failed = |source| LockError::Unusable { path: self.0.clone(), source };
        // Searchable by its owner only: whoever reaches the socket commands the node's Services.
        std::fs::create_dir_all(&self.0).map_err(failed)?;
        loop {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = options.open(&path).map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // A cleanup may have unlinked the file between open and lock: then it guards nothing.
                Ok(lock) if is_same_file(&lock, &path) => return Lock::own(lock).map_err(failed),
                Ok(_) => {}
                Err((file, Errno::EWOULDBLOCK)) => {
                    return Err(LockError::Held { path, pid: holder(file) });
                }
                Err((_, errno)) => return Err(failed(errno.into())),
            }
        }
    }

    /// Removes the files, and the directory if nothing else is in it. The lock makes sure that no agent uses them.
    ///
    /// # Errors
    /// A file cannot be removed; its absence is no error.
    pub fn remove(&self, lock: Lock) -> Result<(), LockError> {
        let failed = |source| LockError::Unusable { path: self.0.clone(), source };
        for path in [self.socket(), self.lock_file()] {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        drop(lock);
        match std::fs::remove_dir(&self.0) {
            Err(error)
                if ![
                    io::ErrorKind::NotFound,
                    io::ErrorKind::DirectoryNotEmpty,
                    io::ErrorKind::ResourceBusy,
                ]
                .contains(&error.kind()) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}

fn holder(mut file: File) -> Option<u32> {
    let mut text = String::new();
    file.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// The exclusive right to run an agent in a run directory.
#[derive(Debug)]
pub struct Lock {
    /// See [`Lock::alone`]. Let go of first: who gets the file is not to find this held.
    alone: Option<UnixListener>,
    _file: Flock<File>,
}

/// An abstract name, which network namespaces have each for themselves.
const ALONE: &[u8] = b"sluice-agent";
/// Binding and listening are two steps: another agent may be between them.
const ATTEMPTS: usize = 100;

impl Lock {
    /// The process id is for messages to people only: it may be of another PID namespace.
    fn own(mut file: Flock<File>) -> io::Result<Self> {
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { alone: None, _file: file })
    }

    /// Takes the network namespace as well: agents in containers of one node may have run directories of their own, and would
    /// adopt and write the same maps (L-05).
    ///
    /// # Errors
    /// Another agent serves it.
    pub fn alone(mut self) -> Result<Self, LockError> {
        self.alone = alone(ALONE)?;
        Ok(self)
    }
}

/// Anybody may take the name, and only root's processes are agents: whoever else has it keeps none from starting.
fn alone(name: &[u8]) -> Result<Option<UnixListener>, LockError> {
    let failed = |source| LockError::Name { source };
    let address = SocketAddr::from_abstract_name(name).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        match UnixListener::bind_addr(&address) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => return Err(failed(error)),
            Err(_) => {}
        }
        // Refused: it has gone meanwhile, or does not listen yet.
        let Ok(holder) = UnixStream::connect_addr(&address) else { continue };
        let holder = getsockopt(&holder, sockopt::PeerCredentials).map_err(|errno| failed(errno.into()))?;
        if holder.uid() == 0 {
            return Err(LockError::Serving { pid: holder.pid() });
        }
        break;
    }
    tracing::warn!("the abstract socket @sluice-agent is held by a process that is no agent: see `ss -xlp`");
    Ok(None)
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error(
        "{}: held by another agent{}; stop that one, or give this one a --run-dir of its own",
        path.display(), pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Held { path: PathBuf, pid: Option<u32> },
    #[error("this network namespace: served by another agent (process {pid}); stop that one")]
    Serving { pid: i32 },
    #[error("abstract socket @sluice-agent: {source}; see the limit of open files")]
    Name { source: io::Error },
    #[error("run directory {}: {source}; --run-dir must name a directory that root can write", path.display())]
    Unusable { path: PathBuf, source: io::Error },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> RunDir {
        let path = std::env::temp_dir().join(format!("sluice-lock-{}-{name}", std::process::id()));
        RunDir::new(&path)
    }

    #[test]
    fn l05_the_second_agent_is_told_who_is_the_first() {
        let dir = scratch("second");
        let first = dir.lock().unwrap();
        let error = dir.lock().unwrap_err();
        let LockError::Held { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, Some(std::process::id()));
        assert!(error.to_string().contains(&format!("(process {})", std::process::id())), "{error}");
        drop(first);
        let again = dir.lock().unwrap();
        dir.remove(again).unwrap();
        assert!(!dir.path().exists());
    }

    #[test]
    fn l05_a_network_namespace_has_one_agent() {
        let name = format!("sluice-alone-{}", std::process::id());
        let first = alone(name.as_bytes()).unwrap();
        let root = nix::unistd::geteuid().is_root();
        match alone(name.as_bytes()) {
            Err(LockError::Serving { pid }) => assert!(root && pid == std::process::id().cast_signed()),
            other => assert!(!root && matches!(other, Ok(None)), "nobody but root keeps one away: {other:?}"),
        }
        drop(first);
        assert!(alone(name.as_bytes()).unwrap().is_some());
    }

    #[test]
    fn removing_spares_foreign_files_and_is_idempotent() {
        let dir = scratch("foreign");
        let lock = dir.lock().unwrap();
        let foreign = dir.path().join("notes");
        std::fs::write(&foreign, "keep").unwrap();
        std::fs::write(dir.socket(), "").unwrap();
        dir.remove(lock).unwrap();
        assert!(foreign.exists() && !dir.socket().exists() && !dir.lock_file().exists());
        std::fs::remove_file(foreign).unwrap();
        for _ in 0..2 {
            let lock = dir.lock().unwrap();
            dir.remove(lock).unwrap();
        }
        assert!(!dir.path().exists());
    }

    #[test]
    fn a_run_directory_that_is_a_file_is_an_error_that_names_it() {
        let dir = scratch("file");
        std::fs::write(dir.path(), "").unwrap();
        let error = dir.lock().unwrap_err().to_string();
        std::fs::remove_file(dir.path()).unwrap();
        assert!(error.contains(&dir.path().display().to_string()) && error.contains("--run-dir"), "{error}");
    }
}
