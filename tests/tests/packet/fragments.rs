//! Datagrams in parts (P-09 … P-12, J2).

use anyhow::{Result, ensure};
use proxy_common::abi::{Config, Reason, config_flags, protocol};
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{ACK, End, Flags, SYN, SYN_ACK, packet, read};
use sluice_tests::packet::pieces::{ORDERS, cut, join};
use sluice_tests::packet::story::{Action, At, Both, Node, Outcome};
use sluice_tests::packet::world::{
    BACKEND_PORT, EMPTY_PORT, MARK, NODE_PORT, PODS_IFINDEX, PORT, config, plan,
};

use crate::table::{each_of, each_way};

/// Bits of the mark that are not ours.
const FOREIGN: u32 = 0x8000_1337;

/// Cuts of 64 bytes of payload behind a transport header: three parts.
const CUTS: [usize; 2] = [24, 48];

pub fn stories() -> Vec<Story<Both>> {
    let mut stories = each_of(
        &[protocol::TCP, protocol::UDP],
        &[
            ("a datagram in three parts goes there and back through all four rewrites P-09", four_rewrites),
            ("parts go by the stack though their flow has a lease P-09", by_the_stack),
            ("parts of a second flow with the same id do not mix P-11", same_id),
            ("an id comes back with a datagram that is not translated P-11", id_comes_back),
        ],
    );
    stories.extend(each_of(&[protocol::SCTP], &[(
        "a first part of SCTP whose port would change is dropped and counted, and the others with it P-90 P-09",
        other_port,
    )]));
    stories.extend(each_way(&[
        (
            "a pod's datagram in three parts reaches a ClusterIP's endpoint, and the answer it P-09",
            cluster_ip,
        ),
        ("parts that come before their first are dropped and counted, the others go on P-10", any_order),
        (
            "parts for the node's own sockets are the stack's in any order, and the early ones counted P-10",
            own_sockets,
        ),
        ("parts that leave before their first are left alone and counted P-10", early_answers),
        ("parts of what is not translated are counted only where they are early P-10", direct),
        ("what is known of a datagram is soon forgotten P-11", forgotten),
        ("a first part that is too small is dropped P-11", too_small),
        ("a first part to a Service without endpoints is refused, the others dropped P-23", refused),
    ]));
    stories
}

/// A port of the ClusterIP. Of SCTP one that is the endpoint's too: a part's checksum does not survive another.
const fn service_port(number: u8) -> u16 {
    if number == protocol::SCTP { BACKEND_PORT } else { PORT }
}

fn other_port(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let parts = cut(&datagram(protocol, SYN, (p.pod, 41_000), (p.vip, PORT)), 5, &CUTS);
    for part in &parts {
        ensure!(node.run(&At::INGRESS, part, 0).action == Action::Drop);
    }
    ensure!(node.count(Reason::Fragment) == 3);
    Ok(())
}

fn datagram(protocol: u8, flags: Flags, from: End, to: End) -> Vec<u8> {
    let payload: Vec<u8> = (0..64).collect();
    packet(protocol, flags, from, to, &payload)
}

fn pass(node: &mut Both, at: &At, part: &[u8], mark: u32) -> Result<Outcome> {
    let out = node.run(at, part, mark);
    ensure!(out.action == Action::Pass, "{:?}", out.action);
    Ok(out)
}

/// All parts through one hook, in order; the mark that they all have afterwards.
fn through(node: &mut Both, at: &At, parts: &[Vec<u8>], mark: u32) -> Result<(Vec<Vec<u8>>, u32)> {
    let outs = parts.iter().map(|part| pass(node, at, part, mark)).collect::<Result<Vec<_>>>()?;
    let marks: Vec<_> = outs.iter().map(|out| out.mark).collect();
    ensure!(marks.windows(2).all(|pair| pair[0] == pair[1]), "marks differ: {marks:x?}");
    Ok((outs.into_iter().map(|out| out.bytes).collect(), marks[0]))
}

fn ends(parts: &[Vec<u8>]) -> Result<(End, End)> {
    let whole = read(&join(parts)?);
    Ok((whole.src, whole.dst))
}

fn four_rewrites(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let (client, front) = ((p.outside, 40_002), (p.node, NODE_PORT));
    let request = cut(&datagram(protocol, SYN, client, front), 7, &CUTS);
    let (inside, mark) = through(node, &At::INGRESS, &request, FOREIGN)?;
    let (between, backend) = ends(&inside)?;
    ensure!(mark == FOREIGN | MARK, "{mark:x}");
    ensure!((between.0, backend) == (client.0, (p.backend, BACKEND_PORT)), "{between:?} {backend:?}");
    let (outside, mark) = through(node, &At::EGRESS, &inside, mark)?;
    ensure!(mark == FOREIGN, "{mark:x}");
    let (masqueraded, to) = ends(&outside)?;
    ensure!((masqueraded.0, to) == (p.masquerade, backend), "{masqueraded:?} {to:?}");
    let answer = cut(&datagram(protocol, ACK, backend, masqueraded), 0x1234, &CUTS);
    // The handshake goes on first.
    let whole = packet(protocol, SYN_ACK, backend, masqueraded, b"");
    let whole = pass(node, &At::INGRESS, &whole, 0)?;
    pass(node, &At::EGRESS, &whole.bytes, 0)?;
    let (back, _) = through(node, &At::INGRESS, &answer, 0)?;
    ensure!(ends(&back)? == (backend, between), "unmasqueraded");
    let (restored, _) = through(node, &At::EGRESS, &back, 0)?;
    ensure!(ends(&restored)? == (front, client), "restored: {:?}", ends(&restored)?);
    Ok(())
}

fn cluster_ip(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let (client, front) = ((p.pod, 40_001), (p.vip, service_port(protocol)));
    let request = cut(&datagram(protocol, SYN, client, front), 9, &CUTS);
    let (there, mark) = through(node, &At::INGRESS, &request, FOREIGN)?;
    let backend = (p.backend, BACKEND_PORT);
    ensure!((ends(&there)?, mark) == ((client, backend), FOREIGN));
    // Nothing is left to be done at the backend's edge.
    let (same, _) = through(node, &At::EGRESS, &there, 0)?;
    ensure!(same == there);
    let answer = cut(&datagram(protocol, SYN_ACK, backend, client), 9, &CUTS);
    let (back, _) = through(node, &At::EGRESS, &answer, 0)?;
    ensure!(ends(&back)? == (front, client));
    Ok(())
}

fn by_the_stack(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let mut on = config();
    on.flags |= config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP;
    node.set_config(on);
    let p = plan(v6);
    let (client, front, backend) = ((p.pod, 40_001), (p.vip, PORT), (p.backend, BACKEND_PORT));
    let opened = pass(node, &At::INGRESS, &packet(protocol, SYN, client, front, b"whole"), 0)?;
    let far = At { ifindex: PODS_IFINDEX, note: opened.note, ..At::EGRESS };
    pass(node, &far, &opened.bytes, 0)?;
    let whole = node.run(&At::INGRESS, &packet(protocol, ACK, client, front, b"whole"), 0);
    ensure!(matches!(whole.action, Action::Shortcut(_)), "no lease: {:?}", whole.action);
    let (there, _) = through(node, &At::INGRESS, &cut(&datagram(protocol, ACK, client, front), 3, &CUTS), 0)?;
    ensure!(ends(&there)? == (client, backend));
    Ok(())
}

fn any_order(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for (id, order) in (100..).zip(ORDERS) {
        let client = (p.pod, 41_000 + id);
        let parts = cut(&datagram(protocol, SYN, client, (p.vip, service_port(protocol))), id, &CUTS);
        let (mut known, mut dropped) = (false, node.count(Reason::Fragment));
        for part in order {
            known |= part == 0;
            let out = node.run(&At::INGRESS, &parts[part], 0);
            if known {
                ensure!(out.action == Action::Pass, "{order:?}, {part}: {:?}", out.action);
                ensure!(out.bytes != parts[part], "{order:?}, {part}: not translated");
            } else {
                ensure!(out.action == Action::Drop, "{order:?}, {part}: {:?}", out.action);
                dropped += 1;
            }
            ensure!(node.count(Reason::Fragment) == dropped, "{order:?}, {part}: not counted");
        }
    }
    Ok(())
}

fn own_sockets(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for to in [(p.node, 5_353), (p.bound, 5_353), (p.plain, NODE_PORT)] {
        for (id, order) in (100..).zip(ORDERS) {
            let parts = cut(&datagram(protocol, SYN, (p.outside, 41_000), to), id, &CUTS);
            each_early_is_counted(node, &At::INGRESS, order, &parts, &parts)?;
        }
    }
    // A NodePort's part without its first is not refused.
    let parts = cut(&datagram(protocol, SYN, (p.outside, 41_001), (p.node, NODE_PORT)), 99, &CUTS);
    let early = node.count(Reason::EarlyFragment);
    ensure!(pass(node, &At::INGRESS, &parts[1], 0)?.bytes == parts[1]);
    ensure!(node.count(Reason::EarlyFragment) == early + 1, "not counted");
    Ok(())
}

/// What comes before the first part goes on as it is and is counted; the others become those of `late`.
fn each_early_is_counted(
    node: &mut Both,
    at: &At,
    order: [usize; 3],
    parts: &[Vec<u8>],
    late: &[Vec<u8>],
) -> Result<()> {
    let (mut known, mut early) = (false, node.count(Reason::EarlyFragment));
    for part in order {
        known |= part == 0;
        early += u64::from(!known);
        let out = pass(node, at, &parts[part], 0)?;
        let want = if known { &late[part] } else { &parts[part] };
        ensure!(out.bytes == *want, "{order:?}, {part}: other bytes");
        ensure!(node.count(Reason::EarlyFragment) == early, "{order:?}, {part}: counted otherwise");
    }
    Ok(())
}

/// Whether they are answers is in their first part.
fn early_answers(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let (client, front, backend) =
        ((p.pod, 40_001), (p.vip, service_port(protocol)), (p.backend, BACKEND_PORT));
    pass(node, &At::INGRESS, &packet(protocol, SYN, client, front, b""), 0)?;
    for (id, order) in (100..).zip(ORDERS) {
        let parts = cut(&datagram(protocol, SYN_ACK, backend, client), id, &CUTS);
        let restored = cut(&datagram(protocol, SYN_ACK, front, client), id, &CUTS);
        each_early_is_counted(node, &At::EGRESS, order, &parts, &restored)?;
    }
    Ok(())
}

/// Straight to an endpoint, and between strangers, of whom nothing is remembered.
fn direct(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for at in [At::INGRESS, At::EGRESS] {
        for (id, order) in (100..).zip(ORDERS) {
            let parts = cut(&datagram(protocol, SYN, (p.pod, 41_000), (p.backend, 9)), id, &CUTS);
            each_early_is_counted(node, &at, order, &parts, &parts)?;
            let early = node.count(Reason::EarlyFragment);
            let parts = cut(&datagram(protocol, SYN, (p.pod, 41_000), (p.outside, 9)), id, &CUTS);
            for part in order {
                ensure!(pass(node, &at, &parts[part], 0)?.bytes == parts[part]);
            }
            ensure!(node.count(Reason::EarlyFragment) == early, "strangers are counted");
        }
    }
    Ok(())
}

fn same_id(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let of = |client, front| cut(&datagram(protocol, SYN, client, front), 5, &CUTS);
    let one = of((p.pod, 41_000), (p.vip, PORT));
    let two = of((p.outside, 41_000), (p.vip, PORT));
    let three = of((p.pod, 41_001), (p.node, NODE_PORT));
    let mut came = [Vec::new(), Vec::new(), Vec::new()];
    for part in 0..3 {
        for (parts, came) in [&one, &two, &three].into_iter().zip(&mut came) {
            came.push(pass(node, &At::INGRESS, &parts[part], 0)?.bytes);
        }
    }
    let backend = (p.backend, BACKEND_PORT);
    for (parts, client) in came.iter().zip([p.pod, p.outside, p.pod]) {
        let (from, to) = ends(parts)?;
        ensure!((from.0, to) == (client, backend), "{from:?} {to:?}");
    }
    Ok(())
}

fn id_comes_back(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let of = |port| cut(&datagram(protocol, SYN, (p.outside, 41_000), (p.node, port)), 5, &CUTS);
    through(node, &At::INGRESS, &of(NODE_PORT), 0)?;
    let own = of(5_353);
    ensure!(through(node, &At::INGRESS, &own, 0)?.0 == own, "the node's own has been translated");
    Ok(())
}

fn forgotten(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let parts = cut(&datagram(protocol, SYN, (p.pod, 41_000), (p.vip, service_port(protocol))), 5, &CUTS);
    pass(node, &At::INGRESS, &parts[0], 0)?;
    let now = config().test_clock;
    node.set_config(Config { test_clock: now + 30, ..config() });
    pass(node, &At::INGRESS, &parts[1], 0)?;
    node.set_config(Config { test_clock: now + 31, ..config() });
    ensure!(node.run(&At::INGRESS, &parts[2], 0).action == Action::Drop);
    ensure!(node.count(Reason::Fragment) == 1);
    Ok(())
}

fn too_small(node: &mut Both, v6: bool, number: u8) -> Result<()> {
    let p = plan(v6);
    let mut parts = cut(&datagram(number, SYN, (p.pod, 41_000), (p.vip, PORT)), 5, &[8, 48]);
    // Of UDP eight bytes are the whole header.
    if number == protocol::UDP {
        return through(node, &At::INGRESS, &parts, 0).map(drop);
    }
    let rest = parts.split_off(1);
    ensure!(node.run(&At::INGRESS, &parts[0], 0).action == Action::Drop);
    ensure!(node.count(Reason::Malformed) == 1);
    for part in rest {
        ensure!(node.run(&At::INGRESS, &part, 0).action == Action::Drop);
    }
    ensure!(node.count(Reason::Fragment) == 2);
    Ok(())
}

fn refused(node: &mut Both, v6: bool, number: u8) -> Result<()> {
    let p = plan(v6);
    let parts = cut(&datagram(number, SYN, (p.pod, 41_000), (p.vip, EMPTY_PORT)), 5, &CUTS);
    // A reset would have the header of a part.
    let answer = if number == protocol::TCP { Action::Drop } else { Action::Reject };
    ensure!(node.run(&At::INGRESS, &parts[0], 0).action == answer);
    ensure!(node.count(Reason::NoEndpoint) == 1);
    ensure!(node.run(&At::INGRESS, &parts[1], 0).action == Action::Drop);
    Ok(())
}
