//! Who reaches what by which address, and whom the backend sees: kube-proxy's masquerade matrix (1.0) as a table.

use anyhow::{Context, Result, bail, ensure};
use std::net::IpAddr;

use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::plan::{Family, Who, Wiring, gateway};
use sluice_tests::lab::{Bed, BedConfig};
use sluice_tests::traffic::{Dial, Outcome};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

const CLIENTS: [Who; 3] = [Who::Pa, Who::Host, Who::Client];

/// The applications of a matrix bed.
struct Apps {
    /// One backend each: a pod of the node, the pod that is also the client, a pod elsewhere, the node itself.
    answering: [(&'static str, App); 4],
    /// No endpoints.
    empty: App,
    /// An endpoint whose server is down.
    down: App,
}

fn apps() -> Apps {
    let one = |name: &'static str, number, who| (name, App::new(name, number, [Backend::new(who, 8_080)]));
    Apps {
        answering: [
            one("local", 1, Who::Pb),
            one("own", 2, Who::Pa),
            one("remote", 3, Who::Pd),
            one("node", 4, Who::Host),
        ],
        empty: App::new("empty", 5, []),
        down: App::new("down", 6, [Backend::new(Who::Pb, 8_099)]),
    }
}

/// Sluice in both wirings with every oracle, under strict reverse-path filters (P-70) and with netfilter dropping what it
/// calls invalid (P-49, G8); and once with offloads on and without bpffs.
pub fn groups() -> Vec<Group> {
    let strict = |wiring| BedConfig { invalid_drop: true, ..BedConfig::new(wiring) };
    let mut groups: Vec<_> = Wiring::BOTH
        .into_iter()
        .map(|wiring| {
            group(format!("services::{wiring}"), strict(wiring), Bed::start_agent, &[answers, refusals])
        })
        .collect();
    let offload = BedConfig { offload: true, bpffs: false, ..BedConfig::new(Wiring::Routed) };
    groups.push(group("services::offload".into(), offload, Bed::start_agent, &[answers, refusals]));
    groups
}

/// The same table by nftables rules: what fails here is the bed's fault or the table's. Refusals differ from
/// Sluice's on purpose (the node's own UDP gets EPERM, IPv6 TCP hears at its second SYN), so they are left out.
pub fn control() -> Vec<Group> {
    let proxy = |bed: &mut Bed| {
        bed.start_control();
        Ok(())
    };
    vec![group("control".into(), BedConfig::new(Wiring::Routed), proxy, &[answers])]
}

type Chapter = fn(Who, Family, Transport) -> Vec<Story>;

fn group(name: String, config: BedConfig, proxy: fn(&mut Bed) -> Result<()>, chapters: &[Chapter]) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        for transport in Transport::BOTH {
            for client in CLIENTS {
                stories.extend(chapters.iter().flat_map(|chapter| chapter(client, family, transport)));
            }
        }
    }
    Group { name, config, setup: Box::new(move |bed| setup(bed, proxy)), stories }
}

fn answers(client: Who, family: Family, transport: Transport) -> Vec<Story> {
    Via::ALL
        .into_iter()
        .map(|via| {
            let name = format!("{}_reaches_{}::{family}::{transport}", client.name(), via.name());
            Story::new(name, move |bed| reaches(bed, client, via, family, transport))
        })
        .collect()
}

fn refusals(client: Who, family: Family, transport: Transport) -> Vec<Story> {
    let name = |what: &str| format!("{}_is_refused_{what}::{family}::{transport}", client.name());
    vec![
        Story::new(name("without_endpoints"), move |bed| {
            refused_everywhere(bed, client, family, transport, &apps().empty)
        }),
        Story::new(name("when_the_server_is_down"), move |bed| {
            refused_everywhere(bed, client, family, transport, &apps().down)
        }),
        Story::new(name("at_unlisted_ports"), move |bed| unlisted(bed, client, family, transport)),
    ]
}

fn setup(bed: &mut Bed, proxy: fn(&mut Bed) -> Result<()>) -> Result<()> {
    for who in [Who::Pa, Who::Pb, Who::Pd, Who::Host] {
        bed.serve(who, 8_080)?;
    }
    proxy(bed)?;
    let apps = apps();
    for (_, app) in &apps.answering {
        bed.apply(app)?;
    }
    bed.apply(&apps.empty)?;
    bed.apply(&apps.down)
}

fn reaches(bed: &mut Bed, client: Who, via: Via, family: Family, transport: Transport) -> Result<()> {
    for (name, app) in &apps().answering {
        if bed.is_control() && family == Family::V6 && app.backends[0].who == client {
            // The kernel's own translation lets ICMPv6 redirects about hairpins through to the pod.
            continue;
        }
        let told = || format!("{client:?} to {via:?} of {name:?}");
        let to = app.address(via, family);
        let connection = Dial::new(bed.place(client), to, transport).open();
        let connection = connection.or_else(|outcome| bail!("{outcome}")).with_context(told)?;
        let answer = &connection.answer;
        let backend = app.backends[0];
        ensure!(answer.backend == backend.id(), "{}: answered by {}", told(), answer.backend);
        let peer = connection.peer()?;
        ensure!(peer == to, "{}: the socket says that it talks to {peer} (S-07: getpeername)", told());
        let allowed = sources(bed, client, via, family, backend.who)?;
        ensure!(allowed.contains(&answer.seen.ip()), "{}: seen as {}, not {allowed:?}", told(), answer.seen);
    }
    Ok(())
}

/// The addresses that the backend may see: the masquerade matrix.
fn sources(bed: &Bed, client: Who, via: Via, family: Family, backend: Who) -> Result<Vec<IpAddr>> {
    let own = client.address(family);
    if client == Who::Host {
        // The node's own traffic: any of its addresses is right, the kernel chooses by route.
        let second = sluice_tests::lab::plan::second_address(family);
        let loopback = family.pick(std::net::Ipv4Addr::LOCALHOST, std::net::Ipv6Addr::LOCALHOST);
        return Ok(vec![own, second, gateway(family), loopback]);
    }
    // Delivered locally: no egress, so nothing masquerades (design, section 2).
    let hairpin = client == backend;
    let external = via != Via::ClusterIp || client == Who::Client;
    if backend == Who::Host || !(hairpin || external) {
        return Ok(vec![own]);
    }
    let route = bed.route_source(backend.address(family))?;
    Ok(vec![route])
}

fn refused_everywhere(
    bed: &mut Bed,
    client: Who,
    family: Family,
    transport: Transport,
    app: &App,
) -> Result<()> {
    for via in Via::ALL {
        let outcome = Dial::new(bed.place(client), app.address(via, family), transport).probe();
        ensure!(outcome == Outcome::Refused, "{via:?}: {outcome} (P-17, P-23)");
    }
    Ok(())
}

fn unlisted(bed: &mut Bed, client: Who, family: Family, transport: Transport) -> Result<()> {
    for via in [Via::ClusterIp, Via::ExternalIp, Via::LoadBalancer] {
        let mut to = apps().answering[0].1.address(via, family);
        to.set_port(81);
        let outcome = Dial::new(bed.place(client), to, transport).probe();
        ensure!(outcome == Outcome::Refused, "{via:?}: {outcome} (P-24)");
    }
    Ok(())
}
