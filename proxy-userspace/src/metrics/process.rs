//! The agent as a process, under the names that every component of Kubernetes has for it.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

/// What /proc/self says when somebody asks, and what this build is.
#[derive(Debug)]
pub struct Process {
    started: Duration,
}

impl Process {
    /// To be made when the process starts.
    pub fn new() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }
}

/// A figure with its unit.
#[derive(Clone, Debug, PartialEq)]
enum Figure {
    Seconds(f64),
    Count(u64),
}

/// As Go names it.
const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

/// USER_HZ, which is a constant of the ABI wherever these programs run.
const TICKS: f64 = 100.0;

/// `utime` and `stime` of /proc/self/stat, after the name in parentheses, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let ticks = |field: Option<&str>| field?.parse::<u32>().ok().map(f64::from);
    Some((ticks(fields.next())? + ticks(fields.next())?) / TICKS)
}

/// A line of /proc/self/status, in bytes.
fn bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// The soft limit in /proc/self/limits.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let read = |name| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let status = read("status");
        let open = fs::read_dir("/proc/self/fd").ok().map(|fds| fds.count() as u64);
        if let Some(seconds) = cpu_seconds(&read("stat")) {
            let help = "Processor time of user and system";
            let name = "process_cpu_seconds";
            encoder
                .encode_descriptor(name, help, None, MetricType::Counter)?
                .encode_counter::<[(&str, &str); 0], _, u64>(&seconds, None)?;
        }
        let figures = [
            ("process_open_fds", "Open file descriptors", open.map(Figure::Count)),
            (
                "process_max_fds",
                "Most file descriptors that may be open",
                max_fds(&read("limits")).map(Figure::Count),
            ),
            (
                "process_resident_memory_bytes",
                "Memory that is resident",
                bytes(&status, "VmRSS:").map(Figure::Count),
            ),
            (
                "process_virtual_memory_bytes",
                "Memory that is addressed",
                bytes(&status, "VmSize:").map(Figure::Count),
            ),
            (
                "process_start_time_seconds",
                "When the process started, since 1970",
                Some(Figure::Seconds(self.started.as_secs_f64())),
            ),
        ];
        for (name, help, figure) in figures {
            let Some(figure) = figure else { continue };
            let mut gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            match figure {
                Figure::Seconds(value) => gauge.encode_gauge(&value)?,
                Figure::Count(value) => gauge.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))?,
            }
        }
        let mut part = env!("CARGO_PKG_VERSION").split('.');
        let labels = [
            ("build_date", ""),
            ("compiler", "rustc"),
            ("git_commit", ""),
            ("git_tree_state", ""),
            ("git_version", concat!("v", env!("CARGO_PKG_VERSION"))),
            ("go_version", ""),
            ("major", part.next().unwrap_or_default()),
            ("minor", part.next().unwrap_or_default()),
            ("platform", PLATFORM),
        ];
        let help = "This build of Sluice";
        encoder
            .encode_descriptor("kubernetes_build_info", help, None, MetricType::Gauge)?
            .encode_family(&labels)?
            .encode_gauge(&1_i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_proc() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 100 1 2";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        let status = "Name:\tsluice\nVmSize:\t    2048 kB\nVmRSS:\t      12 kB\n";
        assert_eq!((bytes(status, "VmSize:"), bytes(status, "VmRSS:")), (Some(2 << 20), Some(12 << 10)));
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024   524288   files\n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(
            (cpu_seconds(""), bytes("", "VmRSS:"), max_fds("Max open files unlimited")),
            (None, None, None)
        );
    }
}
