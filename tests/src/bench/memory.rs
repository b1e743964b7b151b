//! Scenario `memory`: what the real agent and the kernel hold for clusters of several sizes.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use proxy_common::abi::{Flow, FlowKey, Recent, Turn};

use super::agent::with_cluster;
use super::cluster::Cluster;
use super::report::{Aim, Figure, Row, Table, Unit};
use super::{Effort, MIB};

/// Clusters, and what agent and maps should not exceed.
const SIZES: [(Cluster, &[Aim], &[Aim]); 3] = [
    (Cluster::new(0, 0), &[], &[Aim::AtMost(4.0 * MIB)]),
    (Cluster::USUAL, &[Aim::AtMost(60.0 * MIB), Aim::AtMost(40.0 * MIB)], &[Aim::AtMost(4.0 * MIB)]),
    (Cluster::WIDE, &[Aim::AtMost(80.0 * MIB)], &[]),
];

/// Measures.
///
/// # Errors
/// An agent does not come up.
pub fn run(effort: Effort) -> Result<Table> {
    let rounds = effort.rounds(1, 3);
    let mut rows = Vec::new();
    for (cluster, agent_aims, map_aims) in SIZES {
        let (mut agent, mut maps) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            let [resident, mapped] = with_cluster(cluster, |pid| {
                let process = pid.to_string();
                Ok([resident(&process)?, maps_of(&process)?])
            })?;
            agent.push(resident);
            maps.push(mapped);
        }
        rows.push(Row {
            what: format!("{} Services x {} endpoints", cluster.services, cluster.endpoints),
            figures: vec![
                Figure::of(Unit::Bytes, &agent)?.aiming(agent_aims),
                Figure::of(Unit::Bytes, &maps)?.aiming(map_aims),
            ],
        });
    }
    Ok(Table {
        scenario: "memory",
        method: format!(
            "`sluice run --manifests`, the released binary, after its first sync; median [quartiles] of {rounds} starts; agent: \
             resident memory; maps: what the kernel accounts for the agent's maps, but for those of flows, their rings and the records of \
             what has just been done with them, whose size is fixed"
        ),
        columns: vec!["agent", "maps"],
        rows,
        same: None,
        noisy: false,
        notes: Vec::new(),
    })
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// There is no such process.
pub fn resident(process: &str) -> Result<f64> {
    let path = format!("/proc/{process}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kilobytes * 1024.0)
}

/// What the kernel accounts for the maps that a process has open or its programs use, those of flows, their rings and records left out: they
/// are of fixed size, whatever is programmed.
fn maps_of(process: &str) -> Result<f64> {
    let (mut maps, mut programs) = (BTreeSet::new(), BTreeSet::new());
    let path = format!("/proc/{process}/fdinfo");
    for entry in std::fs::read_dir(&path).with_context(|| format!("cannot list {path}"))?.flatten() {
        let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
        maps.extend(field(&text, "map_id"));
        programs.extend(field(&text, "prog_id"));
    }
    for program in loaded_programs().filter_map(Result::ok).filter(|program| programs.contains(&program.id()))
    {
        maps.extend(program.map_ids()?.unwrap_or_default());
    }
    anyhow::ensure!(!maps.is_empty(), "the agent has no map");
    maps.into_iter().map(bytes).sum()
}

/// Those of one map; none of a flow table.
fn bytes(map: u32) -> Result<f64> {
    let map = MapInfo::from_id(map)?;
    if is_flows(map.key_size(), map.value_size()) {
        return Ok(0.0);
    }
    let fd = map.fd()?;
    let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    field(&text, "memlock").map(f64::from).context("a map without memlock")
}

/// A number that a descriptor is told with.
fn field(text: &str, name: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim().parse().ok()
}

/// Flow tables, their rings and records, by the sizes of key and value.
fn is_flows(key: u32, value: u32) -> bool {
    let flows = [
        (size_of::<FlowKey<1>>(), size_of::<Flow<1>>()),
        (size_of::<FlowKey<4>>(), size_of::<Flow<4>>()),
        (0, size_of::<Turn<1>>()),
        (0, size_of::<Turn<4>>()),
        (size_of::<u32>(), size_of::<Recent<1>>()),
        (size_of::<u32>(), size_of::<Recent<4>>()),
    ];
    flows.contains(&(key as usize, value as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_descriptor_tells_is_read() {
        let text = "pos:\t0\nmap_type:\t1\nmemlock:\t8192\nmap_id:\t7\n";
        assert_eq!(
            [field(text, "map_id"), field(text, "memlock"), field(text, "prog_id")],
            [Some(7), Some(8192), None]
        );
    }

    #[test]
    fn maps_of_flows_are_told_by_their_sizes() {
        let of = |size: usize| u32::try_from(size).unwrap();
        let cases = [
            ("frontends", 8, 8, false),
            ("addresses v6", 16, 4, false),
            ("flows v4", 16, of(size_of::<Flow<1>>()), true),
            ("records v6", 4, of(size_of::<Recent<4>>()), true),
            ("flows v6", 40, of(size_of::<Flow<4>>()), true),
            ("rings v6", 0, 44, true),
            ("the trace's ring", 0, 0, false),
        ];
        for (name, key, value, flows) in cases {
            assert_eq!(is_flows(key, value), flows, "{name}");
        }
    }
}
