//! `sluice run`: from flags to a running agent.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};
use tracing_subscriber::EnvFilter;

use super::{Failure, Outcome, cleanup};
use crate::config::{Action, Config, Logging, RunArgs, Shortcuts, load};
use crate::control::{Listener, RunDir};
use crate::datapath::share_heap;
use crate::http;
use crate::metrics::Metrics;
use crate::{agent, cluster};

pub fn run(args: &RunArgs) -> Outcome {
    let config = load(args).map_err(|error| match error {
        error if error.is_wrong_use() => Failure::WrongUse(error.to_string()),
        error => Failure::Failed(error.into()),
    })?;
    match &config.action {
        Action::Run => start(config),
        Action::Cleanup => {
            // kube-proxy's own flag removes its rules (I10).
            cleanup::remove(&config.run_dir, config.cgroup.as_deref(), config.bpffs.as_deref(), true)
        }
        Action::InitOnly => init_only(&config),
        Action::WriteConfig(path) => write_config(&config, path),
    }
}

/// I9: what an init container does, so that the agent's own gets by without writable sysctls. Its failure is the pod's.
fn init_only(config: &Config) -> Outcome {
    log(&config.logging);
    let mut failed = agent::tune_conntrack(&config.conntrack);
    if config.shortcuts != Shortcuts::Off {
        failed.extend(agent::make_conntrack_liberal(true).err());
    }
    let failed: Vec<_> = failed.iter().map(ToString::to_string).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(anyhow!(failed.join("; ")).into())
}

fn start(config: Config) -> Outcome {
    share_heap();
    log(&config.logging);
    raise_descriptors();
    privileges()?;
    abort_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("threads cannot be started; see the limits of processes and memory")?;
    // Whoever asks the agent to end while it starts must not have to ask again.
    let stops = runtime.block_on(async { agent::Stops::listen() })?;
    runtime.block_on(cluster::check(&config.source))?;
    let dir = RunDir::new(&config.run_dir);
    let lock = dir.lock()?.alone()?;
    // Before anything is attached: who cannot be asked is not to begin.
    let control = runtime.block_on(async { Listener::bind(&dir, &lock) })?;
    set_oom_score(config.oom_score_adj);
    let host =
        nix::unistd::gethostname().context("the host's name cannot be read; give --hostname-override")?;
    let node: Arc<str> = config.node_name(&host.to_string_lossy()).into();
    let metrics = Arc::new(Metrics::new());
    let listing = agent::list(&config, node.clone(), &metrics, runtime.handle());
    let started = match agent::start(&config, &metrics, listing, runtime.handle()) {
        Ok(started) => started,
        Err(error) => {
            runtime.shutdown_background();
            return Err(error.into());
        }
    };
    // Not before: a start that fails tells one thing, and changes none.
    for warning in &config.warnings {
        warn!("{warning}");
    }
    // Sluice's own connections do not depend on these: what kube-proxy dies of is told and lived with.
    for untuned in agent::tune_conntrack(&config.conntrack) {
        warn!("{untuned}");
    }
    let ended = runtime.block_on(agent::serve(config, node, started, metrics, control, stops));
    drop(lock);
    // Whatever still runs owns nothing that has to be put away: the data plane stays as it is.
    runtime.shutdown_background();
    Ok(ended?)
}

/// One line for each meaningful change; JSON by flag. `RUST_LOG` overrides the verbosity.
fn log(logging: &Logging) {
    // The client library reports each failed request; the source tells the same once, with what to do about it.
    let directives = match logging.verbosity {
        0 | 1 => "warn,kube_client=off,kube_runtime=off,proxy_userspace=info",
        2..=4 => "warn,kube_client=off,kube_runtime=off,proxy_userspace=debug",
        _ => "warn,proxy_userspace=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A log that cannot be written ends nothing (L-25): to tell of it in the same place would be a panic.
    let log = log.log_internal_errors(false);
    // Only the first subscriber of a process counts; a second one would be a test's.
    drop(if logging.json {
        log.json().try_init()
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).try_init()
    });
}

/// As Go's runtime does for kube-proxy: the soft limit is 1,024 nearly everywhere, for the sake of select(2), which is not used
/// here. Maps, chunks of slots and connections may need more.
fn raise_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        debug!(%error, "the limit of open files cannot be raised");
    }
}

/// A panic in any task ends the process: half an agent would look alive (L-18). The release profile aborts by
/// itself; this holds for every build.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// Capabilities by number (include/uapi/linux/capability.h) and what they are needed for.
const CAPABILITIES: [(u32, &str, &str); 3] = [
    (12, "CAP_NET_ADMIN", "to attach programs to devices"),
    (38, "CAP_PERFMON", "to load programs that read kernel pointers"),
    (39, "CAP_BPF", "to load programs and maps"),
];
const CAP_SYS_ADMIN: u32 = 21;

pub fn privileges() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("/proc/self/status; mount /proc")?;
    let field = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = field.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let missing = missing(effective.context("/proc/self/status: no CapEff; mount the real /proc")?);
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow!(
        "capabilities: {} missing; run as root, or add them to the container's securityContext",
        missing.join(", ")
    ))
}

/// CAP_SYS_ADMIN stands in for what was split off from it.
fn missing(effective: u64) -> Vec<String> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    let stand_in = |bit: u32| bit >= 38 && has(CAP_SYS_ADMIN);
    CAPABILITIES
        .iter()
        .filter(|(bit, ..)| !has(*bit) && !stand_in(*bit))
        .map(|(_, name, why)| format!("{name} ({why})"))
        .collect()
}

/// I19: a failure is only logged, and as quietly as kube-proxy does it. In most containers it fails.
fn set_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        debug!(%error, score, "cannot set oom_score_adj; CAP_SYS_RESOURCE allows it");
    }
}

/// JSON is YAML.
fn write_config(config: &Config, path: &Path) -> Outcome {
    let text = serde_json::to_string_pretty(&http::configuration(config))?;
    std::fs::write(path, text + "\n")
        .with_context(|| format!("--write-config-to {}: give a file that can be written", path.display()))?;
    writeln!(std::io::stdout(), "wrote configuration to {}", path.display())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_limited_by_the_hard_limit_alone() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        raise_descriptors();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn missing_capabilities_are_named() {
        let bits = |bits: &[u32]| bits.iter().fold(0, |mask, bit| mask | 1 << bit);
        let names = |mask| {
            missing(mask)
                .iter()
                .map(|m| m.split(' ').next().unwrap().to_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let cases = [
            ("all", u64::MAX, ""),
            ("exactly what is needed", bits(&[12, 38, 39]), ""),
            ("before they were split", bits(&[12, 21]), ""),
            ("none", 0, "CAP_NET_ADMIN CAP_PERFMON CAP_BPF"),
            ("no CAP_BPF", bits(&[12, 38]), "CAP_BPF"),
            ("CAP_SYS_ADMIN is no CAP_NET_ADMIN", bits(&[21]), "CAP_NET_ADMIN"),
        ];
        for (name, mask, want) in cases {
            assert_eq!(names(mask), want, "{name}");
        }
    }
}
