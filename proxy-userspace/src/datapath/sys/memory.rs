//! Shared memory of maps, a private bpffs, and socket options.

use std::ffi::{c_long, c_void};
use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use super::owned;

/// An array map's values, shared with the programs.
#[derive(Debug)]
pub struct Shared {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the memory is only reached as atomics, and lives until drop.
unsafe impl Send for Shared {}

impl Shared {
    /// Maps the first `words` 64-bit words of an array created with BPF_F_MMAPABLE.
    pub fn map(fd: BorrowedFd<'_>, words: usize) -> Result<Self> {
        let length = words * size_of::<AtomicU64>();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| Error::from(std::io::ErrorKind::InvalidData))?;
        Ok(Self { base, words })
    }

    /// The words. Programs read them, nobody else writes them.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: mapped for `words` words until drop, page aligned; foreign access to atomics is no data race.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let length = self.words * size_of::<AtomicU64>();
        // SAFETY: the mapping made in `map`; no borrow of it can outlive self.
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

fn check(result: c_long) -> Result<c_long> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// include/uapi/asm-generic/socket.h.
const SO_NETNS_COOKIE: i32 = 71;

/// Cookie of the network namespace that `socket` is in (Linux 5.14).
pub fn netns_cookie(socket: BorrowedFd<'_>) -> Result<u64> {
    let mut cookie = 0_u64;
    let mut length: libc::socklen_t = 8;
    let into = (&raw mut cookie).cast();
    // SAFETY: getsockopt(2) writes at most `length` bytes into `cookie`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, into, &raw mut length)
    };
    check(result.into()).map(|_| cookie)
}
