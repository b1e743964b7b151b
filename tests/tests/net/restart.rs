//! The agent dies, comes back, and goes; the data plane stays, is adopted, and is taken away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sluice_tests::lab::agent::Agent;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, Load, Outcome, flood};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::change::streams;
use crate::harness::{Group, Story};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);
/// Of the programs' clock: 2^30 ns.
const TICK: Duration = Duration::from_nanos(1 << 30);

/// With pins and without, since the agent finds its maps in two ways; one wiring each.
pub fn groups() -> Vec<Group> {
    let mut groups = restarts();
    groups.push(Group {
        name: "small_table".into(),
        config: BedConfig::new(Wiring::Routed),
        setup: Box::new(|bed| {
            bed.home().flags.extend(["--flows", "4096"].map(String::from));
            // Each flood leaves thousands of half-open connections, whose SYN-ACKs go out again all at once a second
            // later: more than the receive queue of a CPU holds, which every namespace shares, so that datagrams of
            // this story and of those beside it are lost. Beyond this many the kernel answers by SYN cookies.
            for space in ["pb", "pc"] {
                bed.namespace(space).sysctls(&[("net/core/somaxconn", "256")])?;
            }
            setup(bed)
        }),
        stories: vec![
            Story::new("P65_floods_beside_live_flows", flooded),
            Story::new("the_flow_table_lives_without_the_agent", full_table),
        ],
    });
    groups
}

fn restarts() -> Vec<Group> {
    [("pinned", Wiring::Routed, true), ("unpinned", Wiring::Bridged, false)]
        .into_iter()
        .map(|(name, wiring, bpffs)| Group {
            name: format!("restart::{name}"),
            config: BedConfig { bpffs, ..BedConfig::new(wiring) },
            setup: Box::new(setup),
            stories: vec![
                Story::new("killed_20_times_under_load", killed),
                Story::new("one_copy_of_each_program", one_copy),
                Story::new("changes_made_meanwhile_are_caught_up_with", catches_up),
                Story::new("cleanup_leaves_nothing_and_a_fresh_agent_installs_the_same", cleanup),
            ],
        })
        .collect()
}

fn app(backends: &[Backend]) -> App {
    App::new("app", 1, backends.iter().copied())
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    bed.start_agent()?;
    bed.apply(&app(&[PB, PC]))?;
    bed.apply(&App::new("empty", 2, []))
}

/// Kills the agent and leaves the node without one. A story that failed may have left none to kill.
fn kill(bed: &mut Bed) -> Result<()> {
    if bed.agent.is_none() {
        bed.start_agent()?;
    }
    bed.agent.take().context("no agent runs")?.kill().map(drop)
}

/// B6, P-55: connections and datagram flows go on, and new ones are made, while no agent runs.
fn killed(bed: &mut Bed) -> Result<()> {
    let before = bed.agent()?.home.services()?;
    let load = Load::start(streams(bed, &app(&[])))?;
    for round in 0..20 {
        let told = || format!("round {round}");
        kill(bed)?;
        load.progress(2).with_context(told)?;
        bed.start_agent().with_context(told)?;
        load.progress(1).with_context(told)?;
    }
    load.finish()?;
    let after = bed.agent()?.home.services()?;
    ensure!(before == after, "`services` printed {before} before and {after} after");
    Ok(())
}

/// After 21 starts: one program at each hook of each edge.
fn one_copy(bed: &mut Bed) -> Result<()> {
    let traces = bed.traces()?;
    ensure!(traces.programs.len() == 8, "four edges have two hooks each, found {:?}", traces.programs);
    for (place, programs) in &traces.programs {
        ensure!(programs.len() == 1, "{place:?} carries {programs:?}");
    }
    Ok(())
}

fn catches_up(bed: &mut Bed) -> Result<()> {
    kill(bed)?;
    bed.manifests.write("while-dead.json", "{}")?;
    bed.manifests.remove("while-dead.json")?;
    bed.apply_unawaited(&app(&[PC]))?;
    // Without an agent nothing has changed yet, and nothing is broken.
    let to = app(&[]).address(Via::ClusterIp, Family::V4);
    Dial::new(bed.place(Who::Pa), to, Transport::Tcp).probe().ok()?;
    bed.start_agent()?;
    bed.wait_installed(&app(&[PC]))?;
    for _ in 0..20 {
        let backend = Dial::new(bed.place(Who::Pa), to, Transport::Tcp).probe().ok()?.backend;
        ensure!(backend == PC.id(), "{backend} answers although it has left");
    }
    bed.apply(&app(&[PB, PC]))
}

/// P-65: each flood makes three times as many flows as the table has room for, and its SYNs and datagrams are answered.
/// What lives goes on, what comes next is served, and nobody is told that the table is full.
fn flooded(bed: &mut Bed) -> Result<()> {
    for family in Family::BOTH {
        let service = app(&[]).address(Via::NodePort, family);
        let mut living = Vec::new();
        for transport in Transport::BOTH {
            for _ in 0..100 {
                let opened = Dial::new(bed.place(Who::Client), service, transport).open();
                living.push(opened.or_else(|outcome| anyhow::bail!("{outcome}"))?);
            }
        }
        // Datagrams count as a live flow once they have gone both ways for two ticks of the programs' clock.
        let since = Instant::now();
        while since.elapsed() < 3 * TICK {
            for connection in &mut living {
                connection.ask(b"alive").ok()?;
            }
            bed.capture.settle();
        }
        for transport in Transport::BOTH {
            flood(bed.namespace("cl"), Who::Client.address(family), service, transport, 6_000)?;
            bed.capture.settle();
            // Servers drop what comes while the flood fills their receive buffers.
            for backend in [PB, PC] {
                until("a server to be through with the flood", PATIENCE, || {
                    let answer = Dial::new(bed.place(Who::Client), service, transport).probe().ok()?;
                    ensure!(answer.backend == backend.id(), "{} has answered", answer.backend);
                    Ok(())
                })
                .with_context(|| format!("{family}, after the {transport} flood, {}", backend.id()))?;
            }
            for (number, connection) in living.iter_mut().enumerate() {
                let outcome = connection.ask(b"alive");
                outcome.ok().with_context(|| format!("{family}, live flow {number}, {transport} flood"))?;
            }
        }
    }
    let status = bed.agent()?.home.json(&["status"])?;
    // Nothing goes before its time while half of the room is free: fewer would mean that no flood has arrived.
    let (used, room) = (status["flows"]["used"].as_u64(), status["flows"]["max"].as_u64());
    ensure!(
        used > room.map(|room| room / 2),
        "{used:?} of {room:?} flow entries are used: that was no flood"
    );
    let drops = &status["drops"];
    ensure!(drops.is_object() && drops["flow_table_full"].as_u64().unwrap_or(0) == 0, "{drops}");
    Ok(())
}

/// Experiment 9: twice as many connections as the table holds, nobody sweeps it, and those that live stay.
fn full_table(bed: &mut Bed) -> Result<()> {
    let service = app(&[]).address(Via::NodePort, Family::V4);
    let mut living = Vec::new();
    for _ in 0..20 {
        let opened = Dial::new(bed.place(Who::Client), service, Transport::Tcp).open();
        living.push(opened.or_else(|outcome| anyhow::bail!("{outcome}"))?);
    }
    kill(bed)?;
    for number in 0..4_000 {
        let outcome = Dial::new(bed.place(Who::Client), service, Transport::Tcp).probe();
        outcome.ok().with_context(|| format!("connection {number}"))?;
        if number % 500 == 0 {
            for connection in &mut living {
                connection.ask(b"alive").ok().with_context(|| format!("a living one, at {number}"))?;
            }
        }
    }
    bed.start_agent()
}

fn cleanup(bed: &mut Bed) -> Result<()> {
    let adopted = bed.agent()?.home.services()?;
    let home = bed.agent.take().context("no agent runs")?.stop()?;
    let service = app(&[]).address(Via::ClusterIp, Family::V6);
    Dial::new(bed.place(Who::Pa), service, Transport::Tcp).probe().ok().context("after SIGTERM")?;
    home.tell(&["cleanup"])?;
    let left = bed.traces()?;
    ensure!(left.programs.is_empty(), "programs are left: {:?}", left.programs);
    ensure!(left.pins.is_empty(), "pins are left: {:?}", left.pins);
    ensure!(!left.files.contains(&"control.sock".to_owned()), "files are left: {:?}", left.files);
    ensure!(!left.sysctls.iter().any(|is| is.ends_with("tcp_be_liberal=1")), "left: {:?}", left.sysctls);
    bare(bed)?;
    home.tell(&["cleanup"]).context("the second time")?;
    bed.agent = Some(Agent::start(home)?);
    bed.agent.as_mut().context("just started")?.ready(Who::LOCAL_PODS.len() + 1)?;
    bed.wait_installed(&app(&[PB, PC]))?;
    let fresh = bed.agent()?.home.services()?;
    ensure!(fresh == adopted, "a fresh agent installs {fresh}, the adopting one had {adopted}");
    Dial::new(bed.place(Who::Pa), service, Transport::Tcp).probe().ok().map(drop)
}

/// The node as it was: pods reach each other, Services are nobody's. The socket programs are gone if the node's own
/// connections are translated no more; those packets leave by the default route, which the oracle would report, so
/// they are sent nowhere.
fn bare(bed: &mut Bed) -> Result<()> {
    let direct = (Who::Pb.address(Family::V4), 8_080).into();
    Dial::new(bed.place(Who::Pa), direct, Transport::Tcp).probe().ok()?;
    for family in Family::BOTH {
        let service = app(&[]).address(Via::ClusterIp, family);
        bed.ip("n1", &format!("route add unreachable {}", service.ip()))?;
        let outcome = Dial::new(bed.place(Who::Host), service, Transport::Tcp).probe();
        bed.ip("n1", &format!("route del unreachable {}", service.ip()))?;
        ensure!(matches!(outcome, Outcome::Failed(_)), "the node still reaches {service}: {outcome}");
    }
    Ok(())
}
