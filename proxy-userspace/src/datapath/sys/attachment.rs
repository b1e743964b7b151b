//! Attachment without links (`BPF_PROG_ATTACH`), and what is attached.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::BorrowedFd;

use super::{address, bpf, cmd, raw};

/// Flags of PROG_ATTACH.
pub mod attach_flags {
    pub const ALLOW_MULTI: u32 = 1 << 1;
    pub const REPLACE: u32 = 1 << 2;
    pub const BEFORE: u32 = 1 << 3;
    pub const AFTER: u32 = 1 << 4;
}

/// Where programs are attached.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// tcx of the device with this ifindex in the caller's network namespace.
    Device(u32),
    /// A directory of cgroup v2.
    Cgroup(BorrowedFd<'a>),
}

impl Target<'_> {
    fn number(self) -> u32 {
        match self {
            Self::Device(ifindex) => ifindex,
            Self::Cgroup(fd) => raw(fd),
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replace: u32,
    relative: u32,
    expected_revision: u64,
}

/// Attaches `program` without a link. `replaced` takes the place of a program attached before (add
/// [`attach_flags::REPLACE`]). A `revision` that is not the current one gives ESTALE; 0: any.
pub fn attach(
    target: Target<'_>,
    attach_type: u32,
    program: BorrowedFd<'_>,
    flags: u32,
    replaced: Option<BorrowedFd<'_>>,
    revision: u64,
) -> Result<()> {
    let mut attr = AttachAttr {
        target: target.number(),
        program: raw(program),
        attach_type,
        flags,
        replace: replaced.map_or(0, raw),
        relative: 0,
        expected_revision: revision,
    };
    bpf(cmd::PROG_ATTACH, &mut attr).map(drop)
}

/// Detaches `program`.
pub fn detach(target: Target<'_>, attach_type: u32, program: BorrowedFd<'_>) -> Result<()> {
    let mut attr =
        AttachAttr { target: target.number(), program: raw(program), attach_type, ..Default::default() };
    bpf(cmd::PROG_DETACH, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    id_flags: u64,
    link_ids: u64,
    link_flags: u64,
    revision: u64,
}

/// Programs at one hook, in the order in which they run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attached {
    pub programs: Vec<u32>,
    /// 0 on kernels that do not count.
    pub revision: u64,
}

/// Programs attached at `target` itself, not at its ancestors.
pub fn query(target: Target<'_>, attach_type: u32) -> Result<Attached> {
    let mut ids = vec![0_u32; 64];
    loop {
        let count = u32::try_from(ids.len()).map_err(|_| Error::from(ErrorKind::InvalidData))?;
        let mut attr = QueryAttr {
            target: target.number(),
            attach_type,
            ids: address(ids.as_mut_ptr()),
            count,
            ..Default::default()
        };
        match bpf(cmd::PROG_QUERY, &mut attr) {
            Ok(_) => {
                ids.truncate(attr.count as usize);
                return Ok(Attached { programs: ids, revision: attr.revision });
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && ids.len() < 65_536 => {
                ids.resize(ids.len() * 2, 0);
            }
            Err(error) => return Err(error),
        }
    }
}
