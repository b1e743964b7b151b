//! Scenario `memory`: what the real agent and the kernel hold for clusters of several sizes.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use proxy_common::abi::{Flow, FlowKey};

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
             resident memory; maps: what the kernel accounts for the agent's maps, but for those of flows and their rings, whose \
             size is fixed"
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

/// What the kernel accounts for the maps that a process has open, those of flows and their rings left out: they are
/// of fixed size, whatever is programmed.
fn maps_of(process: &str) -> Result<f64> {
    let mut seen = BTreeSet::new();
    let mut sum = 0.0;
    let path = format!("/proc/{process}/fdinfo");
    for entry in std::fs::read_dir(&path).with_context(|| format!("cannot list {path}"))?.flatten() {
        let Some(map) = MapMemory::read(&entry.path()) else { continue };
        if !map.is_flows() && seen.insert(map.id) {
            sum += map.bytes;
        }
    }
    anyhow::ensure!(!seen.is_empty(), "the agent has no map open");
    Ok(sum)
}

struct MapMemory {
    id: u32,
    key: u32,
    value: u32,
    bytes: f64,
}

impl MapMemory {
    /// `None` for descriptors that are no maps.
    fn read(path: &Path) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?
                .trim()
                .parse::<u32>()
                .ok()
        };
        let (id, key, value) = (field("map_id")?, field("key_size")?, field("value_size")?);
        Some(Self { id, key, value, bytes: f64::from(field("memlock")?) })
    }

    /// Flow tables by the sizes of key and value. Only rings have no keys.
    fn is_flows(&self) -> bool {
        let flows = [
            (size_of::<FlowKey<1>>(), size_of::<Flow<1>>()),
            (size_of::<FlowKey<4>>(), size_of::<Flow<4>>()),
        ];
        self.key == 0 || flows.contains(&(self.key as usize, self.value as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_maps_is_read_from_their_descriptors() {
        let text = |key: u32, value: u32| {
            format!(
                "pos:\t0\nmap_type:\t1\nkey_size:\t{key}\nvalue_size:\t{value}\nmemlock:\t8192\nmap_id:\t7\n"
            )
        };
        let cases = [
            ("frontends", 8, 8, false),
            ("addresses v6", 16, 4, false),
            ("flows v4", 16, u32::try_from(size_of::<Flow<1>>()).unwrap(), true),
            ("rings v6", 0, 44, true),
        ];
        for (name, key, value, flows) in cases {
            let map = MapMemory::parse(&text(key, value)).unwrap();
            assert_eq!((map.id, map.bytes, map.is_flows()), (7, 8192.0, flows), "{name}");
        }
        assert!(MapMemory::parse("pos:\t0\nflags:\t02\n").is_none(), "a file");
    }
}
