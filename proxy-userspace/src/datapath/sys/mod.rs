//! Raw system calls that the libraries do not offer: bpf(2) without links, shared memory of maps, a private bpffs.
//!
//! This module and its two parts are the agent's only files with `unsafe`. Everything here is safe to call: file descriptors are owned or
//! borrowed, map keys and values are [`Abi`] types, and buffers are sized from the map's own description.

use std::ffi::{CString, c_long};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

mod memory;
mod table;

pub use memory::{Shared, netns_cookie, private_bpffs};
pub use table::Table;

/// Commands of bpf(2), `enum bpf_cmd` (include/uapi/linux/bpf.h).
mod cmd {
    pub const MAP_CREATE: u32 = 0;
    pub const MAP_LOOKUP_ELEM: u32 = 1;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const MAP_DELETE_ELEM: u32 = 3;
    pub const OBJ_PIN: u32 = 6;
    pub const OBJ_GET: u32 = 7;
    pub const PROG_ATTACH: u32 = 8;
    pub const PROG_DETACH: u32 = 9;
    pub const PROG_GET_FD_BY_ID: u32 = 13;
    pub const MAP_GET_FD_BY_ID: u32 = 14;
    pub const OBJ_GET_INFO_BY_FD: u32 = 15;
    pub const PROG_QUERY: u32 = 16;
    pub const MAP_LOOKUP_BATCH: u32 = 24;
    pub const MAP_UPDATE_BATCH: u32 = 26;
    pub const MAP_DELETE_BATCH: u32 = 27;
}

/// Flags of PROG_ATTACH.
pub mod attach_flags {
    pub const ALLOW_MULTI: u32 = 1 << 1;
    pub const REPLACE: u32 = 1 << 2;
    pub const BEFORE: u32 = 1 << 3;
    pub const AFTER: u32 = 1 << 4;
}

fn bpf<T>(command: u32, attributes: &mut T) -> Result<c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a repr(C) prefix of `union bpf_attr`, readable and writable for `size` bytes; pointers
    // inside are made by this file from live borrows that outlast the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_long) -> Result<OwnedFd> {
    let fd = i32::try_from(result).map_err(|_| Error::from(ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just returned this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>().addr() as u64
}

// --- objects -------------------------------------------------------------------------------------------------

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

fn c_path(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::from(ErrorKind::InvalidInput))
}

/// Pins a map or program at `path`, which must not exist.
pub fn pin(fd: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let path = c_path(path)?;
    bpf(cmd::OBJ_PIN, &mut ObjectAttr { pathname: address(path.as_ptr()), fd: raw(fd), file_flags: 0 })
        .map(drop)
}

/// Opens what is pinned at `path`.
pub fn open_pin(path: &Path) -> Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(cmd::OBJ_GET, &mut ObjectAttr { pathname: address(path.as_ptr()), ..Default::default() })
        .and_then(owned)
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// Opens a program by its id. Needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> Result<OwnedFd> {
    bpf(cmd::PROG_GET_FD_BY_ID, &mut IdAttr { id, ..Default::default() }).and_then(owned)
}

/// Opens a map by its id. Needs CAP_SYS_ADMIN.
pub fn map_by_id(id: u32) -> Result<OwnedFd> {
    bpf(cmd::MAP_GET_FD_BY_ID, &mut IdAttr { id, ..Default::default() }).and_then(owned)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn object_info<T>(fd: BorrowedFd<'_>, info: &mut T) -> Result<()> {
    let len = u32::try_from(size_of::<T>()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    bpf(cmd::OBJ_GET_INFO_BY_FD, &mut InfoAttr { fd: raw(fd), len, info: address(info) }).map(drop)
}

fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned()
}

/// First part of `struct bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    created_by_uid: u32,
    map_id_count: u32,
    map_ids: u64,
    name: [u8; 16],
}

/// What the kernel says about a loaded program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramInfo {
    pub id: u32,
    /// At most 15 bytes.
    pub name: String,
    pub maps: Vec<u32>,
}

/// Describes a program.
pub fn program_info(fd: BorrowedFd<'_>) -> Result<ProgramInfo> {
    let mut maps = vec![0_u32; 128];
    let mut info =
        RawProgramInfo { map_id_count: 128, map_ids: address(maps.as_ptr()), ..Default::default() };
    object_info(fd, &mut info)?;
    maps.truncate(info.map_id_count as usize);
    Ok(ProgramInfo { id: info.id, name: name_of(&info.name), maps })
}

/// First part of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// What the kernel says about a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapInfo {
    /// `enum bpf_map_type`.
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    pub name: String,
}

/// Describes a map.
pub fn map_info(fd: BorrowedFd<'_>) -> Result<MapInfo> {
    let mut raw = RawMapInfo::default();
    object_info(fd, &mut raw)?;
    let RawMapInfo { kind, id, key_size, value_size, max_entries, flags, name } = raw;
    Ok(MapInfo { kind, id, key_size, value_size, max_entries, flags, name: name_of(&name) })
}

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

/// Makes an array map of `entries` values of `value_size` bytes.
pub fn create_array(value_size: u32, entries: u32) -> Result<OwnedFd> {
    const ARRAY: u32 = 2;
    let mut attr = CreateAttr {
        kind: ARRAY,
        key_size: 4,
        value_size,
        max_entries: entries,
        name: *b"SLOTS_CHUNK\0\0\0\0\0",
        ..Default::default()
    };
    bpf(cmd::MAP_CREATE, &mut attr).and_then(owned)
}

// --- attachment ----------------------------------------------------------------------------------------------

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
            ids: address(ids.as_ptr()),
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
