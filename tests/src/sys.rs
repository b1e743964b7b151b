//! What the laboratory needs from the kernel that has no safe wrapper. The only `unsafe` of this crate.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes a descriptor that was just received in a control message.
///
/// The caller hands over a number that the kernel has made for this message and that nobody else owns.
#[must_use]
pub fn adopt(received: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed this descriptor for the message it came in; the caller owns it alone.
    unsafe { OwnedFd::from_raw_fd(received) }
}

/// A map key or value on its way through aya.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Wire<T>(pub T);

// SAFETY: `Abi` types are integers without padding; the wrapper is transparent.
unsafe impl<T: proxy_common::abi::Abi> aya::Pod for Wire<T> {}
