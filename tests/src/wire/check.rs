//! Checks of one packet by itself: lengths and checksums, outer and quoted. Pure functions over bytes.

use std::net::IpAddr;

use etherparse::IpSlice;
use etherparse::checksum::Sum16BitWords;

use super::packet;
use crate::packet::sctp::{HEADER, checksum, written};

/// What the kernel says about work left for hardware (`struct virtio_net_hdr` of packet sockets).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum that hardware or the receiver would finish: it holds the pseudo header's sum only.
    pub unfinished: Option<Unfinished>,
}

/// Which bytes of a frame hardware would sum up, and where it would put the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Offset in the frame of the first byte that is summed.
    pub start: u16,
    /// Offset of the checksum field from there.
    pub field: u16,
}

impl Unfinished {
    /// What hardware makes of the frame. Where it would write beyond the end there is nothing to finish.
    fn finish(self, mut frame: Vec<u8>) -> Vec<u8> {
        let start = usize::from(self.start);
        let Some(covered) = frame.get(start..) else { return frame };
        let sum = Sum16BitWords::new().add_slice(covered).ones_complement().to_be();
        if let Some(field) = frame[start..].get_mut(usize::from(self.field)..).and_then(|f| f.get_mut(..2)) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
        frame
    }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const SCTP: u8 = 132;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Judges a frame; returns every fault found. An ICMP error may be made in place from a packet that hardware was to
/// finish, and is still marked so: it must be right before that and after it.
#[must_use]
pub fn frame(frame: &[u8], offload: Offload) -> Vec<String> {
    let mut faults = as_it_is(frame, offload);
    let icmp =
        || matches!(packet::ip(frame), Some(Ok(ip)) if matches!(ip.payload_ip_number().0, ICMP | ICMPV6));
    if let Some(unfinished) = offload.unfinished.filter(|_| icmp()) {
        let finished = as_it_is(&unfinished.finish(frame.to_vec()), Offload::default());
        faults.extend(finished.into_iter().map(|fault| format!("{fault} once finished")));
    }
    faults
}

fn as_it_is(frame: &[u8], offload: Offload) -> Vec<String> {
    let ip = match packet::ip(frame) {
        None => return Vec::new(),
        Some(Err(why)) => return vec![format!("headers cannot be parsed: {why}")],
        Some(Ok(ip)) => ip,
    };
    let mut faults = Vec::new();
    if let Some(v4) = ip.ipv4() {
        header_v4(v4.header().slice(), "IPv4 header", &mut faults);
    }
    // Later fragments have no header, first ones no complete payload.
    if !ip.is_fragmenting_payload() {
        let payload = ip.payload().payload;
        transport(&ip, payload, offload, &mut faults);
    }
    faults
}

fn transport(ip: &IpSlice<'_>, payload: &[u8], offload: Offload, faults: &mut Vec<String>) {
    let number = ip.payload_ip_number().0;
    let ends = (ip.source_addr(), ip.destination_addr());
    match number {
        SCTP if payload.len() < HEADER => faults.push("SCTP header cut".into()),
        SCTP if written(payload) != checksum(payload) => faults.push("SCTP checksum wrong".into()),
        TCP | UDP => layer4(ends, number, payload, offload.unfinished.is_some(), faults),
        ICMP => {
            if Sum16BitWords::new().add_slice(payload).ones_complement() != 0 {
                faults.push("ICMP checksum wrong".into());
            }
            if matches!(payload.first(), Some(3..=5 | 11 | 12)) {
                quoted(payload.get(8..).unwrap_or_default(), faults);
            }
        }
        ICMPV6 => {
            if pseudo(ends, number, payload.len()).add_slice(payload).ones_complement() != 0 {
                faults.push("ICMPv6 checksum wrong".into());
            }
            if matches!(payload.first(), Some(1..=4)) {
                quoted(payload.get(8..).unwrap_or_default(), faults);
            }
        }
        _ => {}
    }
}

/// The pseudo header's sum (RFC 793, RFC 8200 8.1).
fn pseudo((from, to): (IpAddr, IpAddr), protocol: u8, length: usize) -> Sum16BitWords {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let mut sum = Sum16BitWords::new();
    for address in [from, to] {
        sum = match address {
            IpAddr::V4(a) => sum.add_4bytes(a.octets()),
            IpAddr::V6(a) => sum.add_16bytes(a.octets()),
        };
    }
    sum.add_4bytes(length).add_2bytes([0, protocol])
}

/// Where the checksum lies and how long the header is at least.
fn field(protocol: u8, payload: &[u8]) -> Option<u16> {
    let at = if protocol == TCP { 16 } else { 6 };
    let minimum = if protocol == TCP { 20 } else { 8 };
    (payload.len() >= minimum).then(|| u16::from_be_bytes([payload[at], payload[at + 1]]))
}

fn layer4(ends: (IpAddr, IpAddr), protocol: u8, payload: &[u8], partial: bool, faults: &mut Vec<String>) {
    let name = if protocol == TCP { "TCP" } else { "UDP" };
    let Some(checksum) = field(protocol, payload) else {
        return faults.push(format!("{name} header cut at {} bytes", payload.len()));
    };
    if protocol == UDP && checksum == 0 && !partial {
        // RFC 768 allows none in IPv4; RFC 8200 8.1 does not in IPv6.
        if ends.0.is_ipv6() {
            faults.push("UDP checksum missing in IPv6".into());
        }
        return;
    }
    if partial {
        if !is_seed(ends, protocol, payload.len(), checksum) {
            faults.push(format!("{name} checksum to be finished starts from the wrong pseudo header"));
        }
    } else if pseudo(ends, protocol, payload.len()).add_slice(payload).ones_complement() != 0 {
        faults.push(format!("{name} checksum wrong"));
    }
}

/// Whether `checksum` is the pseudo header's folded sum. 0 and 0xffff are the same number in this arithmetic.
fn is_seed(ends: (IpAddr, IpAddr), protocol: u8, length: usize, checksum: u16) -> bool {
    let seed = !u16::from_be(pseudo(ends, protocol, length).ones_complement());
    seed == checksum || (seed | checksum == u16::MAX && seed & checksum == 0 && (seed == 0 || checksum == 0))
}

fn header_v4(header: &[u8], what: &str, faults: &mut Vec<String>) {
    if Sum16BitWords::new().add_slice(header).ones_complement() != 0 {
        faults.push(format!("{what} checksum wrong"));
    }
}

/// Checks a quoted packet as far as it is quoted. Its L4 checksum can be judged only when it is complete, and may
/// be unfinished: the kernel quotes what the sender left to the hardware. Translation must keep it so.
fn quoted(quote: &[u8], faults: &mut Vec<String>) {
    let length = match quote.first().map(|b| b >> 4) {
        Some(4) if quote.len() >= 20 => {
            let header = usize::from(quote[0] & 15) * 4;
            match quote.get(..header) {
                Some(header) if header.len() >= 20 => header_v4(header, "quoted IPv4 header", faults),
                _ => return faults.push("quoted IPv4 header cut".into()),
            }
            usize::from(u16::from_be_bytes([quote[2], quote[3]]))
        }
        Some(6) if quote.len() >= 40 => 40 + usize::from(u16::from_be_bytes([quote[4], quote[5]])),
        _ => return faults.push("quoted packet has no IP header".into()),
    };
    let Some(Ok(ip)) = quote.get(..length).map(IpSlice::from_slice) else { return };
    let (number, payload) = (ip.payload_ip_number().0, ip.payload().payload);
    if ip.is_fragmenting_payload() || !matches!(number, TCP | UDP) {
        return;
    }
    let ends = (ip.source_addr(), ip.destination_addr());
    let partial = field(number, payload).is_some_and(|c| is_seed(ends, number, payload.len(), c));
    let mut inner = Vec::new();
    layer4(ends, number, payload, partial, &mut inner);
    faults.extend(inner.into_iter().map(|fault| format!("quoted {fault}")));
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
