//! The programs' clock: ticks of 2^30 ns, by which flows age, and moments, of which a tick has [`MOMENTS`].

use crate::abi::MOMENTS;

/// Ticks, or moments, from `then` to `now`. Another CPU may have written `then` after `now` was read: that is no time at all.
#[must_use]
#[inline(always)]
pub const fn since(then: u32, now: u32) -> u32 {
    let passed = now.wrapping_sub(then);
    if passed > u32::MAX / 2 { 0 } else { passed }
}

/// The tick that a [`super::Tables::time`] is of.
#[must_use]
pub const fn tick(time: u64) -> u32 {
    (time / MOMENTS as u64) as u32
}

/// The [`super::Tables::time`] at which a tick begins.
#[must_use]
#[inline(always)]
pub const fn beginning(tick: u32) -> u64 {
    tick as u64 * MOMENTS as u64
}

/// Ticks from that of the moment `created` to tick `now`.
#[inline(always)]
pub(super) const fn age(created: u32, now: u32) -> u32 {
    since(created / MOMENTS * MOMENTS, beginning(now) as u32) / MOMENTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_does_not_run_backwards_p66() {
        for (then, now, want) in [(5, 9, 4), (9, 9, 0), (10, 9, 0), (u32::MAX, 1, 2)] {
            assert_eq!(since(then, now), want, "from {then} to {now}");
        }
        let last = u32::MAX / MOMENTS;
        for (created, now, want) in
            [(80, 9, 4), (95, 9, 4), (159, 9, 0), (160, 9, 0), (u32::MAX, last, 0), (u32::MAX, last + 1, 1)]
        {
            assert_eq!(age(created, now), want, "from moment {created} to tick {now}");
        }
    }
}
