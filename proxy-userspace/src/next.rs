//! The `sluice` binary as if it were the next version's, for tests of upgrades.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_userspace::cli::main(std::env::args_os())
}
