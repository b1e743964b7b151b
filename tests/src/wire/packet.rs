//! What a captured frame says, as far as the oracle cares.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{IpSlice, SlicedPacket, TransportSlice};

/// TCP or UDP: the transports of the laboratory's traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub const BOTH: [Self; 2] = [Self::Tcp, Self::Udp];

    /// IP protocol number.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// As manifests spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Two ends of a packet: source, then destination.
pub type Tuple = (Transport, SocketAddr, SocketAddr);

/// The packet that an ICMP error complains about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    /// Outer source: who complains.
    pub from: IpAddr,
    pub tuple: Tuple,
}

/// A frame's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Not IP (ARP and the like), or IP without anything the oracle judges.
    Other,
    /// A TCP or UDP packet that is no fragment. `syn`: TCP with SYN and no ACK; `rst`: TCP with RST.
    Flow { tuple: Tuple, syn: bool, rst: bool },
    /// An ICMP or ICMPv6 error, or a redirect, that quotes a TCP or UDP packet.
    Error { to: IpAddr, redirect: bool, quote: Quote },
    /// IP to `to` without TCP or UDP ports: fragments, pings.
    Portless { from: IpAddr, to: IpAddr },
}

impl Packet {
    /// Destination address, where there is one.
    #[must_use]
    pub const fn destination(&self) -> Option<IpAddr> {
        match self {
            Self::Other => None,
            Self::Flow { tuple, .. } => Some(tuple.2.ip()),
            Self::Error { to, .. } | Self::Portless { to, .. } => Some(*to),
        }
    }

    /// Reads an Ethernet frame.
    ///
    /// # Errors
    /// What the parser dislikes about it, for people.
    pub fn parse(frame: &[u8]) -> Result<Self, String> {
        let sliced = SlicedPacket::from_ethernet(frame).map_err(|e| e.to_string())?;
        let Some(net) = &sliced.net else { return Ok(Self::Other) };
        let (from, to): (IpAddr, IpAddr) = match net {
            etherparse::NetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            etherparse::NetSlice::Arp(_) => return Ok(Self::Other),
        };
        let flow = |transport, sport, dport, syn, rst| Self::Flow {
            tuple: (transport, SocketAddr::new(from, sport), SocketAddr::new(to, dport)),
            syn,
            rst,
        };
        Ok(match &sliced.transport {
            Some(TransportSlice::Tcp(tcp)) => flow(
                Transport::Tcp,
                tcp.source_port(),
                tcp.destination_port(),
                tcp.syn() && !tcp.ack(),
                tcp.rst(),
            ),
            Some(TransportSlice::Udp(udp)) => {
                flow(Transport::Udp, udp.source_port(), udp.destination_port(), false, false)
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                // RFC 792: 3 unreachable, 4 quench, 5 redirect, 11 time exceeded, 12 parameter problem.
                let kind = icmp.slice()[0];
                error(icmp.slice().get(8..), from, to, matches!(kind, 3..=5 | 11 | 12), kind == 5)
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                let kind = icmp.slice()[0];
                match kind {
                    // RFC 4861: the redirected packet is an option behind target and destination.
                    137 => error(redirected(icmp.slice()), from, to, true, true),
                    // RFC 4443: errors have types below 128.
                    _ => error(icmp.slice().get(8..), from, to, kind < 128, false),
                }
            }
            _ => Self::Portless { from, to },
        })
    }
}

/// The "redirected header" option (type 4) of an ICMPv6 redirect.
fn redirected(icmp: &[u8]) -> Option<&[u8]> {
    let mut options = icmp.get(40..)?;
    loop {
        let length = usize::from(*options.get(1)?) * 8;
        if length == 0 {
            return None;
        }
        if options[0] == 4 {
            return options.get(8..length.min(options.len()));
        }
        options = options.get(length..)?;
    }
}

fn error(quoted: Option<&[u8]>, from: IpAddr, to: IpAddr, is_error: bool, redirect: bool) -> Packet {
    match quoted.filter(|_| is_error).and_then(quoted_tuple) {
        Some(tuple) => Packet::Error { to, redirect, quote: Quote { from, tuple } },
        None => Packet::Portless { from, to },
    }
}

/// Addresses and ports of a quoted packet, which may be cut anywhere behind its ports.
#[must_use]
pub fn quoted_tuple(quoted: &[u8]) -> Option<Tuple> {
    let lax = etherparse::LaxSlicedPacket::from_ip(quoted).ok()?;
    let (from, to, payload): (IpAddr, IpAddr, &[u8]) = match lax.net? {
        etherparse::LaxNetSlice::Ipv4(ip) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
            if ip.is_payload_fragmented() { return None } else { ip.payload().payload },
        ),
        etherparse::LaxNetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into(), ip.payload().payload)
        }
        etherparse::LaxNetSlice::Arp(_) => return None,
    };
    let number = match quoted[0] >> 4 {
        4 => quoted[9],
        _ => quoted[6],
    };
    let transport = Transport::BOTH.into_iter().find(|t| t.number() == number)?;
    let port = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    Some((transport, SocketAddr::new(from, port(0)?), SocketAddr::new(to, port(2)?)))
}

/// An IP packet's slice behind its Ethernet header, for checks that need more than [`Packet`].
pub(super) fn ip(frame: &[u8]) -> Option<Result<IpSlice<'_>, String>> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    matches!(ethertype, 0x0800 | 0x86dd).then(|| IpSlice::from_slice(&frame[14..]).map_err(|e| e.to_string()))
}
