//! Questions that take a packet or a node out of the ordinary, and what no question can be told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use proxy_common::abi::Reason;
use serde_json::{Value, json};
use sluice_tests::lab::agent::Agent;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::plan::gateway;
use sluice_tests::lab::wiring::host_device;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::packet::frame::{SYN, packet};
use sluice_tests::traffic::{Association, Connection, Dial, Outcome, Raw, Server, send, send_by};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use super::explain;
use crate::guard::hardware;
use crate::harness::{Group, Story, both_transports};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PD: Backend = Backend::new(Who::Pd, 8_080);
const SCTP: u8 = 132;
/// How long it takes to believe that nobody answers.
const SILENCE: Duration = Duration::from_millis(300);

/// What the stories of this file are told, where it is a reason that is counted.
pub const TOLD: [Reason; 7] = [
    Reason::Loopback,
    Reason::Spoofed,
    Reason::NoMasqueradeAddress,
    Reason::FlowTableFull,
    Reason::PortsExhausted,
    Reason::CatchAll,
    Reason::Shortcut,
];

/// Why no question can be told a reason. A question is about the first packet of a connection, whole and as it should be.
pub const fn untold(reason: Reason) -> Option<&'static str> {
    match reason {
        Reason::NoFlow | Reason::ChallengeAck => Some("only a packet that opens nothing meets it"),
        Reason::Fragment | Reason::EarlyFragment => Some("only a fragment meets it"),
        Reason::Redirect => Some("only an ICMP redirect meets it"),
        Reason::Malformed => Some("only headers that cannot be parsed meet it"),
        Reason::Protocol => Some("--protocol takes those that Services have"),
        Reason::Rewrite => Some("the kernel has to refuse to change a packet that it has shown"),
        Reason::FlowCreated
        | Reason::NoEndpoint
        | Reason::Unlisted
        | Reason::NoLocalEndpoint
        | Reason::FlowTableFull
        | Reason::PortsExhausted
        | Reason::NoMasqueradeAddress
        | Reason::CatchAll
        | Reason::SourceRange
        | Reason::Unassigned
        | Reason::Loopback
        | Reason::Spoofed
        | Reason::Shortcut => None,
    }
}

pub fn groups() -> Vec<Group> {
    let mut groups: Vec<_> = Wiring::BOTH.into_iter().map(usual).collect();
    groups.push(of_both("without_addresses", |_| {}, &[("no_masquerade_address", without_addresses)]));
    groups.push(of_both("full", |bed| flags(bed, &["--flows", "1024"]), &[("flow_table_full", full)]));
    let mut exhausted =
        of_both("exhausted", |bed| flags(bed, &["--flows", "524288"]), &[("ports_exhausted", exhausted)]);
    // It would drown in what it takes to use up the ports.
    exhausted.config.watched = false;
    groups.push(exhausted);
    let mut bare = of_both("bare_pod", |_| {}, &[("catch_all", bare_pod)]);
    bare.setup = Box::new(|bed| {
        bed.serve(PB.who, PB.port)?;
        flags(bed, &["--edges", "eth0", "--sockets", "off"]);
        let mut agent = Agent::start(bed.home().clone())?;
        agent.ready(2)?;
        bed.agent = Some(agent);
        bed.apply(&near())
    });
    groups.push(bare);
    groups
}

fn flags(bed: &mut Bed, flags: &[&str]) {
    bed.home().flags.extend(flags.iter().map(ToString::to_string));
}

type Way = fn(&mut Bed, Family) -> Result<()>;

fn each(rows: &[(&'static str, Way)]) -> Vec<Story> {
    let story = |family, (name, run): (&str, Way)| {
        Story::new(format!("{name}::{family}"), move |bed| run(bed, family))
    };
    rows.iter().flat_map(|row| Family::BOTH.map(|family| story(family, *row))).collect()
}

/// A bed of a node that something is the matter with.
fn of_both(name: &str, prepare: fn(&mut Bed), rows: &[(&'static str, Way)]) -> Group {
    Group {
        name: format!("explain::{name}"),
        config: BedConfig::new(Wiring::Routed),
        setup: Box::new(move |bed| {
            bed.serve(PB.who, PB.port)?;
            prepare(bed);
            bed.start_agent()?;
            bed.apply(&near())
        }),
        stories: each(rows),
    }
}

fn usual(wiring: Wiring) -> Group {
    let mut stories = each(&[
        ("loopback", loopback),
        ("a_known_association", known_association),
        ("an_affine_client", affine),
    ]);
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("spoofed", spoofed),
                ("a_known_flow_keeps_its_backend", known_flow),
                ("a_known_flow_past_the_stack", past_the_stack),
            ],
        ));
    }
    Group {
        name: format!("explain::special::{wiring}"),
        config: BedConfig::new(wiring),
        setup: Box::new(|bed| {
            bed.serve(PB.who, PB.port)?;
            bed.serve(PD.who, PD.port)?;
            flags(bed, &["--shortcuts", "established"]);
            bed.start_agent()?;
            [near(), two(), sticky()].iter().try_for_each(|app| bed.apply(app))
        }),
        stories,
    }
}

fn near() -> App {
    App::new("near", 1, [PB]).and_sctp()
}

fn two() -> App {
    App::new("two", 2, [PB, PD])
}

fn sticky() -> App {
    App::new("sticky", 3, [PB, PD]).with("sessionAffinity", json!("ClientIP"))
}

/// The answer to a question about a packet that comes by a device.
fn explain_by(
    bed: &Bed,
    edge: &str,
    from: SocketAddr,
    to: SocketAddr,
    transport: Transport,
) -> Result<Value> {
    let (from, to, transport) = (from.to_string(), to.to_string(), transport.to_string());
    let question = ["explain", "--from", &from, "--to", &to, "--protocol", &transport, "--edge", edge];
    bed.agent()?.home.json(&question)
}

fn explain_sctp(bed: &Bed, from: SocketAddr, to: SocketAddr) -> Result<Value> {
    let (from, to) = (from.to_string(), to.to_string());
    bed.agent()?.home.json(&["explain", "--from", &from, "--to", &to, "--protocol", "sctp"])
}

fn is_told(told: &Value, verdict: &str, reason: Reason) -> Result<()> {
    ensure!(told["verdict"] == verdict && told["reason"] == reason.name(), "{told:#}");
    Ok(())
}

/// A packet is dropped, and counted so, that `pass` sends.
fn fares(bed: &mut Bed, reason: Reason, pass: impl FnOnce(&mut Bed) -> Result<()>) -> Result<()> {
    let before = bed.agent()?.home.dropped(reason.name())?;
    pass(bed)?;
    bed.agent()?.home.wait_dropped(reason.name(), |now| now > before)
}

fn dialled_in_vain(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<()> {
    let outcome = Dial::new(bed.place(from), to, transport).patience(SILENCE).probe();
    ensure!(outcome == Outcome::Timeout, "{outcome}");
    Ok(())
}

/// Every reason is told by a story, or there is a reason why not.
pub fn all_told(told_elsewhere: &[&str]) -> Result<()> {
    for reason in Reason::ALL {
        let name = if reason == Reason::FlowCreated { "new_flow" } else { reason.name() };
        let told = TOLD.contains(&reason) || told_elsewhere.contains(&name);
        match untold(reason) {
            Some(why) => ensure!(!told, "{name} is told, although {why}"),
            None => ensure!(told, "nobody asks for {name}"),
        }
    }
    Ok(())
}

fn loopback(bed: &mut Bed, family: Family) -> Result<()> {
    let own = family.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let front = near().address(Via::ClusterIp, family);
    let edge = host_device(bed.config.wiring, "pa");
    let node = match bed.config.wiring {
        Wiring::Routed => edge.as_str(),
        Wiring::Bridged => "cni0",
    };
    let mac = hardware(&bed.ip("n1", &format!("-o link show dev {node}"))?, "link/ether")?;
    let pod = SocketAddr::new(Who::Pa.address(family), 4_000);
    for (from, to) in [(SocketAddr::new(own, 4_000), front), (pod, SocketAddr::new(own, near().node_port()))]
    {
        for transport in Transport::BOTH {
            is_told(&explain_by(bed, &edge, from, to, transport)?, "drop", Reason::Loopback)?;
            fares(bed, Reason::Loopback, |bed| {
                let end = |at: SocketAddr| (at.ip(), at.port());
                let frame = packet(transport.number(), SYN, end(from), end(to), b"forged");
                send_by(bed.namespace("pa"), "eth0", &mac, [frame])
            })?;
        }
    }
    Ok(())
}

fn open(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<Connection> {
    Dial::new(bed.place(from), to, transport).open().or_else(|outcome| bail!("{outcome}"))
}

/// What is a flow's own by its device is somebody else's by another.
fn spoofed(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let front = near().address(Via::ClusterIp, family);
    let mut owned = open(bed, Who::Pa, front, transport)?;
    let own = owned.local()?;
    let [of_pa, of_pc] = ["pa", "pc"].map(|pod| host_device(bed.config.wiring, pod));
    let told = explain_by(bed, &of_pa, own, front, transport)?;
    ensure!(told["verdict"] == "translate" && told["reason"] == "known_flow", "{told:#}");
    is_told(&explain_by(bed, &of_pc, own, front, transport)?, "drop", Reason::Spoofed)?;
    fares(bed, Reason::Spoofed, |bed| {
        let (from, to) = ((own.ip(), own.port()), (front.ip(), front.port()));
        send(bed.namespace("pc"), front.ip(), [packet(transport.number(), SYN, from, to, b"forged")])
    })?;
    owned.ask(b"my own").ok().map(drop)
}

fn used(answered: &str) -> Who {
    if answered.starts_with("pb") { Who::Pb } else { Who::Pd }
}

fn known_flow(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let to = two().address(Via::ClusterIp, family);
    let connection = open(bed, Who::Pa, to, transport)?;
    let client = connection.local()?;
    let backend = SocketAddr::new(used(&connection.answer.backend).address(family), 8_080);
    for _ in 0..8 {
        let told = explain(bed, &client.to_string(), to, transport)?;
        ensure!(told["reason"] == "known_flow" && told["backend"] == backend.to_string(), "{told:#}");
    }
    let told = explain(bed, &client.ip().to_string(), to, transport)?;
    let candidates = told["candidates"].as_array().context("a list")?;
    ensure!(told["reason"] == "new_flow" && candidates.len() == 2, "{told:#}");
    ensure!(candidates.contains(&told["backend"]), "{told:#}");
    Ok(())
}

fn raw(bed: &Bed, who: Who, family: Family) -> Result<Raw> {
    Raw::open(bed.namespace(who.namespace()), who.address(family))
}

fn server(bed: &Bed, family: Family) -> Result<Server> {
    Server::start(bed.namespace(PB.who.namespace()), PB, family)
}

fn known_association(bed: &mut Bed, family: Family) -> Result<()> {
    let to = near().address(Via::ClusterIp, family);
    let own = SocketAddr::new(Who::Pa.address(family), 21_000);
    let told = explain_sctp(bed, own, to)?;
    ensure!(told["verdict"] == "translate" && told["reason"] == "new_flow", "{told:#}");
    let server = server(bed, family)?;
    let association = Association::open(raw(bed, Who::Pa, family)?, own.port(), to, &server)?;
    let told = explain_sctp(bed, own, to)?;
    let backend = SocketAddr::new(PB.who.address(family), PB.port).to_string();
    ensure!(told["reason"] == "known_flow" && told["backend"] == backend, "{told:#}");
    association.shut_down()?;
    let unlisted = SocketAddr::new(to.ip(), 99);
    is_told(&explain_sctp(bed, own, unlisted)?, "reject", Reason::Unlisted)?;
    raw(bed, Who::Pa, family)?.is_refused(unlisted, 0, sluice_tests::packet::sctp::chunk::INIT)
}

/// Neither by chance nor for other clients: a pod, and the node's own processes, which share one record.
fn affine(bed: &mut Bed, family: Family) -> Result<()> {
    let to = sticky().address(Via::ClusterIp, family);
    for who in [Who::Pa, Who::Host] {
        let connection = open(bed, who, to, Transport::Tcp)?;
        let backend = SocketAddr::new(used(&connection.answer.backend).address(family), 8_080);
        for _ in 0..8 {
            let told = explain(bed, &who.address(family).to_string(), to, Transport::Tcp)?;
            ensure!(told["reason"] == "new_flow" && told["backend"] == backend.to_string(), "{told:#}");
        }
        let again = open(bed, who, to, Transport::Tcp)?;
        ensure!(again.answer.backend == connection.answer.backend, "it went to {}", again.answer.backend);
    }
    Ok(())
}

/// A datagram of a flow that has a lease. A SYN never has one, whose flow does.
fn past_the_stack(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    // Masqueraded flows keep to the stack where the endpoint is behind a port of a bridge.
    let node_port = (bed.config.wiring == Wiring::Routed).then_some((Via::NodePort, true));
    for (via, masqueraded) in [(Via::ClusterIp, false)].into_iter().chain(node_port) {
        let to = near().address(via, family);
        let mut connection = open(bed, Who::Pa, to, transport)?;
        let client = connection.local()?;
        let want = if transport == Transport::Udp { "shortcut" } else { "stack" };
        until("the flow to have a lease, and the question to be told", PATIENCE, || {
            connection.ask(b"which way").ok()?;
            let flow = bed.agent()?.home.flow(client, to)?;
            ensure!(flow["path"] == "shortcut", "{flow:#}");
            let told = explain(bed, &client.to_string(), to, transport)?;
            ensure!(told["verdict"] == "translate" && told["path"] == want, "{told:#}");
            ensure!(told["masquerade"].is_string() == masqueraded, "{told:#}");
            let steps = told["steps"].as_array().map_or(0, Vec::len);
            ensure!(transport != Transport::Udp || steps == 1, "more than one program: {told:#}");
            Ok(())
        })?;
        if !masqueraded {
            let endpoint = SocketAddr::new(PB.who.address(family), PB.port);
            let told = explain(bed, &endpoint.to_string(), client, transport)?;
            ensure!(told["masquerade"].is_null(), "an answer is not masqueraded: {told:#}");
        }
    }
    Ok(())
}

/// A pod's way to itself: the endpoint must see somebody else, and there is nobody.
fn without_addresses(bed: &mut Bed, family: Family) -> Result<()> {
    let (option, pod) = if family == Family::V4 { ("-4", PB.who) } else { ("-6", PB.who) };
    let (own, via, device) = (pod.address(family), gateway(family), host_device(bed.config.wiring, "pb"));
    let [here, there] =
        [("n1", device.as_str()), ("pb", "eth0")].map(|(short, device)| hardware_of(bed, short, device));
    let to = near().address(Via::ClusterIp, family);
    let ask = |bed: &Bed| explain(bed, &own.to_string(), to, Transport::Tcp);
    let told = ask(bed)?;
    ensure!(told["verdict"] == "translate" && told["masquerade"].is_string(), "{told:#}");
    // Who is where has to be known without addresses to ask with.
    bed.ip("pb", &format!("{option} neigh replace {via} lladdr {} dev eth0 nud permanent", here?))?;
    bed.ip("n1", &format!("{option} neigh replace {own} lladdr {} dev {device} nud permanent", there?))?;
    bed.ip("n1", &format!("{option} addr flush scope global"))?;
    let full = if family == Family::V4 { 32 } else { 128 };
    bed.ip("n1", &format!("{option} route replace {own}/{full} dev {device}"))?;
    until("the agent to know", PATIENCE, || is_told(&ask(bed)?, "drop", Reason::NoMasqueradeAddress))?;
    for transport in Transport::BOTH {
        let told = explain(bed, &own.to_string(), to, transport)?;
        is_told(&told, "drop", Reason::NoMasqueradeAddress)?;
        fares(bed, Reason::NoMasqueradeAddress, |bed| dialled_in_vain(bed, pod, to, transport))?;
    }
    Ok(())
}

fn hardware_of(bed: &Bed, short: &str, device: &str) -> Result<String> {
    let mac = hardware(&bed.ip(short, &format!("-o link show dev {device}"))?, "link/ether")?;
    Ok(mac.map(|byte| format!("{byte:02x}")).join(":"))
}

/// As long as there is room, and when live flows have taken all of it.
fn full(bed: &mut Bed, family: Family) -> Result<()> {
    /// Pairs that there is room for at most and at least: it depends on how many CPUs there are.
    const ROOM: std::ops::RangeInclusive<u16> = 256..=512;
    let to = near().address(Via::ClusterIp, family);
    let client = Who::Pa.address(family).to_string();
    // CPUs tell each other late how many flows they have made.
    let pinned = Pinned::to_one()?;
    let mut known = open(bed, Who::Pa, to, Transport::Tcp)?;
    let server = server(bed, family)?;
    for n in 1.. {
        if ROOM.contains(&n) && explain(bed, &client, to, Transport::Tcp)?["verdict"] != "translate" {
            break;
        }
        ensure!(n <= *ROOM.end(), "there is room for {n} flows");
        let raw = raw(bed, Who::Pa, family)?;
        Association::open(raw, 20_000 + n, to, &server).with_context(|| format!("flow {n}"))?;
    }
    for transport in Transport::BOTH {
        is_told(&explain(bed, &client, to, transport)?, "drop", Reason::FlowTableFull)?;
        fares(bed, Reason::FlowTableFull, |bed| dialled_in_vain(bed, Who::Pa, to, transport))?;
    }
    drop(pinned);
    // A known flow needs no room.
    known.ask(b"still here").ok().map(drop)
}

/// The calling thread keeps to one CPU: what it sends is seen by programs there.
struct Pinned(CpuSet);

impl Pinned {
    fn to_one() -> Result<Self> {
        let before = sched_getaffinity(Pid::from_raw(0))?;
        let first = (0..CpuSet::count()).find(|cpu| before.is_set(*cpu) == Ok(true)).context("no CPU")?;
        let mut one = CpuSet::new();
        one.set(first)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The thread is this suite's, whose other stories run anywhere.
        let _ = sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// The client has an association straight to the endpoint from each of its ports: a masqueraded one finds none.
fn exhausted(bed: &mut Bed, family: Family) -> Result<()> {
    let to = near().address(Via::NodePort, family);
    let client = SocketAddr::new(Who::Client.address(family), 40_000);
    let told = explain_sctp(bed, client, to)?;
    ensure!(told["verdict"] == "translate" && told["masquerade"].is_string(), "{told:#}");
    let straight = (PB.who.address(family), PB.port);
    let opens = |port| packet(SCTP, SYN, (client.ip(), port), straight, b"");
    send(bed.namespace("cl"), straight.0, (1_024..=u16::MAX).map(opens))?;
    is_told(&explain_sctp(bed, client, to)?, "drop", Reason::PortsExhausted)?;
    fares(bed, Reason::PortsExhausted, |bed| {
        let init = packet(SCTP, SYN, (client.ip(), client.port()), (to.ip(), to.port()), b"");
        send(bed.namespace("cl"), to.ip(), [init])
    })
}

/// A pod behind a device without programs: only the node's own packets are served where routes lead its packets.
fn bare_pod(bed: &mut Bed, family: Family) -> Result<()> {
    let to = near().address(Via::ClusterIp, family);
    let from: IpAddr = Who::Pa.address(family);
    until("routes to lead there", PATIENCE, || {
        is_told(&explain(bed, &from.to_string(), to, Transport::Udp)?, "drop", Reason::CatchAll)
    })?;
    fares(bed, Reason::CatchAll, |bed| dialled_in_vain(bed, Who::Pa, to, Transport::Udp))?;
    let told = explain(bed, &Who::Host.address(family).to_string(), to, Transport::Udp)?;
    ensure!(told["verdict"] == "translate" && told["path"] == "stack", "{told:#}");
    Dial::new(bed.place(Who::Host), to, Transport::Udp).probe().ok().map(drop)
}
