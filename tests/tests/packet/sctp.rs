//! SCTP: associations that begin, go on and end, and what their checksum makes of other ports (B3, P-90).
//!
//! What is so for connections of any kind is told beside TCP's and UDP's.

use anyhow::{Result, ensure};
use proxy_common::abi::Reason::{FlowCreated, Malformed, NoFlow};
use proxy_common::abi::protocol::SCTP;
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{ACK, ETHERNET, SYN, SYN_ACK, packet, read};
use sluice_tests::packet::sctp::{self, chunk};
use sluice_tests::packet::shape::Shape::{Chunk, NoChecksum};
use sluice_tests::packet::shape::shaped;
use sluice_tests::packet::story::{Action, At, Both, Node};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, Party, SEEN, STRANGER, Spec, Tale, VIP, Who, ack, fin, renumbered,
    rst, syn, syn_ack, tale,
};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, plan};

use crate::table::each_of;

pub fn rows() -> Vec<Tale> {
    [associations(), strays(), clashes()].concat().into_iter().map(Tale::sctp).collect()
}

pub fn stories() -> Vec<Story<Both>> {
    each_of(
        &[SCTP],
        &[
            ("the checksum is right whatever the length and the port B3 P-90", lengths),
            ("no checksum stays none, there and back P-90 P-80", no_checksum),
            ("a chunk that lies about its length reaches no endpoint P-01 P-90", lies),
        ],
    )
}

fn of(kind: u8, from: Party, to: Party) -> Spec {
    ack(from, to).with(&[Chunk(kind)])
}

/// The client says this.
fn asks(tale: Tale, kind: u8) -> Tale {
    tale.enters(of(kind, CLIENT, VIP)).becomes(CLIENT, BACKEND)
}

/// The endpoint does.
fn answers(tale: Tale, kind: u8) -> Tale {
    tale.leaves(of(kind, BACKEND, CLIENT)).becomes(VIP, CLIENT)
}

fn association(title: &str) -> Tale {
    let begun = tale(title)
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .leaves(syn_ack(BACKEND, CLIENT))
        .becomes(VIP, CLIENT);
    answers(asks(begun, chunk::COOKIE_ECHO), chunk::COOKIE_ACK)
}

fn shut_down(tale: Tale) -> Tale {
    answers(asks(tale, chunk::SHUTDOWN), chunk::SHUTDOWN_ACK)
}

fn associations() -> Vec<Tale> {
    let talk = answers(
        asks(
            answers(
                asks(association("an association, from INIT to the last word B3 P-90"), chunk::DATA),
                chunk::SACK,
            ),
            chunk::HEARTBEAT,
        ),
        chunk::HEARTBEAT_ACK,
    );
    let mut idle = association("heartbeats keep an association that has nothing to say P-90 P-45");
    for _ in 0..8 {
        idle = answers(asks(idle.after(180), chunk::HEARTBEAT), chunk::HEARTBEAT_ACK);
    }
    // An IPv4 and an IPv6 address of the client's, as parameters.
    let homes = [&[0, 5, 0, 8, 8, 0, 129, 5, 0, 6, 0, 20][..], &[0xfd; 16]].concat();
    vec![
        asks(shut_down(talk), chunk::SHUTDOWN_COMPLETE).entries(2).counted(FlowCreated, 1),
        tale("all four rewrites, with another port at each B3 P-90")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER),
        idle.counted(FlowCreated, 1),
        tale("the addresses of a client with several homes are not translated where an INIT names them P-90")
            .enters(syn(CLIENT, VIP).carrying(&homes))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT).carrying(&homes))
            .becomes(VIP, CLIENT),
        shut_down(association("an INIT after a shutdown opens another association P-42 P-90"))
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        association("an INIT after an ABORT opens another association P-43 P-90")
            .leaves(rst(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2),
        asks(association("one side's SHUTDOWN is not the end P-44 P-90"), chunk::SHUTDOWN)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        association(
            "an association outlives its endpoint's place in the Service, and the Service B5 P-46 P-90",
        )
        .endpoint_leaves()
        .removed(Who::Vip)
        .enters(of(chunk::DATA, CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .leaves(of(chunk::SACK, BACKEND, CLIENT))
        .becomes(VIP, CLIENT),
    ]
}

/// What belongs to no association that we know of.
fn strays() -> Vec<Tale> {
    let kinds = [
        ("DATA", chunk::DATA),
        ("SACK", chunk::SACK),
        ("HEARTBEAT", chunk::HEARTBEAT),
        ("HEARTBEAT ACK", chunk::HEARTBEAT_ACK),
        ("SHUTDOWN ACK", chunk::SHUTDOWN_ACK),
        ("ERROR", chunk::ERROR),
        ("COOKIE ECHO", chunk::COOKIE_ECHO),
        ("COOKIE ACK", chunk::COOKIE_ACK),
        ("SHUTDOWN COMPLETE", chunk::SHUTDOWN_COMPLETE),
        ("a chunk of tomorrow's", 200),
    ];
    let mut rows = vec![
        tale("an ABORT without association to a ClusterIP is dropped without an answer P-90 P-45")
            .enters(rst(CLIENT, VIP))
            .dropped(NoFlow)
            .entries(0),
    ];
    for (name, kind) in kinds {
        rows.push(
            tale(format!(
                "{name} without association to a ClusterIP is refused, never balanced P-90 P-41 P-45"
            ))
            .enters(of(kind, CLIENT, VIP))
            .refused(NoFlow)
            .entries(0),
        );
        rows.push(
            tale(format!("{name} without association to a NodePort is the stack's to answer P-90 P-41"))
                .enters(of(kind, STRANGER, NODEPORT))
                .untouched()
                .entries(0),
        );
    }
    rows
}

/// An endpoint that has an association answers another INIT from there as it does the first.
fn clashes() -> Vec<Tale> {
    let direct = |title: &str| {
        tale(title)
            .enters(syn(CLIENT, BACKEND))
            .untouched()
            .entries(2)
            .leaves(syn_ack(BACKEND, CLIENT))
            .untouched()
    };
    vec![
        direct("straight to the endpoint first: a Service's flow from the same port takes another P-60 P-90")
            .enters(syn(CLIENT, VIP))
            .becomes((Who::Pod, 0), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(VIP, CLIENT)
            .enters(ack(CLIENT, BACKEND))
            .untouched()
            .leaves(ack(BACKEND, CLIENT))
            .untouched()
            .entries(4),
        direct("what was straight to the endpoint and is over makes way P-61 P-90")
            .enters(fin(CLIENT, BACKEND))
            .untouched()
            .leaves(fin(BACKEND, CLIENT))
            .untouched()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .entries(2),
        tale("straight to who is no endpoint makes no entry P-05 P-90")
            .enters(syn(CLIENT, (Who::Node, 22)))
            .untouched()
            .enters(syn(CLIENT, (Who::Outside, 22)))
            .untouched()
            .entries(0),
    ]
}

/// [`read`] computes each checksum afresh.
fn lengths(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    for (port, length) in (20_000..).zip([0, 1, 2, 3, 4, 5, 239, 240, 241, 1_000, 1_432, 3_200]) {
        let (client, payload) = ((p.pod, port), vec![0xa7; length]);
        let asked = node.run(&At::INGRESS, &packet(protocol, SYN, client, (p.vip, PORT), &payload), 0);
        ensure!(read(&asked.bytes).dst == (p.backend, BACKEND_PORT), "{length} bytes there");
        let answer = packet(protocol, SYN_ACK, (p.backend, BACKEND_PORT), client, &payload);
        let answered = node.run(&At::EGRESS, &answer, 0);
        ensure!(read(&answered.bytes).src == (p.vip, PORT), "{length} bytes back");
    }
    Ok(())
}

/// A sender whose device is to finish it leaves it out, and so may one that has another (RFC 9653).
fn no_checksum(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let (client, front) = ((p.outside, 40_001), (p.node, NODE_PORT));
    let mut asked = shaped(packet(protocol, SYN, client, front, b"x"), &[NoChecksum]);
    let mut mark = 0;
    for at in [At::INGRESS, At::EGRESS] {
        let out = node.run(&at, &asked, mark);
        ensure!(out.bytes != asked, "not translated");
        (asked, mark) = (out.bytes, out.mark);
        ensure!(sctp::written(&asked[read(&asked).l4..]) == [0; 4], "{at:?}: there is one");
    }
    let mut told =
        shaped(packet(protocol, ACK, read(&asked).dst, read(&asked).src, b"x"), &[Chunk(2), NoChecksum]);
    for at in [At::INGRESS, At::EGRESS] {
        told = node.run(&at, &told, 0).bytes;
        ensure!(sctp::written(&told[read(&told).l4..]) == [0; 4], "{at:?}: there is one");
    }
    ensure!((read(&told).src, read(&told).dst) == (front, client), "{:?}", read(&told));
    Ok(())
}

fn lies(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let honest = packet(protocol, SYN, (p.pod, 40_001), (p.vip, PORT), b"load");
    let at = ETHERNET + if v6 { 40 } else { 20 } + sctp::HEADER + 2;
    for length in [0_u16, 3, 25, u16::MAX] {
        let mut lying = honest.clone();
        lying[at..at + 2].copy_from_slice(&length.to_be_bytes());
        ensure!(node.run(&At::INGRESS, &lying, 0).action == Action::Drop, "{length}");
    }
    ensure!(node.count(Malformed) == 4);
    ensure!(node.flows().is_empty());
    Ok(())
}
