//! The suite `oracle`: Sluice and kube-proxy side by side, cell by cell.

use std::process::ExitCode;

use sluice_tests::lab::plan::{Family, Who, Wiring, cluster_ip};
use sluice_tests::oracle::case::{Endpoint, State};
use sluice_tests::oracle::observe::{GLANCE, observe};
use sluice_tests::oracle::{Bench, Case, Cell, Mode, Plane};
use sluice_tests::wire::Transport;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    sluice_tests::lab::enter()?;
    let mut case = Case::new("both", [Endpoint::new(Who::Pb, State::Ready), Endpoint::new(Who::Pd, State::Ready)]);
    case.number = 1;
    let start = std::time::Instant::now();
    let plane = Plane::start(&[case])?;
    eprintln!("plane {:?}", start.elapsed());
    for mode in Mode::BOTH {
        let bench = Bench::build(&plane, mode, Wiring::Routed)?;
        eprintln!("bench {:?}", start.elapsed());
        for family in Family::BOTH {
            for client in Who::ALL {
                let cell = Cell {
                    case: "both".into(), via: "cluster_ip", client, family, transport: Transport::Tcp,
                    targets: vec![(cluster_ip(family, 1), 80).into()], sticky: false,
                };
                let ours = observe(&bench.ours, &cell, GLANCE);
                let theirs = observe(&bench.theirs, &cell, GLANCE);
                eprintln!("{mode} {cell}\n  ours   {ours}\n  theirs {theirs}");
            }
        }
    }
    Ok(())
}
