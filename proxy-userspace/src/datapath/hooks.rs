//! The hooks our programs are attached to, and which of the programs there are ours.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::net::if_::if_nameindex;

use super::error::DatapathError;
use super::sys::{self, ProgramInfo, Target};

/// A program is ours if its name in the kernel starts so.
const PREFIX: &str = "sluice_";

/// One place where a program may be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    /// `enum bpf_attach_type`.
    pub attach_type: u32,
    pub name: &'static str,
}

pub const TC_INGRESS: Hook = Hook { attach_type: 46, name: "tcx ingress" };
pub const TC_EGRESS: Hook = Hook { attach_type: 47, name: "tcx egress" };

/// cgroup hooks, each with its program.
pub const SOCKETS: [(Hook, &str); 8] = [
    (Hook { attach_type: 10, name: "connect4" }, "sluice_connect4"),
    (Hook { attach_type: 11, name: "connect6" }, "sluice_connect6"),
    (Hook { attach_type: 14, name: "sendmsg4" }, "sluice_sendmsg4"),
    (Hook { attach_type: 15, name: "sendmsg6" }, "sluice_sendmsg6"),
    (Hook { attach_type: 19, name: "recvmsg4" }, "sluice_recvmsg4"),
    (Hook { attach_type: 20, name: "recvmsg6" }, "sluice_recvmsg6"),
    (Hook { attach_type: 29, name: "getpeername4" }, "sluice_getpeer4"),
    (Hook { attach_type: 30, name: "getpeername6" }, "sluice_getpeer6"),
];

/// A program of ours that was found attached.
#[derive(Debug)]
pub struct Ours {
    pub info: ProgramInfo,
    pub fd: OwnedFd,
}

/// Programs whose descriptors we hold already, by id: found without CAP_SYS_ADMIN.
pub type Known = HashMap<u32, OwnedFd>;

/// The program with this id if it is ours. A program that may not be looked at is somebody else's: ours are pinned
/// wherever CAP_SYS_ADMIN is missing.
pub fn identify(id: u32, known: &Known) -> io::Result<Option<Ours>> {
    let fd = match known.get(&id) {
        Some(fd) => fd.try_clone()?,
        None => match sys::program_by_id(id) {
            Ok(fd) => fd,
            // Gone since the query, or not ours to open.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPERM)) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        },
    };
    let info = sys::program_info(fd.as_fd())?;
    Ok(info.name.starts_with(PREFIX).then_some(Ours { info, fd }))
}

/// Without CAP_SYS_ADMIN and without pins every program looks like somebody else's: better told than passed over.
pub fn check_sight(known: &Known) -> Result<(), DatapathError> {
    match sys::program_by_id(u32::MAX) {
        Err(source) if source.raw_os_error() == Some(libc::EPERM) && known.is_empty() => {
            Err(DatapathError::not_permitted("look for our programs", source))
        }
        _ => Ok(()),
    }
}

/// Our programs at one hook, in the order in which they run, and how many other programs run before the first of
/// them and after it.
#[derive(Debug, Default)]
pub struct Found {
    pub ours: Vec<Ours>,
    pub before: usize,
    pub after: usize,
    pub revision: u64,
}

/// Looks at one hook.
pub fn look(target: Target<'_>, hook: Hook, known: &Known) -> io::Result<Found> {
    let attached = sys::query(target, hook.attach_type)?;
    let mut found = Found { revision: attached.revision, ..Found::default() };
    for id in attached.programs {
        match identify(id, known)? {
            Some(ours) => found.ours.push(ours),
            None if found.ours.is_empty() => found.before += 1,
            None => found.after += 1,
        }
    }
    Ok(found)
}

/// Name and ifindex of every device in this network namespace.
pub fn devices() -> Result<Vec<(String, u32)>, DatapathError> {
    let failed = |errno: nix::errno::Errno| DatapathError::File {
        operation: "list network devices of",
        path: "/proc/self/ns/net".into(),
        source: errno.into(),
    };
    let interfaces = if_nameindex().map_err(failed)?;
    Ok(interfaces
        .iter()
        .map(|interface| (interface.name().to_string_lossy().into_owned(), interface.index()))
        .collect())
}

/// Detaches every program of ours at one hook. How many.
pub fn clear(target: Target<'_>, hook: Hook, known: &Known) -> Result<usize, DatapathError> {
    clear_some(target, hook, known, |_| true).map(|(taken, _)| taken)
}

/// Detaches those of our programs at one hook that are `chosen`. How many were, and how many were not.
pub fn clear_some(
    target: Target<'_>,
    hook: Hook,
    known: &Known,
    chosen: impl FnMut(&Ours) -> bool,
) -> Result<(usize, usize), DatapathError> {
    let failed = |operation, source| {
        DatapathError::of(operation, source, |source| attach_error(operation, target, hook, source))
    };
    let found = match look(target, hook, known) {
        Ok(found) => found,
        // No tcx on this kernel, or the device is gone: nothing of ours can be here.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => return Ok((0, 0)),
        Err(error) => return Err(failed("look for our programs", error)),
    };
    let (going, staying): (Vec<_>, Vec<_>) = found.ours.into_iter().partition(chosen);
    for ours in &going {
        match sys::detach(target, hook.attach_type, ours.fd.as_fd()) {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
                return Err(failed("detach", error));
            }
            _ => {}
        }
    }
    Ok((going.len(), staying.len()))
}

/// Names the hook and suggests what to do.
pub fn attach_error(
    operation: &'static str,
    target: Target<'_>,
    hook: Hook,
    source: io::Error,
) -> DatapathError {
    let (place, hint) = match (target, source.raw_os_error()) {
        (Target::Device(ifindex), Some(libc::EINVAL)) => (
            format!("{} of device {ifindex}", hook.name),
            "this kernel has no tcx: Linux 6.6 or later is needed",
        ),
        (Target::Device(ifindex), Some(libc::ENODEV)) => {
            (format!("{} of device {ifindex}", hook.name), "the device is gone")
        }
        (Target::Device(ifindex), _) => {
            (format!("{} of device {ifindex}", hook.name), "check for other programs with `bpftool net`")
        }
        (Target::Cgroup(_), Some(libc::EPERM)) => (
            format!("cgroup hook {}", hook.name),
            "a program attached to this cgroup or above it forbids others: name another with --cgroup",
        ),
        (Target::Cgroup(_), _) => {
            (format!("cgroup hook {}", hook.name), "check for other programs with `bpftool cgroup tree`")
        }
    };
    DatapathError::Attach { operation, hook: place, hint, source }
}
