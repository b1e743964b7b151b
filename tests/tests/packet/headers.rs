//! Packets that are more, or other, than network header and transport header.

use proxy_common::abi::Reason;
use sluice_tests::packet::shape::Shape::{
    self, Authentication, Big, Destination, Fragment, HopByHop, NoChecksum, Options, Protocol, Routing, Tag,
    Trailer, Unfinished,
};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, SEEN, STRANGER, Tale, VIP, Who, renumbered, syn, syn_ack, tale,
};
use sluice_tests::packet::world::{EMPTY_PORT, IFINDEX};

pub fn rows() -> Vec<Tale> {
    [options(), extensions(), link(), fragments(), others(), offloads()].concat()
}

/// Through all four rewrites.
fn translated(title: &str, shapes: &[Shape]) -> Tale {
    tale(title)
        .enters(syn(STRANGER, NODEPORT).with(shapes))
        .becomes_marked(renumbered(STRANGER), BACKEND)
        .goes_on()
        .becomes_unmarked(MASQUERADE, BACKEND)
        .enters(syn_ack(BACKEND, SEEN).with(shapes))
        .becomes(BACKEND, renumbered(STRANGER))
        .goes_on()
        .becomes(NODEPORT, STRANGER)
        .enters(syn((Who::Pod, 7), (Who::Vip, EMPTY_PORT)).with(shapes))
        .refused(Reason::NoEndpoint)
}

fn options() -> Vec<Tale> {
    let words = |n: u8| translated(&format!("{n} words of IPv4 options P-02"), &[Options(n)]).v4();
    (1..=10).map(words).collect()
}

fn extensions() -> Vec<Tale> {
    let single: [(&str, Shape); 7] = [
        ("hop-by-hop options", HopByHop(1)),
        ("long hop-by-hop options", HopByHop(3)),
        ("destination options", Destination(1)),
        ("long destination options", Destination(4)),
        ("a routing header with no segment left", Routing(0)),
        ("an authentication header", Authentication),
        ("an atomic fragment's header", Fragment(0, false)),
    ];
    let mut rows: Vec<Tale> =
        single.iter().map(|(name, shape)| translated(&format!("{name} P-03 P-12"), &[*shape]).v6()).collect();
    for (one, first) in single {
        for (two, second) in single {
            // Hop-by-hop options stand first or nowhere (RFC 8200 section 4.1).
            if first != second && !matches!(second, HopByHop(_)) {
                let title = format!("{one} before {two} P-03");
                rows.push(translated(&title, &[first, second]).v6().udp());
            }
        }
    }
    let six = [HopByHop(1), Destination(1), Routing(0), Fragment(0, false), Authentication, Destination(1)];
    let seven = [&six[..], &[Destination(1)]].concat();
    rows.extend([
        translated("as many extension headers as are read P-03", &six).v6(),
        tale("one extension header too many to a Service is dropped P-03")
            .v6()
            .enters(syn(CLIENT, VIP).with(&seven))
            .dropped(Reason::Malformed)
            .entries(0),
        tale("one extension header too many to anybody else passes P-03")
            .v6()
            .enters(syn(CLIENT, (Who::Outside, 443)).with(&seven))
            .untouched()
            .enters(syn(STRANGER, NODEPORT).with(&seven))
            .untouched()
            .leaves(syn_ack(BACKEND, CLIENT).with(&seven))
            .untouched(),
        tale("with segments left the destination is not final: not translated P-03")
            .v6()
            .enters(syn(CLIENT, VIP).with(&[Routing(1)]))
            .untouched()
            .enters(syn(CLIENT, VIP).with(&[Destination(1), Routing(2)]))
            .untouched()
            .entries(0),
        tale("no next header to a Service is dropped P-03")
            .v6()
            .enters(syn(CLIENT, VIP).with(&[Destination(1), Protocol(59)]))
            .dropped(Reason::Protocol),
    ]);
    rows
}

/// What stands before and behind the packet.
fn link() -> Vec<Tale> {
    let tagged = |title: &str, tags: &[Shape]| {
        tale(title)
            .enters(syn(CLIENT, VIP).with(tags))
            .untouched()
            .leaves(syn(CLIENT, VIP).with(tags))
            .untouched()
    };
    vec![
        tagged("a tagged frame is its VLAN device's to serve P-04", &[Tag(5)]),
        tagged("a priority-tagged frame passes P-04", &[Tag(0)]),
        tagged("a frame with two tags passes P-04", &[Tag(5), Tag(100)]),
        tale("an empty payload")
            .enters(syn(CLIENT, VIP).carrying(b""))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT).carrying(b""))
            .becomes(VIP, CLIENT),
        translated("a byte of padding behind the packet stays where it is P-01", &[Trailer(1)]),
        translated("padding to the shortest frame stays where it is P-01", &[Trailer(12)]),
    ]
}

fn fragments() -> Vec<Tale> {
    let later = [("a middle", Fragment(1480, true)), ("a last", Fragment(2960, false))];
    let mut rows: Vec<_> = later
        .iter()
        .map(|(name, shape)| {
            tale(format!("{name} fragment to a Service is never forwarded untranslated P-09 P-10"))
                .enters(syn(CLIENT, VIP).with(&[*shape]))
                .dropped(Reason::Fragment)
                .entries(0)
        })
        .collect();
    for (name, shape) in later.into_iter().chain([("a first", Fragment(0, true))]) {
        rows.extend([
            tale(format!("{name} fragment to the node is the stack's to put together P-09"))
                .enters(syn(STRANGER, (Who::Node, 22)).with(&[shape]))
                .untouched(),
            tale(format!("{name} fragment between strangers passes P-05"))
                .enters(syn(CLIENT, (Who::Outside, 443)).with(&[shape]))
                .untouched()
                .leaves(syn(STRANGER, (Who::Pod, 443)).with(&[shape]))
                .untouched(),
        ]);
    }
    rows
}

/// Protocols that Services do not have.
fn others() -> Vec<Tale> {
    let protocols = [(4, "IPIP"), (41, "IPv6 in IP"), (47, "GRE"), (50, "ESP"), (112, "VRRP")];
    let mut rows = Vec::new();
    for (number, name) in protocols {
        let other = [Protocol(number)];
        rows.extend([
            tale(format!("{name} to a ClusterIP ends here P-91"))
                .udp()
                .enters(syn(CLIENT, VIP).with(&other))
                .dropped(Reason::Protocol)
                .entries(0),
            tale(format!("{name} to a load balancer's address ends here P-91"))
                .udp()
                .enters(syn(STRANGER, (Who::LoadBalancer, 80)).with(&other))
                .dropped(Reason::Protocol),
            tale(format!(
                "{name} to an external IP that another host may have ends here where it would circle P-91 B9"
            ))
            .udp()
            .enters(syn(STRANGER, (Who::External, 80)).with(&other).routed(&[IFINDEX]))
            .dropped(Reason::Protocol)
            .enters(syn(STRANGER, (Who::External, 80)).with(&other))
            .untouched(),
            tale(format!("{name} to the node and between strangers passes P-05"))
                .udp()
                .enters(syn(STRANGER, NODEPORT).with(&other))
                .untouched()
                .enters(syn(CLIENT, (Who::Outside, 80)).with(&other))
                .untouched()
                .leaves(syn(BACKEND, CLIENT).with(&other))
                .untouched(),
        ]);
    }
    rows
}

/// What devices do later, or have done before.
fn offloads() -> Vec<Tale> {
    vec![
        tale("a super-packet is translated like any other P-81")
            .enters(syn(STRANGER, NODEPORT).of_segments(3))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN).of_segments(2))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER),
        tale("so is one that is too long for its length field P-81")
            .tcp()
            .enters(syn(STRANGER, NODEPORT).of_segments(3).with(&[Big]))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND),
        tale("no packet but a super-packet is without a length P-01")
            .tcp()
            .enters(syn(STRANGER, NODEPORT).with(&[Big]))
            .untouched()
            .entries(0),
        tale("a super-packet is refused like any other P-81")
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).of_segments(3))
            .refused(Reason::NoEndpoint),
        tale("a refusal of a segment whose checksum the device is to finish is to be finished too P-80")
            .tcp()
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).with(&[Unfinished]))
            .refused(Reason::NoEndpoint),
        tale("a refusal of a datagram whose checksum the device is to finish is right before and after P-80")
            .udp()
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).with(&[Unfinished]))
            .refused(Reason::NoEndpoint)
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).carrying(b"").with(&[Unfinished]))
            .refused(Reason::NoEndpoint)
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).carrying(b"odd load!").with(&[Unfinished]))
            .refused(Reason::NoEndpoint),
        tale("a refusal of a datagram without checksum P-58")
            .udp()
            .v4()
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).with(&[NoChecksum]))
            .refused(Reason::NoEndpoint),
    ]
}
