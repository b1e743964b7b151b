//! P-14: a link on the path gets smaller under live connections; transfers go on. Experiment 3: redirects about
//! translated flows do not reach pods.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::Dial;
use sluice_tests::wait::PATIENCE;
use sluice_tests::wire::{Packet, Transport};

use crate::harness::{Group, Story};

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        // Between two ports of one bridge replies are not routed: the node is no hop for them.
        let applies = |way: &Way| wiring == Wiring::Routed || way.name != "translated_replies_at_the_node";
        for way in WAYS.into_iter().filter(applies) {
            stories.push(Story::new(format!("P14_transfer_goes_on::{}::{family}", way.name), move |bed| {
                transfer_goes_on(bed, &way, family)
            }));
        }
        stories.push(Story::new(format!("redirects_do_not_poison_pods::{family}"), move |bed| {
            redirects(bed, family)
        }));
    }
    Group { name: format!("icmp::{wiring}"), config: BedConfig::new(wiring), setup: Box::new(setup), stories }
}

fn own() -> App {
    App::new("own", 1, [Backend::new(Who::Pa, 8_080)])
}

fn remote() -> App {
    App::new("remote", 2, [Backend::new(Who::Pd, 8_080)])
}

fn local() -> App {
    App::new("local", 3, [Backend::new(Who::Pb, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pa, Who::Pb, Who::Pd] {
        bed.serve(who, 8_080)?;
    }
    bed.start()?;
    [own(), remote(), local()].iter().try_for_each(|app| bed.apply(app))
}

/// A client, a Service, and the hop that gets narrow: a namespace whose route to a place is told a smaller MTU.
#[derive(Clone, Copy)]
struct Way {
    name: &'static str,
    client: Who,
    via: Via,
    app: fn() -> App,
    narrow: &'static str,
    towards: Who,
}

/// (a) errors about replies go to the Service's address or to the masquerade address; (b) errors about requests go
/// to the client or to the masquerade address.
const WAYS: [Way; 8] = [
    Way {
        name: "translated_requests",
        client: Who::Pa,
        via: Via::ClusterIp,
        app: remote,
        narrow: "rt",
        towards: Who::Pd,
    },
    Way {
        name: "translated_requests_at_the_node",
        client: Who::Pa,
        via: Via::ClusterIp,
        app: local,
        narrow: "n1",
        towards: Who::Pb,
    },
    Way {
        name: "translated_replies_at_the_node",
        client: Who::Pa,
        via: Via::ClusterIp,
        app: local,
        narrow: "n1",
        towards: Who::Pa,
    },
    Way {
        name: "masqueraded_requests",
        client: Who::Client,
        via: Via::NodePort,
        app: remote,
        narrow: "rt",
        towards: Who::Pd,
    },
    Way {
        name: "masqueraded_replies_remote",
        client: Who::Client,
        via: Via::NodePort,
        app: remote,
        narrow: "rt",
        towards: Who::Client,
    },
    Way {
        name: "masqueraded_replies_local",
        client: Who::Client,
        via: Via::LoadBalancer,
        app: local,
        narrow: "rt",
        towards: Who::Client,
    },
    Way {
        name: "masqueraded_requests_at_the_node",
        client: Who::Client,
        via: Via::ExternalIp,
        app: local,
        narrow: "n1",
        towards: Who::Pb,
    },
    Way { name: "hairpin", client: Who::Pa, via: Via::ClusterIp, app: own, narrow: "n1", towards: Who::Pa },
];

/// Enough for IPv6's minimum, less than any device's.
const NARROW: u32 = 1_300;

fn transfer_goes_on(bed: &mut Bed, way: &Way, family: Family) -> Result<()> {
    let to = (way.app)().address(way.via, family);
    let opened = Dial::new(bed.place(way.client), to, Transport::Tcp).open();
    let mut connection = opened.or_else(|outcome| bail!("{outcome}"))?;
    connection.bulk(100_000).or_else(|o| bail!("before the link gets narrow: {o}"))?;
    let route = narrow_route(bed, way, family)?;
    bed.ip(way.narrow, &format!("route replace {route} mtu lock {NARROW}"))?;
    bed.capture.watch(|packet| matches!(packet, Packet::Error { redirect: false, .. }));
    // Under a lease of before, packets pass the node's routes by for a while.
    let begun = Instant::now();
    let mut moved = connection.bulk(1 << 20);
    while moved.is_ok() && bed.capture.peek_watched() == 0 && begun.elapsed() < PATIENCE {
        moved = connection.bulk(1 << 20);
    }
    let errors = bed.capture.peek_watched();
    bed.ip(way.narrow, &format!("route del {}", narrow_target(way, family)))?;
    restore_pod_route(bed, way, family)?;
    flush(bed)?;
    moved.or_else(|outcome| bail!("1 MB each way: {outcome}"))?;
    ensure!(errors > 0, "no ICMP error was seen: the link was not narrow, nothing was tested");
    Ok(())
}

fn narrow_target(way: &Way, family: Family) -> String {
    let length = if family == Family::V4 { 32 } else { 128 };
    format!("{}/{length}", way.towards.address(family))
}

/// The present route to the place, as a host route of its own.
fn narrow_route(bed: &Bed, way: &Way, family: Family) -> Result<String> {
    let target = way.towards.address(family);
    let now = bed.ip(way.narrow, &format!("route get {target}"))?;
    let mut words = now.split_whitespace().skip_while(|word| !matches!(*word, "via" | "dev"));
    let mut route = narrow_target(way, family);
    while let (Some(key @ ("via" | "dev")), Some(value)) = (words.next(), words.next()) {
        route.push_str(&format!(" {key} {value}"));
    }
    ensure!(route.contains("dev"), "no route to {target} in {now:?}");
    Ok(route)
}

/// Routed pods have a host route of their own, which the narrow one has replaced.
fn restore_pod_route(bed: &Bed, way: &Way, family: Family) -> Result<()> {
    if way.narrow == "n1" && bed.config.wiring == Wiring::Routed {
        let device = sluice_tests::lab::wiring::host_device(Wiring::Routed, way.towards.name());
        bed.ip("n1", &format!("route replace {} dev {device}", narrow_target(way, family)))?;
    }
    Ok(())
}

/// Forgets learnt path MTUs, so that the next story starts afresh.
fn flush(bed: &Bed) -> Result<()> {
    for short in ["pa", "pb", "pd", "cl", "n1", "n2"] {
        bed.ip(short, "route flush cache")?;
        bed.ip(short, "-6 route flush cache")?;
    }
    Ok(())
}

/// The node's stack routes a pod's packet back to where it came from and thinks that the pod should know better. A
/// pod that believed it would send the Service's packets straight to that backend for 300 s.
fn redirects(bed: &mut Bed, family: Family) -> Result<()> {
    let mut app = App::new("moving", 9, [Backend::new(Who::Pb, 8_080)]);
    bed.apply(&app)?;
    let service = app.address(Via::ClusterIp, family);
    let before = bed.ip("pa", &format!("route get {}", service.ip()))?;
    bed.capture.watch(|packet| matches!(packet, Packet::Error { redirect: true, .. }));
    let ask = |bed: &Bed| -> Result<()> {
        for attempt in 0..5 {
            let outcome = Dial::new(bed.place(Who::Pa), service, Transport::Udp).probe();
            outcome.ok().with_context(|| format!("datagram {attempt}"))?;
        }
        Ok(())
    };
    ask(bed)?;
    let redirected = bed.ip("pa", &format!("route get {}", service.ip()))?;
    ensure!(stable(&redirected) == stable(&before), "the pod's route changed to {redirected}");
    app.backends = vec![Backend::new(Who::Pd, 8_080)];
    bed.apply(&app)?;
    ask(bed).context("after the Service has moved")?;
    // And in and out by one NIC: the router and the outside client are not to be redirected either.
    let node_port = remote().address(Via::NodePort, family);
    for _ in 0..3 {
        Dial::new(bed.place(Who::Client), node_port, Transport::Udp).probe().ok()?;
    }
    ensure!(
        bed.capture.peek_watched() == 0 || bed.is_control(),
        "a redirect about a translated flow arrived"
    );
    Ok(())
}

/// A route without its counters.
fn stable(route: &str) -> Vec<&str> {
    route.split_whitespace().take_while(|word| *word != "cache").collect()
}
