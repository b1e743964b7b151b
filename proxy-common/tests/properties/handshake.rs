//! What a handshake asks a client for, and what shows it.

use proxy_common::abi::protocol;
use proxy_common::wire::{Headers, Transport, tcp_flags};

use crate::tables::Frame;

const L4: u32 = 34;

fn headers(protocol: u8, flags: u8) -> Headers<1> {
    let mut headers = Headers::EMPTY;
    headers.key.protocol = protocol;
    headers.l4 = L4;
    headers.transport = Transport::Connection(flags);
    headers
}

/// A packet with this number at that place of its transport header, and others everywhere else.
fn with(number: u32, at: usize) -> Frame {
    let mut bytes = vec![0x5a; L4 as usize + at + 4];
    bytes[L4 as usize + at..].copy_from_slice(&number.to_be_bytes());
    Frame { bytes, mark: 0 }
}

#[test]
fn a_syn_ack_asks_for_the_next_number_and_an_init_ack_for_its_tag() {
    let asked =
        |protocol, at, number| headers(protocol, tcp_flags::SYN | tcp_flags::ACK).asks_for(&with(number, at));
    assert_eq!(asked(protocol::TCP, 4, 0x0102_0304), Some(0x0102_0305));
    assert_eq!(asked(protocol::TCP, 4, u32::MAX), Some(0), "numbers begin anew");
    assert_eq!(asked(protocol::SCTP, 16, 0x0102_0304), Some(0x0102_0304));
    let cut = Frame { bytes: vec![0; L4 as usize + 7], mark: 0 };
    assert_eq!(headers(protocol::TCP, 0).asks_for(&cut), None);
}

#[test]
fn a_segment_shows_what_it_acknowledges() {
    use tcp_flags::{ACK, FIN, SYN};
    const PROOF: u32 = u32::MAX - 5;
    let window = PROOF.wrapping_add(0xffff);
    let rows = [
        ("the handshake's last segment", protocol::TCP, ACK, PROOF, PROOF, true),
        ("with a FIN", protocol::TCP, ACK | FIN, PROOF, PROOF, true),
        ("of the first window's end", protocol::TCP, ACK, window, PROOF, true),
        ("of more than was sent", protocol::TCP, ACK, window.wrapping_add(1), PROOF, false),
        ("of less than the SYN", protocol::TCP, ACK, PROOF - 1, PROOF, false),
        ("without ACK", protocol::TCP, SYN, PROOF, PROOF, false),
        ("of anything, when nothing was asked for", protocol::TCP, ACK, 77, 0, true),
        ("without ACK, when nothing was asked for", protocol::TCP, FIN, 77, 0, false),
        ("the tag", protocol::SCTP, ACK, PROOF, PROOF, true),
        ("the next tag", protocol::SCTP, ACK, PROOF + 1, PROOF, false),
        ("another tag", protocol::SCTP, ACK, PROOF - 1, PROOF, false),
    ];
    for (what, number, flags, shown, proof, want) in rows {
        let at = if number == protocol::SCTP { 4 } else { 8 };
        assert_eq!(headers(number, flags).shows(&with(shown, at), proof), want, "{what}");
    }
    let mut datagram = headers(protocol::UDP, 0);
    datagram.transport = Transport::Udp;
    assert!(!datagram.shows(&with(PROOF, 8), PROOF), "a datagram acknowledges nothing");
    let cut = Frame { bytes: vec![0; L4 as usize + 11], mark: 0 };
    assert!(!headers(protocol::TCP, ACK).shows(&cut, 0), "cut before it");
}

#[test]
fn only_a_syn_that_nothing_contradicts_opens() {
    use tcp_flags::{ACK, FIN, RST, SYN};
    for flags in 0..=u8::MAX {
        let want = flags & SYN != 0 && flags & (ACK | RST | FIN) == 0;
        assert_eq!(headers(protocol::TCP, flags).is_bare_syn(), want, "{flags:#x}");
        assert_eq!(headers(protocol::TCP, flags).opens(), want, "{flags:#x}");
    }
    let mut datagram = headers(protocol::UDP, 0);
    datagram.transport = Transport::Udp;
    assert!(datagram.opens() && !datagram.is_bare_syn());
}

#[test]
fn each_protocol_has_its_checksum_somewhere_else() {
    let at =
        [protocol::TCP, protocol::UDP, protocol::SCTP].map(|number| headers(number, 0).checksum_at() - L4);
    assert_eq!(at, [16, 6, 8]);
}
