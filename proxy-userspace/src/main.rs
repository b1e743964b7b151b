//! The `sluice` binary. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    proxy_userspace::cli::main(std::env::args_os())
}
