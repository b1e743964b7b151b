//! The dice.

use crate::maps::{DICE, DRAWS};
use aya_ebpf::helpers::bpf_get_prandom_u32;
use proxy_common::path::repeatable_draw;

/// A uniform 32-bit draw (xorshift64*). The kernel's own dice cost as much as a look-up: they are thrown once a CPU.
#[inline(always)]
pub fn throw() -> u32 {
    let Some(dice) = DICE.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element; a throw that is seen twice does no harm.
    let mut state = unsafe { *dice };
    if state == 0 {
        // SAFETY: takes nothing, cannot fail.
        state = u64::from(unsafe { bpf_get_prandom_u32() }) << 32 | 1;
    }
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    // SAFETY: as above.
    unsafe { *dice = state };
    (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
}

/// Draw number n of a run: the host's tests compute the same.
#[inline(always)]
pub fn repeatable(seed: u32) -> u32 {
    let Some(draws) = DRAWS.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's element.
    let n = unsafe { *draws };
    // SAFETY: as above.
    unsafe { *draws = n.wrapping_add(1) };
    repeatable_draw(seed, n)
}
