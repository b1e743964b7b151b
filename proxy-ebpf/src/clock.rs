//! The clock.

use crate::global::clock_time;
use crate::maps::{CONFIG, TEST_MODE};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use core::cell::UnsafeCell;
use proxy_common::{abi::MOMENTS, path::beginning};

/// How a program asks what time it is: [`proxy_common::path::Tables::time`].
pub trait Clock {
    fn time() -> u64;
}

/// Of packets of known flows, and of answers: without a call.
pub struct Inline;
/// Of all others, behind a call: so they are shorter, and the verifier has less to follow.
pub struct Called;
/// Of sockets, whose programs may not ask the coarse clock.
pub struct Exact;

impl Clock for Inline {
    #[inline(always)]
    fn time() -> u64 {
        set().unwrap_or_else(cached)
    }
}

impl Clock for Called {
    #[inline(always)]
    fn time() -> u64 {
        clock_time()
    }
}

impl Clock for Exact {
    #[inline(always)]
    fn time() -> u64 {
        // SAFETY: takes nothing, cannot fail.
        set().unwrap_or_else(|| of(unsafe { bpf_ktime_get_ns() }))
    }
}

/// The time of a run that must be repeatable.
#[inline(always)]
fn set() -> Option<u64> {
    (TEST_MODE.load() != 0).then(|| beginning(CONFIG.get(0).map_or(0, |config| config.test_clock)))
}

/// The clock as last read: the lowest bits of jiffies, and below them moments. All CPUs share it, in one word that is written once a jiffy: a
/// program finds it without a look-up.
#[unsafe(no_mangle)]
static CLOCK: Word = Word(UnsafeCell::new(0));

/// A word that programs of all CPUs read and write at once.
struct Word(UnsafeCell<u64>);

// SAFETY: read and written as a whole only.
unsafe impl Sync for Word {}

/// Bits of [`CLOCK`] for moments: as many as ticks of 32 bits have.
const BITS: u32 = u32::BITS + MOMENTS.trailing_zeros();
/// Where they are.
const MASK: u64 = (1 << BITS) - 1;

/// Monotonic time in moments of 2^26 ns. The clock itself is asked once a jiffy: the verifier turns
/// `bpf_jiffies64` into a load, while the clock costs as much as a look-up where returns are protected.
#[inline(always)]
fn cached() -> u64 {
    // SAFETY: takes nothing, cannot fail.
    let jiffies = unsafe { bpf_jiffies64() } << BITS;
    // SAFETY: a static's word. Volatile, since others write it.
    let mut last = unsafe { CLOCK.0.get().read_volatile() };
    if (last ^ jiffies) >> BITS != 0 {
        // SAFETY: takes nothing, cannot fail. The coarse clock costs a tenth of the exact one.
        let moments = of(unsafe { bpf_ktime_get_coarse_ns() });
        // SAFETY: as above; who is late writes the same, or a time of just now.
        unsafe { CLOCK.0.get().write_volatile(jiffies | moments) };
        // Read back, as the verifier would go two ways from here: of what a clock says it knows how large it can be.
        // SAFETY: as above.
        last = unsafe { CLOCK.0.get().read_volatile() };
    }
    last & MASK
}

/// A clock's nanoseconds in moments.
#[inline(always)]
const fn of(nanoseconds: u64) -> u64 {
    nanoseconds >> 26 & MASK
}
