//! The suite `oracle`: Sluice and kube-proxy side by side, cell by cell. Arguments are parts of cells' names; a cell
//! runs if its name holds all of them.

mod report;
mod round;

use std::process::ExitCode;
use std::time::Instant;

use sluice_tests::api::Binaries;
use sluice_tests::lab::plan::Wiring;
use sluice_tests::oracle::{Mode, Plane, Variant, matrix};

use report::Report;
use round::Round;

fn main() -> ExitCode {
    if let Err(error) = sluice_tests::lab::enter() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<String> = arguments.iter().filter(|word| !word.starts_with("--")).cloned().collect();
    let rounds = rounds();
    let cases = matrix::cases();
    let selected: Vec<_> = rounds.iter().map(|round| round.select(&cases, &filters)).collect();
    let count: usize = selected.iter().map(Vec::len).sum();
    if arguments.iter().any(|word| word == "--list") {
        for (round, cells) in rounds.iter().zip(&selected) {
            cells.iter().for_each(|cell| println!("{round}::{cell}: test"));
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {count} tests");
    let mut report = Report::new(Instant::now(), filters.is_empty());
    if let Some(why) = obstacle() {
        println!("skipped: oracle: {why}");
        report.ignored = count;
        return report.finish();
    }
    match Plane::start(&cases) {
        Ok(plane) => {
            for (round, cells) in rounds.iter().zip(selected).filter(|(_, cells)| !cells.is_empty()) {
                round.run(&plane, &cases, cells, &mut report);
            }
        }
        Err(error) => {
            println!("the API server does not start or does not take the objects: {error:#}");
            report.failed = count;
        }
    }
    report.finish()
}

fn rounds() -> Vec<Round> {
    let plain = |variant, mode| Wiring::BOTH.map(|wiring| Round { mode, wiring, variant });
    let both_modes = |variant| Mode::BOTH.into_iter().flat_map(move |mode| plain(variant, mode));
    let special = |variant| {
        let pair = [(Mode::Nftables, Wiring::Routed), (Mode::Iptables, Wiring::Bridged)];
        pair.map(|(mode, wiring)| Round { mode, wiring, variant })
    };
    let special = Variant::SPECIAL.into_iter().flat_map(special);
    let trial = Round { mode: Mode::Nftables, wiring: Wiring::Routed, variant: Variant::Skewed };
    [trial]
        .into_iter()
        .chain(both_modes(Variant::Plain))
        .chain(both_modes(Variant::Changed))
        .chain(special)
        .collect()
}

/// What the machine lacks.
fn obstacle() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    let missing = |name| Binaries::cached(name).err();
    ["etcd", "kube-apiserver", "kube-proxy"].into_iter().find_map(missing).map(|error| format!("{error:#}"))
}
