//! The kernel's connection tracking, as kube-proxy sets it at start (G7). Sluice does not need it for its own flows; the
//! node's other connections do, and what reads these settings finds what it found under kube-proxy.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tracing::info;

use crate::config::Conntrack;
use crate::status::Trouble;

const SYSCTLS: &str = "proc/sys/net/netfilter";
const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const HASH_SIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const CPUS: &str = "sys/devices/system/cpu/online";

/// One number in a file of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    /// Below the root directory.
    file: String,
    value: u64,
    /// A larger one is left alone.
    at_least: bool,
}

/// Writes what differs. Returns what could not be written; a node without connection tracking has nothing to set.
#[must_use]
pub fn tune(settings: &Conntrack) -> Vec<Trouble> {
    tune_below(Path::new("/"), settings)
}

fn tune_below(root: &Path, settings: &Conntrack) -> Vec<Trouble> {
    let Ok(max) = std::fs::metadata(root.join(MAX)) else { return Vec::new() };
    let online = std::fs::read_to_string(root.join(CPUS)).unwrap_or_default();
    // The table is all network namespaces' together: in others than the first its size shows, and nobody may set it.
    let shared = |setting: &&Setting| setting.file == MAX || setting.file == HASH_SIZE;
    let ours = |setting: &&Setting| !(max.permissions().readonly() && shared(setting));
    let wanted = wanted(settings, cpus(&online));
    wanted.iter().filter(ours).filter_map(|setting| write(root, setting).err()).collect()
}

/// Sees to it that connection tracking takes TCP segments as they come, whatever it has missed of their connection; or puts back
/// that it does not. Whether that is news. Nothing to do where there is none.
pub fn be_liberal(be: bool) -> Result<bool, Trouble> {
    be_liberal_below(Path::new("/"), be)
}

fn be_liberal_below(root: &Path, be: bool) -> Result<bool, Trouble> {
    let setting = liberal(be);
    if root.join(&setting.file).exists() { write(root, &setting) } else { Ok(false) }
}

fn liberal(be: bool) -> Setting {
    Setting { file: format!("{SYSCTLS}/nf_conntrack_tcp_be_liberal"), value: be.into(), at_least: false }
}

fn wanted(settings: &Conntrack, cpus: u64) -> Vec<Setting> {
    let sysctl = |name: &str, value| Setting { file: format!("{SYSCTLS}/{name}"), value, at_least: false };
    let mut wanted = Vec::new();
    if settings.max_per_core > 0 {
        let max = (u64::from(settings.max_per_core) * cpus).max(settings.min.into());
        wanted.push(Setting { file: MAX.to_owned(), value: max, at_least: false });
        wanted.push(Setting { file: HASH_SIZE.to_owned(), value: max / 4, at_least: true });
    }
    if settings.tcp_be_liberal {
        wanted.push(liberal(true));
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", settings.tcp_established),
        ("nf_conntrack_tcp_timeout_close_wait", settings.tcp_close_wait),
        ("nf_conntrack_udp_timeout", settings.udp),
        ("nf_conntrack_udp_timeout_stream", settings.udp_stream),
    ];
    let given = timeouts.into_iter().filter(|(_, timeout)| *timeout > Duration::ZERO);
    wanted.extend(given.map(|(name, timeout)| sysctl(name, timeout.as_secs())));
    wanted
}

/// How many CPUs a list such as `0-3,8` names; at least one.
fn cpus(online: &str) -> u64 {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        last.checked_sub(first).map(|more| more + 1)
    };
    online.trim().split(',').filter_map(range).sum::<u64>().max(1)
}

/// Whether it was another value.
fn write(root: &Path, setting: &Setting) -> Result<bool, Trouble> {
    let Setting { file, value, at_least } = setting;
    let path = root.join(file);
    let trouble = |error: std::io::Error| {
        let next = match error.kind() {
            ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
                "set it on the node, give the container privileges or an init container with --init-only, or ask for 0, which leaves it alone"
            }
            _ => "see whether the kernel has connection tracking, or ask for 0, which leaves it alone",
        };
        Trouble::new(format_args!("/{file} = {value}"), error, next)
    };
    let text = std::fs::read_to_string(&path).map_err(trouble)?;
    let now = text.trim().parse::<u64>().ok();
    if now == Some(*value) || (*at_least && now.is_some_and(|now| now >= *value)) {
        return Ok(false);
    }
    std::fs::write(&path, value.to_string()).map_err(trouble)?;
    info!(file = format_args!("/{file}"), value, before = text.trim(), "set");
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    const DEFAULT: Conntrack = Conntrack {
        max_per_core: 32_768,
        min: 131_072,
        tcp_established: Duration::from_secs(24 * 3600),
        tcp_close_wait: HOUR,
        tcp_be_liberal: false,
        udp: Duration::ZERO,
        udp_stream: Duration::ZERO,
    };

    /// G9: connections of which one side has closed are tracked for an hour.
    #[test]
    fn g7_which_settings() {
        let default = "nf_conntrack_max=131072 hashsize>=32768 nf_conntrack_tcp_timeout_established=86400 nf_conntrack_tcp_timeout_close_wait=3600";
        let off = Conntrack {
            max_per_core: 0,
            tcp_established: Duration::ZERO,
            tcp_close_wait: Duration::ZERO,
            ..DEFAULT
        };
        let all = Conntrack { tcp_be_liberal: true, udp: HOUR, udp_stream: 2 * HOUR, ..off };
        let cases = [
            ("defaults", DEFAULT, 2, default.to_owned()),
            ("more than the minimum", DEFAULT, 8, default.replace("131072", "262144").replace("32768", "65536")),
            ("nothing asked for", off, 8, String::new()),
            (
                "what is set only if asked for",
                all,
                1,
                "nf_conntrack_tcp_be_liberal=1 nf_conntrack_udp_timeout=3600 nf_conntrack_udp_timeout_stream=7200"
                    .to_owned(),
            ),
        ];
        for (name, settings, cpus, want) in cases {
            let told: Vec<_> = wanted(&settings, cpus)
                .iter()
                .map(|setting| {
                    let name = setting.file.rsplit('/').next().unwrap();
                    format!("{name}{}{}", if setting.at_least { ">=" } else { "=" }, setting.value)
                })
                .collect();
            assert_eq!(told.join(" "), want, "{name}");
        }
    }

    #[test]
    fn shortcuts_need_liberal_connection_tracking_where_there_is_any() {
        let root = std::env::temp_dir().join(format!("sluice-liberal-{}", std::process::id()));
        let file = root.join(liberal(true).file);
        assert_eq!(be_liberal_below(&root, true), Ok(false), "no connection tracking");
        std::fs::create_dir_all(&file).unwrap();
        let told = be_liberal_below(&root, true).unwrap_err().to_string();
        assert!(told.starts_with("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal = 1: "), "{told}");
        std::fs::remove_dir(&file).unwrap();
        std::fs::write(&file, "0\n").unwrap();
        for (be, news, text) in [(true, true, "1"), (true, false, "1"), (false, true, "0")] {
            assert_eq!(be_liberal_below(&root, be), Ok(news));
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn lists_of_cpus() {
        for (online, count) in [("0-1\n", 2), ("0", 1), ("0-3,8,10-11", 7), ("", 1), ("3-1", 1)] {
            assert_eq!(cpus(online), count, "{online}");
        }
    }

    #[test]
    fn g7_only_what_differs_is_written_and_what_fails_is_told() {
        let root = std::env::temp_dir().join(format!("sluice-conntrack-{}", std::process::id()));
        assert!(tune_below(&root, &DEFAULT).is_empty(), "no connection tracking");
        let put = |file: &str, text: &str| {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let get = |file: &str| std::fs::read_to_string(root.join(file)).unwrap();
        let sysctl = |name: &str| format!("{SYSCTLS}/{name}");
        put(CPUS, "0-1\n");
        put(HASH_SIZE, "65536\n");
        put(&sysctl("nf_conntrack_max"), "262144\n");
        put(&sysctl("nf_conntrack_tcp_timeout_established"), "86400\n");
        let failed = tune_below(&root, &DEFAULT);
        assert_eq!(get(&sysctl("nf_conntrack_max")), "131072", "a larger maximum too, as kube-proxy does it");
        assert_eq!(get(HASH_SIZE), "65536\n", "larger than needed");
        assert_eq!(get(&sysctl("nf_conntrack_tcp_timeout_established")), "86400\n", "not written");
        assert_eq!(failed.len(), 1, "{failed:?}");
        let mut mode = std::fs::metadata(root.join(MAX)).unwrap().permissions();
        mode.set_readonly(true);
        std::fs::set_permissions(root.join(MAX), mode).unwrap();
        assert_eq!(
            tune_below(&root, &Conntrack { min: 1 << 30, tcp_close_wait: Duration::ZERO, ..DEFAULT }),
            []
        );
        let told = failed[0].to_string();
        assert!(
            told.starts_with("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait = 3600: "),
            "{told}"
        );
        std::fs::remove_dir_all(root).unwrap();
    }
}
