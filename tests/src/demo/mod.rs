//! The demonstration. Every step says in a line what happens, does it, shows what came of it, and fails if that is
//! not what should have come.

mod screen;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use crate::api::{Cluster, USER};
use crate::lab::app::{App, Backend, Via};
use crate::lab::{Bed, BedConfig, Family, Who, Wiring};
use crate::traffic::{Dial, Load, Stream};
use crate::wire::Transport;
use screen::Screen;

/// Where Services and EndpointSlices come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests.
    Folder,
    /// A real kube-apiserver.
    Api,
}

const BACKENDS: [Backend; 3] =
    [Backend::new(Who::Pb, 8_080), Backend::new(Who::Pc, 8_080), Backend::new(Who::Pd, 8_080)];

/// Who dials what, in words for the screen.
const CLIENTS: [(&str, Who, Via); 3] = [
    ("a pod", Who::Pa, Via::ClusterIp),
    ("the node itself", Who::Host, Via::ClusterIp),
    ("an outside client", Who::Client, Via::NodePort),
];

/// Connections a client opens for one row of a table.
const CONNECTIONS: u32 = 60;

fn hello(backends: &[Backend]) -> App {
    App::new("hello", 42, backends.iter().copied())
}

/// Plays everything.
///
/// # Errors
/// Something was not as expected.
pub fn run(source: Source) -> Result<()> {
    let mut screen = Screen::default();
    screen.step(
        "Node n1 with pods pa, pb and pc, node n2 with pod pd, a router and an outside client: each a network namespace.",
    );
    let mut bed = Bed::build(BedConfig::new(Wiring::Routed))?;
    for backend in BACKENDS {
        bed.serve(backend.who, backend.port)?;
    }
    let cluster = api(source, &mut screen, &mut bed)?;
    let bare = bed.traces()?;
    start(&mut screen, &mut bed)?;
    balance(&mut screen, &bed)?;
    change(&mut screen, &bed)?;
    kill(&mut screen, &mut bed)?;
    if let Some(cluster) = cluster {
        login(&mut screen, &bed, &cluster)?;
    }
    screen.step("The agent stops (SIGTERM) and `sluice cleanup` takes its programs and maps away.");
    let home = bed.agent.take().context("no agent runs")?.stop()?;
    home.tell(&["cleanup"])?;
    let left = bed.traces()?;
    ensure!(left == bare, "the node is not as it was:{}", bare.difference(&left));
    screen.tell("no program, pin, device, route, rule or sysctl is left on the node");
    let observed = bed.capture.take();
    let shown: String = observed.violations.iter().map(ToString::to_string).collect();
    ensure!(observed.count == 0, "the wire oracle found {} faults:\n{shown}", observed.count);
    screen.tell(&format!(
        "{} packets were captured and judged on the way, none was at fault",
        observed.packets
    ));
    drop(bed);
    screen.end();
    Ok(())
}

/// For `--api`: the control plane, shared between the bed (as its place for objects) and the last act.
fn api(source: Source, screen: &mut Screen, bed: &mut Bed) -> Result<Option<std::sync::Arc<Cluster>>> {
    if source == Source::Folder {
        return Ok(None);
    }
    screen.step("A real etcd and kube-apiserver, with RBAC, a ServiceAccount, its token, and an audit log.");
    let cluster = std::sync::Arc::new(Cluster::start(bed.namespace("n1"))?);
    bed.use_objects(Box::new(cluster.clone()));
    Ok(Some(cluster))
}

fn start(screen: &mut Screen, bed: &mut Bed) -> Result<()> {
    screen.step(&format!("The agent starts on node n1; it reads from {}.", bed.objects().name()));
    bed.start_agent()?;
    let status = bed.agent()?.home.json(&["status"])?;
    let edges = crate::lab::agent::served(&status);
    let names: Vec<_> = edges.iter().map(|(name, _)| name.as_str()).collect();
    screen.tell(&format!("programs at both hooks of {}", names.join(", ")));
    screen.step(
        "The Service `hello` is created, with three backends: pods pb and pc of this node, pd of the other.",
    );
    let app = hello(&BACKENDS);
    bed.apply(&app)?;
    for family in Family::BOTH {
        let (inside, outside) = (app.address(Via::ClusterIp, family), app.address(Via::NodePort, family));
        screen.tell(&format!("ClusterIP {inside}, NodePort {outside}"));
    }
    Ok(())
}

/// Opens connections and counts who answers; every one must be answered.
fn count(bed: &Bed, client: Who, via: Via, family: Family) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for number in 0..CONNECTIONS {
        let transport = Transport::BOTH[(number % 2) as usize];
        let to = hello(&[]).address(via, family);
        let answer = Dial::new(bed.place(client), to, transport).probe().ok();
        let answer = answer.with_context(|| format!("{} to {transport} {to}", client.name()))?;
        *counts.entry(answer.backend).or_default() += 1;
    }
    Ok(counts)
}

/// One table: all clients, both families. `expected` and nobody else must have answered each of them.
fn table(screen: &Screen, bed: &Bed, expected: &[Backend]) -> Result<()> {
    for (words, client, via) in CLIENTS {
        for family in Family::BOTH {
            let counts = count(bed, client, via, family)?;
            let to = hello(&[]).address(via, family);
            screen.row(&format!("{words} to {to}"), &counts);
            // With 60 draws from 3, one is missed once in 10^10 runs.
            let complete = expected.iter().all(|backend| counts.contains_key(&backend.id()));
            ensure!(complete && counts.len() == expected.len(), "{words}: answered by {counts:?}");
        }
    }
    Ok(())
}

fn balance(screen: &mut Screen, bed: &Bed) -> Result<()> {
    screen.step(&format!("Each client opens {CONNECTIONS} connections to it, TCP and UDP in turn. How often does each backend answer?"));
    table(screen, bed, &BACKENDS)
}

/// Every client, both families: connections one after the other, and one that lasts.
fn load(bed: &Bed) -> Result<Load> {
    let mut streams = Vec::new();
    for (_, client, via) in CLIENTS {
        for family in Family::BOTH {
            let to = hello(&[]).address(via, family);
            let stream =
                |transport, lasting| Stream { from: bed.place(client).clone(), to, transport, lasting };
            streams.extend([stream(Transport::Tcp, false), stream(Transport::Tcp, true)]);
        }
    }
    Load::start(streams)
}

fn change(screen: &mut Screen, bed: &Bed) -> Result<()> {
    screen.step("Under traffic from all clients the backend pb leaves the Service.");
    let load = load(bed)?;
    bed.apply(&hello(&BACKENDS[1..]))?;
    load.progress(5)?;
    table(screen, bed, &BACKENDS[1..])?;
    screen.tell("new connections avoid it, the established ones go on");
    screen.step("It comes back.");
    bed.apply(&hello(&BACKENDS))?;
    load.progress(5)?;
    table(screen, bed, &BACKENDS)?;
    screen.tell(&format!("{} exchanges meanwhile, none failed", load.finish()?));
    Ok(())
}

fn kill(screen: &mut Screen, bed: &mut Bed) -> Result<()> {
    let agent = bed.agent()?;
    screen.step(&format!(
        "The agent (process {}) is killed with SIGKILL while connections go on.",
        agent.pid()
    ));
    let before = agent.home.services()?;
    let load = load(bed)?;
    bed.agent.take().context("no agent runs")?.kill()?;
    load.progress(20)?;
    table(screen, bed, &BACKENDS)?;
    screen.tell("nobody is there, and nothing has changed: programs and maps stay in the kernel");
    screen.step("A new agent starts and adopts what it finds.");
    bed.start_agent()?;
    let after = bed.agent()?.home.services()?;
    if before != after {
        bail!("`sluice services` printed {before} before and {after} after");
    }
    load.progress(5)?;
    screen.tell(&format!(
        "`sluice services` prints the same as before; {} exchanges, none failed",
        load.finish()?
    ));
    Ok(())
}

/// What the API server's audit log says about the agent.
fn login(screen: &mut Screen, bed: &Bed, cluster: &Cluster) -> Result<()> {
    screen.step("The token is rotated, and a change after that still arrives.");
    cluster.rotate_token()?;
    bed.apply(&hello(&BACKENDS[..2]))?;
    bed.apply(&hello(&BACKENDS))?;
    screen.tell("pd has left and come back; the agent needs no restart, it reads the token for each request");
    screen.step(&format!("The API server's audit log about {USER}:"));
    for ((verb, target, code), times) in cluster.asked()? {
        screen.tell(&format!("{verb} {target}: {code}, {times} times"));
        ensure!(code < 400, "the agent was refused: {verb} {target} ended with {code}");
    }
    Ok(())
}
