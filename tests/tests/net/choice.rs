//! Which backend: uniform, and never another Service's.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, Load, Stream};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

pub fn groups() -> Vec<Group> {
    let ways = [
        (Who::Pa, Via::ClusterIp, Family::V4, Transport::Tcp),
        (Who::Pa, Via::ClusterIp, Family::V6, Transport::Udp),
        (Who::Host, Via::ClusterIp, Family::V6, Transport::Tcp),
        (Who::Client, Via::NodePort, Family::V4, Transport::Udp),
        (Who::Client, Via::NodePort, Family::V6, Transport::Tcp),
    ];
    let mut stories: Vec<_> = ways
        .into_iter()
        .map(|(client, via, family, transport)| {
            let name = format!("choice_is_uniform::{}_{}::{family}::{transport}", client.name(), via.name());
            Story::new(name, move |bed| uniform(bed, client, via, family, transport))
        })
        .collect();
    stories.push(Story::new("no_answer_from_another_service_under_changes", changes));
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "choice".into(), config, setup: Box::new(setup), stories }]
}

fn seven() -> App {
    let backend = |n: u16| Backend::new([Who::Pa, Who::Pb, Who::Pc, Who::Pd][usize::from(n % 4)], 8_080 + n);
    App::new("seven", 7, (0..7).map(backend))
}

fn setup(bed: &mut Bed) -> Result<()> {
    for backend in seven().backends {
        bed.serve(backend.who, backend.port)?;
    }
    bed.start()?;
    bed.apply(&seven())
}

const CONNECTIONS: u32 = 3_000;
/// Chi-square with 6 degrees of freedom is above this once in 1,000 times.
const LIMIT: f64 = 22.458;

/// A fair choice fails one such test in 1,000; two in a row, one in a million.
fn uniform(bed: &mut Bed, client: Who, via: Via, family: Family, transport: Transport) -> Result<()> {
    let mut told = String::new();
    for _ in 0..2 {
        let mut counts: BTreeMap<String, u32> = seven().backends.iter().map(|b| (b.id(), 0)).collect();
        let dial = Dial::new(bed.place(client), seven().address(via, family), transport);
        for _ in 0..CONNECTIONS {
            *counts.entry(dial.probe().ok()?.backend).or_default() += 1;
        }
        ensure!(counts.len() == 7, "answers by strangers: {counts:?}");
        let expected = f64::from(CONNECTIONS) / 7.0;
        let chi: f64 = counts.values().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        if chi < LIMIT {
            return Ok(());
        }
        told = format!("chi-square {chi:.1} over {LIMIT}: {counts:?}");
    }
    bail!("twice in a row: {told}")
}

/// Two Services whose endpoint lists change all the time; each one's answers come from its own servers.
fn changes(bed: &mut Bed) -> Result<()> {
    let pools = [[8_080, 8_084], [8_081, 8_085]];
    let app = |number: usize, size: usize| {
        let backends = pools[number].iter().take(size).map(|port| {
            seven().backends.into_iter().find(|b| b.port == *port).unwrap_or(Backend::new(Who::Pa, *port))
        });
        App::new(["left", "right"][number], 20 + u8::try_from(number).unwrap_or(0), backends)
    };
    for number in 0..2 {
        bed.apply(&app(number, 2))?;
    }
    let stream = |number: usize, transport| Stream {
        from: bed.place(Who::Pc).clone(),
        to: app(number, 2).address(Via::ClusterIp, Family::V4),
        transport,
        lasting: false,
    };
    let load = Load::start(vec![stream(0, Transport::Tcp), stream(1, Transport::Udp)])?;
    for round in 0..60 {
        for (number, pool) in pools.iter().enumerate() {
            bed.apply_unawaited(&app(number, 1 + (round + number) % 2))?;
            let own = pool.map(|port| format!(":{port}"));
            for transport in Transport::BOTH {
                let to = app(number, 2).address(Via::ClusterIp, Family::V6);
                let answer = Dial::new(bed.place(Who::Pc), to, transport).probe().ok()?;
                let right = own.iter().any(|port| answer.backend.ends_with(port));
                ensure!(right, "round {round}: Service {number} was answered by {}", answer.backend);
            }
        }
    }
    load.finish().map(drop)
}
