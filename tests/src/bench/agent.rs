//! Scenario `start`, and what else needs the real agent: start, adoption, new devices, changes of endpoints, size.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use proxy_userspace::control::{Answer, Request, RunDir, ask};
use proxy_userspace::status::Status;

use super::cluster::Cluster;
use super::control::nanoseconds;
use super::report::{Aim, Row, Table, Unit};
use super::{Effort, MIB};
use crate::lab::{Agent, Bed, BedConfig, Family, Wiring, agent::binary, agent::served, command};
use crate::traffic::sender::{BACKENDS, BEFORE, Sender, app, changes};

/// Longest wait for anything the agent does.
const PATIENCE: Duration = Duration::from_secs(60);
const CLUSTER: Cluster = Cluster::USUAL;

/// Measures starts, adoptions, new devices and changes of endpoints.
///
/// # Errors
/// The agent does not do what it should.
pub fn run(effort: Effort) -> Result<Table> {
    let (starts, adoptions) = (effort.rounds(5, 15), effort.rounds(5, 15));
    let mut bed = Bed::build(BedConfig::new(Wiring::Routed))?;
    let first = (0..starts).map(|_| first_program(&mut bed)).collect::<Result<Vec<_>>>()?;
    let (told, seen) = devices(&mut bed, effort.rounds(20, 100))?;
    let moved = followed(&mut bed)?;
    bed.agent = None;
    CLUSTER.write(bed.manifests.directory())?;
    let empty = synced(&mut bed, CLUSTER)?;
    let adopted = (0..adoptions).map(|_| synced(&mut bed, CLUSTER)).collect::<Result<Vec<_>>>()?;
    let size = std::fs::metadata(binary()?).context("no binary")?.len() as f64;
    let time = Unit::Nanoseconds;
    let longest = moved.iter().copied().fold(0.0, f64::max);
    Ok(Table {
        scenario: "start",
        method: format!(
            "the released binary in a namespace with four edges, objects from files; median [quartiles] of {starts} starts \
             on an empty node, {adoptions} restarts after SIGKILL with {} Services, {} new devices, {} changes of endpoints, to none \
             and back among them, under four senders: pod, outside client, the node with a connected socket and without",
            CLUSTER.services,
            seen.len(),
            changes().count()
        ),
        columns: vec!["figure"],
        rows: vec![
            Row::new("exec to first program attached", time, &first, &[Aim::AtMost(0.2e9)])?,
            Row::new(
                "a device appears until it is served, by the kernel's list of programs",
                time,
                &seen,
                &[Aim::AtMost(50e6)],
            )?,
            Row::new("  of it: from the agent's event, as status tells", time, &told, &[])?,
            Row::new(
                "an endpoint changes until senders of UDP that never pause have the new one",
                time,
                &moved,
                &[],
            )?,
            Row::new("  the longest of these", time, &[longest], &[Aim::AtMost(1e9)])?,
            Row::new("exec to in sync, first time, from files", time, &[empty], &[])?,
            Row::new("exec to in sync, state adopted", time, &adopted, &[Aim::AtMost(1e9)])?,
            Row::new("size of the binary", Unit::Bytes, &[size], &[Aim::AtMost(15.0 * MIB)])?,
        ],
        same: None,
        noisy: false,
        notes: Vec::new(),
    })
}

/// Asks something of an agent that has read a whole cluster from files, by its process id.
///
/// # Errors
/// It does not come up.
pub fn with_cluster<T>(cluster: Cluster, ask: impl FnOnce(u32) -> Result<T>) -> Result<T> {
    let mut bed = Bed::build(BedConfig::new(Wiring::Routed))?;
    cluster.write(bed.manifests.directory())?;
    synced(&mut bed, cluster)?;
    ask(bed.agent()?.pid())
}

/// From exec to the first program in the kernel's list, on a node where nothing is installed.
fn first_program(bed: &mut Bed) -> Result<f64> {
    let home = bed.home().clone();
    // Nothing tells when the kernel has given back what the agent before had: 60 MiB of tables, and the code of programs.
    std::thread::sleep(Duration::from_millis(500));
    let started = Instant::now();
    let agent = Agent::start(home.clone())?;
    let took = bed.namespace("n1").within(|| {
        let ifindex = nix::net::if_::if_nametoindex("eth0")?;
        until(started, "the first program", || Ok(crate::sys::attached(ifindex, true)? > 0))
    })?;
    // It has hardly begun: it need not know how to end yet.
    agent.kill()?;
    home.tell(&["cleanup"])?;
    Ok(took)
}

/// A start, measured until the agent is in sync; the one before is killed. The agent is left running.
fn synced(bed: &mut Bed, cluster: Cluster) -> Result<f64> {
    if let Some(agent) = bed.agent.take() {
        agent.kill()?;
    }
    let home = bed.home().clone();
    let run_dir = RunDir::new(&home.run_dir);
    let started = Instant::now();
    bed.agent = Some(Agent::start(home)?);
    let took = until(started, "the agent to be in sync", || {
        Ok(status(&run_dir)
            .is_some_and(|status| status.synced && status.services >= cluster.services as usize))
    })?;
    Ok(took)
}

fn status(run_dir: &RunDir) -> Option<Status> {
    match ask(run_dir, &Request::Status) {
        Ok(Answer::Status(status)) => Some(*status),
        _ => None,
    }
}

/// New devices, one after the other: what status tells of each, and the time from the start of the call that makes it.
fn devices(bed: &mut Bed, count: u64) -> Result<(Vec<f64>, Vec<f64>)> {
    bed.start_agent()?;
    let seen = bed.namespace("n1").within(|| (0..count).map(device).collect::<Result<Vec<_>>>())?;
    let status = bed.home().json(&["status"])?;
    let new = |name: &str| name.starts_with("bench");
    if served(&status).iter().filter(|(name, _)| new(name)).count() != seen.len() {
        bail!("not every new device is served: {status}");
    }
    let edges = status["edges"].as_array().into_iter().flatten();
    let told = edges.filter(|edge| edge["name"].as_str().is_some_and(new));
    Ok((told.filter_map(|edge| Some(edge["attach_ms"].as_f64()? * 1e6)).collect(), seen))
}

/// How long each sender that never pauses took to follow each change, from before the object is written.
fn followed(bed: &mut Bed) -> Result<Vec<f64>> {
    for backend in BACKENDS {
        bed.serve(backend.who, backend.port)?;
    }
    bed.apply(&app(BEFORE))?;
    let senders = Sender::everywhere(bed, Family::V4);
    senders.iter().try_for_each(|sender| sender.first(0, BEFORE).map(drop))?;
    let (mut took, mut before) = (Vec::new(), BEFORE);
    for after in changes() {
        let sent: Vec<_> = senders.iter().map(Sender::sent).collect();
        let changed = Instant::now();
        bed.apply_unawaited(&app(after))?;
        // Where another joins, whoever has one stays.
        let moves = before.is_empty() || !before.iter().all(|backend| after.contains(backend));
        for (sender, sent) in senders.iter().zip(sent) {
            let first = sender.first(sent, after)?.at;
            took.extend(moves.then(|| nanoseconds(first.saturating_duration_since(changed))));
        }
        // The next change finds each where this one has led it.
        bed.wait_installed(&app(after))?;
        senders.iter().for_each(|sender| drop(sender.take()));
        before = after;
    }
    senders.into_iter().try_for_each(Sender::finish)?;
    bed.delete(&app(BEFORE))?;
    Ok(took)
}

fn device(number: u64) -> Result<f64> {
    let name = format!("bench{number}");
    let started = Instant::now();
    let line = ["link", "add", &name, "type", "veth", "peer", "name", &format!("bpeer{number}")];
    command::run("ip", &line)?;
    command::run("ip", &["link", "set", &name, "up"])?;
    let ifindex = nix::net::if_::if_nametoindex(name.as_str())?;
    until(started, "the device to be served", || {
        Ok(crate::sys::attached(ifindex, true)? > 0 && crate::sys::attached(ifindex, false)? > 0)
    })
}

/// Nanoseconds since `started` when `done` first says so.
fn until(started: Instant, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<f64> {
    loop {
        if done()? {
            return Ok(nanoseconds(started.elapsed()));
        }
        if started.elapsed() > PATIENCE {
            bail!("gave up waiting for {what}");
        }
        // Nothing tells when a program is attached; the agent needs the CPU more than we do.
        std::thread::sleep(Duration::from_micros(200));
    }
}
