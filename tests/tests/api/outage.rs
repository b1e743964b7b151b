//! C-01, C-04, C-05, C-06, C-35: an API server that is away, and what the agent finds when it is back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Bed, ControlPlane, ServiceAccount};
use sluice_tests::wait::until;

use crate::node::{Login, Node};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("outage_c04_c06_deletions_behind_a_partition_and_a_compaction", partition),
    ("outage_c04_api_server_restarts", restart),
    ("outage_c02_c35_long_with_a_kill_inside_it", long),
    ("outage_c01_api_server_away_at_start", away_at_start),
    ("outage_c05_connections_that_are_half_dead", half_dead),
    ("outage_c35_nothing_goes_before_both_lists_are_in", partial_lists),
];

/// Three Services of one endpoint each, installed; returns their cluster addresses.
fn three(node: &mut Node, space: &Space<'_>) -> Result<[String; 3]> {
    let mut addresses = Vec::new();
    for name in ["kept", "deleted", "shrunk"] {
        addresses.push(space.service(name, &json!({}))?);
        space.slice(name, &Bed::BACKENDS[..2])?;
    }
    for name in ["kept", "deleted", "shrunk"] {
        node.installed(&space.key(name), &["10.244.1.21:8080", "10.244.1.22:8080"])?;
    }
    addresses.try_into().map_err(|_| anyhow::anyhow!("not three addresses"))
}

fn change_behind_its_back(space: &Space<'_>) -> Result<()> {
    space.delete_service("deleted")?;
    space.delete_slice("deleted")?;
    space.set_endpoints("shrunk", &Bed::BACKENDS[1..2])
}

fn has_caught_up(node: &mut Node, space: &Space<'_>) -> Result<()> {
    node.gone(&space.key("deleted"))?;
    node.installed(&space.key("shrunk"), &["10.244.1.22:8080"])?;
    node.installed(&space.key("kept"), &["10.244.1.21:8080", "10.244.1.22:8080"])
}

fn partition(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let name = "outage-partition";
    let addresses = three(&mut node, &Space::new(plane.admin(), name)?)?;

    node.bed.part(plane)?;
    change_behind_its_back(&Space::existing(plane.admin(), name))?;
    // With history gone in etcd and in the server's cache, the version that the agent knows is too old: 410.
    plane.compact()?;
    plane.stop_api();
    plane.start_api()?;
    for address in &addresses {
        node.carries(address, &Bed::BACKENDS[..2])?;
    }
    node.bed.uplink().heal(plane)?;

    let space = Space::existing(plane.admin(), name);
    has_caught_up(&mut node, &space)?;
    node.recovered()?;
    // What went through all this holds what a newcomer would hold.
    holds_what_a_newcomer_holds(plane, &mut node, &space)?;
    node.finish(id)
}

/// How long the API server is away at least: longer than the agent's first pauses together. `SLUICE_OUTAGE` asks for another
/// number of seconds.
const OUTAGE: u64 = 15;

/// Everything at once: deletions, a compaction and a restart of the server, and the agent is killed. What is not changed
/// is served throughout.
fn long(plane: &mut ControlPlane) -> Result<()> {
    let length = match std::env::var("SLUICE_OUTAGE") {
        Ok(seconds) => seconds.parse().context("SLUICE_OUTAGE is a number of seconds")?,
        Err(_) => OUTAGE,
    };
    let mut node = Node::start(plane, Login::InCluster)?;
    let name = "outage-long";
    let [kept, ..] = three(&mut node, &Space::new(plane.admin(), name)?)?;
    node.bed.part(plane)?;
    let begun = Instant::now();
    let lasts = |part: u32| begun.elapsed() < Duration::from_secs(length) * part / 3;
    let served = |node: &Node, part: u32| -> Result<()> {
        while lasts(part) {
            node.carries(&kept, &Bed::BACKENDS[..2])?;
        }
        Ok(())
    };
    served(&node, 1)?;
    change_behind_its_back(&Space::existing(plane.admin(), name))?;
    plane.compact()?;
    plane.stop_api();
    plane.start_api()?;
    served(&node, 2)?;
    node.kill()?;
    node.launch()?;
    let id = node.id()?;
    node.complains(&[&plane.url()])?;
    served(&node, 3)?;
    node.bed.uplink().heal(plane)?;

    node.synced()?;
    let space = Space::existing(plane.admin(), name);
    has_caught_up(&mut node, &space)?;
    node.recovered()?;
    holds_what_a_newcomer_holds(plane, &mut node, &space)?;
    node.carries(&kept, &Bed::BACKENDS[..2])?;
    node.finish(id)
}

fn holds_what_a_newcomer_holds(plane: &ControlPlane, node: &mut Node, space: &Space<'_>) -> Result<()> {
    let survivor = node.agent()?.services()?;
    let mut fresh = Node::start(plane, Login::InCluster)?;
    fresh.gone(&space.key("deleted"))?;
    let newcomer = fresh.agent()?.services()?;
    ensure!(of_space(&survivor, space) == of_space(&newcomer, space), "{survivor}\nis not\n{newcomer}");
    Ok(())
}

fn restart(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::Kubeadm)?;
    let id = node.id()?;
    let name = "outage-restart";
    let addresses = three(&mut node, &Space::new(plane.admin(), name)?)?;
    plane.stop_api();
    node.carries(&addresses[0], &Bed::BACKENDS[..2])?;
    ensure!(
        node.has(&Space::existing(plane.admin(), name).key("kept"))?,
        "state was dropped with the API server"
    );
    plane.start_api()?;
    let space = Space::existing(plane.admin(), name);
    change_behind_its_back(&space)?;
    has_caught_up(&mut node, &space)?;
    node.recovered()?;
    node.finish(id)
}

fn away_at_start(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let name = "outage-start";
    let addresses = three(&mut node, &Space::new(plane.admin(), name)?)?;
    node.kill()?;
    node.carries(&addresses[0], &Bed::BACKENDS[..2])?;
    node.bed.part(plane)?;
    change_behind_its_back(&Space::existing(plane.admin(), name))?;

    node.launch()?;
    let id = node.id()?;
    node.complains(&[&plane.url()])?;
    for address in &addresses {
        node.carries(address, &Bed::BACKENDS[..2])?;
    }
    let status = node.agent()?.status()?;
    ensure!(status["synced"] == false, "in step with a server that cannot be reached: {status}");

    node.bed.uplink().heal(plane)?;
    node.synced()?;
    has_caught_up(&mut node, &Space::existing(plane.admin(), name))?;
    node.finish(id)
}

/// Longest time in which a silent server must be noticed: the target of C-05 is a minute, and machines are busy.
const NOTICED: Duration = Duration::from_secs(100);

/// Of one node the server is heard no more, for the other it stands still. Neither connection ends.
fn half_dead(plane: &mut ControlPlane) -> Result<()> {
    let (mut deaf, mut hung) = (Node::start(plane, Login::InCluster)?, Node::start(plane, Login::Kubeadm)?);
    let ids = (deaf.id()?, hung.id()?);
    let name = "outage-silence";
    let addresses = three(&mut deaf, &Space::new(plane.admin(), name)?)?;
    hung.installed(
        &Space::existing(plane.admin(), name).key("shrunk"),
        &["10.244.1.21:8080", "10.244.1.22:8080"],
    )?;

    deaf.bed.uplink().mute(plane)?;
    plane.while_standing_still(|| {
        for node in [&mut deaf, &mut hung] {
            is_noticed(node)?;
            node.complains(&[&plane.url(), "no answer in time"])?;
            addresses.iter().try_for_each(|address| node.carries(address, &Bed::BACKENDS[..2]))?;
        }
        Ok(())
    })?;

    let space = Space::existing(plane.admin(), name);
    change_behind_its_back(&space)?;
    has_caught_up(&mut hung, &space)?;
    hung.recovered()?;
    ensure!(deaf.agent()?.status()?["source"]["connected"] == false, "it hears what is not sent to it");
    ensure!(deaf.has(&space.key("deleted"))?, "state was dropped with the connection");

    deaf.bed.uplink().heal(plane)?;
    has_caught_up(&mut deaf, &space)?;
    deaf.recovered()?;
    deaf.finish(ids.0)?;
    hung.finish(ids.1)
}

fn is_noticed(node: &mut Node) -> Result<()> {
    until("the silence is noticed", NOTICED, || {
        let status = node.agent()?.status()?;
        ensure!(status["source"]["connected"] == false, "{status}");
        Ok(())
    })
}

/// The successor of a killed agent may read Services but not slices: it must not take that for a cluster without any.
fn partial_lists(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let name = "outage-partial";
    let addresses = three(&mut node, &Space::new(plane.admin(), name)?)?;
    node.kill()?;
    let account = ServiceAccount::set_up(plane.admin())?;
    account.unbind()?;
    account.bind_without_slices()?;
    change_behind_its_back(&Space::existing(plane.admin(), name))?;

    let mark = plane.mark();
    node.launch()?;
    let id = node.id()?;
    until("Services are granted and slices refused", Duration::from_secs(30), || {
        let seen = node.requests(plane, mark)?;
        let has =
            |target: &str, code| seen.iter().any(|entry| entry.target() == target && entry.code() == code);
        ensure!(has("/services", 200) && has("discovery.k8s.io/endpointslices", 403), "{seen:?}");
        Ok(())
    })?;
    node.complains(&["403", "endpointslices"])?;
    for address in &addresses {
        node.carries(address, &Bed::BACKENDS[..2])?;
    }

    account.bind()?;
    node.synced()?;
    has_caught_up(&mut node, &Space::existing(plane.admin(), name))?;
    node.recovered()?;
    node.finish(id)
}

/// The entries of one namespace: other tests' objects come and go.
fn of_space(services: &serde_json::Value, space: &Space<'_>) -> Vec<serde_json::Value> {
    let prefix = space.key("");
    let mine =
        |entry: &&serde_json::Value| entry["name"].as_str().is_some_and(|name| name.starts_with(&prefix));
    services.as_array().into_iter().flatten().filter(mine).cloned().collect()
}
