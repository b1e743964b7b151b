//! IPv6's extension headers (RFC 8200, P-03).

use super::headers::{Headers, MAX_OFFSET, part, part_of};
use crate::abi::protocol;
use crate::path::Packet;

/// Extension headers walked before a packet counts as unreadable (P-03).
const MAX_EXTENSIONS: usize = 6;

// What came of a chain of extension headers: numbers, as in the kernel a function of its own tells.

/// The packet is none of ours.
pub const LEFT: u32 = 0;
/// It does not end where it can be read.
pub const UNREADABLE: u32 = 1;
/// The transport header is found.
pub const WALKED: u32 = 2;

/// Walks the chain that begins where `headers` have the transport header: what came of it.
///
/// A step of its own: few packets have such headers, and the loop takes much of the stack.
#[inline(always)]
pub fn extensions<const N: usize, P: Packet>(packet: &P, headers: &mut Headers<N>) -> u32 {
    walk(packet, headers).map_or(LEFT, |readable| if readable { WALKED } else { UNREADABLE })
}

#[inline(always)]
fn walk<const N: usize, P: Packet>(packet: &P, headers: &mut Headers<N>) -> Option<bool> {
    let mut protocol = headers.key.protocol;
    let mut at = headers.l4;
    let mut fragment = 0;
    for _ in 0..MAX_EXTENSIONS {
        if !is_extension(protocol) || at >= MAX_OFFSET - 64 {
            break;
        }
        let extension: [u8; 4] = packet.load(at)?;
        at += match protocol {
            43 if extension[3] != 0 => return None,
            protocol::FRAGMENT => {
                let word = u16::from_be_bytes([extension[2], extension[3]]);
                // An atomic fragment is a whole packet (RFC 6946, P-12).
                headers.part = part_of(word & 0xfff8, word & 1);
                fragment = at;
                8
            }
            51 => (u32::from(extension[1]) + 2) * 4,
            _ => (u32::from(extension[1]) + 1) * 8,
        };
        protocol = extension[0];
        // What follows is the middle of something.
        if headers.part == part::LATER {
            break;
        }
    }
    if headers.part != part::WHOLE {
        headers.id = u32::from_ne_bytes(packet.load(fragment + 4)?);
    }
    headers.key.protocol = protocol;
    headers.l4 = at;
    Some(!is_extension(protocol) && at < MAX_OFFSET - 64)
}

/// Hop-by-hop, routing, fragment, authentication, destination options.
#[inline(always)]
pub const fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | protocol::FRAGMENT | 51 | 60)
}
