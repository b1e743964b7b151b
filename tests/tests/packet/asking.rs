//! Services that ask who their clients are: source ranges (C16, C17) and session affinity (D1 … D9).

use std::net::IpAddr;

use anyhow::{Result, ensure};
use proxy_common::abi::{Config, Reason};
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{End, SYN, packet, read};
use sluice_tests::packet::story::{At, Both, Node};
use sluice_tests::packet::tale::{BACKEND, CLIENT, Party, STRANGER, Tale, Who, ack, renumbered, syn, tale};
use sluice_tests::packet::world::{
    AFFINITY, CLOSED_NODE_PORT, CLOSED_PORT, FOREIGN_PORT, OTHER_STICKY_PORT, STICKY_NODE_PORT, STICKY_PORT,
    config, plan,
};

use crate::table::each_way;

const CLOSED: Party = (Who::LoadBalancer, CLOSED_PORT);

pub fn rows() -> Vec<Tale> {
    ranges()
}

fn ranges() -> Vec<Tale> {
    let closed = |row: Tale| row.dropped(Reason::SourceRange).entries(0);
    let open = |title: &str, front| {
        tale(title).enters(syn(CLIENT, front)).becomes_marked(renumbered(CLIENT), BACKEND)
    };
    vec![
        tale("a source in the ranges is served C16")
            .enters(syn(STRANGER, CLOSED))
            .becomes_marked(renumbered(STRANGER), BACKEND),
        closed(tale("a pod that is not in the ranges meets silence C16").enters(syn(CLIENT, CLOSED))),
        closed(
            tale("the node itself by a packet, not in the ranges C16").enters(syn((Who::Plain, 777), CLOSED)),
        ),
        closed(
            tale("a segment without a flow from outside the ranges is not answered C16")
                .tcp()
                .enters(ack(CLIENT, CLOSED)),
        ),
        tale("a ClusterIP of a Service with ranges is open C16")
            .enters(syn(CLIENT, (Who::Vip, CLOSED_PORT)))
            .becomes(CLIENT, BACKEND),
        open("an external IP of a Service with ranges is open C16", (Who::External, CLOSED_PORT)),
        open("a NodePort of a Service with ranges is open C16", (Who::Node, CLOSED_NODE_PORT)),
        tale("a load balancer's address that is bound here may dial itself C17")
            .enters(syn((Who::Bound, 40_005), (Who::Bound, CLOSED_PORT)))
            .becomes_marked(renumbered((Who::Bound, 40_005)), BACKEND),
        closed(
            tale("not where this node is in none of the ranges C17")
                .enters(syn((Who::Bound, 40_005), (Who::Bound, FOREIGN_PORT))),
        ),
    ]
}

/// Two draws in a row lead to one of three endpoints with probability 1/3; the draws of the stories' node are always the
/// same, so that none of these passes by luck.
pub fn affinity() -> Vec<Story<Both>> {
    each_way(&[
        ("connections of one client go to one endpoint D1", sticky),
        ("clients are spread all the same D1", spread),
        ("ClusterIP and NodePort of a Service port share the record D1", shared),
        ("Service ports do not share records D1", apart),
        ("a record lives as long as connections are made D2", sliding),
        ("a record ends with its timeout D2", ends),
    ])
}

/// The endpoint that a new connection of `from` gets.
fn dial(node: &mut Both, protocol: u8, from: End, to: End) -> End {
    read(&node.run(&At::INGRESS, &packet(protocol, SYN, from, to, b"x"), 0).bytes).dst
}

/// Endpoints of so many new connections of the pod.
fn dials(node: &mut Both, v6: bool, protocol: u8, port: u16, first: u16, number: u16) -> Vec<End> {
    let p = plan(v6);
    (0..number).map(|n| dial(node, protocol, (p.pod, first + n), (p.vip, port))).collect()
}

fn later(node: &mut Both, ticks: u32) {
    let clock = config().test_clock + ticks;
    node.set_config(Config { test_clock: clock, ..config() });
}

fn is_one(ends: &[End]) -> bool {
    ends.windows(2).all(|pair| pair[0] == pair[1])
}

fn sticky(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let ends = dials(node, v6, protocol, STICKY_PORT, 41_000, 30);
    ensure!(is_one(&ends), "{ends:?}");
    Ok(())
}

fn spread(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let clients = [p.pod, p.outside, p.router, p.second, p.plain, p.masquerade, p.node, p.external];
    let ends: Vec<_> =
        clients.into_iter().map(|ip| dial(node, protocol, (ip, 41_000), (p.vip, STICKY_PORT))).collect();
    ensure!(!is_one(&ends), "{ends:?}");
    Ok(())
}

fn shared(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let ends: Vec<_> = (0..12_u16)
        .map(|n| {
            let to = if n % 2 == 0 { (p.vip, STICKY_PORT) } else { (p.node, STICKY_NODE_PORT) };
            dial(node, protocol, (p.pod, 41_000 + n), to)
        })
        .collect();
    ensure!(is_one(&ends), "{ends:?}");
    Ok(())
}

/// Of 12 pairs of first connections, some lead to different endpoints.
fn apart(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let mut same = 0;
    for n in 0..12_u8 {
        let client = match p.pod {
            IpAddr::V4(ip) => IpAddr::from([ip.octets()[0], ip.octets()[1], 129, 100 + n]),
            IpAddr::V6(ip) => std::net::Ipv6Addr::from((u128::from(ip) & !0xff) | u128::from(100 + n)).into(),
        };
        let one = dial(node, protocol, (client, 41_000), (p.vip, STICKY_PORT));
        let other = dial(node, protocol, (client, 41_001), (p.vip, OTHER_STICKY_PORT));
        same += u32::from(one == other);
    }
    ensure!(same < 12, "every client has one endpoint for both Services");
    Ok(())
}

fn sliding(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let mut ends = Vec::new();
    for round in 0..6 {
        later(node, round * (AFFINITY - 10));
        ends.extend(dials(node, v6, protocol, STICKY_PORT, 41_000 + round as u16, 1));
    }
    ensure!(is_one(&ends), "each connection refreshes: {ends:?}");
    Ok(())
}

fn ends(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let mut ends = Vec::new();
    for round in 0..12 {
        later(node, round * (AFFINITY + 2));
        ends.extend(dials(node, v6, protocol, STICKY_PORT, 41_000 + round as u16, 1));
    }
    ensure!(!is_one(&ends), "twelve records, each too old: {ends:?}");
    Ok(())
}
