//! Packets to ask programs with: the first of a connection, in an Ethernet frame; and what became of them.

use std::net::{IpAddr, SocketAddr};

use crate::model::Protocol;

const ETHERNET: usize = 14;

/// Two ends of a connection.
pub type Ends = (SocketAddr, SocketAddr);

/// The first packet from one end to the other: SYN, a datagram, or INIT, in a frame for the device with this hardware address. `None`:
/// the ends are of different families.
pub fn opening(device: &[u8], (from, to): Ends, protocol: Protocol) -> Option<Vec<u8>> {
    let mut transport = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    let checksum_at = match protocol {
        Protocol::Tcp => {
            // Sequence number 1, five words of header, SYN, a window.
            transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0]);
            16
        }
        Protocol::Udp => {
            transport.extend([0, 12, 0, 0, b'a', b's', b'k', b'?']);
            6
        }
        Protocol::Sctp => {
            // No tag yet; an INIT chunk of 20 bytes: tag 1, window, one stream each way, first number.
            transport.extend([
                0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1,
            ]);
            8
        }
    };
    let length = transport.len() as u16;
    let (kind, network, pseudo) = match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let [high, low] = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol.number(), 0, 0];
            let addresses = [src.octets(), dst.octets()].concat();
            header.extend(&addresses);
            let checksum = finish(sum(&header));
            header[10..12].copy_from_slice(&checksum);
            ([8, 0], header, addresses)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let [high, low] = length.to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, high, low, protocol.number(), 64];
            let addresses = [src.octets(), dst.octets()].concat();
            header.extend(&addresses);
            ([0x86, 0xdd], header, addresses)
        }
        _ => return None,
    };
    if protocol != Protocol::Sctp {
        let total = sum(&pseudo) + u32::from(protocol.number()) + u32::from(length) + sum(&transport);
        transport[checksum_at..checksum_at + 2].copy_from_slice(&finish(total));
    }
    // The kernel takes a frame with another address for somebody else's.
    let mut destination = [0; 6];
    destination.iter_mut().zip(device).for_each(|(byte, of_device)| *byte = *of_device);
    Some([&destination[..], &[2, 0, 0, 0, 0, 1], &kind, &network, &transport].concat())
}

/// The ends of a packet that was made by [`opening`] and may have been rewritten.
pub fn ends(packet: &[u8]) -> Option<Ends> {
    let network = packet.get(ETHERNET..)?;
    let (src, dst, ports): (IpAddr, IpAddr, &[u8]) = match network.first()? >> 4 {
        4 => (v4(network.get(12..16)?)?, v4(network.get(16..20)?)?, network.get(20..24)?),
        _ => (v6(network.get(8..24)?)?, v6(network.get(24..40)?)?, network.get(40..44)?),
    };
    let [a, b, c, d] = ports.try_into().ok()?;
    Some((SocketAddr::new(src, u16::from_be_bytes([a, b])), SocketAddr::new(dst, u16::from_be_bytes([c, d]))))
}

fn v4(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets).ok().map(IpAddr::from)
}

fn v6(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 16]>::try_from(octets).ok().map(IpAddr::from)
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low))).sum()
}

fn finish(mut sum: u32) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_has_the_ends_and_checksums_it_was_made_with() {
        let cases = [("10.0.0.1:4000", "10.96.0.1:80"), ("[fd00::1]:4000", "[fd00:96::1]:80")];
        for (from, to) in cases {
            let ends: Ends = (from.parse().unwrap(), to.parse().unwrap());
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                let packet = opening(&[2, 0, 0, 0, 0, 2], ends, protocol).unwrap();
                assert_eq!(packet[..6], [2, 0, 0, 0, 0, 2]);
                assert_eq!(super::ends(&packet), Some(ends), "{protocol:?}");
                let network = &packet[ETHERNET..];
                let (addresses, transport) = if ends.0.is_ipv4() {
                    (&network[12..20], &network[20..])
                } else {
                    (&network[8..40], &network[40..])
                };
                if ends.0.is_ipv4() {
                    assert_eq!(finish(sum(&network[..20])), [0; 2], "{protocol:?}");
                }
                if protocol != Protocol::Sctp {
                    let pseudo = u32::from(protocol.number()) + transport.len() as u32;
                    assert_eq!(finish(sum(addresses) + pseudo + sum(transport)), [0; 2], "{protocol:?}");
                }
            }
        }
        assert_eq!(
            opening(&[], (cases[0].0.parse().unwrap(), cases[1].1.parse().unwrap()), Protocol::Tcp),
            None
        );
    }
}
