//! Elements of maps as bytes, of maps whose types nobody here knows.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::BorrowedFd;

use super::{Cursor, ElementAttr, address, bpf, cmd, map_info, raw};

/// What becomes of an element that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    Always,
    Never,
}

/// Shows every element of a hash, an array or a trie. One that is added or removed meanwhile may be missing.
pub fn elements(map: BorrowedFd<'_>, mut each: impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    let info = map_info(map)?;
    let (key_size, value_size) = (info.key_size as usize, info.value_size as usize);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let mut cursor = Cursor::new(key_size);
    while let Some(count) = cursor.next(map, |room| {
        keys.resize(room * key_size, 0_u8);
        values.resize(room * value_size, 0_u8);
        (address(keys.as_mut_ptr()), address(values.as_mut_ptr()))
    })? {
        let pairs = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        pairs.take(count).try_for_each(|(key, value)| each(key, value))?;
    }
    Ok(())
}

/// The value of a map's first element, for arrays.
pub fn first_value(map: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let info = map_info(map)?;
    let (key, mut value) = (vec![0_u8; info.key_size as usize], vec![0_u8; info.value_size as usize]);
    let mut attr = ElementAttr {
        map: raw(map),
        key: address(key.as_ptr()),
        value: address(value.as_mut_ptr()),
        ..Default::default()
    };
    bpf(cmd::MAP_LOOKUP_ELEM, &mut attr).map(|_| value)
}

/// Writes elements whose keys and values have the map's sizes.
#[derive(Debug)]
pub struct Writer<'a> {
    map: BorrowedFd<'a>,
    sizes: (usize, usize),
    overwrite: Overwrite,
}

impl<'a> Writer<'a> {
    pub fn new(map: BorrowedFd<'a>, overwrite: Overwrite) -> Result<Self> {
        let info = map_info(map)?;
        Ok(Self { map, sizes: (info.key_size as usize, info.value_size as usize), overwrite })
    }

    /// Room for one value.
    pub fn value(&self) -> Vec<u8> {
        vec![0; self.sizes.1]
    }

    /// Whether it was written.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<bool> {
        if (key.len(), value.len()) != self.sizes {
            return Err(ErrorKind::InvalidInput.into());
        }
        put(self.map, key, value, self.overwrite)
    }
}

fn put(map: BorrowedFd<'_>, key: &[u8], value: &[u8], overwrite: Overwrite) -> Result<bool> {
    const ANY: u64 = 0;
    const NO_EXIST: u64 = 1;
    let flags = if overwrite == Overwrite::Always { ANY } else { NO_EXIST };
    let mut attr = ElementAttr {
        map: raw(map),
        key: address(key.as_ptr()),
        value: address(value.as_ptr()),
        flags,
        ..Default::default()
    };
    match bpf(cmd::MAP_UPDATE_ELEM, &mut attr) {
        Ok(_) => Ok(true),
        // Another is there, or there is no room beside what is.
        Err(error) if overwrite == Overwrite::Never && is_taken(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_taken(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EEXIST | libc::E2BIG))
}
