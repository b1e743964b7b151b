//! `demo [--api]`: the main job on this machine, in a sandbox of namespaces, explained as it goes.

use std::process::ExitCode;

use clap::Parser;
use sluice_tests::{demo, lab};

/// Shows a node that balances Service traffic in eBPF, from nothing to cleaned up.
#[derive(Parser)]
struct Arguments {
    /// Put a real etcd and kube-apiserver behind it, with ServiceAccount, token and RBAC.
    #[arg(long)]
    api: bool,
}

fn main() -> ExitCode {
    let run = || {
        lab::enter()?;
        let source = if Arguments::parse().api { demo::Source::Api } else { demo::Source::Folder };
        demo::run(source)
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nNot as expected: {error:#}");
            ExitCode::FAILURE
        }
    }
}
