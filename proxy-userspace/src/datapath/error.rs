//! What can go wrong with programs, maps and attachments, told to an operator.

use std::io;
use std::path::PathBuf;

use aya::programs::ProgramError;
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

    #[error("{path}, where a map of the running data plane was pinned, is gone; restart the agent")]
    PinGone { path: PathBuf },

    #[error("{path}: other maps are pinned there than those of the running data plane; restart the agent")]
    OtherPins { path: PathBuf },

    #[error("{path} is a directory, where a map or a program should be pinned; remove it and start again")]
    NoPin { path: PathBuf },

    #[error("cannot {operation} map {map}: {source}; {}", lack(source))]
    Map { operation: &'static str, map: &'static str, source: io::Error },

    #[error("cannot prepare the BPF object on kernel {kernel}: {source}; please report this line")]
    Object { kernel: String, source: Box<aya::EbpfError> },

    #[error(
        "kernel {kernel} refuses program {program}: {source}; its verifier says: {excerpt}; please report this line; until \
         then run another version of Sluice or of the kernel"
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

    /// Of a program that the kernel does not take: a verifier that has something to say has refused it, with whatever number;
    /// whoever refuses bpf(2) itself, a missing capability or a security module, does so before it or instead of it.
    pub(super) fn refused(program: &'static str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError { io_error, verifier_log } => {
                Self::not_loaded(program, io_error, &verifier_log.to_string())
            }
            other => Self::Object { kernel: kernel_release(), source: Box::new(other.into()) },
        }
    }

    fn not_loaded(program: &'static str, source: io::Error, log: &str) -> Self {
        let refused =
            |source| Self::Refused { program, kernel: kernel_release(), excerpt: excerpt(log), source };
        match log.trim() {
            "" => Self::of("load programs", source, refused),
            _ => refused(source),
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

/// First line and last three of a verifier log, in one line.
fn excerpt(log: &str) -> String {
    // Statistics stand behind the reason.
    let told = |line: &&str| {
        !line.is_empty() && !line.starts_with("verification time") && !line.starts_with("stack depth")
    };
    let lines: Vec<&str> = log.lines().map(str::trim).filter(told).collect();
    match lines.as_slice() {
        [] => "no log".into(),
        few if few.len() <= 4 => few.join(" | "),
        [first, .., a, b, c] => format!("{first} | ... | {a} | {b} | {c}"),
        few => few.join(" | "),
    }
}

/// The kernel's release, for messages.
pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

/// What to do about a map that cannot be made or written.
fn lack(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::E2BIG) => "it is full: give it more room with --limits, or --flows, and start again",
        _ => "check memory limits (RLIMIT_MEMLOCK, cgroup) and the kernel log",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_cut_to_one_line() {
        for (log, want) in [
            ("", "no log"),
            ("0: (b7) r0 = 0\nR1 invalid", "0: (b7) r0 = 0 | R1 invalid"),
            ("a\nb\n\nc\nd\ne\nf\n", "a | ... | d | e | f"),
            (
                "a\nb\nc\nd\nverification time 5 usec\nstack depth 8+0\nprocessed 9",
                "a | ... | c | d | processed 9",
            ),
        ] {
            assert_eq!(excerpt(log), want);
        }
    }

    #[test]
    fn a_verifiers_refusal_is_told_from_everybody_elses() {
        const LOG: &str = "0: (61) r2 = *(u32 *)(r1 +4)\nR2 invalid mem access 'scalar'\nprocessed 1 insns\n";
        const VERIFIER: &[&str] = &[
            "refuses program sluice_ingress",
            "R2 invalid mem access",
            "report this line",
            "another version",
        ];
        let cases: [(&str, i32, &str, &[&str], &str); 6] = [
            ("the verifier, as it mostly does", libc::EACCES, LOG, VERIFIER, "lockdown"),
            ("the verifier, of what is privileged", libc::EPERM, LOG, VERIFIER, "lockdown"),
            ("the verifier, of what it does not know", libc::EINVAL, LOG, VERIFIER, "lockdown"),
            ("a security module", libc::EACCES, "", &["not permitted (load programs)"], "verifier"),
            (
                "a capability, lockdown, seccomp",
                libc::EPERM,
                " \n",
                &["not permitted (load programs)"],
                "verifier",
            ),
            ("seccomp", libc::ENOSYS, "", &["no bpf(2) or hides it (load programs)"], "verifier"),
        ];
        for (name, number, log, want, not) in cases {
            let source = io::Error::from_raw_os_error(number);
            let told = DatapathError::not_loaded("sluice_ingress", source, log).to_string();
            for part in want {
                assert!(told.contains(part), "{name}: {part} is missing in {told}");
            }
            assert!(!told.contains(not) && !told.contains('\n'), "{name}: {told}");
        }
    }
}
