//! What the kernel keeps loaded for a node: its programs, whoever holds them, and the maps that these use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::loaded_maps;
use aya::programs::tc::TcAttachType;
use aya::programs::{ProgramInfo, SchedClassifier, loaded_programs};

use super::bed::Bed;

/// The same before and after: nothing was left behind, and nothing was made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// How many programs of each name use the node's maps, attached or not.
    pub programs: BTreeMap<String, usize>,
    /// How many maps of each name these use.
    pub maps: BTreeMap<String, usize>,
    /// Ids of those that outlive an agent.
    pub lasting: BTreeSet<(String, u32)>,
    /// Everything pinned, without the ids in names.
    pub pins: BTreeMap<String, usize>,
}

/// The NIC of n1, whose programs are there as long as a data plane is.
const UPLINK: &str = "eth0";

/// Maps that every agent takes over.
const LASTING: [&str; 7] =
    ["FRONTENDS_OF_V4", "SERVICES_OF", "ENDPOINTS_OF", "ADDRESSES_OF_V4", "FLOWS_V4", "CONFIG", "SOCKETS"];

impl Bed {
    /// Asks the kernel, beginning with the program at the uplink of n1.
    ///
    /// # Errors
    /// No program is there, or something cannot be read.
    pub fn loaded(&mut self) -> Result<Loaded> {
        let attached = self.namespace("n1").within(|| {
            let (_, found) = SchedClassifier::query_tcx(UPLINK, TcAttachType::Ingress)?;
            let first = found.into_iter().next().context("n1's uplink carries no program")?;
            Ok(maps_of(&first))
        })?;
        let names: BTreeMap<u32, String> = loaded_maps()
            .filter_map(Result::ok)
            .map(|map| (map.id(), map.name_as_str().unwrap_or("?").to_owned()))
            .collect();
        let name = |id: &u32| names.get(id).cloned().unwrap_or_default();
        let lasting: BTreeSet<_> = attached
            .iter()
            .map(|id| (name(id), *id))
            .filter(|(name, _)| LASTING.contains(&name.as_str()))
            .collect();
        let mine = |program: &ProgramInfo| {
            let maps = maps_of(program);
            lasting.iter().any(|(_, id)| maps.contains(id))
        };
        let (mut programs, mut maps) = (BTreeMap::new(), BTreeSet::new());
        // One that has gone since it was listed is nobody's.
        for program in loaded_programs().filter_map(Result::ok).filter(mine) {
            *programs.entry(program.name_as_str().unwrap_or("?").to_owned()).or_default() += 1;
            maps.extend(maps_of(&program));
        }
        let mut pins = BTreeMap::new();
        if let Some(bpffs) = &self.home().bpffs {
            count_pins(&bpffs.join("sluice"), "", &mut pins)?;
        }
        Ok(Loaded { programs, maps: counted(maps.iter().map(name)), lasting, pins })
    }
}

fn maps_of(program: &ProgramInfo) -> Vec<u32> {
    program.map_ids().ok().flatten().unwrap_or_default()
}

fn counted(names: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    names.fold(BTreeMap::new(), |mut counts, name| {
        *counts.entry(name).or_default() += 1;
        counts
    })
}

/// A program's pin ends with its id: `sluice_ingress-17`.
fn count_pins(directory: &Path, above: &str, pins: &mut BTreeMap<String, usize>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind =
            name.split_once('-').filter(|_| name.starts_with("sluice_")).map_or(&*name, |(kind, _)| kind);
        let path = format!("{above}/{kind}");
        if entry.file_type()?.is_dir() {
            count_pins(&entry.path(), &path, pins)?;
        }
        *pins.entry(path).or_default() += 1;
    }
    Ok(())
}
