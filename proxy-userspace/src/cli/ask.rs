//! Commands that ask a running agent.

use std::io::Write;
use std::net::IpAddr;

use anyhow::anyhow;
use serde::Serialize;

use super::{AskArgs, Outcome, Output, text};
use crate::control::{Answer, FlowFilter, Query, Request, RunDir, ask};

pub fn status(args: &AskArgs) -> Outcome {
    match ask(&RunDir::new(&args.run_dir), &Request::Status)? {
        Answer::Status(status) => print(args.output, &status, |status| text::status(status)),
        answer => unexpected(&answer),
    }
}

/// An unknown Service is a failure: a script that asks for it wants to know.
pub fn services(args: &AskArgs, name: Option<String>) -> Outcome {
    match ask(&RunDir::new(&args.run_dir), &Request::Services { name: name.clone() })? {
        Answer::Services(services) => match name {
            Some(name) if services.is_empty() => Err(anyhow!(
                "Service {name}: nothing is installed for it; see `sluice status`, or `kubectl get service`"
            )
            .into()),
            _ => print(args.output, &services, |services| text::services(services)),
        },
        answer => unexpected(&answer),
    }
}

pub fn flows(args: &AskArgs, filter: FlowFilter) -> Outcome {
    match ask(&RunDir::new(&args.run_dir), &Request::Flows(filter))? {
        Answer::Flows(flows) => print(args.output, &flows, |flows| text::flows(flows)),
        answer => unexpected(&answer),
    }
}

pub fn explain(args: &AskArgs, query: Query) -> Outcome {
    match ask(&RunDir::new(&args.run_dir), &Request::Explain(query))? {
        Answer::Explain(told) => print(args.output, &told, |told| text::explanation(told)),
        answer => unexpected(&answer),
    }
}

pub fn trace(args: &AskArgs, address: Option<IpAddr>, seconds: u64) -> Outcome {
    match ask(&RunDir::new(&args.run_dir), &Request::Trace { address, seconds })? {
        Answer::Trace(trace) => print(args.output, &trace, |trace| text::trace(*trace)),
        answer => unexpected(&answer),
    }
}

fn unexpected(answer: &Answer) -> Outcome {
    let line = answer.line();
    Err(anyhow!(
        "the agent: unexpected answer {}; client and agent should be of the same version",
        line.trim()
    )
    .into())
}

fn print<T: Serialize>(output: Output, value: &T, text: impl Fn(&T) -> String) -> Outcome {
    let mut shown = match output {
        Output::Json => serde_json::to_string_pretty(value)?,
        Output::Text => text(value),
    };
    if !shown.ends_with('\n') {
        shown.push('\n');
    }
    match std::io::stdout().write_all(shown.as_bytes()) {
        // `sluice flows | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
