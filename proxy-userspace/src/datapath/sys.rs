//! Raw system calls that the libraries do not offer: bpf(2) without links, shared memory of maps, a private bpffs.
//!
//! The agent's only file with `unsafe`; its parts build on it without. Everything here is safe to call: file
//! descriptors are owned or borrowed, map keys and values are [`Abi`] types, and buffers are sized from the map's own
//! description.

mod attachment;
mod iterator;
mod objects;
mod raw;

use std::ffi::{c_long, c_void};
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use proxy_common::abi::Abi;

pub use attachment::{Target, attach, attach_flags, detach, query};
pub use iterator::iterate;
pub use objects::{
    MapInfo, MapShape, ProgramInfo, create_map, map_by_id, map_info, open_pin, pin, program_by_id,
    program_info, try_classifier,
};
pub use raw::{Overwrite, Writer, elements, first_value};

/// Commands of bpf(2), `enum bpf_cmd` (include/uapi/linux/bpf.h).
mod cmd {
    pub const MAP_CREATE: u32 = 0;
    pub const MAP_LOOKUP_ELEM: u32 = 1;
    pub const MAP_UPDATE_ELEM: u32 = 2;
    pub const MAP_DELETE_ELEM: u32 = 3;
    pub const PROG_LOAD: u32 = 5;
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
    pub const LINK_CREATE: u32 = 28;
    pub const ITER_CREATE: u32 = 33;
}

fn bpf<T>(command: u32, attributes: &mut T) -> Result<c_long> {
    let size = size_of::<T>();
    // SAFETY: `attributes` is a repr(C) prefix of `union bpf_attr`, readable and writable for `size` bytes; pointers
    // inside are made by this module from live borrows that outlast the call.
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

/// A value that the kernel has handed out as bytes; `None` if it is not the size of a `V`.
pub fn decode<V: Abi>(bytes: &[u8]) -> Option<V> {
    let () = V::CHECKED;
    let whole = bytes.len() == size_of::<V>();
    // SAFETY: `bytes` is as long as a V, and every bit pattern is one.
    whole.then(|| unsafe { bytes.as_ptr().cast::<V>().read_unaligned() })
}

fn address<T: ?Sized>(of: *const T) -> u64 {
    of.cast::<u8>().expose_provenance() as u64
}

// --- elements of maps ---

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `enum bpf_map_type`: per-CPU hash, array and LRU hash.
const PER_CPU: [u32; 3] = [5, 6, 10];

/// A map, known to hold keys `K` and values `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    /// One value for each possible CPU: the kernel writes more than a `V`.
    per_cpu: bool,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Abi, V: Abi> Table<K, V> {
    /// Takes `fd` if the map's sizes are those of the types.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let () = K::CHECKED;
        let () = V::CHECKED;
        let info = map_info(fd.as_fd())?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(Error::from(ErrorKind::InvalidData));
        }
        let per_cpu = PER_CPU.contains(&info.kind);
        Ok(Self { fd, max_entries: info.max_entries, per_cpu, types: std::marker::PhantomData })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub const fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn element(&self, key: &K, value: u64) -> ElementAttr {
        ElementAttr { map: raw(self.fd()), key: address(key), value, ..Default::default() }
    }

    fn expect_per_cpu(&self, per_cpu: bool) -> Result<()> {
        if self.per_cpu == per_cpu { Ok(()) } else { Err(Error::from(ErrorKind::InvalidInput)) }
    }

    /// The value at `key` of a map that has one value an element.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        self.expect_per_cpu(false)?;
        let mut value = MaybeUninit::<V>::uninit();
        match bpf(cmd::MAP_LOOKUP_ELEM, &mut self.element(key, address(value.as_mut_ptr()))) {
            // SAFETY: the kernel wrote `value_size` bytes, which `new` compared; every bit pattern is a V.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The values of all possible CPUs, of a per-CPU map.
    pub fn get_per_cpu(&self, key: &K) -> Result<Vec<V>> {
        self.expect_per_cpu(true)?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        let stride = size_of::<V>().next_multiple_of(8);
        let mut bytes = vec![0_u64; stride / 8 * cpus];
        bpf(cmd::MAP_LOOKUP_ELEM, &mut self.element(key, address(bytes.as_mut_ptr())))?;
        let value = |words: &[u64]| {
            // SAFETY: `words` is `stride` initialised bytes, at least a V; every bit pattern is a V.
            unsafe { words.as_ptr().cast::<V>().read_unaligned() }
        };
        Ok(bytes.chunks_exact(stride / 8).map(value).collect())
    }

    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        self.expect_per_cpu(false)?;
        bpf(cmd::MAP_UPDATE_ELEM, &mut self.element(key, address(value))).map(drop)
    }

    /// Whether there was something to remove.
    pub fn remove(&self, key: &K) -> Result<bool> {
        match bpf(cmd::MAP_DELETE_ELEM, &mut self.element(key, 0)) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes `keys.len()` elements in few system calls. On error the number written is unknown.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> Result<()> {
        self.expect_per_cpu(false)?;
        if keys.len() != values.len() {
            return Err(Error::from(ErrorKind::InvalidInput));
        }
        if let ([key], [value]) = (keys, values) {
            return self.set(key, value);
        }
        self.batch(cmd::MAP_UPDATE_BATCH, keys, address(values.as_ptr()))
    }

    /// Removes keys that are known to exist; on error the number removed is unknown.
    pub fn remove_all(&self, keys: &[K]) -> Result<()> {
        self.batch(cmd::MAP_DELETE_BATCH, keys, 0)
    }

    fn batch(&self, command: u32, keys: &[K], values: u64) -> Result<()> {
        let Ok(count @ 1..) = u32::try_from(keys.len()) else { return Ok(()) };
        let mut attr = BatchAttr {
            keys: address(keys.as_ptr()),
            values,
            count,
            map: raw(self.fd()),
            ..Default::default()
        };
        bpf(command, &mut attr).map(drop)
    }

    /// Every element of a hash map, an array or a trie. An element that is added or removed meanwhile may be missing.
    pub fn dump(&self) -> Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        self.scan(|keys, values| found.extend(keys.iter().copied().zip(values.iter().copied())))?;
        Ok(found)
    }

    /// How many elements there are. No memory is needed for it, but time.
    pub fn count(&self) -> Result<u64> {
        let mut count = 0;
        self.scan(|keys, _| count += keys.len() as u64)?;
        Ok(count)
    }

    fn scan(&self, mut each: impl FnMut(&[K], &[V])) -> Result<()> {
        self.expect_per_cpu(false)?;
        let (mut keys, mut values): (Vec<K>, Vec<V>) = (Vec::new(), Vec::new());
        let mut cursor = Cursor::new(size_of::<K>());
        while let Some(count) = cursor.next(self.fd(), |room| {
            keys.clear();
            values.clear();
            keys.reserve_exact(room);
            values.reserve_exact(room);
            (address(keys.as_mut_ptr()), address(values.as_mut_ptr()))
        })? {
            // SAFETY: the kernel wrote `count` keys, at most the capacity; every bit pattern is a K.
            unsafe { keys.set_len(count) };
            // SAFETY: as above, for values.
            unsafe { values.set_len(count) };
            each(&keys, &values);
        }
        Ok(())
    }
}

/// How far the elements of a hash, an array or a trie have been read.
struct Cursor {
    /// A bucket's number; where there are no buckets, a key. `None`: the beginning.
    position: Option<Vec<u64>>,
    next: Vec<u64>,
    /// Elements asked for at once.
    room: usize,
    ended: bool,
}

impl Cursor {
    fn new(key_size: usize) -> Self {
        let next = vec![0; key_size.div_ceil(8).max(1)];
        Self { position: None, next, room: 1024, ended: false }
    }

    /// Reads more elements to where `place` has room for so many keys and values. How many: none at all may be some.
    fn next(
        &mut self,
        map: BorrowedFd<'_>,
        mut place: impl FnMut(usize) -> (u64, u64),
    ) -> Result<Option<usize>> {
        while !self.ended {
            let (keys, values) = place(self.room);
            let mut attr = BatchAttr {
                input: self.position.as_ref().map_or(0, |position| address(position.as_ptr())),
                output: address(self.next.as_mut_ptr()),
                keys,
                values,
                count: u32::try_from(self.room).unwrap_or(u32::MAX),
                map: raw(map),
                ..Default::default()
            };
            match bpf(cmd::MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.ended = true,
                // A bucket holds more than fits: the same position again with more room.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    self.room *= 2;
                    continue;
                }
                Err(error) => return Err(error),
            }
            self.position.get_or_insert_default().clone_from(&self.next);
            return Ok(Some((attr.count as usize).min(self.room)));
        }
        Ok(None)
    }
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    input: u64,
    output: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

// --- memory, files, sockets ---

/// Mappings begin at a page. In words; the pages of all architectures that the agent is built for divide it.
const ALIGNED: usize = 65_536 / size_of::<AtomicU64>();

/// Some of an array map's values, shared with the programs, as 64-bit words. What is mapped counts as the process's memory.
#[derive(Debug)]
pub struct Window {
    base: NonNull<AtomicU64>,
    /// How many words are mapped.
    length: usize,
    /// How many of these come before those that were asked for.
    before: usize,
    /// The place in the array of the first one that was asked for.
    first: usize,
}

// SAFETY: the memory is only reached as atomics, and lives until drop.
unsafe impl Send for Window {}

// SAFETY: as above; atomics may be reached from many threads.
unsafe impl Sync for Window {}

impl Window {
    /// Maps these words of an array created with BPF_F_MMAPABLE, and the rest of their pages.
    pub fn open(fd: BorrowedFd<'_>, words: Range<usize>) -> Result<Self> {
        let (first, before) = (words.start, words.start % ALIGNED);
        let length = before + words.len();
        let offset = (first - before) * size_of::<AtomicU64>();
        let offset = offset.try_into().map_err(|_| Error::from(ErrorKind::InvalidInput))?;
        let (bytes, protection) = (length * size_of::<AtomicU64>(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset)
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
        Ok(Self { base, length, before, first })
    }

    /// Those that were asked for. Programs read them, nobody else writes them.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for so many words until drop, page aligned; foreign access to atomics is no data race.
        let mapped = unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.length) };
        mapped.get(self.before..).unwrap_or_default()
    }

    /// One word, by its place in the array.
    pub fn word(&self, at: usize) -> Option<&AtomicU64> {
        self.words().get(at.checked_sub(self.first)?)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let length = self.length * size_of::<AtomicU64>();
        // SAFETY: the mapping made in `open`; no borrow of it can outlive self.
        unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), length) };
    }
}

/// A bpffs that is mounted nowhere: seen through the descriptor alone, gone when that is closed. Needs
/// CAP_SYS_ADMIN and Linux 5.2.
pub fn private_bpffs() -> Result<OwnedFd> {
    // SAFETY: fsopen(2) with a C string.
    let context = owned(check(unsafe { libc::syscall(libc::SYS_fsopen, c"bpf".as_ptr(), 1) })?)?;
    let (fd, null) = (context.as_raw_fd(), std::ptr::null::<c_void>());
    const CMD_CREATE: u32 = 6;
    // SAFETY: fsconfig(2) on the context above; this command takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, CMD_CREATE, null, null, 0) })?;
    // SAFETY: fsmount(2) with FSMOUNT_CLOEXEC.
    owned(check(unsafe { libc::syscall(libc::SYS_fsmount, fd, 1, 0) })?)
}

/// Keeps all threads' memory in one heap, where what one gives back serves another. To be called before there are threads.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) with a parameter that it knows.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that is not in use back to the kernel.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn check(result: c_long) -> Result<c_long> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: i32 = 71;

/// Cookie of the network namespace that `socket` is in (Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> Result<u64> {
    let mut cookie = [0; 8];
    socket_option(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, &mut cookie)?;
    Ok(u64::from_ne_bytes(cookie))
}

/// getsockopt(2) of an option that reads and writes plain bytes. How many were written.
pub fn socket_option(socket: BorrowedFd<'_>, level: i32, option: i32, bytes: &mut [u8]) -> Result<usize> {
    let mut length = libc::socklen_t::try_from(bytes.len()).map_err(Error::other)?;
    let into = bytes.as_mut_ptr().cast();
    // SAFETY: getsockopt(2) reads and writes at most `length` bytes at `bytes`.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, into, &raw mut length) };
    check(result.into()).map(|_| length as usize)
}
