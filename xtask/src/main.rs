//! `cargo xtask`: prepares the machine and runs cargo and the laboratory's binaries.
//!
//! Read in this order: [`cli`] says what may be asked for, [`setup`] what each command needs from the machine,
//! [`suites`], [`laboratory`] and [`lint`] what is run then. Exit status: 0 done, 1 failed, 2 wrong use.

#![forbid(unsafe_code)]

mod cli;
mod fuzz;
mod image;
mod laboratory;
mod lint;
mod setup;
mod shell;
mod suites;

use std::process::ExitCode;

use anyhow::Result;
use cli::Command;
use setup::Group;
use shell::Workspace;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(status) = suites::coverage::as_compiler(&args) {
        return status;
    }
    let command = match cli::parse(&args) {
        Ok(command) => command,
        Err(wrong) => {
            eprintln!("xtask: {wrong}");
            return ExitCode::from(2);
        }
    };
    match run(command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; `false` when it ran to its end and found something wrong, which it has printed.
fn run(command: Command) -> Result<bool> {
    let workspace = Workspace::find()?;
    match command {
        Command::Help => {
            print!("{}", cli::HELP);
            Ok(true)
        }
        Command::Setup { check, api } => {
            let mut groups = vec![Group::Build, Group::Lint, Group::Laboratory];
            if api {
                groups.extend([Group::Api, Group::Oracle]);
            }
            if check {
                setup::check(&workspace, &groups)
            } else {
                setup::ensure(&workspace, &groups).map(|()| true)
            }
        }
        Command::Build => laboratory::build(&workspace).map(|()| true),
        Command::Demo { args } => laboratory::demo(&workspace, &args),
        Command::Bench(bench) => laboratory::bench(&workspace, &bench),
        Command::Test(selection) => suites::run(&workspace, &selection),
        Command::Image(wanted) => image::make(&workspace, &wanted).map(|_| true),
        Command::Fuzz(fuzz) => fuzz::run(&workspace, &fuzz),
        Command::Lint => lint::run(&workspace),
    }
}
