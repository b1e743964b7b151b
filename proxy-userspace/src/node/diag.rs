//! Messages of sock_diag(7) about connected UDP sockets. Pure; structures of include/uapi/linux/inet_diag.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{DecodeError, NetlinkBuffer};
use proxy_common::abi::protocol;

use super::netlink::{ACK, DONE, DUMP, ERROR, REQUEST, message};

/// `enum` of socket states: a connected UDP socket is "established".
const ESTABLISHED: u32 = 1;

const DIAG_BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;

/// Length of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Length of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// Names one socket: addresses, device and cookie, as the kernel wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    family: u8,
    id: [u8; ID],
}

impl SocketId {
    /// What it is connected to. An IPv4 address in mapped form is given as IPv4.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.end(20, 2)
    }

    /// Its own end; likewise.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.end(4, 0)
    }

    /// The number that the kernel gives each socket once.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        let half = |at: usize| {
            let bytes = [self.id[at], self.id[at + 1], self.id[at + 2], self.id[at + 3]];
            u64::from(u32::from_ne_bytes(bytes))
        };
        half(40) | half(44) << 32
    }

    fn end(&self, address: usize, port: usize) -> SocketAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.id[address..address + 16]);
        let ip = if i32::from(self.family) == libc::AF_INET {
            Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into()
        } else {
            IpAddr::from(Ipv6Addr::from(octets)).to_canonical()
        };
        SocketAddr::new(ip, u16::from_be_bytes([self.id[port], self.id[port + 1]]))
    }
}

/// One message of an answer.
#[derive(Debug)]
pub enum Reply {
    Socket(SocketId),
    /// The end: of a dump, or of a request that was done.
    Done,
    Failed(io::Error),
}

/// Asks for every connected UDP socket of `family`.
pub fn dump(family: u8) -> Vec<u8> {
    message(DIAG_BY_FAMILY, REQUEST | DUMP, &request(family, &[0; ID]))
}

/// Asks to end one socket: its owner is told ECONNABORTED.
pub fn destroy(socket: &SocketId) -> Vec<u8> {
    message(DESTROY, REQUEST | ACK, &request(socket.family, &socket.id))
}

/// A request to destroy a socket that cannot be: port 0 to port 0. Tells whether the kernel would.
pub fn destroy_nothing() -> Vec<u8> {
    destroy(&SocketId { family: libc::AF_INET as u8, id: [0; ID] })
}

/// `struct inet_diag_req_v2`.
fn request(family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![family, protocol::UDP, 0, 0];
    body.extend((1_u32 << ESTABLISHED).to_ne_bytes());
    body.extend(id);
    body
}

/// Takes a datagram of the kernel's apart.
///
/// # Errors
/// It is not what the kernel sends.
pub fn replies(datagram: &[u8]) -> Result<Vec<Reply>, DecodeError> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        if let Some(reply) = reply(message.message_type(), message.payload())? {
            found.push(reply);
        }
        let length = (message.length() as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(found)
}

fn reply(kind: u16, body: &[u8]) -> Result<Option<Reply>, DecodeError> {
    Ok(match kind {
        // Both carry an error number, negative, or 0.
        ERROR | DONE => Some(match body.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number)) {
            0 => Reply::Done,
            number => Reply::Failed(io::Error::from_raw_os_error(-number)),
        }),
        DIAG_BY_FAMILY => {
            let head = body
                .first_chunk::<MESSAGE>()
                .ok_or_else(|| DecodeError::from("a socket's message is cut"))?;
            let mut id = [0; ID];
            id.copy_from_slice(&head[4..4 + ID]);
            Some(Reply::Socket(SocketId { family: head[0], id }))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct inet_diag_msg` of a socket from port 0x1122 to port 0x0035.
    fn socket(family: i32, local: &[u8], peer: &[u8]) -> Vec<u8> {
        let mut bytes = vec![family as u8, 1, 0, 0, 0x11, 0x22, 0x00, 0x35];
        for address in [local, peer] {
            bytes.extend(address);
            bytes.resize(bytes.len() + 16 - address.len(), 0);
        }
        bytes.extend([7, 0, 0, 0]);
        bytes.extend(0x5566_u32.to_ne_bytes());
        bytes.extend(0x1_u32.to_ne_bytes());
        bytes.resize(MESSAGE, 0);
        // What the kernel adds, asked for or not.
        bytes.extend([5, 0, 8, 0, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn sockets_are_read_with_both_ends_and_their_number() {
        let mapped = |v4: [u8; 4]| [vec![0; 10], vec![0xff, 0xff], v4.to_vec()].concat();
        let v6 = |last: u8| [vec![0xfd, 0, 0, 0x10], vec![0; 11], vec![last]].concat();
        let cases = [
            ("IPv4", socket(libc::AF_INET, &[10, 0, 0, 1], &[10, 244, 1, 6]), "10.0.0.1", "10.244.1.6"),
            (
                "mapped",
                socket(libc::AF_INET6, &mapped([10, 0, 0, 1]), &mapped([10, 244, 1, 6])),
                "10.0.0.1",
                "10.244.1.6",
            ),
            ("IPv6", socket(libc::AF_INET6, &v6(1), &v6(6)), "fd00:10::1", "fd00:10::6"),
        ];
        for (name, body, local, peer) in cases {
            let end = message(DONE, 2, &[0; 4]);
            let got = replies(&[message(DIAG_BY_FAMILY, 2, &body), end].concat()).unwrap();
            let [Reply::Socket(one), Reply::Done] = got.as_slice() else { panic!("{name}: {got:?}") };
            assert_eq!(one.cookie(), 0x1_0000_5566, "{name}");
            assert_eq!(one.local(), SocketAddr::new(local.parse().unwrap(), 0x1122), "{name}");
            assert_eq!(one.peer(), SocketAddr::new(peer.parse().unwrap(), 53), "{name}");
        }
    }

    #[test]
    fn errors_and_torn_messages_are_told() {
        let refused = message(ERROR, 0, &(-libc::EOPNOTSUPP).to_ne_bytes());
        let [Reply::Failed(error)] = &replies(&refused).unwrap()[..] else { panic!("no error") };
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        let body = socket(libc::AF_INET, &[10, 0, 0, 1], &[10, 0, 0, 2]);
        let whole = message(DIAG_BY_FAMILY, 2, &body);
        for cut in 1..whole.len() {
            assert!(replies(&whole[..cut]).is_err(), "cut at {cut}");
        }
        let torn = message(DIAG_BY_FAMILY, 2, &body[..MESSAGE - 1]);
        assert!(replies(&torn).is_err(), "a message that is too short");
    }

    #[test]
    fn a_socket_is_destroyed_by_exactly_what_was_read() {
        let body = socket(libc::AF_INET, &[10, 0, 0, 1], &[10, 0, 0, 2]);
        let [Reply::Socket(id)] = &replies(&message(DIAG_BY_FAMILY, 2, &body)).unwrap()[..] else {
            panic!("no socket");
        };
        let request = destroy(id);
        assert_eq!(request[..4], 72_u32.to_ne_bytes(), "header and inet_diag_req_v2");
        assert_eq!(request[16..20], [libc::AF_INET as u8, 17, 0, 0], "UDP, never TCP");
        assert_eq!(request[24..], body[4..52], "addresses, device and cookie");
    }
}
