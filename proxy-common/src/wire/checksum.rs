//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! Sums are taken over words as they lie in memory: ones' complement addition does not care about byte order as
//! long as it is the same everywhere.

use crate::abi::{Addr, Port};

/// Folds a sum to 16 bits.
#[must_use]
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// `checksum` (as it lies in memory) after the bytes it covers have changed by `diff`.
#[must_use]
#[inline(always)]
pub const fn apply(checksum: u16, diff: Diff) -> u16 {
    !grow(!checksum, diff)
}

/// `sum` (as it lies in memory), which is not complemented, after the bytes it covers have changed by `diff`.
#[must_use]
#[inline(always)]
pub const fn grow(sum: u16, diff: Diff) -> u16 {
    // As `fold`, with the steps that so small a sum needs: a packet waits for each.
    let sum = sum as u64 + diff.0 as u64;
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Sum of the pseudo header over a transport packet of `length` bytes (RFC 9293 section 3.1, RFC 8200 section 8.1). Folded,
/// it is what stands in the checksum field of a packet whose sender left the checksum to its device.
#[must_use]
#[inline(always)]
pub const fn pseudo_header<const N: usize>(a: &Addr<N>, b: &Addr<N>, protocol: u8, length: u32) -> u64 {
    let mut sum = (protocol as u16).to_be() as u64 + (length as u16).to_be() as u64;
    let mut word = 0;
    while word < N {
        sum += a.0[word] as u64 + b.0[word] as u64;
        word += 1;
    }
    sum
}

/// Whether two checksums stand for the same sum: ones' complement has two zeros.
#[must_use]
#[inline(always)]
pub const fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a ^ b == 0xffff && (a == 0 || b == 0))
}

/// What a change of some bytes adds to the ones' complement sum over them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Diff(pub u32);

impl Diff {
    /// No change.
    pub const NONE: Self = Self(0);

    /// Of two numbers of 32 bits: with the carry their sum has no other.
    const fn of(sum: u64) -> Self {
        Self(((sum & 0xffff_ffff) + (sum >> 32)) as u32)
    }

    /// Whether nothing changes: a sum of nothing, or ones' complement's other zero.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        matches!(fold(self.0 as u64), 0 | 0xffff)
    }

    /// Both changes.
    #[must_use]
    #[inline(always)]
    pub const fn and(self, other: Self) -> Self {
        Self::of(self.0 as u64 + other.0 as u64)
    }

    /// One aligned 32-bit word replaced.
    #[must_use]
    #[inline(always)]
    pub const fn word(old: u32, new: u32) -> Self {
        Self::of(!old as u64 + new as u64)
    }

    /// One aligned 16-bit word replaced.
    #[must_use]
    #[inline(always)]
    pub const fn half(old: u16, new: u16) -> Self {
        Self::of((!old) as u64 + new as u64)
    }

    /// One port replaced.
    #[must_use]
    #[inline(always)]
    pub const fn port(old: Port, new: Port) -> Self {
        Self::half(old.0, new.0)
    }

    /// One address replaced.
    #[must_use]
    #[inline(always)]
    pub const fn address<const N: usize>(old: &Addr<N>, new: &Addr<N>) -> Self {
        let mut diff = Self::NONE;
        let mut word = 0;
        while word < N {
            diff = diff.and(Self::word(old.0[word], new.0[word]));
            word += 1;
        }
        diff
    }
}
