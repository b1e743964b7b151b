//! The suite `net`: real traffic through the real agent, in beds of network namespaces.

mod basics;
mod harness;
mod matrix;
mod mtu;
mod ports;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Err(error) = sluice_tests::lab::enter() {
        eprintln!("{error:#}");
        return ExitCode::FAILURE;
    }
    let mut groups = vec![];
    groups.extend(basics::groups());
    groups.extend(matrix::control());
    groups.extend(matrix::groups());
    groups.extend(ports::groups());
    groups.extend(mtu::groups());
    harness::main(groups)
}
