//! SCTP's checksum under other ports is the one computed afresh.

use proptest::prelude::*;
use proxy_common::abi::Port;
use proxy_common::wire::{crc_difference, port_difference};

/// CRC32c bit by bit, as RFC 9260 appendix A describes it.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in bytes {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { sum >> 1 ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    !sum
}

#[test]
fn the_reference_is_crc32c() {
    // RFC 3720 appendix B.4, and the usual check value.
    assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

/// Whether the change is right for this packet, whose first four bytes are its ports.
fn is_right(packet: &mut [u8], new: [Port; 2]) -> Result<(), TestCaseError> {
    let port = |at: usize| Port(u16::from_ne_bytes([packet[at], packet[at + 1]]));
    let old = [port(0), port(2)];
    let before = crc32c(packet).to_le_bytes();
    packet[..2].copy_from_slice(&new[0].0.to_ne_bytes());
    packet[2..4].copy_from_slice(&new[1].0.to_ne_bytes());
    let change = crc_difference(port_difference(old, new), packet.len() as u32).to_le_bytes();
    let after: Vec<u8> = before.iter().zip(change).map(|(sum, change)| sum ^ change).collect();
    prop_assert_eq!(after, crc32c(packet).to_le_bytes(), "{} bytes", packet.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_checksum_is_the_one_computed_afresh_p90(
        start in any::<[u8; 16]>(),
        rest in any::<u8>(),
        length in 12..=65_535_usize,
        new in any::<[u16; 2]>(),
    ) {
        let mut packet: Vec<u8> = start.into_iter().chain((0..length).map(|i| (i * 7) as u8 ^ rest)).collect();
        packet.truncate(length);
        is_right(&mut packet, new.map(Port::new))?;
    }
}

#[test]
fn each_byte_of_a_length_counts_p90() {
    for length in [12, 16, 255, 256, 257, 511, 512, 1_452, 32_768, 65_280, 65_535] {
        let mut packet: Vec<u8> = (0..length).map(|i| (i * 7 + i / 251) as u8).collect();
        is_right(&mut packet, [Port::new(40_001), Port::new(8_081)]).expect("the same");
    }
}
