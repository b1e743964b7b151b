//! The `sluice` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    eprintln!("sluice: the agent's run loop and the operator's commands are not in this version");
    ExitCode::from(2)
}
