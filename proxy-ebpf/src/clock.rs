//! The clock.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};
use core::cell::UnsafeCell;

/// The clock as last read: the lower half of jiffies, and the tick. All CPUs share it, in one word that is written once a jiffy: a
/// program finds it without a look-up.
#[unsafe(no_mangle)]
static CLOCK: Word = Word(UnsafeCell::new(0));

/// A word that programs of all CPUs read and write at once.
struct Word(UnsafeCell<u64>);

// SAFETY: read and written as a whole only.
unsafe impl Sync for Word {}

/// Monotonic time in ticks of 2^30 ns. The clock itself is asked once a jiffy: the verifier turns `bpf_jiffies64` into a
/// load, while the clock costs as much as a look-up where returns are protected.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    let jiffies = unsafe { bpf_jiffies64() } << 32;
    // SAFETY: a static's word. Volatile, since others write it.
    let last = unsafe { CLOCK.0.get().read_volatile() };
    if (last ^ jiffies) >> 32 == 0 {
        return last as u32;
    }
    // SAFETY: takes nothing, cannot fail. The coarse clock costs a tenth of the exact one.
    let tick = (unsafe { bpf_ktime_get_coarse_ns() } >> 30) as u32;
    // SAFETY: as above; who is late writes the same, or a time of just now.
    unsafe { CLOCK.0.get().write_volatile(jiffies | u64::from(tick)) };
    tick
}

/// The same clock in sixteenths of a tick, wrapping.
#[inline(always)]
pub fn moment() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    (unsafe { bpf_ktime_get_coarse_ns() } >> 26) as u32
}
