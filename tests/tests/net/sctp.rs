//! SCTP through the real agent, between raw sockets (B3, P-90).

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::packet::sctp::chunk;
use sluice_tests::traffic::{Association, Dial, Raw, Server};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

/// Where the node's own packets of SCTP are led, as it is named on the node.
const OUTER: &str = "sluice-catch";

pub fn groups() -> Vec<Group> {
    let own = Wiring::BOTH.into_iter().map(own_processes);
    Wiring::BOTH.into_iter().map(group).chain(own).collect()
}

/// The kernel calls no hook for sockets of SCTP: the node's own packets are served instead.
fn own_processes(wiring: Wiring) -> Group {
    let mut stories: Vec<_> = Family::BOTH
        .map(|family| {
            Story::new(format!("S20_the_nodes_own_processes::{family}"), move |bed| own(bed, family))
        })
        .into();
    stories.push(Story::new("S20_the_device_is_there_for_sctp_alone", for_sctp_alone));
    Group {
        name: format!("sctp::own::{wiring}"),
        config: BedConfig { invalid_drop: true, ..BedConfig::new(wiring) },
        setup: Box::new(|bed| {
            bed.serve(plain().backends[0].who, plain().backends[0].port)?;
            bed.start()?;
            [near(), far(), empty(), plain()].iter().try_for_each(|app| bed.apply(app))
        }),
        stories,
    }
}

/// Not of SCTP.
fn plain() -> App {
    App::new("plain", 4, [Backend::new(Who::Pa, 8_082)])
}

/// The addresses that are led away from the stack's own way are these Services'.
fn wait_led(bed: &Bed, apps: &[App]) -> Result<()> {
    let vias = [Via::ClusterIp, Via::ExternalIp, Via::LoadBalancer];
    let all = apps.iter().flat_map(|app| vias.map(|via| (app, via)));
    let want: BTreeSet<String> = all
        .flat_map(|(app, via)| Family::BOTH.map(|family| app.address(via, family).ip().to_string()))
        .collect();
    until("the routes of what SCTP dials", PATIENCE, || {
        let links = bed.ip("n1", "-br link").map_err(|error| format!("{error:#}"))?;
        if !links.contains(OUTER) {
            return if want.is_empty() { Ok(()) } else { Err("no device".to_owned()) };
        }
        let mut led = BTreeSet::new();
        for option in ["-4", "-6"] {
            let shown = bed.ip("n1", &format!("{option} route show dev {OUTER}"));
            let shown = shown.map_err(|error| format!("{error:#}"))?;
            led.extend(shown.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())));
        }
        if led == want && !want.is_empty() { Ok(()) } else { Err(format!("{led:?}")) }
    })
}

fn own(bed: &mut Bed, family: Family) -> Result<()> {
    wait_led(bed, &[near(), far(), empty()])?;
    let mut port = 25_000;
    for (app, backend) in [(near(), NEAR), (far(), FAR)] {
        let server = server(bed, backend, family)?;
        for via in [Via::ClusterIp, Via::ExternalIp, Via::LoadBalancer] {
            port += 1;
            let to = app.address(via, family);
            let association = Association::open(raw(bed, Who::Host, family)?, port, to, &server)
                .map_err(|error| error.context(format!("{} by {via:?}", app.name)))?;
            let node = bed.route_source(backend.who.address(family))?;
            ensure!(association.seen.ip() == node, "seen as {}", association.seen);
            association.ask(b"the node's own")?;
            association.shut_down()?;
        }
    }
    let to = empty().address(Via::ClusterIp, family);
    raw(bed, Who::Host, family)?.is_refused(to, 0, chunk::INIT)?;
    let (from, to) =
        (Who::Host.address(family).to_string(), near().address(Via::ClusterIp, family).to_string());
    let home = &bed.agent()?.home;
    let told = home.json(&["explain", "--from", &from, "--to", &to, "--protocol", "sctp"])?;
    ensure!(told["path"] == "stack" && told["verdict"] == "translate", "{told:#}");
    Ok(())
}

/// Sockets of TCP go on being translated when they connect. Without a Service of SCTP there is no device.
fn for_sctp_alone(bed: &mut Bed) -> Result<()> {
    let all = [near(), far(), empty()];
    let tcp = |bed: &Bed| {
        let to = plain().address(Via::ClusterIp, Family::V4);
        Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe().ok().map(drop)
    };
    tcp(bed)?;
    let status = bed.agent()?.home.json(&["status"])?.to_string();
    ensure!(status.contains("over SCTP, which passes no hook"), "{status}");
    for gone in 0..all.len() {
        bed.delete(&all[gone])?;
        wait_led(bed, &all[gone + 1..])?;
    }
    tcp(bed)?;
    bed.apply(&near())?;
    wait_led(bed, &[near()])?;
    tcp(bed)?;
    all[1..].iter().try_for_each(|app| bed.apply(app))?;
    wait_led(bed, &all)
}

/// A behaviour in one family.
type Way = fn(&mut Bed, Family) -> Result<()>;

fn group(wiring: Wiring) -> Group {
    let rows: [(&str, Way); 6] = [
        ("B3_P90_each_client_by_each_address", each_way),
        ("B7_P90_a_pod_and_itself", hairpin),
        ("B5_P90_an_association_outlives_its_endpoint's_place", departure),
        ("P60_P90_a_service_and_its_endpoint_from_one_port", beside),
        ("B14_B17_P45_P90_what_is_not_served_is_refused", refused),
        ("P90_operators_see_it", shown),
    ];
    let stories = rows.into_iter().flat_map(|(name, run)| {
        Family::BOTH.map(|family| Story::new(format!("{name}::{family}"), move |bed| run(bed, family)))
    });
    Group {
        name: format!("sctp::{wiring}"),
        config: BedConfig { invalid_drop: true, ..BedConfig::new(wiring) },
        setup: Box::new(|bed| {
            bed.start()?;
            [near(), far(), empty()].iter().try_for_each(|app| bed.apply(app))
        }),
        stories: stories.collect(),
    }
}

const NEAR: Backend = Backend::new(Who::Pb, 8_080);
const FAR: Backend = Backend::new(Who::Pd, 8_081);

fn near() -> App {
    App::new("near", 1, [NEAR]).and_sctp()
}

fn far() -> App {
    App::new("far", 2, [FAR]).and_sctp()
}

fn empty() -> App {
    App::new("empty", 3, []).and_sctp()
}

fn raw(bed: &Bed, who: Who, family: Family) -> Result<Raw> {
    Raw::open(bed.namespace(who.namespace()), who.address(family))
}

fn server(bed: &Bed, backend: Backend, family: Family) -> Result<Server> {
    Server::start(bed.namespace(backend.who.namespace()), backend, family)
}

/// From INIT to SHUTDOWN COMPLETE; every checksum is looked at where it arrives, whichever port has changed on the way.
fn each_way(bed: &mut Bed, family: Family) -> Result<()> {
    let mut port = 20_000;
    for (app, backend) in [(near(), NEAR), (far(), FAR)] {
        let server = server(bed, backend, family)?;
        for client in [Who::Pa, Who::Client] {
            for via in Via::ALL {
                port += 1;
                let to = app.address(via, family);
                let association = Association::open(raw(bed, client, family)?, port, to, &server)
                    .map_err(|error| error.context(format!("{} by {via:?}", client.name())))?;
                let own = SocketAddr::new(client.address(family), port);
                // kube-proxy's rules: a pod's own address to a ClusterIP, a node's to all else.
                let plain = client == Who::Pa && via == Via::ClusterIp;
                ensure!((association.seen == own) == plain, "{via:?}: {own} is seen as {}", association.seen);
                for size in [1, 2, 3, 4, 1_000] {
                    association.ask(&vec![0x5a; size])?;
                }
                association.shut_down()?;
            }
        }
    }
    Ok(())
}

fn hairpin(bed: &mut Bed, family: Family) -> Result<()> {
    let server = server(bed, NEAR, family)?;
    let to = near().address(Via::ClusterIp, family);
    let association = Association::open(raw(bed, Who::Pb, family)?, 21_000, to, &server)?;
    ensure!(association.seen.ip() != Who::Pb.address(family), "seen as itself");
    association.ask(b"myself")?;
    association.shut_down()
}

fn departure(bed: &mut Bed, family: Family) -> Result<()> {
    let server = server(bed, NEAR, family)?;
    let to = near().address(Via::NodePort, family);
    let association = Association::open(raw(bed, Who::Client, family)?, 22_000, to, &server)?;
    bed.apply(&App { backends: Vec::new(), ..near() })?;
    association.ask(b"still here")?;
    raw(bed, Who::Client, family)?.is_refused(to, 0, chunk::INIT)?;
    bed.delete(&near())?;
    association.ask(b"and without a Service")?;
    association.shut_down()?;
    bed.apply(&near())
}

/// An endpoint answers an INIT whatever association it has: only what is written down keeps the two apart.
fn beside(bed: &mut Bed, family: Family) -> Result<()> {
    let server = server(bed, NEAR, family)?;
    let straight = SocketAddr::new(NEAR.who.address(family), NEAR.port);
    for (port, order) in [(23_000, [0, 1]), (23_001, [1, 0])] {
        let to = [straight, near().address(Via::ClusterIp, family)];
        let open = |to| Association::open(raw(bed, Who::Pa, family)?, port, to, &server);
        let first = open(to[order[0]])?;
        // Both sockets hear all that comes to their port: one is open at a time.
        first.ask(b"first")?;
        let seen = first.seen;
        drop(first);
        let second = open(to[order[1]])?;
        ensure!(second.seen != seen, "both are seen as {seen}");
        second.ask(b"second")?;
        second.shut_down()?;
    }
    Ok(())
}

fn refused(bed: &mut Bed, family: Family) -> Result<()> {
    for via in Via::ALL {
        for client in [Who::Pa, Who::Client] {
            raw(bed, client, family)?.is_refused(empty().address(via, family), 0, chunk::INIT)?;
        }
    }
    let cluster_ip = near().address(Via::ClusterIp, family);
    let unlisted = SocketAddr::new(cluster_ip.ip(), 99);
    raw(bed, Who::Pa, family)?.is_refused(unlisted, 0, chunk::INIT)?;
    raw(bed, Who::Pa, family)?.is_refused(cluster_ip, 7, chunk::DATA)?;
    raw(bed, Who::Pa, family)?.is_refused(cluster_ip, 7, chunk::HEARTBEAT)
}

fn shown(bed: &mut Bed, family: Family) -> Result<()> {
    let server = server(bed, FAR, family)?;
    let to = far().address(Via::ClusterIp, family);
    let association = Association::open(raw(bed, Who::Pa, family)?, 24_000, to, &server)?;
    let home = &bed.agent()?.home;
    let client = SocketAddr::new(Who::Pa.address(family), 24_000);
    let flow = home.flow(client, to)?;
    ensure!(flow["protocol"] == "SCTP" && flow["state"] == "established", "{flow}");
    let services = home.json(&["services", "lab/far"])?.to_string();
    ensure!(services.contains("\"SCTP\""), "{services}");
    let (from, dialled) = (client.ip().to_string(), to.to_string());
    let told = home.json(&["explain", "--from", &from, "--to", &dialled, "--protocol", "sctp"])?;
    let backend = SocketAddr::new(FAR.who.address(family), FAR.port).to_string();
    ensure!(told["verdict"] == "translate" && told["backend"] == backend, "{told:#}");
    association.shut_down()
}
