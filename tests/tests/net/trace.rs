//! The packet trace: on for one address, told hook by hook, off without a mark.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::net::if_::if_nameindex;
use proxy_common::abi::LAYOUT;
use sluice_tests::lab::agent::entries;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::wiring::host_device;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::Dial;
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

pub fn groups() -> Vec<Group> {
    let stories = vec![
        Story::new("a_connection_is_told_hook_by_hook", |bed| {
            Family::BOTH.into_iter().try_for_each(|family| one_connection(bed, family))
        }),
        Story::new("a_refusal_is_told", refusal),
        Story::new("it_ends_by_itself", ends),
        Story::new("a_new_agent_does_not_go_on_with_it", restart),
        Story::new("wrong_use", wrong_use),
    ];
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "trace".into(), config, setup: Box::new(setup), stories }]
}

fn app() -> App {
    App::new("app", 1, [Backend::new(Who::Pb, 8_080)])
}

fn empty() -> App {
    App::new("empty", 2, [])
}

fn setup(bed: &mut Bed) -> Result<()> {
    bed.serve(Who::Pb, 8_080)?;
    bed.start_agent()?;
    bed.apply(&app())?;
    bed.apply(&empty())
}

/// Program ids at each hook of n1.
fn programs(bed: &Bed) -> Result<BTreeMap<(String, &'static str), Vec<u32>>> {
    bed.namespace("n1").within(|| {
        let mut found = BTreeMap::new();
        for interface in &if_nameindex()? {
            let name = interface.name().to_string_lossy().into_owned();
            for (hook, kind) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
                let (_, infos) = SchedClassifier::query_tcx(name.as_str(), kind)?;
                found
                    .insert((name.clone(), hook), infos.iter().map(aya::programs::ProgramInfo::id).collect());
            }
        }
        Ok(found)
    })
}

fn pins(bed: &Bed) -> Result<BTreeSet<String>> {
    let bpffs = bed.agent()?.home.bpffs.clone().context("the bed has a bpffs")?;
    Ok(entries(&bpffs.join("sluice").join(LAYOUT.to_string()))?.into_iter().collect())
}

fn log(bed: &Bed) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(&bed.agent()?.home.log)?;
    Ok(log.lines().filter_map(|line| line.split_once("trace: ")).map(|(_, told)| told.to_owned()).collect())
}

fn wait_told(bed: &Bed, what: &str) -> Result<()> {
    until(&format!("the trace to tell: {what}"), PATIENCE, || {
        let told = log(bed).map_err(|error| error.to_string())?;
        if told.iter().any(|line| line.starts_with(what)) { Ok(()) } else { Err(told.join("\n")) }
    })
}

fn one_connection(bed: &mut Bed, family: Family) -> Result<()> {
    let (frontend, backend) =
        (app().address(Via::ClusterIp, family), SocketAddr::new(Who::Pb.address(family), 8_080));
    let mut held = Dial::new(bed.place(Who::Pa), frontend, Transport::Tcp)
        .open()
        .or_else(|outcome| bail!("before the trace: {outcome}"))?;
    let (before, pinned) = (programs(bed)?, pins(bed)?);
    let traced = Who::Pa.address(family).to_string();
    let told = bed.agent()?.home.json(&["trace", &traced])?;
    ensure!(told["address"] == traced, "{told}");
    let during = programs(bed)?;
    let (pa, pb) = (host_device(Wiring::Routed, "pa"), host_device(Wiring::Routed, "pb"));
    ensure!(before != during && before.len() == during.len(), "nothing was replaced: {during:?}");
    ensure!(before.iter().all(|(at, ids)| during[at].len() == ids.len()), "{before:?} {during:?}");
    held.ask(b"again").ok()?;
    let connection = Dial::new(bed.place(Who::Pa), frontend, Transport::Tcp)
        .open()
        .or_else(|outcome| bail!("under the trace: {outcome}"))?;
    let client = connection.local()?;
    for line in [
        format!("ingress {pa}: tcp {client} > {frontend}: translate, lab/app:tcp, now {client} > {backend}"),
        format!("egress {pb}: tcp {client} > {backend}: pass"),
        format!("ingress {pb}: tcp {backend} > {client}: pass"),
        format!("egress {pa}: tcp {backend} > {client}: restore, lab/app:tcp, now {frontend} > {client}"),
    ] {
        wait_told(bed, &line)?;
    }
    let other = Dial::new(bed.place(Who::Pc), frontend, Transport::Tcp)
        .open()
        .or_else(|outcome| bail!("another client: {outcome}"))?;
    let status = bed.agent()?.home.json(&["status"])?;
    ensure!(status["trace"]["address"] == traced, "{status}");
    bed.agent()?.home.json(&["trace", "off"])?;
    ensure!(programs(bed)? == before, "the programs are not those of before");
    let (lines, other) = (log(bed)?, other.local()?);
    ensure!(!lines.iter().any(|line| line.contains(&other.to_string())), "{other} was told: {lines:?}");
    held.ask(b"and again").ok()?;
    let status = bed.agent()?.home.json(&["status"])?;
    ensure!(status["trace"].is_null(), "{status}");
    ensure!(pins(bed)? == pinned, "pins are left");
    Ok(())
}

fn refusal(bed: &mut Bed) -> Result<()> {
    let family = Family::V6;
    let frontend = empty().address(Via::ClusterIp, family);
    bed.agent()?.home.json(&["trace", &frontend.ip().to_string()])?;
    let outcome = Dial::new(bed.place(Who::Pa), frontend, Transport::Udp).probe();
    let line = format!("ingress {}: udp ", host_device(Wiring::Routed, "pa"));
    wait_told(bed, &line)?;
    bed.agent()?.home.json(&["trace", "off"])?;
    let told = log(bed)?;
    let want = format!("> {frontend}: reject (no_endpoint)");
    ensure!(told.iter().any(|told| told.starts_with(&line) && told.contains(&want)), "{outcome}: {told:?}");
    Ok(())
}

fn ends(bed: &mut Bed) -> Result<()> {
    let before = programs(bed)?;
    let home = &bed.agent()?.home;
    home.json(&["trace", "192.0.2.200", "--seconds", "1"])?;
    home.wait_status("the trace to end", |status| status["trace"].is_null())?;
    ensure!(programs(bed)? == before, "the programs are not those of before");
    Ok(())
}

/// The trace is the agent's, not the node's: programs of an agent that died tracing are replaced like any others.
fn restart(bed: &mut Bed) -> Result<()> {
    let before = programs(bed)?;
    bed.agent()?.home.json(&["trace", "192.0.2.200"])?;
    if let Some(agent) = bed.agent.take() {
        agent.kill()?;
    }
    bed.start_agent()?;
    let after = programs(bed)?;
    ensure!(before.iter().all(|(at, ids)| after[at].len() == ids.len()), "{before:?} {after:?}");
    let status = bed.agent()?.home.json(&["status"])?;
    ensure!(status["trace"].is_null(), "{status}");
    let lines = log(bed)?.len();
    let frontend = app().address(Via::ClusterIp, Family::V4);
    Dial::new(bed.place(Who::Pa), frontend, Transport::Tcp).probe().ok()?;
    ensure!(log(bed)?.len() == lines, "the new agent's programs trace");
    Ok(())
}

fn wrong_use(bed: &mut Bed) -> Result<()> {
    for wrong in [&["trace"][..], &["trace", "web"], &["trace", "10.0.0.1", "--seconds", "0"]] {
        let (code, _, said) = bed.agent()?.home.ask(wrong)?;
        ensure!(code.code() == Some(2) && !said.is_empty(), "{wrong:?} ended with {code}: {said}");
    }
    Ok(())
}
