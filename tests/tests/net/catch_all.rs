//! The catch-all device: the node's own processes reach Services although no socket hook translates for them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use sluice_tests::lab::agent::Agent;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, LARGEST_DATAGRAM, Outcome};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::{Packet, Transport};

use crate::harness::{Group, Story, both_transports};

/// Both ends of the pair, as they are named on the node.
const OUTER: &str = "sluice-catch";
const INNER: &str = "sluice-catch-in";
/// Every way by which it can be reached; the node's own addresses are not among them.
const LED: [Via; 3] = [Via::ClusterIp, Via::ExternalIp, Via::LoadBalancer];

pub fn groups() -> Vec<Group> {
    let mut groups: Vec<_> = Wiring::BOTH.into_iter().map(serving).collect();
    let config = BedConfig::new(Wiring::Routed);
    let stories = vec![
        Story::new("status_tells_what_it_is_for", status),
        Story::new("routes_follow_services", routes),
        Story::new("it_outlives_the_agent_and_is_adopted", restart),
        Story::new("a_route_in_the_way_is_told", in_the_way),
        Story::new("it_goes_when_sockets_are_translated", sockets),
        Story::new("L06_cleanup_takes_it_away", cleanup),
    ];
    groups.push(Group { name: "catch_all".into(), config, setup: Box::new(setup), stories });
    let stories = vec![Story::new("L08_a_pod_without_programs_is_dropped_and_does_not_loop", bare_pod)];
    let setup = Box::new(|bed: &mut Bed| {
        bed.home().flags.extend(["--edges", "eth0"].map(String::from));
        setup(bed)
    });
    groups.push(Group { name: "catch_all::bare_pod".into(), config, setup, stories });
    groups
}

fn serving(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[("every_service_address", every_address), ("refusals", refusals)],
        ));
        stories.push(Story::new(format!("what_the_backend_sees::{family}"), move |bed| seen(bed, family)));
        stories.push(Story::new(format!("bulk_by_a_narrow_path::{family}"), move |bed| narrow(bed, family)));
        stories.push(Story::new(format!("P09_the_largest_datagrams::{family}"), move |bed| {
            largest(bed, family)
        }));
        stories.push(Story::new(format!("what_is_no_services_ends_there::{family}"), move |bed| {
            dropped(bed, family)
        }));
    }
    for value in ["0", "1", "2"] {
        stories.push(Story::new(format!("rp_filter_{value}"), move |bed| rp_filter(bed, value)));
    }
    stories.push(Story::new("the_nodes_own_node_ports_refuse", own_node_port));
    let config = BedConfig { invalid_drop: true, ..BedConfig::new(wiring) };
    Group { name: format!("catch_all::{wiring}"), config, setup: Box::new(setup), stories }
}

fn app() -> App {
    App::new("app", 1, [Backend::new(Who::Pb, 8_080), Backend::new(Who::Pd, 8_080)])
}

fn remote() -> App {
    App::new("remote", 6, [Backend::new(Who::Pd, 8_080)])
}

fn on_host() -> App {
    App::new("host", 2, [Backend::new(Who::Host, 8_081)])
}

fn empty() -> App {
    App::new("empty", 3, [])
}

fn setup(bed: &mut Bed) -> Result<()> {
    bed.serve(Who::Pb, 8_080)?;
    bed.serve(Who::Pd, 8_080)?;
    bed.serve(Who::Host, 8_081)?;
    bed.home().flags.extend(["--sockets", "off"].map(String::from));
    let mut agent = Agent::start(bed.home().clone())?;
    // The NIC and the pair, and the pods where they are served.
    agent.ready(2)?;
    bed.agent = Some(agent);
    [app(), remote(), on_host(), empty()].iter().try_for_each(|app| bed.apply(app))?;
    wait_routed(bed, &app(), true)
}

/// The addresses that lead into the pair.
fn routed(bed: &Bed) -> Result<Vec<String>> {
    let shown = bed.ip("n1", &format!("route show dev {OUTER}"))?
        + &bed.ip("n1", &format!("-6 route show dev {OUTER}"))?;
    Ok(shown.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
}

fn wait_routed(bed: &Bed, app: &App, want: bool) -> Result<()> {
    let addresses: Vec<_> = LED
        .iter()
        .flat_map(|via| Family::BOTH.map(|family| app.address(*via, family).ip().to_string()))
        .collect();
    until(&format!("routes of {}: {want}", app.name), PATIENCE, || {
        let routed = routed(bed).map_err(|error| format!("{error:#}"))?;
        if addresses.iter().all(|address| routed.contains(address) == want) {
            Ok(())
        } else {
            Err(format!("{routed:?}"))
        }
    })
}

fn edge(status: &Value) -> Option<Value> {
    status["edges"].as_array()?.iter().find(|edge| edge["kind"] == "catch-all").cloned()
}

fn every_address(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for via in LED {
        for _ in 0..8 {
            let dial = Dial::new(bed.place(Who::Host), app().address(via, family), transport);
            seen.insert(dial.probe().ok().context(via.name())?.backend);
        }
        let own = Dial::new(bed.place(Who::Host), on_host().address(via, family), transport).probe().ok();
        ensure!(own.context(via.name())?.backend == "host:8081", "{}", via.name());
    }
    ensure!(seen.len() == 2, "24 connections reached {seen:?}");
    Ok(())
}

fn refusals(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for (what, mut to) in [("no endpoint", empty()), ("unlisted", app())]
        .map(|(what, app)| (what, app.address(Via::ClusterIp, family)))
    {
        if what == "unlisted" {
            to.set_port(99);
        }
        let outcome = Dial::new(bed.place(Who::Host), to, transport).probe();
        ensure!(outcome == Outcome::Refused, "{what}: {outcome}");
    }
    Ok(())
}

/// Pods see an address of the node, as they do behind kube-proxy; the node itself sees the pair's.
fn seen(bed: &mut Bed, family: Family) -> Result<()> {
    let dial =
        |app: App| Dial::new(bed.place(Who::Host), app.address(Via::ClusterIp, family), Transport::Tcp);
    let status = bed.agent()?.home.json(&["status"])?;
    for _ in 0..4 {
        let answer = dial(app()).probe().ok()?;
        let own = status["node"]["addresses"].to_string();
        ensure!(own.contains(&format!("\"{}\"", answer.seen.ip())), "{answer:?} is not of {own}");
    }
    let want: std::net::IpAddr = match family {
        Family::V4 => [169, 254, 20, 1].into(),
        Family::V6 => "fd73:6c75:6963:6500::1".parse()?,
    };
    let answer = dial(on_host()).probe().ok()?;
    ensure!(answer.seen.ip() == want, "{answer:?}");
    Ok(())
}

/// P-14: errors about packets that are too big find their way back through both ends.
fn narrow(bed: &mut Bed, family: Family) -> Result<()> {
    let dial = Dial::new(bed.place(Who::Host), remote().address(Via::ClusterIp, family), Transport::Tcp);
    let mut connection = dial.open().or_else(|outcome| bail!("{outcome}"))?;
    let via = if family == Family::V4 { "192.0.3.12" } else { "fd00:3::12" };
    let target = format!("{}/{}", Who::Pd.address(family), if family == Family::V4 { 32 } else { 128 });
    bed.ip("rt", &format!("route replace {target} via {via} mtu lock 1300"))?;
    bed.capture.watch(|packet| matches!(packet, Packet::Error { redirect: false, .. }));
    let moved = connection.bulk(1 << 20);
    let errors = bed.capture.peek_watched();
    bed.ip("rt", &format!("route del {target}"))?;
    moved.or_else(|outcome| bail!("1 MB each way: {outcome}"))?;
    ensure!(errors > 0, "no ICMP error was seen: the path was not narrow, nothing was tested");
    Ok(())
}

fn largest(bed: &mut Bed, family: Family) -> Result<()> {
    for app in [app(), remote()] {
        let dial = Dial::new(bed.place(Who::Host), app.address(Via::ClusterIp, family), Transport::Udp);
        let opened = dial.open().or_else(|outcome| bail!("{}: a small one: {outcome}", app.name));
        opened?.ask(&vec![0x5a; LARGEST_DATAGRAM]).ok()?;
    }
    Ok(())
}

/// Passed on, it would come back 63 times (experiment 7): one packet is one drop.
fn dropped(bed: &mut Bed, family: Family) -> Result<()> {
    let (stranger, length) = match family {
        Family::V4 => ("198.18.0.1", 32),
        Family::V6 => ("fd00:18::1", 128),
    };
    bed.ip("n1", &format!("route add {stranger}/{length} dev {OUTER}"))?;
    let before = bed.agent()?.home.dropped("catch_all")?;
    let to = (stranger.parse::<std::net::IpAddr>()?, 80).into();
    let dial = Dial::new(bed.place(Who::Host), to, Transport::Udp).patience(Duration::from_millis(300));
    let outcome = dial.probe();
    let after = bed.agent()?.home.dropped("catch_all")?;
    bed.ip("n1", &format!("route del {stranger}/{length} dev {OUTER}"))?;
    ensure!(outcome == Outcome::Timeout, "{outcome}");
    ensure!((1..=3).contains(&(after - before)), "{} drops of a datagram or two", after - before);
    Ok(())
}

fn rp_filter(bed: &mut Bed, value: &str) -> Result<()> {
    let devices = bed.ip("n1", "-br link")?;
    let names = devices.lines().filter_map(|line| line.split(['@', ' ']).next()).map(str::to_owned);
    let settings: Vec<_> =
        names.chain(["all".to_owned()]).map(|name| format!("net/ipv4/conf/{name}/rp_filter")).collect();
    let set = |value: &str| {
        let pairs: Vec<_> = settings.iter().map(|setting| (setting.as_str(), value)).collect();
        bed.namespace("n1").sysctls(&pairs)
    };
    set(value)?;
    let result = Transport::BOTH.into_iter().try_for_each(|transport| {
        (0..4).try_for_each(|_| {
            let dial = Dial::new(bed.place(Who::Host), app().address(Via::ClusterIp, Family::V4), transport);
            dial.probe().ok().map(drop)
        })
    });
    set("1")?;
    result
}

fn own_node_port(bed: &mut Bed) -> Result<()> {
    for family in Family::BOTH {
        let to = app().address(Via::NodePort, family);
        let outcome = Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe();
        ensure!(outcome == Outcome::Refused, "{to}: {outcome}");
        Dial::new(bed.place(Who::Client), to, Transport::Tcp).probe().ok().context("from outside")?;
    }
    let status = bed.agent()?.home.json(&["status"])?;
    let why = edge(&status).context("no edge of kind catch-all")?["why"].to_string();
    ensure!(why.contains("NodePorts on the node's own addresses"), "{why}");
    Ok(())
}

fn status(bed: &mut Bed) -> Result<()> {
    let status = bed.agent()?.home.json(&["status"])?;
    let edge = edge(&status).with_context(|| format!("no edge of kind catch-all: {status}"))?;
    ensure!(edge["name"] == INNER && edge["mode"] == "tcx", "{edge}");
    ensure!(edge["hooks"] == serde_json::json!(["ingress", "egress"]), "{edge}");
    ensure!(edge["why"].as_str().is_some_and(|why| why.contains("sockets are off: asked for")), "{edge}");
    ensure!(status["degraded"] == serde_json::json!([]), "{status}");
    let edges = status["edges"].as_array().context("a list")?;
    ensure!(!edges.iter().any(|edge| edge["name"] == OUTER), "the other end is no edge: {status}");
    Ok(())
}

fn routes(bed: &mut Bed) -> Result<()> {
    let more = App::new("more", 4, [Backend::new(Who::Pb, 8_080)]);
    let before = routed(bed)?;
    bed.apply(&more)?;
    wait_routed(bed, &more, true)?;
    Dial::new(bed.place(Who::Host), more.address(Via::ClusterIp, Family::V6), Transport::Tcp).probe().ok()?;
    bed.delete(&more)?;
    wait_routed(bed, &more, false)?;
    ensure!(routed(bed)? == before, "others' routes were touched: {before:?} {:?}", routed(bed)?);
    Ok(())
}

fn start(bed: &mut Bed, sockets: &str) -> Result<()> {
    let mut home = bed.home().clone();
    if let Some(last) = home.flags.last_mut() {
        sockets.clone_into(last);
    }
    let mut agent = Agent::start(home)?;
    agent.ready(Who::LOCAL_PODS.len() + 1)?;
    bed.agent = Some(agent);
    Ok(())
}

fn restart(bed: &mut Bed) -> Result<()> {
    let to = app().address(Via::ClusterIp, Family::V4);
    let mut held = Dial::new(bed.place(Who::Host), to, Transport::Tcp).open().or_else(|o| bail!("{o}"))?;
    let before = (routed(bed)?, bed.ip("n1", &format!("-o link show {INNER}"))?);
    let home = bed.agent.take().context("an agent runs")?.kill()?;
    held.ask(b"without an agent").ok()?;
    Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe().ok().context("new, without an agent")?;
    let mut agent = Agent::start(home)?;
    agent.ready(2)?;
    bed.agent = Some(agent);
    bed.agent()?.home.wait_status("the pair to be served", |status| edge(status).is_some())?;
    let after = (routed(bed)?, bed.ip("n1", &format!("-o link show {INNER}"))?);
    ensure!(before == after, "made anew: {before:?} {after:?}");
    held.ask(b"with the next one").ok()?;
    Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe().ok().map(drop)
}

fn in_the_way(bed: &mut Bed) -> Result<()> {
    let more = App::new("more", 5, [Backend::new(Who::Pb, 8_080)]);
    let address = more.address(Via::ClusterIp, Family::V4).ip();
    bed.ip("n1", &format!("route add unreachable {address}"))?;
    bed.apply(&more)?;
    let told = |status: &Value| status["degraded"].to_string().contains(&format!("route to {address}"));
    bed.agent()?.home.wait_status("the route in the way to be told", told)?;
    let shown = bed.ip("n1", &format!("route show {address}"))?;
    ensure!(shown.contains("unreachable"), "somebody else's route was taken away: {shown}");
    bed.ip("n1", &format!("route del unreachable {address}"))?;
    bed.delete(&more)?;
    bed.agent()?.home.wait_status("it to be over", |status| !told(status)).map(drop)
}

fn sockets(bed: &mut Bed) -> Result<()> {
    let to = app().address(Via::ClusterIp, Family::V4);
    for (mode, there) in [("host", false), ("off", true)] {
        bed.agent = None;
        start(bed, mode)?;
        let gone = |status: &Value| edge(status).is_some() == there;
        bed.agent()?.home.wait_status("the pair to follow the sockets", gone)?;
        let links = bed.ip("n1", "-br link")?;
        ensure!(links.contains(OUTER) == there, "sockets {mode}: {links}");
        if there {
            wait_routed(bed, &app(), true)?;
        }
        Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe().ok().with_context(|| mode.to_owned())?;
    }
    Ok(())
}

fn cleanup(bed: &mut Bed) -> Result<()> {
    let out = bed.agent()?.home.tell(&["cleanup"])?;
    ensure!(out.contains("catch-all"), "cleanup does not tell: {out}");
    let left = bed.traces()?;
    ensure!(!left.devices.iter().any(|device| device.contains("sluice")), "{:?}", left.devices);
    ensure!(
        !left.routes.iter().any(|route| route.contains("169.254.20.1") || route.contains("fd73:")),
        "{left:?}"
    );
    bed.agent = None;
    Ok(())
}

fn bare_pod(bed: &mut Bed) -> Result<()> {
    for family in Family::BOTH {
        let before = bed.agent()?.home.dropped("catch_all")?;
        let to = app().address(Via::ClusterIp, family);
        let dial = Dial::new(bed.place(Who::Pa), to, Transport::Udp).patience(Duration::from_millis(300));
        let outcome = dial.probe();
        let after = bed.agent()?.home.dropped("catch_all")?;
        ensure!(outcome == Outcome::Timeout, "{family}: {outcome}");
        ensure!((1..=3).contains(&(after - before)), "{family}: {} drops", after - before);
        // The node's own are served all the same.
        Dial::new(bed.place(Who::Host), to, Transport::Udp).probe().ok()?;
    }
    Ok(())
}
