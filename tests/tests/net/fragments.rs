//! P-09, P-10, P-11, J2: the largest datagrams there are, each way in dozens of parts, as the kernel sends them; and parts
//! that come in another order, or alone.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use proxy_common::abi::protocol;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::packet::frame::{Flags, packet};
use sluice_tests::packet::pieces::{ORDERS, cut};
use sluice_tests::traffic::{Dial, LARGEST_DATAGRAM, send};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

/// With conntrack the stack puts a datagram together and cuts it anew between two edges; without, each part goes its own
/// way.
pub fn groups() -> Vec<Group> {
    let beds = Wiring::BOTH.into_iter().flat_map(|wiring| [(wiring, false), (wiring, true)]);
    beds.map(|(wiring, conntrack)| group(wiring, conntrack)).collect()
}

fn group(wiring: Wiring, conntrack: bool) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        for via in [Via::ClusterIp, Via::NodePort, Via::LoadBalancer] {
            for client in [Who::Pa, Who::Host, Who::Client] {
                let name = format!("P09_65507_bytes::{via:?}::from_{}::{family}", client.name());
                stories.push(Story::new(name, move |bed| largest(bed, client, via, family)));
            }
        }
    }
    for family in Family::BOTH {
        stories.push(Story::new(format!("P10_each_order_of_three_parts::{family}"), move |bed| {
            each_order(bed, family)
        }));
    }
    // The stack's own room for parts is small: where it puts them together, a flood takes it all.
    for family in Family::BOTH.into_iter().filter(|_| !conntrack) {
        stories.push(Story::new(format!("P11_lone_first_parts_in_thousands::{family}"), move |bed| {
            lone_parts(bed, family)
        }));
    }
    Group {
        name: format!("fragments::{wiring}::{}", if conntrack { "conntrack" } else { "no_conntrack" }),
        config: BedConfig { invalid_drop: conntrack, ..BedConfig::new(wiring) },
        setup: Box::new(setup),
        stories,
    }
}

/// One endpoint here, one elsewhere, and a client that is one of its own.
fn apps() -> [App; 3] {
    [(1, Who::Pb), (2, Who::Pd), (3, Who::Pa)]
        .map(|(number, who)| App::new(&format!("app{number}"), number, [Backend::new(who, 8_080)]))
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pa, Who::Pb, Who::Pd] {
        bed.serve(who, 8_080)?;
    }
    bed.start()?;
    apps().iter().try_for_each(|app| bed.apply(app))
}

fn largest(bed: &mut Bed, client: Who, via: Via, family: Family) -> Result<()> {
    let token: Vec<u8> = (0..LARGEST_DATAGRAM).map(|i| (i % 251) as u8).collect();
    for app in apps() {
        let dial = Dial::new(bed.place(client), app.address(via, family), Transport::Udp);
        let opened = dial.open().or_else(|outcome| bail!("{}: a small one: {outcome}", app.name));
        let answer = opened?.ask(&token).ok().with_context(|| format!("{}: {}", app.name, token.len()))?;
        let backend = app.backends[0].id();
        ensure!(answer.backend == backend, "{} answered, not {backend}", answer.backend);
    }
    Ok(())
}

/// A datagram of three parts, written by hand.
fn by_hand(from: SocketAddr, to: SocketAddr, id: u16) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = (0..64).chain(id.to_be_bytes()).collect();
    let end = |end: SocketAddr| (end.ip(), end.port());
    cut(&packet(protocol::UDP, Flags::default(), end(from), end(to), &payload), id, &[24, 48])
}

/// What begins with its first part is answered in whatever order the others come. Of the rest a ClusterIP's parts are
/// dropped and counted, and nobody is told that a NodePort is closed.
fn each_order(bed: &mut Bed, family: Family) -> Result<()> {
    let [app, ..] = apps();
    for (client, via) in [(Who::Pa, Via::ClusterIp), (Who::Client, Via::NodePort)] {
        let to = app.address(via, family);
        let space = if client == Who::Pa { "pa" } else { "cl" };
        let own = client.address(family);
        for (id, order) in (1..).zip(ORDERS) {
            let socket = bed.namespace(space).within(|| Ok(UdpSocket::bind((own, 0))?))?;
            let parts = by_hand(socket.local_addr()?, to, id);
            let before = bed.agent()?.home.dropped("fragment")?;
            socket.connect(to)?;
            // Whoever has not written by whole datagrams is not expected to be answered.
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send(b"whole")?;
            socket.recv(&mut [0; 2_048])?;
            send(bed.namespace(space), to.ip(), order.map(|part| parts[part].clone()))?;
            let whole = order[0] == 0;
            socket.set_read_timeout(Some(if whole { PATIENCE } else { SILENCE }))?;
            let came = socket.recv(&mut [0; 2_048]);
            let about = format!("{via:?}, {order:?}");
            let late = order.iter().position(|part| *part == 0).unwrap_or(0) as u64;
            match came {
                Ok(_) => ensure!(whole, "{about}: answered"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(!whole, "{about}: not answered");
                    let lost = if via == Via::ClusterIp { late } else { 0 };
                    ensure!(bed.agent()?.home.dropped("fragment")? == before + lost, "{about}: not counted");
                }
                Err(error) => bail!("{about}: {error}"),
            }
        }
    }
    Ok(())
}

/// How long to wait for an answer that has to come, and for one that must not.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);

/// More than there is room for, beside whole datagrams to an endpoint that the flood does not meet.
fn lone_parts(bed: &mut Bed, family: Family) -> Result<()> {
    let [app, other, _] = apps();
    let (to, flooded) = (app.address(Via::ClusterIp, family), other.address(Via::ClusterIp, family));
    let from = SocketAddr::new(Who::Pa.address(family), 4_000);
    let firsts = (0..40_000).map(|n| by_hand(from, flooded, 1_000 + n).swap_remove(0));
    std::thread::scope(|scope| {
        let bed = &*bed;
        let flood = scope.spawn(move || send(bed.namespace("pa"), flooded.ip(), firsts));
        let dial = Dial::new(bed.place(Who::Client), to, Transport::Udp);
        let mut rounds = 0;
        while rounds < 5 || !flood.is_finished() {
            let opened = dial.open().or_else(|outcome| bail!("a small one: {outcome}"));
            opened?.ask(&vec![0x5a; 4_000]).ok().with_context(|| format!("round {rounds}"))?;
            rounds += 1;
        }
        flood.join().map_err(|_| anyhow!("the flood panicked"))?
    })
}
