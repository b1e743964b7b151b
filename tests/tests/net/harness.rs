//! What the suite's groups are made of: a bed of namespaces each. After each story the oracles are asked.

use std::process::ExitCode;

use anyhow::{Result, bail};
use sluice_tests::harness;
use sluice_tests::lab::{Bed, BedConfig, Family};
use sluice_tests::wire::Transport;

/// One named behaviour.
pub type Story = harness::Story<Bed>;

/// A behaviour in one family over one transport.
pub type Way = fn(&mut Bed, Family, Transport) -> Result<()>;

/// One story for each transport and row.
pub fn both_transports(family: Family, rows: &[(&'static str, Way)]) -> Vec<Story> {
    let story = |transport: Transport, (name, run): (&str, Way)| {
        Story::new(format!("{name}::{family}::{transport}"), move |bed| run(bed, family, transport))
    };
    Transport::BOTH
        .into_iter()
        .flat_map(|transport| rows.iter().map(move |row| story(transport, *row)))
        .collect()
}

type Setup = Box<dyn FnOnce(&mut Bed) -> Result<()> + Send>;

/// Stories on one bed.
pub struct Group {
    pub name: String,
    pub config: BedConfig,
    pub setup: Setup,
    pub stories: Vec<Story>,
}

impl From<Group> for harness::Group<Bed> {
    fn from(group: Group) -> Self {
        let Group { name, config, setup, stories } = group;
        let bed = move || {
            let mut bed = Bed::build(config)?;
            setup(&mut bed)?;
            Ok(bed)
        };
        Self { name, bed: Box::new(bed), oracle: oracles, stories }
    }
}

/// Runs what the command line asks for and prints the summary.
pub fn main(groups: Vec<Group>) -> ExitCode {
    harness::main("net", groups.into_iter().map(harness::Group::from).collect())
}

/// The wire oracle and the invalid-drop rule, about everything since they were last asked.
fn oracles(bed: &mut Bed) -> Result<()> {
    let observed = bed.capture.take();
    let shown: String = observed.violations.iter().map(|violation| format!("\n  {violation}")).collect();
    if observed.count > 0 {
        bail!("the wire oracle found {} violations:{shown}", observed.count);
    }
    if let Some(why) = observed.failure {
        bail!("the wire oracle is blind: {why}");
    }
    if observed.lost > 0 {
        bail!("the wire oracle could not see {} packets: no room", observed.lost);
    }
    match bed.invalid_drops()? {
        Some(dropped) if dropped > 0 => bail!("conntrack called {dropped} packets invalid (P-49)"),
        _ => Ok(()),
    }
}
