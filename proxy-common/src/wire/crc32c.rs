//! What SCTP's checksum makes of other ports (RFC 9260 section 6.8 and appendix A).
//!
//! CRC32c covers the whole packet and no address. It is linear but for two constants: by how much the checksums of two packets of
//! one length differ depends on the bits in which the packets differ, and on what follows behind them. So a rewrite need
//! not read the packet: the bits in which the ports differ, moved on by the packet's length, are what to add.
//!
//! Sums are polynomials over two values, modulo [`POLYNOMIAL`], the highest power in the lowest bit.

use crate::abi::Port;

/// CRC32c's polynomial without its highest power, in that order of bits.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// One.
const ONE: u32 = 1 << 31;

/// What so many bytes that follow make of a difference, for the low and for the high byte of their number.
static POWERS: [[u32; 256]; 2] = [powers(byte(ONE)), powers(bytes(ONE, 256))];

/// In which bits of its first four bytes, the first in the lowest, a packet differs from one with other ports.
#[must_use]
#[inline(always)]
pub const fn port_difference(old: [Port; 2], new: [Port; 2]) -> u32 {
    first_bytes(old) ^ first_bytes(new)
}

const fn first_bytes([source, destination]: [Port; 2]) -> u32 {
    let ([a, b], [c, d]) = (source.0.to_ne_bytes(), destination.0.to_ne_bytes());
    u32::from_le_bytes([a, b, c, d])
}

/// What a difference of the first four of `length` bytes makes: in these bits, the first byte in the lowest, their
/// checksums differ.
#[must_use]
#[inline(always)]
pub fn crc_difference(first: u32, length: u32) -> u32 {
    let [low, high] = &POWERS;
    times(times(first, low[(length & 0xff) as usize]), high[(length >> 8 & 0xff) as usize])
}

/// The product. Without branches, of which the verifier would follow each way.
#[inline(always)]
const fn times(a: u32, mut b: u32) -> u32 {
    let (mut product, mut bit) = (0, 0);
    while bit < 32 {
        product ^= b & 0_u32.wrapping_sub(a >> (31 - bit) & 1);
        b = shifted(b);
        bit += 1;
    }
    product
}

/// Times x: what one bit that follows makes.
#[inline(always)]
const fn shifted(sum: u32) -> u32 {
    sum >> 1 ^ POLYNOMIAL & 0_u32.wrapping_sub(sum & 1)
}

/// What one byte that follows makes.
const fn byte(mut sum: u32) -> u32 {
    let mut bit = 0;
    while bit < 8 {
        sum = shifted(sum);
        bit += 1;
    }
    sum
}

/// What `count` bytes that follow make.
const fn bytes(mut sum: u32, mut count: u32) -> u32 {
    while count > 0 {
        sum = byte(sum);
        count -= 1;
    }
    sum
}

/// The powers of `base`, from the one that is one.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut power = 1;
    while power < 256 {
        powers[power] = times(powers[power - 1], base);
        power += 1;
    }
    powers
}
