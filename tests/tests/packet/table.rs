//! How the flow table forgets, and the draw of an endpoint.

use anyhow::{Result, ensure};
use proxy_common::abi::Reason::{FlowCreated, FlowTableFull};
use sluice_tests::harness::Story;
use sluice_tests::packet::frame::{SYN, packet, read};
use sluice_tests::packet::host::RING;
use sluice_tests::packet::story::{At, Both, Node};
use sluice_tests::packet::tale::{BACKEND, CLIENT, Party, Tale, VIP, Who, ack, syn, syn_ack, tale};
use sluice_tests::packet::teller::{family, slug, transport};
use sluice_tests::packet::world::{MANY_PORT, MARK, PROTOCOLS, plan};

pub fn rows() -> Vec<Tale> {
    vec![forgets(), full(), reopened()]
}

const fn client(n: u32) -> Party {
    (Who::Pod, 50_000 + n as u16)
}

fn forgets() -> Tale {
    let mut tale = tale("the ring forgets idle flows and keeps live ones E9")
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .leaves(syn_ack(BACKEND, CLIENT))
        .becomes(VIP, CLIENT);
    for round in 0..6 {
        tale = tale.after(60).enters(ack(CLIENT, VIP)).becomes(CLIENT, BACKEND);
        for n in 0..40 {
            let client = client(64 * round + n);
            tale = tale.enters(syn(client, VIP)).becomes(client, BACKEND);
        }
    }
    tale.enters(ack(CLIENT, VIP)).becomes(CLIENT, BACKEND).counted(FlowCreated, 241).counted(FlowTableFull, 0)
}

fn full() -> Tale {
    let mut tale = tale("with a ring full of live flows a new one is dropped with a reason J9 P-65");
    for n in 0..RING {
        tale = tale.enters(syn(client(n), VIP)).becomes(client(n), BACKEND);
    }
    tale.enters(syn((Who::Pod, 51_000), VIP))
        .dropped(FlowTableFull)
        .enters(ack(client(0), VIP))
        .becomes(client(0), BACKEND)
        .entries(2 * RING as usize)
}

fn reopened() -> Tale {
    let mut tale = tale("what was idle for long makes room at once E9");
    for n in 0..RING {
        tale = tale.enters(syn(client(n), VIP)).becomes(client(n), BACKEND);
    }
    tale = tale.after(100);
    for n in 0..RING {
        tale = tale.enters(syn(client(100 + n), VIP)).becomes(client(100 + n), BACKEND);
    }
    tale.counted(FlowTableFull, 0).entries(2 * RING as usize)
}

/// Stories about chance and about ports that are chosen.
pub fn draws() -> Vec<Story<Both>> {
    type Draw = fn(&mut Both, bool, u8) -> Result<()>;
    let stories: [(&str, Draw); 2] = [
        ("flows are spread over the endpoints and stay where they are", spread),
        ("masquerade ports are exclusive and outside the ephemeral range P-64", exclusive),
    ];
    let mut all = Vec::new();
    for (title, draw) in stories {
        for v6 in [false, true] {
            for protocol in PROTOCOLS {
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

fn exclusive(node: &mut Both, v6: bool, protocol: u8) -> Result<()> {
    let p = plan(v6);
    let mut ports = std::collections::BTreeSet::new();
    for n in 0..50 {
        let frame = packet(protocol, SYN, (p.outside, 41_000 + n), (p.backend, BACKEND.1), b"x");
        let seen = read(&node.run(&At::EGRESS, &frame, MARK).bytes).src;
        ensure!(seen.0 == p.masquerade, "{seen:?}");
        ensure!((1024..30_000).contains(&seen.1), "{seen:?}");
        ensure!(ports.insert(seen.1), "port {} was given twice", seen.1);
    }
    Ok(())
}
