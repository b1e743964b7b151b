//! Whether routes look at the ports of a packet: by the rules of policy routing, and by how one of several paths is chosen.

use std::io;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::RuleAttribute;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::netlink::{DUMP, REQUEST, message, open};

/// RTM_GETRULE (include/uapi/linux/rtnetlink.h).
const GET_RULES: u16 = 34;
/// NLM_F_DUMP_INTR.
const INTERRUPTED: u16 = 0x10;
/// Length of `struct fib_rule_hdr`, whose first byte is the family: all of them.
const HEADER: usize = 12;

/// By what one of several paths is chosen: 0 stands for the addresses, in IPv6 the transport as well. There is none of IPv6 where there is no IPv6.
const POLICIES: [&str; 2] =
    ["/proc/sys/net/ipv4/fib_multipath_hash_policy", "/proc/sys/net/ipv6/fib_multipath_hash_policy"];

/// Whether all flows between two addresses have the same route, in the calling thread's network namespace.
///
/// # Errors
/// The kernel does not tell.
pub fn are_routes_by_address() -> io::Result<bool> {
    for policy in POLICIES {
        match std::fs::read_to_string(policy) {
            Ok(value) if value.trim() == "0" => {}
            Ok(_) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    let socket = open(NETLINK_ROUTE)?;
    socket.send(&message(GET_RULES, REQUEST | DUMP, &[0; HEADER]), 0)?;
    let mut room = vec![0; 32 << 10];
    loop {
        let length = socket.recv(&mut &mut room[..], 0)?;
        match look(&room[..length])? {
            Looked::ByAddress => {}
            Looked::ByPort => return Ok(false),
            Looked::End => return Ok(true),
        }
    }
}

/// What a datagram of the kernel's shows.
#[derive(Debug, PartialEq, Eq)]
enum Looked {
    /// Rules that look at addresses, devices and marks only; there are more.
    ByAddress,
    ByPort,
    End,
}

fn look(datagram: &[u8]) -> io::Result<Looked> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
        if message.header.flags & INTERRUPTED != 0 {
            return Err(io::Error::other("rules have changed meanwhile"));
        }
        let length = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        match message.payload {
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(io::Error::from_raw_os_error(-done.code));
            }
            NetlinkPayload::Done(_) => return Ok(Looked::End),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule))
                if rule.attributes.iter().any(is_by_port) =>
            {
                return Ok(Looked::ByPort);
            }
            _ => {}
        }
    }
    Ok(Looked::ByAddress)
}

const fn is_by_port(attribute: &RuleAttribute) -> bool {
    matches!(
        attribute,
        RuleAttribute::IpProtocol(_)
            | RuleAttribute::SourcePortRange(_)
            | RuleAttribute::DestinationPortRange(_)
    )
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{DONE, ERROR};
    use super::*;

    /// RTM_NEWRULE.
    const RULE: u16 = 32;
    /// Attributes of include/uapi/linux/fib_rules.h.
    const MARK: u16 = 10;
    const TABLE: u16 = 15;
    const TRANSPORT: u16 = 22;
    const FROM_PORTS: u16 = 23;
    const TO_PORTS: u16 = 24;

    /// A rule for IPv4 that leads to the main table.
    fn rule(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![2, 0, 0, 0, 254, 0, 0, 1, 0, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend((4 + value.len() as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        message(RULE, 2, &body)
    }

    #[test]
    fn rules_by_port_or_transport_are_told_from_others() {
        let plain = rule(&[(TABLE, &[254, 0, 0, 0]), (MARK, &[1, 0, 0, 0])]);
        let end = message(DONE, 2, &[0; 4]);
        let cases = [
            ("by address and mark", plain.clone(), Looked::ByAddress),
            ("by transport", [plain.clone(), rule(&[(TRANSPORT, &[6])])].concat(), Looked::ByPort),
            ("by source port", rule(&[(FROM_PORTS, &[80, 0, 90, 0])]), Looked::ByPort),
            ("by destination port", rule(&[(TO_PORTS, &[80, 0, 80, 0])]), Looked::ByPort),
            ("the last of them", [plain.clone(), end.clone()].concat(), Looked::End),
            ("none", end, Looked::End),
        ];
        for (name, datagram, want) in cases {
            assert_eq!(look(&datagram).unwrap(), want, "{name}");
        }
        for cut in 1..plain.len() {
            assert!(look(&plain[..cut]).is_err(), "cut at {cut}");
        }
        let failed = message(DONE, 2, &(-libc::ENOBUFS).to_ne_bytes());
        assert_eq!(look(&failed).unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
        assert!(look(&message(DONE, 2 | INTERRUPTED, &[0; 4])).is_err(), "interrupted");
        let refused = message(ERROR, 0, &[(-libc::EPERM).to_ne_bytes().to_vec(), vec![0; 16]].concat());
        assert_eq!(look(&refused).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn the_kernel_answers() {
        are_routes_by_address().unwrap();
    }
}
