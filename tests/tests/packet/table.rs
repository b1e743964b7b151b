//! How the flow table forgets, and the draw of an endpoint.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use proxy_common::abi::Config;
use proxy_common::abi::Reason::{FlowCreated, FlowTableFull, NoFlow};
use proxy_common::abi::protocol::{SCTP, TCP};
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{End, RST, SYN, packet, read};
use sluice_tests::packet::host::PAIRS;
use sluice_tests::packet::shape::Shape;
use sluice_tests::packet::story::{At, Both, Node};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, Party, Spec, Tale, VIP, Who, ack, fin, rst, syn, syn_ack, tale,
};
use sluice_tests::packet::teller::{family, slug, transport};
use sluice_tests::packet::world::{MANY_PORT, MARK, NODE_PORT, PORT, PROTOCOLS, config, plan};

pub fn rows() -> Vec<Tale> {
    [
        vec![forgets(), shrinks(), past_fifty_days(), closed_first(), over_and_over()],
        vec![
            all_live("a table full of live flows drops a new one with a reason and keeps them J9 P-65"),
            all_live(
                "what another has masqueraded goes on where there is no room to write it down L-07 P-65",
            )
            .leaves(ack((Who::Masquerade, 55_555), BACKEND).forwarded())
            .untouched()
            .entries(2 * PAIRS as usize),
        ],
        floods(),
    ]
    .concat()
}

const fn client(n: u32) -> Party {
    (Who::Pod, 10_000 + n as u16)
}

/// Packets of the clients `who`, one each.
fn each(tale: Tale, who: Range<u32>, kind: fn(Party, Party) -> Spec) -> Tale {
    who.fold(tale, |tale, n| tale.enters(kind(client(n), VIP)).becomes(client(n), BACKEND))
}

/// Answers to the clients `who`, one each.
fn answers(tale: Tale, who: Range<u32>, kind: fn(Party, Party) -> Spec) -> Tale {
    who.fold(tale, |tale, n| tale.leaves(kind(BACKEND, client(n))).becomes(VIP, client(n)))
}

/// Flows that count as live: shaken hands, or datagrams both ways for more than two seconds.
fn live(tale: Tale, who: Range<u32>) -> Tale {
    let asked = each(tale, who.clone(), syn);
    each(answers(asked, who.clone(), syn_ack).after(2), who, ack)
}

fn forgets() -> Tale {
    let mut tale = live(tale("the ring forgets idle flows and keeps live ones P-66"), 0..1);
    for round in 0..6 {
        tale = each(tale.after(60), 0..1, ack);
        tale = each(tale, 64 * round + 10..64 * round + 50, syn);
    }
    each(tale, 0..1, ack).counted(FlowCreated, 241).counted(FlowTableFull, 0)
}

fn shrinks() -> Tale {
    let idle = each(tale("what has been idle for too long makes room at once"), 0..40, syn).after(112);
    each(idle, 100..140, syn).entries(80)
}

/// Milliseconds of 32 bits begin anew there; ticks go on.
fn past_fifty_days() -> Tale {
    let tale = tale("the node is up for 49.7 days, live flows stay and idle ones go P-92");
    let tale = live(tale.configured(|config| config.test_clock = 4_000_000 - 60), 0..1);
    let idle = each(tale, 1..41, syn).after(56);
    let kept = each(idle, 0..1, ack).after(56);
    each(each(kept, 100..140, syn), 0..1, ack).entries(82).counted(FlowCreated, 81)
}

/// The number of pairs at which the first embryonic one goes.
const SCARCE: u32 = PAIRS - PAIRS / 8;

fn closed_first() -> Tale {
    let closed = live(tale("closed flows go first, embryonic ones when none is left P-65 P-47").tcp(), 0..16);
    let closed = answers(each(closed, 0..16, fin), 0..16, fin);
    // Both FINs and the last ACKs: they stay while half of the room is free (P-44).
    let mut tale = each(each(closed, 0..16, ack), 16..31, syn).entries(62);
    tale = each(each(tale, 0..16, ack), 100..100 + SCARCE - 15, syn).entries(2 * SCARCE as usize);
    tale = (0..16).fold(tale, |tale, n| tale.enters(ack(client(n), VIP)).refused(NoFlow));
    // None of the others was made anew.
    let made = u64::from(31 + SCARCE - 15);
    tale = each(tale, 16..31, syn).counted(FlowCreated, made);
    // Now the oldest of them make room, and nobody is refused.
    each(tale, 200..260, syn).counted(FlowCreated, made + 60).counted(FlowTableFull, 0)
}

/// Clients that open and are reset have one place each in the ring, however often they do so.
fn over_and_over() -> Tale {
    let mut tale = tale("clients that come again and again take one place each P-65").tcp();
    for _ in 0..PAIRS / 2 {
        tale = answers(each(tale, 0..8, syn), 0..8, rst);
    }
    all_live_beside(tale)
}

fn all_live(title: &str) -> Tale {
    all_live_beside(tale(title))
}

/// Fills the whole room with live flows, of client 0 among others.
fn all_live_beside(tale: Tale) -> Tale {
    let mut tale = live(tale, 0..SCARCE);
    for n in SCARCE..PAIRS {
        tale = live(tale, n..n + 1);
    }
    let full = tale
        .counted(FlowTableFull, 0)
        .entries(2 * PAIRS as usize)
        .enters(syn(CLIENT, VIP))
        .dropped(FlowTableFull)
        .entries(2 * PAIRS as usize);
    let still = answers(each(full, 0..PAIRS, ack), 0..PAIRS, ack);
    still.enters(syn(CLIENT, VIP)).dropped(FlowTableFull)
}

/// P-65: floods from all over while some flows live, and what is possible after them.
fn floods() -> Vec<Tale> {
    let mut rows = Vec::new();
    for lives in [1, 48] {
        let beside = |name: &str| {
            live(
                tale(format!("{name} beside {lives} live flows: none is lost, all others get in P-65")),
                0..lives,
            )
        };
        let unanswered = |n: u32| n..n + 1;
        let flood = (100..300).map(unanswered).fold(beside("a flood"), |tale, who| each(tale, who, syn));
        rows.push(after(flood, lives));
        let flood = (100..300).map(unanswered).fold(beside("a flood that is answered"), |tale, who| {
            answers(each(tale, who.clone(), syn), who, syn_ack)
        });
        rows.push(after(flood, lives));
        let guesses = |from, to| ack(from, to).with(&[Shape::Guessed]);
        let flood = (100..300).map(unanswered).fold(
            beside("a flood that is answered and guesses on").connected(),
            |tale, who| {
                let answered = answers(each(tale, who.clone(), syn), who.clone(), syn_ack);
                each(answered, who, guesses)
            },
        );
        rows.push(after(flood, lives));
        let short = (100..300).map(unanswered).fold(beside("short connections").tcp(), |tale, who| {
            let open = each(answers(each(tale, who.clone(), syn), who.clone(), syn_ack), who.clone(), ack);
            each(answers(each(open, who.clone(), fin), who.clone(), fin), who, ack)
        });
        rows.push(after(short, lives));
    }
    rows
}

/// The live ones are as they were, and a new one is served at once and stays.
fn after(flood: Tale, lives: u32) -> Tale {
    let made = u64::from(lives) + 200;
    let still = each(answers(flood, 0..lives, ack), 0..lives, ack);
    let still = still.counted(FlowTableFull, 0).counted(FlowCreated, made);
    let newcomer = live(still, 600..601);
    let later = each(newcomer, 700..720, syn);
    each(answers(later, 600..601, ack), 600..601, ack).counted(FlowCreated, made + 21)
}

/// Stories about chance and about ports that are chosen.
pub fn draws() -> Vec<Story<Both>> {
    let closed = "a port that we choose is not that of a connection that has just closed P-42";
    let mut draws = each_of(&[TCP, SCTP], &[(closed, resting)]);
    draws.extend(each_way(&[
        ("flows are spread over the endpoints and stay where they are", spread),
        ("masquerade ports are exclusive and, in calm times, outside the ephemeral range P-64", exclusive),
        ("ports between the edges are none that another node masquerades by P-60", apart),
        (
            "a flood of connections has masquerade ports of its own, and leaves those of calm times alone P-65",
            apart_from_a_flood,
        ),
        (
            "connections that endpoints reset in masses are no flood, those that clients reset are P-65",
            reset_in_masses,
        ),
        ("a flooded table forgets masqueraded flows at both edges at once P-67", whole),
    ]));
    draws
}

/// A story that cannot be told as a row; it is told the family and the protocol.
pub type Draw = fn(&mut Both, bool, u8) -> Result<()>;

/// In both families and all protocols.
pub fn each_way(stories: &[(&str, Draw)]) -> Vec<Story<Both>> {
    each_of(&PROTOCOLS, stories)
}

/// In both families and these protocols.
pub fn each_of(protocols: &[u8], stories: &[(&str, Draw)]) -> Vec<Story<Both>> {
    let mut all = Vec::new();
    for &(title, draw) in stories {
        for v6 in [false, true] {
            for &protocol in protocols {
                let name = format!("{}::{}::{}", slug(title), family(v6), transport(protocol));
                all.push(Story::new(name, move |node: &mut Both| {
                    node.reset();
                    draw(node, v6, protocol)
                }));
            }
        }
    }
    all
}

fn spread(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let mut dial = |port| {
        let frame = packet(protocol, SYN, (p.pod, port), (p.vip, MANY_PORT), b"x");
        read(&node.run(&At::INGRESS, &frame, 0).bytes).dst
    };
    let first: Vec<_> = (0..30).map(|n| dial(40_000 + n)).collect();
    let again: Vec<_> = (0..30).map(|n| dial(40_000 + n)).collect();
    ensure!(first == again, "a flow has changed its endpoint");
    for port in [9001, 9002, 9003] {
        let times = first.iter().filter(|end| **end == (p.backend, port)).count();
        ensure!(times >= 4, "endpoint {port} got {times} flows of 30");
    }
    Ok(())
}

/// Masquerade ports while nobody floods.
const CALM: Range<u16> = 15_512..30_000;

/// Whom the endpoint sees when the node forwards it a masqueraded client's first packet from this port.
fn masqueraded(node: &mut Both, v6: bool, protocol: u8, client: u16) -> End {
    let p = plan(v6);
    let frame = packet(protocol, SYN, (p.outside, client), (p.backend, BACKEND.1), b"x");
    read(&node.run(&At::EGRESS, &frame, MARK).bytes).src
}

fn exclusive(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let mut ports = std::collections::BTreeSet::new();
    for n in 0..50 {
        let seen = masqueraded(node, v6, protocol, 41_000 + n);
        ensure!(seen.0 == p.masquerade, "{seen:?}");
        ensure!(CALM.contains(&seen.1), "{seen:?}");
        ensure!(ports.insert(seen.1), "port {} was given twice", seen.1);
    }
    Ok(())
}

/// Another node may dial a NodePort here, and masquerade its own clients to the same endpoint.
fn apart(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for n in 0..50 {
        let frame = packet(protocol, SYN, (p.outside, 41_000 + n), (p.node, NODE_PORT), b"x");
        let seen = read(&node.run(&At::INGRESS, &frame, 0).bytes).src;
        ensure!(seen.0 == p.outside, "{seen:?}");
        ensure!((1024..15_512).contains(&seen.1), "{seen:?}");
    }
    Ok(())
}

/// What the endpoint still holds of a flood would cost a second whoever draws its port next: connections have other ports while the table
/// forgets ones that have just come. Nothing else has.
fn apart_from_a_flood(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let open = |node: &mut Both, v6, client| masqueraded(node, v6, protocol, client).1;
    let fills = SCARCE as u16;
    let flood = |node: &mut Both, numbers: Range<u16>| {
        numbers.map(|n| open(node, v6, 20_000 + n)).collect::<Vec<_>>()
    };
    for (n, port) in (0..).zip(flood(node, 0..fills)) {
        ensure!(CALM.contains(&port), "{port} of number {n}, which finds room");
    }
    for (n, port) in (fills..).zip(flood(node, fills..4 * fills)) {
        let wanted = if protocol == TCP { port >= CALM.end } else { CALM.contains(&port) };
        ensure!(wanted, "{port} of number {n}, for which a young one was forgotten");
    }
    let port = open(node, !v6, 20_000);
    ensure!(CALM.contains(&port), "{port} of the other family, whose table has room");
    apart(node, v6, protocol)?;
    flood(node, 4 * fills..5 * fills);
    node.set_config(Config { test_clock: config().test_clock + 1, ..config() });
    // Those that are left are heard of again, and are no younger for it.
    flood(node, 4 * fills..5 * fills);
    for n in 0..fills / 2 {
        let port = open(node, v6, 40_000 + n);
        ensure!(CALM.contains(&port), "{port} of number {n} of a tick later");
    }
    ensure!(node.count(FlowTableFull) == 0, "a flow was refused");
    Ok(())
}

/// An endpoint that resets a connection holds nothing of it. What comes from a client may be forged, and endpoints know that.
fn reset_in_masses(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let masses = |node: &mut Both, first: u16, by_client: bool| {
        let reset = |client, port| match by_client {
            true => (At::EGRESS, packet(protocol, RST, (p.outside, client), (p.backend, BACKEND.1), b"")),
            false => (At::INGRESS, packet(protocol, RST, (p.backend, BACKEND.1), (p.masquerade, port), b"")),
        };
        let each = (first..first + 3 * SCARCE as u16).map(|client| {
            let port = masqueraded(node, v6, protocol, client).1;
            let (at, frame) = reset(client, port);
            node.run(&at, &frame, if by_client { MARK } else { 0 });
            port
        });
        each.collect::<Vec<_>>()
    };
    let ports = masses(node, 20_000, false);
    ensure!(ports.iter().all(|port| CALM.contains(port)), "by the endpoint: {ports:?}");
    let ports = masses(node, 40_000, true);
    let storms = ports.iter().any(|port| !CALM.contains(port));
    ensure!(storms == (protocol == TCP), "by clients: {ports:?}");
    ensure!(node.count(FlowTableFull) == 0, "a flow was refused");
    Ok(())
}

/// The endpoint holds a closed connection in TIME_WAIT, and would answer another client's SYN from its port with an ACK.
fn resting(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let open = |node: &mut Both, client| masqueraded(node, v6, protocol, client).1;
    // Two clients that get the same port, each with the table to itself.
    let mut first = std::collections::BTreeMap::new();
    let twins = (1_024..u16::MAX).find_map(|client| {
        node.reset();
        let given = open(node, client);
        first.insert(given, client).map(|other| (other, client, given))
    });
    let (one, other, port) = twins.context("no two clients get the same port")?;
    node.reset();
    ensure!(open(node, one) == port, "the choice is another one now");
    let reset = packet(protocol, RST, (p.backend, BACKEND.1), (p.masquerade, port), b"");
    node.run(&At::INGRESS, &reset, 0);
    let given = open(node, other);
    ensure!(given != port && given != 0, "{given} follows {port}, which rests");
    Ok(())
}

/// One flow in three is not masqueraded, so that the hand is anywhere between the pairs of the others when the ring is
/// as full as makes a difference.
fn whole(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for n in 0..4 * PAIRS as u16 {
        let (client, front) =
            if n % 3 == 0 { (p.pod, (p.vip, PORT)) } else { (p.outside, (p.node, NODE_PORT)) };
        let frame = packet(protocol, SYN, (client, 20_000 + n), front, b"x");
        let entered = node.run(&At::INGRESS, &frame, 0);
        node.run(&At::EGRESS, &entered.bytes, entered.mark);
        let parted = node.flows().parted();
        ensure!(parted == 0, "after {n} flows {parted} are known at one edge only");
    }
    ensure!(node.count(FlowTableFull) == 0, "a flow was refused");
    ensure!(node.flows().len() > PAIRS as usize, "that was no flood");
    Ok(())
}
