//! BPF iterators over one map.

use std::fs::File;
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};

use super::{address, bpf, cmd, owned, raw};

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    info: u64,
    info_length: u32,
    pad: u32,
}

#[repr(C)]
struct IterAttr {
    link: u32,
    flags: u32,
}

/// What `program`, an iterator over maps, writes about the elements of `map`. Each read runs it.
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> Result<File> {
    const TRACE_ITER: u32 = 28;
    let info = raw(map);
    let mut attr = LinkAttr {
        program: raw(program),
        attach_type: TRACE_ITER,
        info: address(&raw const info),
        info_length: 4,
        ..Default::default()
    };
    let link = bpf(cmd::LINK_CREATE, &mut attr).and_then(owned)?;
    let mut attr = IterAttr { link: raw(link.as_fd()), flags: 0 };
    // The file keeps the link.
    bpf(cmd::ITER_CREATE, &mut attr).and_then(owned).map(File::from)
}
