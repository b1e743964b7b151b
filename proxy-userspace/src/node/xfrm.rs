//! Whether packets may have to be encrypted: the policies of xfrm (IPsec) in the network namespace.

use std::io;

use netlink_packet_core::NetlinkBuffer;
use rtnetlink::sys::protocols::NETLINK_XFRM;

use super::netlink::{REQUEST, message, open};

/// Messages of include/uapi/linux/xfrm.h, which carry flags and then attributes.
const NEW_SPD_INFO: u16 = 0x24;
const GET_SPD_INFO: u16 = 0x25;
/// The attribute with three counts of policies: of what comes in, goes out, is forwarded.
const SPD_INFO: u16 = 1;

/// How many policies there are for packets that go out or are forwarded. None where the kernel has no xfrm.
///
/// # Errors
/// The kernel does not tell.
pub fn policies() -> io::Result<u32> {
    let socket = match open(NETLINK_XFRM) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        Err(error) => return Err(error),
    };
    socket.send(&message(GET_SPD_INFO, REQUEST, &[0; 4]), 0)?;
    let mut room = vec![0; 4096];
    let length = socket.recv(&mut &mut room[..], 0)?;
    count(&room[..length]).ok_or_else(|| io::Error::other("xfrm's answer is none"))
}

/// The sum of what goes out and what is forwarded, of the kernel's answer.
fn count(datagram: &[u8]) -> Option<u32> {
    let message = NetlinkBuffer::new_checked(datagram).ok()?;
    if message.message_type() != NEW_SPD_INFO {
        return None;
    }
    let mut rest = message.payload().get(4..)?;
    while let [l0, l1, k0, k1, ..] = *rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([l0, l1])), u16::from_ne_bytes([k0, k1]));
        let body = rest.get(4..length)?;
        if kind == SPD_INFO {
            let number = |at: usize| body.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
            return Some(number(4)? + number(8)?);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, attributes: &[(u16, &[u32])]) -> Vec<u8> {
        let mut body = vec![0; 4];
        for (attribute, words) in attributes {
            body.extend((4 + 4 * words.len() as u16).to_ne_bytes());
            body.extend(attribute.to_ne_bytes());
            words.iter().for_each(|word| body.extend(word.to_ne_bytes()));
        }
        message(kind, 0, &body)
    }

    #[test]
    fn policies_of_what_leaves_are_counted() {
        let counts: &[u32] = &[9, 2, 1, 0, 0, 0];
        let cases = [
            ("out and forwarded", answer(NEW_SPD_INFO, &[(SPD_INFO, counts)]), Some(3)),
            ("after another attribute", answer(NEW_SPD_INFO, &[(7, &[1, 2]), (SPD_INFO, counts)]), Some(3)),
            ("not told", answer(NEW_SPD_INFO, &[(7, &[1])]), None),
            ("an error", answer(2, &[(SPD_INFO, counts)]), None),
            ("too few counts", answer(NEW_SPD_INFO, &[(SPD_INFO, &[9, 2])]), None),
        ];
        for (name, datagram, want) in cases {
            assert_eq!(count(&datagram), want, "{name}");
        }
        let whole = answer(NEW_SPD_INFO, &[(SPD_INFO, counts)]);
        for cut in 1..whole.len() {
            assert_eq!(count(&whole[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn the_kernel_answers() {
        let told = policies().unwrap();
        assert!(told < 1_000_000, "{told}");
    }
}
