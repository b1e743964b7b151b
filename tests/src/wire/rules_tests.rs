use etherparse::{Icmpv4Type, PacketBuilder, icmpv4};

use super::*;

const CLIENT: [u8; 4] = [198, 51, 100, 9];
const VIP: [u8; 4] = [10, 96, 0, 10];
const POD: [u8; 4] = [10, 244, 1, 5];

fn udp(from: [u8; 4], sport: u16, to: [u8; 4], dport: u16) -> Vec<u8> {
    let mut out = Vec::new();
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    eth.ipv4(from, to, 64).udp(sport, dport).write(&mut out, b"x").unwrap();
    out
}

fn unreachable(from: [u8; 4], to: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let kind = Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::Port);
    let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
    eth.ipv4(from, to, 64).icmpv4(kind).write(&mut out, &quoted[14..]).unwrap();
    out
}

fn rules(end: End) -> Rules {
    let service_prefixes =
        vec![([10, 96, 0, 0].into(), 16), ("fd00:96::".parse::<std::net::Ipv6Addr>().unwrap().into(), 112)];
    Rules::new("test", end, Arc::new(Knowledge { service_prefixes }))
}

fn judge(rules: &mut Rules, device: &str, outgoing: bool, frame: &[u8]) -> Vec<String> {
    let seen = Seen { frame, outgoing, foreign: false, own: None, offload: Offload::default() };
    rules.judge(device, seen).into_iter().map(|violation| violation.rule).collect()
}

#[test]
fn service_addresses_are_told_from_others() {
    let rules = rules(End::Node);
    let cases = [
        ("10.96.0.10", true),
        ("10.96.255.255", true),
        ("10.97.0.10", false),
        ("fd00:96::7", true),
        ("fd00:96::1:0", false),
    ];
    for (address, want) in cases {
        assert_eq!(rules.knowledge.is_service(address.parse().unwrap()), want, "{address}");
    }
}

#[test]
fn a_service_address_may_not_leave_by_the_uplink() {
    let frame = udp(CLIENT, 40_000, VIP, 53);
    let cases = [
        ("out of the uplink", End::Node, "eth0", true, 1),
        ("into the uplink", End::Node, "eth0", false, 0),
        ("out of a pod's device", End::Node, "vpa", true, 0),
        ("seen at a router", End::Router, "eth0", true, 0),
    ];
    for (name, end, device, outgoing, want) in cases {
        assert_eq!(judge(&mut rules(end), device, outgoing, &frame).len(), want, "{name}");
    }
}

#[test]
fn answers_come_from_whom_the_client_wrote_to() {
    let mut rules = rules(End::Host);
    let ask = udp(CLIENT, 40_000, VIP, 53);
    assert!(judge(&mut rules, "eth0", true, &ask).is_empty());
    assert!(
        judge(&mut rules, "eth0", false, &udp(VIP, 53, CLIENT, 40_000)).is_empty(),
        "the Service answers"
    );
    let crossed = judge(&mut rules, "eth0", false, &udp(POD, 8_080, CLIENT, 40_000));
    assert_eq!(crossed.len(), 1, "the backend answers under its own name: {crossed:?}");
    assert!(judge(&mut rules, "eth0", true, &udp(CLIENT, 40_000, POD, 8_080)).is_empty());
    let direct = judge(&mut rules, "eth0", false, &udp(POD, 8_080, CLIENT, 40_000));
    assert!(direct.is_empty(), "now the client wrote to the pod as well: {direct:?}");
}

#[test]
fn requests_to_a_server_are_no_answers() {
    let mut rules = rules(End::Host);
    assert!(judge(&mut rules, "eth0", false, &udp(CLIENT, 40_000, POD, 8_080)).is_empty());
}

#[test]
fn icmp_errors_quote_what_was_sent() {
    let mut rules = rules(End::Host);
    let ask = udp(CLIENT, 40_000, VIP, 53);
    let translated = udp(CLIENT, 40_000, POD, 8_080);
    assert!(judge(&mut rules, "eth0", true, &ask).is_empty());
    assert!(judge(&mut rules, "eth0", false, &unreachable(VIP, CLIENT, &ask)).is_empty());
    assert_eq!(judge(&mut rules, "eth0", false, &unreachable(POD, CLIENT, &translated)).len(), 1);
}

#[test]
fn a_wrong_checksum_is_a_violation_at_every_end() {
    for end in [End::Host, End::Node, End::Router] {
        let mut frame = udp(CLIENT, 40_000, POD, 8_080);
        frame[41] ^= 1;
        assert_eq!(judge(&mut rules(end), "eth0", true, &frame), ["UDP checksum wrong"]);
    }
}

/// What a bridge floods past an end is nothing to that end, but its checksums are the node's doing all the same.
#[test]
fn flooded_frames_are_judged_by_themselves() {
    let mut rules = rules(End::Host);
    let mut frame = udp(POD, 8_080, CLIENT, 40_000);
    let mut flooded = |frame: &[u8]| {
        let seen = Seen { frame, outgoing: false, foreign: true, own: None, offload: Offload::default() };
        rules.judge("eth0", seen).into_iter().map(|violation| violation.rule).collect::<Vec<_>>()
    };
    assert!(flooded(&frame).is_empty(), "an answer to somebody else");
    frame[41] ^= 1;
    assert_eq!(flooded(&frame), ["UDP checksum wrong"]);
}

#[test]
fn what_leaves_a_node_has_its_hardware_address() {
    let frame = udp(CLIENT, 40_000, POD, 53);
    let leaves = "leaves a node with somebody else's hardware address";
    // The source of `udp` is 2.
    let cases = [
        ("into the node", End::Node, "eth0", false, 3, None),
        ("from the node", End::Node, "eth0", true, 2, None),
        ("from another", End::Node, "eth0", true, 3, Some(leaves)),
        ("from another, by a port", End::Node, "pa", true, 3, None),
        ("from another, of a pod that forges", End::Host, "eth0", true, 3, None),
    ];
    for (name, end, device, outgoing, own, want) in cases {
        let own = Some([own; 6]);
        let seen = Seen { frame: &frame, outgoing, foreign: false, own, offload: Offload::default() };
        let broken: Vec<_> = rules(end).judge(device, seen).into_iter().map(|v| v.rule).collect();
        assert!(broken.iter().map(String::as_str).eq(want), "{name}: {broken:?}");
    }
}
