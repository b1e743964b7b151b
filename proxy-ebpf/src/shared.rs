//! Numbers that all CPUs write.

use crate::family::Family;
use crate::maps::{NEWS, RING_USED};
use aya_ebpf::{bindings::bpf_spin_lock, helpers::generated};

/// Makes the number in this place of the news another one.
#[inline(always)]
pub fn tell_news(place: u32) {
    let Some(number) = NEWS.get_ptr_mut(place) else { return };
    // SAFETY: array elements stay where they are.
    let last = unsafe { *number };
    // SAFETY: as above. Of two CPUs that write at once either makes it another one.
    unsafe { *number = last.wrapping_add(1) };
}

/// Adds to the number of turns that all CPUs see.
#[inline(always)]
pub fn add_turns<const N: usize, F: Family<N>>(change: u32) {
    let Some(ring) = RING_USED.get_ptr_mut(F::RING) else { return };
    // SAFETY: array elements stay where they are.
    let turns = unsafe { &raw mut (*ring).turns };
    // The first field.
    let lock = ring.cast::<bpf_spin_lock>();
    // SAFETY: given back below.
    unsafe { generated::bpf_spin_lock(lock) };
    // SAFETY: nobody else writes while the lock is held; volatile, so that this stays inside.
    let held = unsafe { turns.read_volatile() };
    // SAFETY: as above.
    unsafe { turns.write_volatile(held.wrapping_add(change)) };
    // SAFETY: taken above.
    unsafe { generated::bpf_spin_unlock(lock) };
}
