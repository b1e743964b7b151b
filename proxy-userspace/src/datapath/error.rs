//! What can go wrong with programs, maps and attachments, told to an operator.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::permission;

/// Each variant names the operation, the object, and the next step.
#[derive(Debug, Error)]
pub enum DatapathError {
    #[error("bpf(2) is not permitted ({operation}): {source}; {remedy}")]
    NotPermitted { operation: &'static str, remedy: &'static str, source: io::Error },

    #[error(
        "this kernel has no bpf(2) or hides it ({operation}): {source}; a kernel built with CONFIG_BPF_SYSCALL is needed, \
         and a seccomp filter that allows bpf"
    )]
    NoBpf { operation: &'static str, source: io::Error },

    #[error("{path}: not a BPF file system; mount one with `mount -t bpf bpf {path}`, or leave --bpffs out")]
    NotBpffs { path: PathBuf },

    #[error(
        "{path}: holds the maps of an agent in another network namespace; give this one a --bpffs of its own, or take \
         them away with `sluice cleanup --bpffs {path}` if that agent is gone"
    )]
    OtherNamespace { path: PathBuf },

    #[error("cannot make a private BPF file system: {source}; give a mounted one with --bpffs")]
    PrivateBpffs { source: io::Error },

    #[error(
        "{path}: not in a cgroup v2 hierarchy; name one with --cgroup, or turn sockets off with --sockets off"
    )]
    NotCgroup2 { path: PathBuf },

    #[error("cannot {operation} {path}: {source}; see that it exists and that its file system is writable")]
    File { operation: &'static str, path: PathBuf, source: io::Error },

    #[error(
        "map {map} found at {place} is {found}, this version needs {needed}; it was not made by this version, remove it \
         with `sluice cleanup` and start again"
    )]
    ForeignMap { map: &'static str, place: String, found: String, needed: String },

    #[error(
        "cannot {operation} map {map}: {source}; check memory limits (RLIMIT_MEMLOCK, cgroup) and the kernel log"
    )]
    Map { operation: &'static str, map: &'static str, source: io::Error },

    #[error("cannot prepare the BPF object on kernel {kernel}: {source}; please report this line")]
    Object { kernel: String, source: Box<aya::EbpfError> },

    #[error(
        "kernel {kernel} refuses program {program}: {source}; verifier: {excerpt}; please report this line with the \
         kernel's name"
    )]
    Refused { program: &'static str, kernel: String, excerpt: String, source: io::Error },

    #[error(
        "cannot read what is remembered of sockets: {source}; a kernel with CONFIG_DEBUG_INFO_BTF and iterators over socket \
         storage (Linux 5.12) is needed"
    )]
    Iterator { source: io::Error },

    #[error("the embedded BPF object has no program {program}; the build is damaged, build again")]
    NoProgram { program: &'static str },

    #[error("cannot {operation} at {hook}: {source}; {hint}")]
    Attach { operation: &'static str, hook: String, hint: &'static str, source: io::Error },
}

impl DatapathError {
    /// Sorts an error of bpf(2) into the kinds that need other help than `otherwise`.
    pub(super) fn of(
        operation: &'static str,
        source: io::Error,
        otherwise: impl FnOnce(io::Error) -> Self,
    ) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::not_permitted(operation, source),
            Some(libc::ENOSYS) => Self::NoBpf { operation, source },
            _ => otherwise(source),
        }
    }

    /// EPERM, with what this process's privileges say about it.
    pub(super) fn not_permitted(operation: &'static str, source: io::Error) -> Self {
        Self::NotPermitted { operation, remedy: permission::remedy(), source }
    }

    /// Whether the object this is about is no longer there: a device that went away meanwhile.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Attach { source, .. } if source.raw_os_error() == Some(libc::ENODEV))
    }
}

/// The kernel's release, for messages.
pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}
