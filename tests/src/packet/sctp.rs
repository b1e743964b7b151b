//! SCTP, which etherparse does not know: packets of one chunk, and their checksum bit by bit (RFC 9260).

use etherparse::IpNumber;

use super::frame::{ACKNOWLEDGED, Flags};

/// Bytes of the common header, and where its checksum is.
pub const HEADER: usize = 12;
const CHECKSUM: usize = 8;

/// Types of chunks.
pub mod chunk {
    pub const DATA: u8 = 0;
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const SACK: u8 = 3;
    pub const HEARTBEAT: u8 = 4;
    pub const HEARTBEAT_ACK: u8 = 5;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

pub const NUMBER: IpNumber = IpNumber::SCTP;

/// CRC32c, as RFC 9260 appendix A describes it.
#[must_use]
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

/// The checksum that belongs into a packet.
#[must_use]
pub fn checksum(packet: &[u8]) -> [u8; 4] {
    let mut packet = packet.to_vec();
    packet[CHECKSUM..HEADER].fill(0);
    crc32c(&packet).to_le_bytes()
}

/// What stands in its place.
#[must_use]
pub fn written(packet: &[u8]) -> [u8; 4] {
    [packet[8], packet[9], packet[10], packet[11]]
}

/// Writes it.
pub fn finish(packet: &mut [u8]) {
    let checksum = checksum(packet);
    packet[CHECKSUM..HEADER].copy_from_slice(&checksum);
}

/// A packet of one chunk, from behind the network header on.
#[must_use]
pub fn packet((source, destination): (u16, u16), tag: u32, kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).expect("a chunk that fits");
    let mut packet = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend([kind, 0]);
    packet.extend(length.to_be_bytes());
    packet.extend(value);
    packet.resize(packet.len().next_multiple_of(4), 0);
    finish(&mut packet);
    packet
}

/// The packet that a story means by these flags. What TCP carries beside them has its place in a chunk's value.
#[must_use]
pub fn spoken(flags: Flags, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let kind = match flags {
        Flags { rst: true, .. } => chunk::ABORT,
        Flags { syn: true, ack: false, .. } => chunk::INIT,
        Flags { syn: true, .. } => chunk::INIT_ACK,
        Flags { fin: true, .. } => chunk::SHUTDOWN,
        _ => chunk::DATA,
    };
    let tag = if kind == chunk::INIT { 0 } else { ACKNOWLEDGED };
    let fixed: &[u8] = match kind {
        // The tag that it proposes, a window, streams out and in, the first number.
        chunk::INIT | chunk::INIT_ACK => &[0x0a, 0x0b, 0x0c, 0x0d, 0, 1, 0, 0, 0, 10, 0, 10, 0, 0, 0, 7],
        // A number, a stream, a number in it, a protocol.
        chunk::DATA => &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0],
        chunk::SHUTDOWN => &[0, 0, 0, 7],
        _ => &[],
    };
    packet(ports, tag, kind, &[fixed, payload].concat())
}

/// What a story says of a packet like this.
#[must_use]
pub fn flags(packet: &[u8]) -> Flags {
    let kind = packet[HEADER];
    Flags {
        syn: matches!(kind, chunk::INIT | chunk::INIT_ACK),
        ack: !matches!(kind, chunk::INIT | chunk::ABORT),
        fin: matches!(kind, chunk::SHUTDOWN | chunk::SHUTDOWN_ACK | chunk::SHUTDOWN_COMPLETE),
        rst: kind == chunk::ABORT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c_p90() {
        // RFC 3720 appendix B.4, and the usual check value.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }
}
