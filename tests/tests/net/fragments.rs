//! P-09, J2: the largest datagrams there are, each way in dozens of parts, as the kernel sends them.

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, LARGEST_DATAGRAM};
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
