//! Two agents of one machine, each in a network namespace of its own, where they share what they should not: neither takes
//! the other's place.

use anyhow::{Context, Result, ensure};
use sluice_tests::lab::agent::{Agent, AgentHome};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, Outcome};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

pub fn groups() -> Vec<Group> {
    let stories = vec![
        Story::new("on_one_cgroup_each_serves_its_own_sockets", one_cgroup),
        Story::new("on_one_bpffs_the_second_is_refused", one_bpffs),
        Story::new("L05_a_second_agent_in_one_namespace_is_refused", second),
        Story::new("cleanup_stops_no_agent_of_another_namespace", wrong_place),
    ];
    let config = BedConfig { bpffs: true, ..BedConfig::new(Wiring::Routed) };
    vec![Group { name: "neighbours".into(), config, setup: Box::new(setup), stories }]
}

fn app() -> App {
    App::new("app", 1, [Backend::new(Who::Pb, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    bed.serve(Who::Pb, 8_080)?;
    bed.start_agent()?;
    bed.apply(&app())
}

/// An agent for n2 that knows no Service, on n1's cgroup.
fn neighbour(bed: &mut Bed) -> Result<AgentHome> {
    let own = bed.directory().join("n2");
    let empty = own.join("manifests");
    std::fs::create_dir_all(&empty)?;
    Ok(AgentHome {
        netns: bed.namespace("n2").path().to_owned(),
        bpffs: None,
        run_dir: own.join("run"),
        log: own.join("log"),
        flags: vec!["--manifests".to_owned(), empty.display().to_string()],
        ..bed.home().clone()
    })
}

/// From the node itself: translated at the socket, since a route that leads nowhere stands in the packets' way.
fn dial(bed: &Bed) -> Result<()> {
    let service = app().address(Via::ClusterIp, Family::V4);
    bed.ip("n1", &format!("route replace unreachable {}", service.ip()))?;
    let outcome = Dial::new(bed.place(Who::Host), service, Transport::Tcp).probe();
    bed.ip("n1", &format!("route del unreachable {}", service.ip()))?;
    ensure!(matches!(outcome, Outcome::Ok(_)), "n1's sockets are not translated: {outcome}");
    Ok(())
}

/// Either's hooks see the sockets of both (S-01).
fn one_cgroup(bed: &mut Bed) -> Result<()> {
    let home = neighbour(bed)?;
    dial(bed).context("before")?;
    let mut other = Agent::start(home)?;
    let status = other.ready(0)?;
    ensure!(status["sockets"]["mode"] == "host" && status["sockets"]["why"] == "", "{status}");
    let services = other.home.services()?;
    ensure!(services == serde_json::json!([]), "it has taken over n1's Services: {services}");
    dial(bed).context("with a neighbour")?;
    drop(other);
    dial(bed).context("after it")
}

fn one_bpffs(bed: &mut Bed) -> Result<()> {
    let bpffs = bed.home().bpffs.clone();
    let shown = bpffs.as_deref().context("the bed has a bpffs")?.display().to_string();
    let home = AgentHome { bpffs, ..neighbour(bed)? };
    let flags: Vec<&str> = home.flags.iter().map(String::as_str).collect();
    let (status, _, said) = home.ask(&[&["run"], flags.as_slice()].concat())?;
    let want = format!(
        "sluice: {shown}: holds the maps of an agent in another network namespace; give this one a --bpffs of its own, or \
         take them away with `sluice cleanup --bpffs {shown}` if that agent is gone\n"
    );
    ensure!(status.code() == Some(1) && said == want, "ended with {status}: {said}");
    dial(bed)
}

/// As in two pods of one node: nothing of the first's files is seen.
fn second(bed: &mut Bed) -> Result<()> {
    let first = bed.agent()?;
    let (netns, pid) = (first.home.netns.clone(), first.pid());
    let home = AgentHome { netns, ..neighbour(bed)? };
    let flags: Vec<&str> = home.flags.iter().map(String::as_str).collect();
    let want = format!("this network namespace: served by another agent (process {pid}); stop that one");
    let (status, _, said) = home.ask(&[&["run"], flags.as_slice()].concat())?;
    ensure!(status.code() == Some(1) && said == format!("sluice: {want}\n"), "ended with {status}: {said}");
    let (status, _, said) = home.ask(&["cleanup"])?;
    ensure!(status.code() == Some(1) && said.contains(&want), "cleanup ended with {status}: {said}");
    dial(bed)
}

fn wrong_place(bed: &mut Bed) -> Result<()> {
    let home = bed.agent()?.home.clone();
    let astray = AgentHome { run_dir: home.run_dir.clone(), ..neighbour(bed)? };
    let (status, _, said) = astray.ask(&["cleanup"])?;
    let want = format!(
        "sluice: {}: the agent: it serves another network namespace than this one; run the command there, or name the \
         --run-dir of this one's agent\n",
        home.run_dir.display()
    );
    ensure!(status.code() == Some(1) && said == want, "ended with {status}: {said}");
    // A directory of its own, and the agent's places.
    let astray = AgentHome { bpffs: home.bpffs.clone(), ..neighbour(bed)? };
    let (status, said, failed) = astray.ask(&["cleanup"])?;
    let left = "of an agent that runs in another network namespace: clean up there";
    ensure!(status.success(), "ended with {status}: {failed}");
    ensure!(said.lines().filter(|line| line.ends_with(left)).count() == 2, "pins and programs: {said}");
    home.json(&["status"]).context("the agent goes on")?;
    dial(bed)
}
