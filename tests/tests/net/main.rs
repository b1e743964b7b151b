//! The suite `net`: real traffic through the real agent, in beds of network namespaces.

mod basics;
mod catch_all;
mod change;
mod choice;
mod departure;
mod explain;
mod fragments;
mod guard;
mod harness;
mod input;
mod kills;
mod matrix;
mod mtu;
mod neighbours;
mod operator;
mod policy;
mod ports;
mod restart;
mod sctp;
mod sender;
mod shortcut;
mod sockets;
mod start;
mod surroundings;
mod trace;
mod upgrade;

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
    groups.extend(policy::groups());
    groups.extend(mtu::groups());
    groups.extend(fragments::groups());
    groups.extend(sctp::groups());
    groups.extend(guard::groups());
    groups.extend(choice::groups());
    groups.extend(change::groups());
    groups.extend(departure::groups());
    groups.extend(sender::groups());
    groups.extend(shortcut::groups());
    groups.extend(restart::groups());
    groups.extend(kills::groups());
    groups.extend(upgrade::groups());
    groups.extend(input::groups());
    groups.extend(start::groups());
    groups.extend(operator::groups());
    groups.extend(neighbours::groups());
    groups.extend(catch_all::groups());
    groups.extend(explain::groups());
    groups.extend(sockets::groups());
    groups.extend(surroundings::groups());
    groups.extend(trace::groups());
    harness::main(groups)
}
