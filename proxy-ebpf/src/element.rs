//! Map elements: flows in place, and copies word by word.

use proxy_common::{
    abi::Flow,
    path::{Entry, Fields},
};

/// A flow element in place.
pub struct Element<const N: usize>(pub(crate) *mut Flow<N>);

impl<const N: usize> Fields<N> for Element<N> {
    #[inline(always)]
    fn get<R>(&self, field: impl FnOnce(&Flow<N>) -> R) -> R {
        // SAFETY: the pointer is what a look-up returned in this run of the program. Plain integers, which another CPU may be
        // writing.
        field(unsafe { &*self.0 })
    }
}

impl<const N: usize> Entry<N> for Element<N> {
    #[inline(always)]
    fn read_to(&self, to: &mut Flow<N>) {
        self.get(|flow| copy_words(flow, to));
    }

    #[inline(always)]
    fn set_seen(&self, tick: u32) {
        // SAFETY: as above; a torn or lost write of a time stamp does no harm.
        unsafe { (*self.0).seen = tick };
    }

    #[inline(always)]
    fn set_state(&self, state: u8) {
        // SAFETY: as above; one byte is written at once.
        unsafe { (*self.0).state = state };
    }

    #[inline(always)]
    fn set_proof(&self, proof: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).proof = proof };
    }

    #[inline(always)]
    fn set_lease(&self, tick: u32) {
        // SAFETY: as above; one word is written at once.
        unsafe { (*self.0).lease = tick };
    }

    #[inline(always)]
    fn set_far(&self, ifindex: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).far = ifindex };
    }

    #[inline(always)]
    fn set_ifindex(&self, ifindex: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex = ifindex };
    }

    #[inline(always)]
    fn set_size(&self, bytes: u32) {
        // SAFETY: as above.
        unsafe { (*self.0).size = bytes };
    }
}

/// Copies a value of 32-bit words. As a whole it would be a call to memmove, of which the verifier follows every byte.
#[inline(always)]
pub fn copy_words<T: Copy>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(4) && align_of::<T>() == 4, "no whole words") };
    let (from, to) = (core::ptr::from_ref(from).cast::<u32>(), core::ptr::from_mut(to).cast::<u32>());
    let mut word = 0;
    while word < size_of::<T>() / 4 {
        let (from, to) = (from.wrapping_add(word), to.wrapping_add(word));
        // SAFETY: inside the values, plain integers. Volatile, so that no call comes of the loop.
        let value = unsafe { from.read_volatile() };
        // SAFETY: as above.
        unsafe { to.write_volatile(value) };
        word += 1;
    }
}
