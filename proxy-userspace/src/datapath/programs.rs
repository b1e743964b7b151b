//! The programs that an agent has: loaded, or an earlier agent's that are the same. Verifying them is most of what a start
//! takes, and what stays attached is not even replaced.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::programs::{Program, ProgramError};

use super::error::DatapathError;
use super::hooks::Known;
use super::pins::{self, Pins};
use super::sys;

/// What programs are made of: the object, its globals, and the very maps that it is loaded over. Of one name and one make,
/// programs are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Make(u64);

impl Make {
    pub fn of(parts: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        parts.hash(&mut hasher);
        Self(hasher.finish())
    }

    /// How the name of such a program's pin begins.
    fn prefix(self, name: &str) -> String {
        format!("{name}-{:016x}-", self.0)
    }
}

/// See the module.
#[derive(Debug)]
pub struct Programs {
    /// All that this and earlier agents have pinned or loaded, by id.
    pub known: Known,
    /// What the ones that are loaded are made of.
    pub make: Make,
    /// Ids of those that have been required: loaded, or an earlier agent's.
    own: HashMap<&'static str, u32>,
    /// Pins of earlier agents' programs, with what tells them apart.
    earlier: Vec<(PathBuf, sys::ProgramInfo)>,
}

impl Programs {
    /// `earlier`: what is pinned, here and in directories of other layouts.
    pub fn new(make: Make, earlier: Vec<(PathBuf, OwnedFd)>) -> Result<Self, DatapathError> {
        let mut programs = Self { known: Known::new(), make, own: HashMap::new(), earlier: Vec::new() };
        for (path, fd) in earlier {
            let failed = |source| DatapathError::File { operation: "read pin", path: path.clone(), source };
            let info = sys::program_info(fd.as_fd()).map_err(failed)?;
            programs.known.insert(info.id, fd);
            programs.earlier.push((path, info));
        }
        Ok(programs)
    }

    /// One that has been required.
    pub fn get(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.own.get(name).and_then(|id| self.known.get(id)).map(AsFd::as_fd)
    }

    /// Sees to it that these are there: the same ones that an earlier agent has pinned, or else those of `object`, loaded and
    /// pinned. The object is let go: parsed, it takes several megabytes.
    pub fn require(
        &mut self,
        pins: &Pins,
        names: &[&'static str],
        object: impl FnOnce(Make) -> Result<Ebpf, DatapathError>,
    ) -> Result<(), DatapathError> {
        let mut missing = names.to_vec();
        missing.retain(|name| self.get(name).is_none() && !self.go_on_with(name));
        if missing.is_empty() {
            return Ok(());
        }
        let mut kept = Vec::new();
        let done = load_and_pin(
            &mut object(self.make)?,
            &missing,
            pins,
            Some(self.make),
            &mut self.known,
            &mut kept,
        );
        self.own.extend(kept.into_iter().map(|kept| (kept.name, kept.id)));
        done
    }

    fn go_on_with(&mut self, name: &'static str) -> bool {
        let prefix = self.make.prefix(name);
        let same = |(path, info): &(PathBuf, sys::ProgramInfo)| {
            info.name == name
                && path.file_name().is_some_and(|pin| pin.to_string_lossy().starts_with(&prefix))
        };
        let Some(at) = self.earlier.iter().position(same) else { return false };
        let (_, info) = self.earlier.swap_remove(at);
        self.own.insert(name, info.id);
        true
    }

    /// Takes the pins away of those of earlier agents that were not required. How many.
    pub fn unpin_earlier(&mut self) -> Result<usize, DatapathError> {
        let earlier = std::mem::take(&mut self.earlier);
        earlier.iter().try_for_each(|(path, _)| pins::unlink(path))?;
        Ok(earlier.len())
    }

    /// Closes those that are neither this agent's nor `carried` by a hook: the kernel keeps a program, and the maps that only it
    /// uses, for as long as a descriptor is open.
    pub fn let_go(&mut self, carried: impl Iterator<Item = u32>) {
        let needed: HashSet<u32> = self.own.values().copied().chain(carried).collect();
        self.known.retain(|id, _| needed.contains(id));
    }
}

/// A program that was loaded, among the known ones by its id.
#[derive(Debug)]
pub struct Kept {
    pub name: &'static str,
    pub id: u32,
    pub pin: PathBuf,
}

/// Loads these programs of `ebpf`, remembers them, and pins them where pins outlive us: a later agent that lacks CAP_SYS_ADMIN
/// cannot open them by id, but needs them to replace them. With a `make`, it may also go on with them. What has been `kept` is told also
/// where it ends in an error.
pub fn load_and_pin(
    ebpf: &mut Ebpf,
    names: &[&'static str],
    pins: &Pins,
    make: Option<Make>,
    known: &mut Known,
    kept: &mut Vec<Kept>,
) -> Result<(), DatapathError> {
    load_programs(ebpf, names)?;
    for &name in names {
        let fd = ebpf.program(name).and_then(|program| program.fd().ok());
        let fd = fd.ok_or(DatapathError::NoProgram { program: name })?.as_fd();
        let failed =
            |source| DatapathError::File { operation: "describe program", path: name.into(), source };
        let id = sys::program_info(fd).map_err(failed)?.id;
        known.insert(id, fd.try_clone_to_owned().map_err(failed)?);
        let prefix = make.map_or_else(|| format!("{name}-"), |make| make.prefix(name));
        let pin = pins.program(&prefix, id);
        if !pins.is_private() {
            Pins::put(fd, &pin)?;
        }
        kept.push(Kept { name, id, pin });
    }
    Ok(())
}

/// Hands programs to the kernel, those that have not been, on all CPUs: verifying them is most of what a start takes. What takes longest
/// should be named first: begun first, it is ready with the others.
pub fn load_programs(ebpf: &mut Ebpf, names: &[&'static str]) -> Result<(), DatapathError> {
    for name in names {
        ebpf.program(name).ok_or(DatapathError::NoProgram { program: name })?;
    }
    let mut programs: Vec<_> = ebpf
        .programs_mut()
        .filter_map(|(found, program)| Some((names.iter().position(|name| *name == found)?, program)))
        .collect();
    programs.sort_unstable_by_key(|(place, _)| *place);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(programs.len());
    let queue = Mutex::new(programs.into_iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((place, program)) = next() {
            load_program(names[place], program)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let loading: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let joined = loading
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.collect()
    })
}

fn load_program(name: &'static str, program: &mut Program) -> Result<(), DatapathError> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        _ => return Err(DatapathError::NoProgram { program: name }),
    };
    match loaded {
        Err(error) if !matches!(error, ProgramError::AlreadyLoaded) => {
            Err(DatapathError::refused(name, error))
        }
        _ => Ok(()),
    }
}
