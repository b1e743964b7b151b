//! What a packet may have beyond the ordinary: options, extension headers, tags, trailers, an absent checksum.

use etherparse::Ipv4HeaderSlice;
use etherparse::checksum::Sum16BitWords;
use proxy_common::abi::protocol;

use super::frame::ETHERNET;
use super::sctp;

/// One peculiarity. Those between network and transport header come in the order in which they are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// IPv4: words of options (P-02).
    Options(u8),
    /// IPv6: an extension header of one or more units of eight bytes (P-03).
    HopByHop(u8),
    Destination(u8),
    /// A routing header with this many segments left.
    Routing(u8),
    /// An authentication header.
    Authentication,
    /// Either family: offset in bytes and whether more come. Offset 0 and no more: an atomic fragment (P-12).
    Fragment(u16, bool),
    /// An 802.1Q tag with this id in the frame (P-04).
    Tag(u16),
    /// Bytes behind the packet, as Ethernet pads short frames.
    Trailer(u8),
    /// No checksum of UDP (P-58) or SCTP (RFC 9653).
    NoChecksum,
    /// A checksum that the device is to finish: the sum over the pseudo header (P-80), of SCTP none.
    Unfinished,
    /// Longer than the length field can say, which is 0 (BIG TCP): for super-packets.
    Big,
    /// So many hops are left.
    Hops(u8),
    /// SCTP: the chunk is of this type.
    Chunk(u8),
    /// A client's segment that acknowledges, or a packet that is tagged with, what nobody has told.
    Guessed,
    /// Another IP protocol with whatever payload there is (P-91).
    Protocol(u8),
}

/// The frame with these peculiarities.
#[must_use]
pub fn shaped(mut frame: Vec<u8>, shapes: &[Shape]) -> Vec<u8> {
    let v6 = frame[ETHERNET] >> 4 == 6;
    let mut at = ETHERNET + if v6 { 40 } else { 20 };
    // Where the number of the next header stands.
    let mut next = ETHERNET + if v6 { 6 } else { 9 };
    for shape in shapes {
        let inserted = match *shape {
            Shape::Options(words) => {
                frame[ETHERNET] += words;
                options(usize::from(words) * 4)
            }
            Shape::HopByHop(units) => extension(&mut frame, &mut next, at, 0, padded(units)),
            Shape::Destination(units) => extension(&mut frame, &mut next, at, 60, padded(units)),
            Shape::Routing(left) => {
                let mut header = vec![0; 24];
                header[1..4].copy_from_slice(&[2, 4, left]);
                extension(&mut frame, &mut next, at, 43, header)
            }
            Shape::Authentication => {
                let mut header = vec![0xa5; 24];
                header[1..4].copy_from_slice(&[4, 0, 0]);
                extension(&mut frame, &mut next, at, 51, header)
            }
            Shape::Fragment(offset, more) if v6 => {
                let [a, b] = (offset | u16::from(more)).to_be_bytes();
                extension(&mut frame, &mut next, at, 44, vec![0, 0, a, b, 0, 0, 0x12, 0x34])
            }
            Shape::Fragment(offset, more) => {
                let word = (offset / 8) | (u16::from(more) << 13);
                frame[ETHERNET + 6..ETHERNET + 8].copy_from_slice(&word.to_be_bytes());
                Vec::new()
            }
            Shape::Hops(left) => {
                frame[ETHERNET + if v6 { 7 } else { 8 }] = left;
                Vec::new()
            }
            Shape::Protocol(number) => {
                frame[next] = number;
                Vec::new()
            }
            Shape::Chunk(kind) => {
                frame[at + sctp::HEADER] = kind;
                sctp::finish(&mut frame[at..]);
                Vec::new()
            }
            Shape::Guessed if frame[next] == protocol::SCTP => {
                frame[at + 4] ^= 0x80;
                sctp::finish(&mut frame[at..]);
                Vec::new()
            }
            // Halves of a word that change places leave the checksum as it is.
            Shape::Guessed => {
                frame[at + 8..at + 12].rotate_left(2);
                Vec::new()
            }
            Shape::NoChecksum | Shape::Unfinished if frame[next] == protocol::SCTP => {
                frame[at + 8..at + 12].fill(0);
                Vec::new()
            }
            Shape::NoChecksum => {
                frame[at + 6..at + 8].fill(0);
                Vec::new()
            }
            Shape::Unfinished => {
                let (sum, field) = (pseudo_sum(&frame, at, frame[next]), checksum_at(at, frame[next]));
                frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
                Vec::new()
            }
            Shape::Tag(_) | Shape::Trailer(_) | Shape::Big => continue,
        };
        let size = inserted.len();
        frame.splice(at..at, inserted);
        at += size;
    }
    finish(frame, v6, shapes)
}

/// Writes the checksum of the IPv4 header.
pub(super) fn finish_header(frame: &mut [u8]) {
    let header = Ipv4HeaderSlice::from_slice(&frame[ETHERNET..]).expect("a header").to_header();
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
}

/// Lengths and checksum of the network header; then what lies around the packet.
fn finish(mut frame: Vec<u8>, v6: bool, shapes: &[Shape]) -> Vec<u8> {
    let length = frame.len() - ETHERNET - if v6 { 40 } else { 0 };
    let field = ETHERNET + if v6 { 4 } else { 2 };
    let big = shapes.contains(&Shape::Big);
    let length = if big { 0 } else { u16::try_from(length).expect("a packet that fits") };
    frame[field..field + 2].copy_from_slice(&length.to_be_bytes());
    if !v6 {
        finish_header(&mut frame);
    }
    for shape in shapes {
        match *shape {
            Shape::Trailer(bytes) => frame.extend(std::iter::repeat_n(0x77, usize::from(bytes))),
            Shape::Tag(id) => {
                let [a, b] = id.to_be_bytes();
                frame.splice(12..12, [0x81, 0x00, a, b]);
            }
            _ => {}
        }
    }
    frame
}

/// Puts an extension header into the chain: it gets the number that stood at `next`, which then says `own`.
fn extension(frame: &mut [u8], next: &mut usize, at: usize, own: u8, mut header: Vec<u8>) -> Vec<u8> {
    header[0] = frame[*next];
    frame[*next] = own;
    *next = at;
    header
}

/// `units` of eight bytes that hold one PadN option.
fn padded(units: u8) -> Vec<u8> {
    let size = usize::from(units) * 8;
    let mut header = vec![0; size];
    header[1] = units - 1;
    header[2..4].copy_from_slice(&[1, u8::try_from(size - 4).expect("a short header")]);
    header
}

/// No-operations, then the end of the list.
fn options(bytes: usize) -> Vec<u8> {
    let mut options = vec![1; bytes];
    if let Some(last) = options.last_mut() {
        *last = 0;
    }
    options
}

/// What a device makes of a frame that is marked to be finished from the transport header at `at` on.
#[must_use]
pub fn finished(mut frame: Vec<u8>, at: usize, protocol: u8) -> Vec<u8> {
    if protocol == protocol::SCTP {
        sctp::finish(&mut frame[at..]);
        return frame;
    }
    let sum = Sum16BitWords::new().add_slice(&frame[at..]).ones_complement().to_be();
    let field = checksum_at(at, protocol);
    frame[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Offset of the checksum of the TCP or UDP header at `at`.
const fn checksum_at(at: usize, protocol: u8) -> usize {
    at + if protocol == protocol::UDP { 6 } else { 16 }
}

/// Ones' complement sum over addresses, protocol and length of the packet at `at`.
fn pseudo_sum(frame: &[u8], at: usize, protocol: u8) -> u16 {
    let addresses =
        if frame[ETHERNET] >> 4 == 6 { ETHERNET + 8..ETHERNET + 40 } else { ETHERNET + 12..ETHERNET + 20 };
    let words =
        frame[addresses].chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let length = u32::try_from(frame.len() - at).expect("a packet that fits");
    let mut sum = words.sum::<u32>() + u32::from(protocol) + length;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).expect("folded")
}
