//! The agent against a real API server. One control plane serves all tests, one after the other; each has a namespace
//! of objects and a node of its own. Prints what libtest prints.

mod capacity;
mod control_plane;
mod credentials;
mod login;
mod node;
mod objects;
mod outage;
mod refusal;
mod suite;
mod token;

use std::process::ExitCode;

use suite::Test;

fn main() -> ExitCode {
    let tests: Vec<Test> = [
        control_plane::TESTS,
        login::TESTS,
        objects::TESTS,
        token::TESTS,
        refusal::TESTS,
        outage::TESTS,
        credentials::TESTS,
        capacity::TESTS,
    ]
    .concat();
    suite::run(&tests)
}
