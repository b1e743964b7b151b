//! Checksums against RFC 1071's own way of adding them up: every word, then carries until none is left.

use proptest::prelude::*;
use proxy_common::abi::Addr;
use proxy_common::wire::{Diff, apply, fold, grow, pseudo_header, same_sum};

/// The sum over words as they lie in memory.
fn sum(bytes: &[u8]) -> u64 {
    bytes.as_chunks::<2>().0.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum()
}

fn slowly(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A carry that makes another one.
#[test]
fn no_carry_is_lost() {
    const ALL: u32 = u32::MAX;
    let diff = Diff::address(&Addr([0, 0, ALL, ALL]), &Addr([1, 0, 0, 0]));
    assert_eq!(fold(diff.0.into()), 1);
    for sum in [
        0,
        1,
        0xffff,
        0x1_0000,
        0x1_ffff,
        0xffff_ffff,
        0x1_0000_0000,
        0x1_ffff_ffff,
        0x1_0000_ffff_ffff,
        u64::MAX - 1,
        u64::MAX,
    ] {
        assert_eq!(fold(sum), slowly(sum), "{sum:#x}");
    }
}

/// Ones' complement has two zeros, and no other two numbers for one sum.
#[test]
fn two_checksums_stand_for_one_sum() {
    let cases = [(5, 5, true), (0, 0, true), (0, 0xffff, true), (0xffff, 0, true)];
    let others = [(5, 6, false), (5, 0xfffa, false), (0, 1, false), (0xffff, 0xfffe, false)];
    for (a, b, same) in cases.into_iter().chain(others) {
        assert_eq!(same_sum(a, b), same, "{a:#x} and {b:#x}");
    }
}

/// Over the addresses, the protocol and the length as RFC 9293 and RFC 8200 lay them out.
fn of_pseudo_header<const N: usize>(a: [u32; N], b: [u32; N], protocol: u8, length: u16) {
    let mut bytes = [words(&a), words(&b)].concat();
    let [high, low] = length.to_be_bytes();
    bytes.extend(if N == 1 {
        [0, protocol, high, low, 0, 0, 0, 0]
    } else {
        [0, 0, high, low, 0, 0, 0, protocol]
    });
    let fast = fold(pseudo_header(&Addr(a), &Addr(b), protocol, length.into()));
    assert_eq!(fast, slowly(sum(&bytes)), "{a:x?} {b:x?} {protocol} {length}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sum_is_folded(sum in any::<u64>()) {
        prop_assert_eq!(fold(sum), slowly(sum));
    }

    #[test]
    fn a_pseudo_header_is_summed(
        v4 in any::<[[u32; 1]; 2]>(),
        v6 in any::<[[u32; 4]; 2]>(),
        (protocol, length) in any::<(u8, u16)>(),
    ) {
        of_pseudo_header(v4[0], v4[1], protocol, length);
        of_pseudo_header(v6[0], v6[1], protocol, length);
    }

    /// RFC 1624 against RFC 1071: the updated checksum is the one computed afresh, and so is the sum of an unfinished packet.
    #[test]
    fn an_updated_checksum_is_the_one_computed_afresh(
        before in proptest::array::uniform16(any::<u32>()),
        at in 0..16_usize,
        new in any::<u32>(),
    ) {
        let mut after = before;
        after[at] = new;
        prop_assume!(before.iter().any(|word| *word != 0) && after.iter().any(|word| *word != 0));
        let [before, after] = [before, after].map(|all| (all[at], slowly(sum(&words(&all)))));
        let diff = Diff::word(before.0, new);
        prop_assert_eq!(apply(!before.1, diff), !after.1);
        prop_assert!(same_sum(grow(before.1, diff), after.1));
    }

    /// What changes nothing is known to, and nothing else is.
    #[test]
    fn no_change_is_none(old in any::<[u32; 4]>(), new in any::<[u32; 4]>()) {
        prop_assert!(Diff::NONE.is_none());
        prop_assert!(Diff::address(&Addr(old), &Addr(old)).is_none());
        let there = Diff::address(&Addr(old), &Addr(new));
        prop_assert!(there.and(Diff::address(&Addr(new), &Addr(old))).is_none());
        let changes = slowly(sum(&words(&old))) % 0xffff != slowly(sum(&words(&new))) % 0xffff;
        prop_assert_eq!(there.is_none(), !changes);
    }
}
