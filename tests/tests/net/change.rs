//! Services, endpoints and pods that change while traffic flows.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::lab::agent::served;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Connection, Dial, Load, Outcome, Stream};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::departure::may_end_sockets;
use crate::harness::{Group, Story};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);
const CLIENTS: [(Who, Via); 3] =
    [(Who::Pa, Via::ClusterIp), (Who::Host, Via::ClusterIp), (Who::Client, Via::NodePort)];

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        for (client, via) in CLIENTS {
            let name = |what: &str| format!("{what}::{}::{family}", client.name());
            stories.push(Story::new(name("B5_P46_established_tcp_outlives_its_endpoint"), move |bed| {
                outlives(bed, client, via, family)
            }));
            stories.push(Story::new(name("P52_connected_udp_leaves_a_departed_endpoint"), move |bed| {
                leaves(bed, client, via, family)
            }));
            stories.push(Story::new(name("a_deleted_service_refuses_and_comes_back"), move |bed| {
                comes_back(bed, client, via, family)
            }));
        }
    }
    stories.push(Story::new("endpoints_come_and_go_under_traffic", under_traffic));
    stories.push(Story::new("L08_a_pod_that_appears_is_served", appears));
    stories.push(Story::new("L08_pods_that_come_and_go_at_once", churn));
    Group {
        name: format!("change::{wiring}"),
        config: BedConfig::new(wiring),
        setup: Box::new(setup),
        stories,
    }
}

fn app(backends: &[Backend]) -> App {
    App::new("app", 1, backends.iter().copied())
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    bed.start()
}

/// A connection that `backend` answers: the choice is random, so a few are opened.
fn open_to(bed: &Bed, client: Who, via: Via, family: Family, transport: Transport) -> Result<Connection> {
    let dial = Dial::new(bed.place(client), app(&[]).address(via, family), transport);
    for _ in 0..64 {
        let connection = dial.open().or_else(|outcome| bail!("{outcome}"))?;
        if connection.answer.backend == PB.id() {
            return Ok(connection);
        }
    }
    bail!("{} never answered", PB.id())
}

fn outlives(bed: &mut Bed, client: Who, via: Via, family: Family) -> Result<()> {
    bed.apply(&app(&[PB, PC]))?;
    let mut old = open_to(bed, client, via, family, Transport::Tcp)?;
    bed.apply(&app(&[PC]))?;
    for _ in 0..20 {
        old.ask(b"old one").ok().context("the established connection")?;
        let dial = Dial::new(bed.place(client), app(&[]).address(via, family), Transport::Tcp);
        let backend = dial.probe().ok()?.backend;
        ensure!(backend == PC.id(), "a new connection went to {backend}");
    }
    Ok(())
}

fn leaves(bed: &mut Bed, client: Who, via: Via, family: Family) -> Result<()> {
    if client == Who::Host && !bed.is_control() {
        may_end_sockets()?;
    }
    bed.apply(&app(&[PB, PC]))?;
    let mut socket = open_to(bed, client, via, family, Transport::Udp)?;
    bed.apply(&app(&[PC]))?;
    until("the socket to leave its endpoint", PATIENCE, || {
        let answer = match socket.ask(b"who now?") {
            // The node's own socket was bound to its endpoint: it is ended, and its owner dials again as resolvers do.
            // kube-proxy moves it silently (S-08).
            Outcome::Ended if client == Who::Host && !bed.is_control() => {
                let dial = Dial::new(bed.place(client), app(&[]).address(via, family), Transport::Udp);
                dial.probe().ok().context("dialled again")?
            }
            outcome => outcome.ok()?,
        };
        ensure!(answer.backend == PC.id(), "{} still answers", answer.backend);
        Ok(())
    })
}

fn comes_back(bed: &mut Bed, client: Who, via: Via, family: Family) -> Result<()> {
    bed.apply(&app(&[PB]))?;
    for transport in Transport::BOTH {
        let dial = Dial::new(bed.place(client), app(&[]).address(via, family), transport);
        dial.probe().ok()?;
    }
    bed.delete(&app(&[]))?;
    for transport in Transport::BOTH {
        // A ClusterIP nobody owns any more is not the node's business; a NodePort nobody owns is a closed port.
        if via == Via::NodePort {
            let dial = Dial::new(bed.place(client), app(&[]).address(via, family), transport);
            let outcome = dial.probe();
            ensure!(outcome == Outcome::Refused, "{transport} after deletion: {outcome}");
        }
    }
    bed.apply(&app(&[PC]))?;
    for transport in Transport::BOTH {
        let dial = Dial::new(bed.place(client), app(&[]).address(via, family), transport);
        let backend = dial.probe().ok()?.backend;
        ensure!(backend == PC.id(), "{backend} answers for the new Service");
    }
    Ok(())
}

/// All clients, both transports and families; `lasting` ones too for TCP.
pub fn streams(bed: &Bed, app: &App) -> Vec<Stream> {
    let mut streams = Vec::new();
    for (client, via) in CLIENTS {
        for family in Family::BOTH {
            let to = app.address(via, family);
            let stream =
                |transport, lasting| Stream { from: bed.place(client).clone(), to, transport, lasting };
            streams.extend([
                stream(Transport::Tcp, false),
                stream(Transport::Udp, false),
                stream(Transport::Tcp, true),
            ]);
        }
    }
    streams
}

fn under_traffic(bed: &mut Bed) -> Result<()> {
    bed.apply(&app(&[PB, PC]))?;
    let load = Load::start(streams(bed, &app(&[])))?;
    for _ in 0..8 {
        for list in [&[PB][..], &[PB, PC], &[PC], &[PC, PB]] {
            bed.apply(&app(list))?;
            load.progress(1)?;
        }
    }
    load.finish().map(drop)
}

fn device_numbers(bed: &Bed) -> Result<BTreeSet<String>> {
    let links = bed.ip("n1", "-o link")?;
    let named = links.lines().filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()));
    Ok(named.filter(|name| !matches!(name.as_str(), "lo" | "cni0")).collect())
}

/// J18: no agent is told of a pod; it sees the device.
fn appears(bed: &mut Bed) -> Result<()> {
    bed.apply(&app(&[PC]))?;
    for round in 0..5 {
        bed.renew_device(Who::Pc)?;
        wait_served(bed)?;
        for family in Family::BOTH {
            // Pc as the backend of masqueraded traffic, and as a client of itself: its own edge does both.
            for (client, via) in
                [(Who::Client, Via::NodePort), (Who::Pc, Via::ClusterIp), (Who::Pa, Via::ClusterIp)]
            {
                for transport in Transport::BOTH {
                    let to = app(&[]).address(via, family);
                    let outcome = Dial::new(bed.place(client), to, transport).probe();
                    outcome
                        .ok()
                        .with_context(|| format!("round {round}: {client:?} {family} {transport}"))?;
                }
            }
        }
    }
    Ok(())
}

fn churn(bed: &mut Bed) -> Result<()> {
    bed.apply(&app(&[PB, PC]))?;
    for _ in 0..20 {
        bed.renew_device(Who::Pc)?;
    }
    bed.renew_device(Who::Pa)?;
    wait_served(bed)?;
    let load = Load::start(streams(bed, &app(&[])))?;
    load.progress(3)?;
    load.finish().map(drop)
}

/// Waits until exactly the devices that exist are served, by their present numbers.
fn wait_served(bed: &Bed) -> Result<()> {
    if bed.is_control() {
        return Ok(());
    }
    let numbers = bed.namespace("n1").within(|| {
        let interfaces = nix::net::if_::if_nameindex()?;
        Ok(interfaces
            .iter()
            .map(|i| (i.name().to_string_lossy().into_owned(), u64::from(i.index())))
            .collect::<Vec<_>>())
    })?;
    let wanted = device_numbers(bed)?;
    let want: BTreeSet<_> = numbers.into_iter().filter(|(name, _)| wanted.contains(name)).collect();
    let home = &bed.agent()?.home;
    home.wait_status("the new device to be served", |status| {
        served(status).into_iter().collect::<BTreeSet<_>>() == want
    })
    .map(drop)
}
