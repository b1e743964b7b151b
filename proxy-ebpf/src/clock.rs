//! The clock.

use crate::maps::{CLOCKS, Clock};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

/// Monotonic time in ticks of 2^30 ns. The clock itself is asked once a jiffy: the verifier turns `bpf_jiffies64` into a
/// load, while the clock costs as much as a look-up where returns are protected.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: takes nothing, cannot fail.
    let jiffies = unsafe { bpf_jiffies64() };
    let Some(clock) = CLOCKS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; programs of other hooks may interrupt, and write the same.
    let last = unsafe { *clock };
    if last.jiffies == jiffies {
        return last.tick as u32;
    }
    // SAFETY: takes nothing, cannot fail. The coarse clock costs a tenth of the exact one.
    let tick = unsafe { bpf_ktime_get_coarse_ns() } >> 30;
    // SAFETY: as above.
    unsafe { *clock = Clock { jiffies, tick } };
    tick as u32
}
