//! Upgrade and downgrade across a change of the maps' layout (L-22). The other version is a build whose flows have a field
//! more: neither knows the other's types.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use proxy_common::abi::LAYOUT;
use sluice_tests::harness::Skip;
use sluice_tests::lab::agent::{Agent, binary, entries};
use sluice_tests::lab::app::{App, Backend};
use sluice_tests::lab::{Bed, BedConfig, Who, Wiring};
use sluice_tests::traffic::{Load, Stream};
use sluice_tests::wait::{PATIENCE, until};

use crate::change::streams;
use crate::harness::{Group, Story};

/// With pins and without, since the agent finds its maps in two ways; one wiring each.
pub fn groups() -> Vec<Group> {
    let both_ways = || Story::new("L22_no_flow_is_lost_either_way", both_ways);
    let pinned = vec![both_ways(), Story::new("L22_killed_in_the_middle_no_flow_is_lost", in_the_middle)];
    [("pinned", Wiring::Routed, true, pinned), ("unpinned", Wiring::Bridged, false, vec![both_ways()])]
        .into_iter()
        .map(|(name, wiring, bpffs, stories)| Group {
            name: format!("upgrade::{name}"),
            config: BedConfig { bpffs, ..BedConfig::new(wiring) },
            setup: Box::new(setup),
            stories,
        })
        .collect()
}

fn app() -> App {
    App::new("app", 1, [Backend::new(Who::Pb, 8_080), Backend::new(Who::Pc, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    bed.start_agent()?;
    bed.apply(&app())
}

/// The two versions, and the layouts that they have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    This,
    Next,
}

impl Version {
    fn layout(self) -> u32 {
        LAYOUT + u32::from(self == Self::Next)
    }

    fn program(self) -> Result<PathBuf> {
        let this = binary()?;
        if self == Self::This {
            return Ok(this);
        }
        let next = this.with_file_name("sluice-next");
        let build = "cargo build -p proxy-userspace --features next-layout --bin sluice-next";
        if next.is_file() { Ok(next) } else { Err(Skip(format!("no sluice-next: {build}")).into()) }
    }
}

/// Kills the agent and starts that of a version.
fn change(bed: &mut Bed, version: Version) -> Result<()> {
    bed.agent.take().context("no agent runs")?.kill()?;
    start(bed, version)
}

fn start(bed: &mut Bed, version: Version) -> Result<()> {
    bed.home().program = version.program()?;
    bed.start_agent()?;
    let status = bed.agent()?.home.json(&["status"])?;
    ensure!(status["layout"] == version.layout(), "{version:?} has layout {}", status["layout"]);
    bed.wait_installed(&app())
}

/// The pins of the agent that runs, and nobody else's.
fn pins_of(bed: &mut Bed, version: Version) -> Result<()> {
    let Some(bpffs) = bed.home().bpffs.clone() else { return Ok(()) };
    let dirs = entries(&bpffs.join("sluice"))?;
    ensure!(dirs == [version.layout().to_string()], "pins are left of {dirs:?}");
    Ok(())
}

/// Flows that are there before and after: connections and sockets that go on all the time. (One that begins in the moment of
/// the change may have to ask twice.)
fn flows(bed: &Bed) -> Result<Load> {
    let lasting = |stream| Stream { lasting: true, ..stream };
    Load::start(streams(bed, &app()).into_iter().map(lasting).collect())
}

/// New connections of all kinds.
fn serves(bed: &Bed) -> Result<()> {
    Load::start(streams(bed, &app()))?.finish().map(drop)
}

fn both_ways(bed: &mut Bed) -> Result<()> {
    Version::Next.program()?;
    let load = flows(bed)?;
    let before = bed.agent()?.home.services()?;
    for round in 0..4 {
        for version in [Version::Next, Version::This] {
            let told = || format!("round {round}, {version:?}");
            change(bed, version).with_context(told)?;
            load.progress(2).with_context(told)?;
            serves(bed).with_context(told)?;
            pins_of(bed, version).with_context(told)?;
        }
    }
    load.finish()?;
    let after = bed.agent()?.home.services()?;
    ensure!(before == after, "`services` printed {before} before and {after} after");
    Ok(())
}

/// Killed when it has begun to copy, and when it has begun to put its programs in the other's places. Then the one or the
/// other version goes on.
fn in_the_middle(bed: &mut Bed) -> Result<()> {
    Version::Next.program()?;
    let pins = bed.home().bpffs.clone().context("this bed has a bpffs")?.join("sluice");
    let load = flows(bed)?;
    let mut version = Version::This;
    for unfinished in [true, false] {
        for goes_on in [Version::Next, Version::This, Version::This, Version::Next] {
            let dies = if version == Version::This { Version::Next } else { Version::This };
            let told = || format!("{version:?} to {dies:?}, killed {unfinished}, {goes_on:?} goes on");
            bed.agent.take().context("no agent runs")?.kill()?;
            bed.home().program = dies.program()?;
            let agent = Agent::start(bed.home().clone())?;
            let sign = format!("{}{}", dies.layout(), if unfinished { "-new" } else { "" });
            let seen = until("the other version to have begun", PATIENCE, || {
                let dirs = entries(&pins).map_err(|error| format!("{error:#}"))?;
                if dirs.contains(&sign) { Ok(()) } else { Err(format!("pins of {dirs:?}")) }
            });
            agent.kill()?;
            seen.with_context(told)?;
            load.progress(1).with_context(told)?;
            start(bed, goes_on).with_context(told)?;
            load.progress(1).with_context(told)?;
            serves(bed).with_context(told)?;
            pins_of(bed, goes_on).with_context(told)?;
            version = goes_on;
        }
    }
    if version == Version::Next {
        change(bed, Version::This)?;
    }
    load.finish().map(drop)
}
