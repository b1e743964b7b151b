//! Arbitrary packets, built by etherparse.

use std::net::{IpAddr, Ipv6Addr};

use etherparse::{
    IpAuthHeader, IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv4Options, Ipv6Extensions,
    Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, Ipv6RoutingExtensions, PacketBuilder,
};
use proptest::array::uniform6;
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

pub type End = (IpAddr, u16);

/// Everything about a packet but its ends.
#[derive(Clone, Debug)]
pub struct Body {
    macs: ([u8; 6], [u8; 6]),
    /// Time to live, traffic class, identification or flow label.
    small: (u8, u8, u16),
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    pub tcp: Option<Tcp>,
    pub payload: Vec<u8>,
    /// What Ethernet pads short frames with.
    trailer: Vec<u8>,
}

/// A segment's own fields; without them it is a datagram.
#[derive(Clone, Debug)]
pub struct Tcp {
    numbers: (u32, u32, u16),
    /// SYN, ACK, FIN, RST, PSH, URG, ECE.
    pub flags: [bool; 7],
    /// Bytes of options, in words.
    options: Vec<u8>,
}

pub fn body() -> impl Strategy<Value = Body> {
    let extension = (0..5_u8, vec(any::<u8>(), 0..20));
    let tcp = (any::<(u32, u32, u16)>(), any::<[bool; 7]>(), 0..=10_usize)
        .prop_map(|(numbers, flags, words)| Tcp { numbers, flags, options: vec![1; words * 4] });
    (
        (uniform6(any::<u8>()), uniform6(any::<u8>())),
        any::<(u8, u8, u16)>(),
        vec(any::<u8>(), 0..=40),
        vec(extension, 0..4),
        weighted(0.5, tcp),
        vec(any::<u8>(), 0..120),
        vec(any::<u8>(), 0..10),
    )
        .prop_map(|(macs, small, mut options, extensions, tcp, payload, trailer)| {
            options.truncate(options.len() / 4 * 4);
            Body { macs, small, options, extensions, tcp, payload, trailer }
        })
}

/// An address that a host may have; of the family asked for.
pub fn address(v6: bool) -> BoxedStrategy<IpAddr> {
    if v6 {
        any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits | 1 << 127))).boxed()
    } else {
        // Loopback addresses are dropped.
        let first = prop_oneof![1..=126_u8, 128..=223_u8];
        (first, any::<[u8; 3]>()).prop_map(|(a, [b, c, d])| IpAddr::from([a, b, c, d])).boxed()
    }
}

/// Family and `N` different ends.
pub fn ends<const N: usize>() -> impl Strategy<Value = [End; N]> {
    any::<bool>()
        .prop_flat_map(|v6| vec((address(v6), 1..=u16::MAX), N))
        .prop_map(|ends| ends.try_into().expect("as many as asked for"))
        .prop_filter("different addresses", |ends: &[End; N]| {
            (0..N).all(|a| (0..a).all(|b| ends[a].0 != ends[b].0))
        })
}

impl Body {
    /// As a SYN, so that it may open a flow.
    pub fn opening(mut self) -> Self {
        if let Some(tcp) = &mut self.tcp {
            tcp.flags[..4].copy_from_slice(&[true, false, false, false]);
        }
        self
    }

    /// The frame between these ends.
    pub fn build(&self, src: End, dst: End) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2(self.macs.0, self.macs.1).ip(self.network(src.0, dst.0));
        let mut frame = Vec::new();
        match &self.tcp {
            None => builder.udp(src.1, dst.1).write(&mut frame, &self.payload),
            Some(tcp) => {
                let (sequence, acknowledged, window) = tcp.numbers;
                let mut step = builder.tcp(src.1, dst.1, sequence, window);
                let [syn, ack, fin, rst, psh, urg, ece] = tcp.flags;
                step = if syn { step.syn() } else { step };
                step = if ack { step.ack(acknowledged) } else { step };
                step = if fin { step.fin() } else { step };
                step = if rst { step.rst() } else { step };
                step = if psh { step.psh() } else { step };
                step = if urg { step.urg(7) } else { step };
                step = if ece { step.ece() } else { step };
                let step = step.options_raw(&tcp.options).expect("at most ten words");
                step.write(&mut frame, &self.payload)
            }
        }
        .expect("a vector takes every byte");
        frame.extend(&self.trailer);
        frame
    }

    fn network(&self, src: IpAddr, dst: IpAddr) -> IpHeaders {
        let (ttl, class, id) = self.small;
        match (src, dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Ipv4Header {
                    identification: id,
                    dont_fragment: class & 1 != 0,
                    time_to_live: ttl,
                    fragment_offset: IpFragOffset::ZERO,
                    source: src.octets(),
                    destination: dst.octets(),
                    options: Ipv4Options::try_from(self.options.as_slice()).expect("at most ten words"),
                    ..Ipv4Header::default()
                };
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = Ipv6Header {
                    traffic_class: class,
                    flow_label: u32::from(id).try_into().expect("twenty bits"),
                    hop_limit: ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, self.extensions())
            }
            _ => unreachable!("a packet has one family"),
        }
    }

    /// Each kind of header once at most; the last one of a kind counts.
    fn extensions(&self) -> Ipv6Extensions {
        let mut all = Ipv6Extensions::default();
        for (kind, content) in &self.extensions {
            // Eight bytes in all, then units of eight more.
            let mut padded = content.clone();
            padded.resize(6 + padded.len() / 8 * 8, 0);
            let raw = |bytes: &[u8]| Ipv6RawExtHeader::new_raw(IpNumber::UDP, bytes).expect("units of eight");
            match kind {
                0 => all.hop_by_hop_options = Some(raw(&padded)),
                1 => all.destination_options = Some(raw(&padded)),
                2 => {
                    // No segment left, or the destination would not be final.
                    padded[1] = 0;
                    let routing = raw(&padded);
                    all.routing = Some(Ipv6RoutingExtensions { routing, final_destination_options: None });
                }
                3 => {
                    // One that does not split the packet (RFC 6946).
                    all.fragment = Some(Ipv6FragmentHeader::new(IpNumber::UDP, IpFragOffset::ZERO, false, 9));
                }
                _ => {
                    let value = &padded[..padded.len() / 4 * 4];
                    let header = IpAuthHeader::new(IpNumber::UDP, 1, 2, value);
                    all.auth = Some(header.expect("units of four"));
                }
            }
        }
        all
    }
}
