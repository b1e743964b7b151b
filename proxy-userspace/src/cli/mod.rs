//! The command line: what the operator types, and exit status 0 (done), 1 (failed), 2 (wrong use).

mod ask;
mod cleanup;
mod kube_proxy;
mod run;
mod text;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::RunArgs;
use crate::control::{FlowFilter, Query};
use crate::model::Protocol;
use crate::status::story;

/// Service proxy in eBPF: kube-proxy's replacement on any node, under any CNI
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 120, arg_required_else_help = true)]
struct Sluice {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be this node's agent, until SIGTERM; the data plane stays when the agent goes
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// What the agent does, and what keeps it from doing more
    Status(AskArgs),
    /// What is installed, read back from the maps
    Services {
        /// One Service only
        #[arg(value_name = "NAMESPACE/NAME", value_parser = service_name)]
        name: Option<String>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Live flows
    Flows {
        /// Of one Service: NAMESPACE/NAME, or NAME in any namespace
        #[arg(long, value_name = "NAME")]
        service: Option<String>,
        /// Of one client
        #[arg(long, value_name = "IP")]
        client: Option<IpAddr>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Tell every packet from or to an address in the agent's log, hook by hook; `off` ends that
    Trace {
        /// The address, or `off`
        #[arg(value_name = "IP|off", value_parser = traced)]
        what: Traced,
        /// Longest time; the trace ends by itself
        #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
        seconds: u64,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Stop the agent and remove every trace of it
    Cleanup(CleanupArgs),
    /// What would become of a packet, and why; changes nothing
    Explain {
        /// The client, with a source port or any
        #[arg(long, value_name = "IP[:PORT]", value_parser = client)]
        from: Client,
        /// What it dials
        #[arg(long, value_name = "IP:PORT")]
        to: SocketAddr,
        /// What it speaks
        #[arg(long, value_name = "tcp|udp|sctp", default_value = "tcp", value_parser = protocol)]
        protocol: Protocol,
        /// Device that the packet comes in by; by the routes, if absent
        #[arg(long, value_name = "NAME")]
        edge: Option<String>,
        #[command(flatten)]
        ask: AskArgs,
    },
    /// Events as they happen (not in this version)
    #[command(disable_help_flag = true)]
    Monitor(LaterArgs),
    /// Services by rate, live (not in this version)
    #[command(disable_help_flag = true)]
    Top(LaterArgs),
}

/// How to reach an agent, and how to print its answer.
#[derive(Args, Clone, Debug)]
struct AskArgs {
    /// Run directory of the agent to ask
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// json is stable, text is for people
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Args, Clone, Debug)]
struct CleanupArgs {
    /// As for `sluice run`
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// As for `sluice run`
    #[arg(long, value_name = "DIR")]
    bpffs: Option<PathBuf>,
    /// As for `sluice run`
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    run_dir: PathBuf,
    /// Also remove the rules of upstream kube-proxy, as far as they are in nf_tables
    #[arg(long)]
    kube_proxy: bool,
}

/// Swallows what a later version will understand.
#[derive(Args, Clone, Debug)]
struct LaterArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    rest: Vec<OsString>,
}

fn service_name(text: &str) -> Result<String, &'static str> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(text.to_owned())
        }
        _ => Err("a Service is named NAMESPACE/NAME, such as default/web"),
    }
}

/// What to trace: an address, or nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traced(Option<IpAddr>);

fn traced(text: &str) -> Result<Traced, &'static str> {
    if text == "off" {
        return Ok(Traced(None));
    }
    text.parse().map(|address| Traced(Some(address))).map_err(|_| "an IP address, or off")
}

/// A packet's source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client(IpAddr, Option<u16>);

fn client(text: &str) -> Result<Client, &'static str> {
    if let Ok(ip) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        return Ok(Client(ip, None));
    }
    let socket: SocketAddr = text.parse().map_err(|_| "an IP address, or IP:PORT, [IPv6]:PORT")?;
    Ok(Client(socket.ip(), Some(socket.port())))
}

fn protocol(text: &str) -> Result<Protocol, &'static str> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "sctp" => Ok(Protocol::Sctp),
        _ => Err("tcp, udp or sctp"),
    }
}

/// What came of a command.
type Outcome = Result<(), Failure>;

/// Why a command did not do what it was asked to.
#[derive(Debug)]
enum Failure {
    /// Exit status 1: object, cause and next step.
    Failed(anyhow::Error),
    /// Exit status 2.
    WrongUse(String),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the command line of the process.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.into_iter().collect();
    let called = arguments.first().map(Path::new).and_then(Path::file_name);
    let outcome = if called == Some(OsStr::new("kube-proxy")) {
        kube_proxy::main(arguments)
    } else {
        sluice(Sluice::parse_from(arguments).command)
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => complain(&story(&*error), 1),
        Err(Failure::WrongUse(message)) => complain(&message, 2),
    }
}

fn complain(message: &str, status: u8) -> ExitCode {
    // Nobody is left to be told when stderr is closed.
    drop(writeln!(std::io::stderr(), "sluice: {message}"));
    ExitCode::from(status)
}

fn sluice(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Status(args) => ask::status(&args),
        Command::Services { name, ask } => ask::services(&ask, name),
        Command::Flows { service, client, ask } => ask::flows(&ask, FlowFilter { service, client }),
        Command::Trace { what, seconds, ask } => ask::trace(&ask, what.0, seconds),
        Command::Cleanup(args) => cleanup::cleanup(&args),
        Command::Explain { from: Client(from, _), to, .. } if from.is_ipv4() != to.is_ipv4() => {
            Err(Failure::WrongUse(format!("--from {from} and --to {to}: give two addresses of one family")))
        }
        Command::Explain { from: Client(from, port), to, protocol, edge, ask } => {
            ask::explain(&ask, Query { from, port, to, protocol, edge })
        }
        Command::Monitor(_) => Err(later("monitor")),
        Command::Top(_) => Err(later("top")),
    }
}

fn later(what: &str) -> Failure {
    Failure::WrongUse(format!("{what}: not available in this version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        <Sluice as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn arguments_are_understood_or_refused() {
        let cases = [
            ("status -o json --run-dir /tmp/n1", true),
            ("services", true),
            ("services default/web -o json", true),
            ("services web", false),
            ("services a/b/c", false),
            ("flows --service web --client 10.0.0.1", true),
            ("flows --client web", false),
            ("status -o yaml", false),
            ("cleanup --cgroup /c --bpffs /b --run-dir /r", true),
            ("cleanup extra", false),
            ("run --manifests /m --edges eth0,veth* --sockets all", true),
            ("run --no-such-flag", false),
            ("explain --from 10.0.0.1 --to 10.0.0.2:80", true),
            ("explain --from [fd00::1]:9 --to [fd00::2]:80 --protocol UDP --edge eth0 -o json", true),
            ("explain --from fd00::1 --to [fd00::2]:80", true),
            ("explain --from 10.0.0.1 --to 10.0.0.2", false),
            ("explain --from web --to 10.0.0.2:80", false),
            ("explain --from 10.0.0.1 --to 10.0.0.2:80 --protocol icmp", false),
            ("trace 10.0.0.1 --seconds 5", true),
            ("trace fd00::1 -o json", true),
            ("trace off", true),
            ("trace", false),
            ("trace web", false),
            ("trace 10.0.0.1 --seconds 0", false),
            ("nonsense", false),
        ];
        for (line, good) in cases {
            let arguments = std::iter::once("sluice").chain(line.split(' '));
            assert_eq!(Sluice::try_parse_from(arguments).is_ok(), good, "{line}");
        }
    }
}
