//! Programs and maps as objects: pins, ids, descriptions.

use std::ffi::CString;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::{address, bpf, cmd, owned, raw};

#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 2],
    log_buffer: u64,
    kernel: u32,
    flags: u32,
}

/// Has the verifier look at instructions of a program of tc.
pub fn try_classifier(instructions: &[u64]) -> Result<()> {
    const SCHED_CLS: u32 = 3;
    let license = c"GPL";
    let mut attr = LoadAttr {
        kind: SCHED_CLS,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: address(instructions.as_ptr()),
        license: address(license.as_ptr()),
        ..Default::default()
    };
    bpf(cmd::PROG_LOAD, &mut attr).and_then(owned).map(drop)
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
    bpf(cmd::OBJ_GET_INFO_BY_FD, &mut InfoAttr { fd: raw(fd), len, info: address(std::ptr::from_mut(info)) })
        .map(drop)
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
        RawProgramInfo { map_id_count: 128, map_ids: address(maps.as_mut_ptr()), ..Default::default() };
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

/// What a map is to look like.
#[derive(Clone, Copy, Debug)]
pub struct MapShape {
    /// `enum bpf_map_type`.
    pub kind: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
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

/// Makes a map of a type in `enum bpf_map_type`.
pub fn create_map(name: &str, shape: MapShape) -> Result<OwnedFd> {
    let MapShape { kind, key_size, value_size, max_entries, flags } = shape;
    let mut attr = CreateAttr { kind, key_size, value_size, max_entries, flags, ..Default::default() };
    // Its last byte stays zero.
    let length = attr.name.len() - 1;
    attr.name[..length].iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bpf(cmd::MAP_CREATE, &mut attr).and_then(owned)
}
