//! Elements of maps, one by one and in batches.

use std::io::{Error, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use proxy_common::abi::Abi;

use super::{address, bpf, cmd, map_info, raw};

#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map, known to hold keys `K` and values `V`.
#[derive(Debug)]
pub struct Table<K, V> {
    fd: OwnedFd,
    max_entries: u32,
    types: std::marker::PhantomData<fn(K) -> V>,
}

impl<K: Abi, V: Abi> Table<K, V> {
    /// Takes `fd` if the map's sizes are those of the types.
    pub fn new(fd: OwnedFd) -> Result<Self> {
        let () = K::CHECKED;
        let () = V::CHECKED;
        let info = map_info(fd.as_fd())?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(Error::from(std::io::ErrorKind::InvalidData));
        }
        Ok(Self { fd, max_entries: info.max_entries, types: std::marker::PhantomData })
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

    /// The value at `key` of a map that has one value an element.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match bpf(cmd::MAP_LOOKUP_ELEM, &mut self.element(key, address(value.as_mut_ptr()))) {
            // SAFETY: the kernel wrote `value_size` bytes, which `new` compared; every bit pattern is a V.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The values of all `cpus` possible CPUs, for a per-CPU map.
    pub fn get_per_cpu(&self, key: &K, cpus: usize) -> Result<Vec<V>> {
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
        if keys.len() != values.len() {
            return Err(Error::from(std::io::ErrorKind::InvalidInput));
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

    /// Every element of a hash map. An element that is added or removed meanwhile may be missing.
    pub fn dump(&self) -> Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        let (mut position, mut next) = (0_u32, 0_u32);
        let mut first = true;
        let mut room = 1024_usize;
        loop {
            let mut keys: Vec<K> = Vec::with_capacity(room);
            let mut values: Vec<V> = Vec::with_capacity(room);
            let mut attr = BatchAttr {
                input: if first { 0 } else { address(&raw const position) },
                output: address(&raw mut next),
                keys: address(keys.as_mut_ptr()),
                values: address(values.as_mut_ptr()),
                count: u32::try_from(room).unwrap_or(u32::MAX),
                map: raw(self.fd()),
                ..Default::default()
            };
            let result = bpf(cmd::MAP_LOOKUP_BATCH, &mut attr).map_err(|error| error.raw_os_error());
            // A bucket holds more than fits: the same position again with more room.
            if result == Err(Some(libc::ENOSPC)) {
                room *= 2;
                continue;
            }
            if !matches!(result, Ok(_) | Err(Some(libc::ENOENT))) {
                return Err(Error::from_raw_os_error(result.err().flatten().unwrap_or(libc::EIO)));
            }
            let count = (attr.count as usize).min(room);
            // SAFETY: the kernel wrote `count` keys, at most the capacity; every bit pattern is a K.
            unsafe { keys.set_len(count) };
            // SAFETY: as above, for values.
            unsafe { values.set_len(count) };
            found.extend(keys.into_iter().zip(values));
            if result.is_err() {
                return Ok(found);
            }
            position = next;
            first = false;
        }
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
