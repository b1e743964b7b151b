//! `sluice run` under the name `kube-proxy`, with the manners of kube-proxy's command line.

use std::ffi::OsString;
use std::io::Write;

use clap::{Args, CommandFactory, FromArgMatches};

use super::{Failure, Outcome, Sluice, run};
use crate::config::RunArgs;

pub fn main(arguments: Vec<OsString>) -> Outcome {
    match parse(arguments).unwrap_or_else(|wrong| wrong.exit()) {
        Asked::Version => Ok(writeln!(std::io::stdout(), "sluice {}", env!("CARGO_PKG_VERSION"))?),
        Asked::Run(args) => run::run(&args),
        Asked::Unsound(why) => Err(Failure::WrongUse(why)),
    }
}

enum Asked {
    Version,
    Run(Box<RunArgs>),
    Unsound(String),
}

fn parse(arguments: Vec<OsString>) -> Result<Asked, clap::Error> {
    let arguments = arguments.into_iter().map(with_dashes);
    let command = RunArgs::augment_args(clap::Command::new("kube-proxy"))
        .about(Sluice::command().get_about().map(ToString::to_string).unwrap_or_default())
        .max_term_width(120)
        // As in Go, the last one counts.
        .args_override_self(true)
        .arg(
            clap::Arg::new("version")
                .long("version")
                .help("Print the version and exit")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(["true", "false", "raw"]),
        );
    let matches = command.try_get_matches_from(arguments)?;
    if matches.get_one::<String>("version").is_some_and(|version| version != "false") {
        return Ok(Asked::Version);
    }
    Ok(match RunArgs::from_arg_matches(&matches) {
        Ok(args) => Asked::Run(Box::new(args)),
        Err(error) => Asked::Unsound(error.to_string()),
    })
}

/// kube-proxy takes `--cluster_cidr` for `--cluster-cidr`.
fn with_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else { return argument };
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    let name = name.replace('_', "-");
    value.map_or_else(|| name.clone(), |value| format!("{name}={value}")).into()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Config, load};

    fn words(line: &str) -> Vec<OsString> {
        std::iter::once("/usr/local/bin/kube-proxy").chain(line.split_whitespace()).map(Into::into).collect()
    }

    fn args(line: &str) -> RunArgs {
        match parse(words(line)) {
            Ok(Asked::Run(args)) => *args,
            Ok(_) => panic!("{line}: nothing to run"),
            Err(error) => panic!("{line}: {error}"),
        }
    }

    fn config(line: &str) -> Config {
        load(&args(line)).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    #[test]
    fn kubeadms_command_line() {
        let args = args("--config=/var/lib/kube-proxy/config.conf --hostname-override=node-1");
        assert_eq!(args.proxy.config, Some(PathBuf::from("/var/lib/kube-proxy/config.conf")));
        assert_eq!(args.proxy.hostname_override.as_deref(), Some("node-1"));
    }

    /// Every flag that kube-proxy 1.36 has on Linux, and those that it had, with a value that it takes.
    const FLAGS: [(&str, &str); 69] = [
        ("bind-address", "0.0.0.0"),
        ("bind-address-hard-fail", "true"),
        ("cleanup", "false"),
        ("cluster-cidr", "10.244.0.0/16"),
        ("config-sync-period", "15m0s"),
        ("conntrack-max-per-core", "32768"),
        ("conntrack-min", "131072"),
        ("conntrack-tcp-be-liberal", "true"),
        ("conntrack-tcp-timeout-close-wait", "1h0m0s"),
        ("conntrack-tcp-timeout-established", "24h0m0s"),
        ("conntrack-udp-timeout", "30s"),
        ("conntrack-udp-timeout-stream", "2m"),
        ("detect-local-mode", "ClusterCIDR"),
        ("feature-gates", "AllAlpha=false,NFTablesProxyMode=true"),
        ("healthz-bind-address", "0.0.0.0:10256"),
        ("healthz-port", "10256"),
        ("hostname-override", "n1"),
        ("init-only", "false"),
        ("iptables-localhost-nodeports", "true"),
        ("iptables-masquerade-bit", "14"),
        ("iptables-min-sync-period", "1s"),
        ("iptables-sync-period", "30s"),
        ("ipvs-exclude-cidrs", "10.0.0.0/8,192.0.2.0/24"),
        ("ipvs-min-sync-period", "0s"),
        ("ipvs-scheduler", "rr"),
        ("ipvs-strict-arp", "true"),
        ("ipvs-sync-period", "30s"),
        ("ipvs-tcp-timeout", "0s"),
        ("ipvs-tcpfin-timeout", "0s"),
        ("ipvs-udp-timeout", "0s"),
        ("kube-api-burst", "10"),
        ("kube-api-content-type", "application/vnd.kubernetes.protobuf"),
        ("kube-api-qps", "5"),
        ("kubeconfig", "/k"),
        ("log-flush-frequency", "5s"),
        ("log-json-info-buffer-size", "0"),
        ("log-json-split-stream", "false"),
        ("log-text-info-buffer-size", "0"),
        ("log-text-split-stream", "false"),
        ("logging-format", "text"),
        ("masquerade-all", "true"),
        ("master", "https://192.0.2.1:6443"),
        ("metrics-bind-address", "127.0.0.1:10249"),
        ("metrics-port", "10249"),
        ("nodeport-addresses", "192.0.2.0/24"),
        ("oom-score-adj", "-999"),
        ("pod-bridge-interface", "br0"),
        ("pod-interface-name-prefix", "cali"),
        ("profiling", "true"),
        ("proxy-mode", "nftables"),
        ("proxy-port-range", "0-0"),
        ("show-hidden-metrics-for-version", "1.35"),
        ("v", "2"),
        ("vmodule", "proxier=4"),
        ("write-config-to", "/w"),
        // Gone since 1.26.
        ("add-dir-header", "true"),
        ("alsologtostderr", "true"),
        ("log-dir", "/var/log"),
        ("log-file", "/var/log/kube-proxy.log"),
        ("log-file-max-size", "1800"),
        ("logtostderr", "true"),
        ("one-output", "false"),
        ("skip-headers", "true"),
        ("skip-log-headers", "true"),
        ("stderrthreshold", "2"),
        ("log-backtrace-at", ":0"),
        // Gone with the userspace proxy.
        ("udp-timeout", "250ms"),
        ("conntrack-max", "0"),
        ("cleanup-ipvs", "true"),
    ];

    const BOOLEANS: [&str; 17] = [
        "bind-address-hard-fail",
        "cleanup",
        "conntrack-tcp-be-liberal",
        "init-only",
        "iptables-localhost-nodeports",
        "ipvs-strict-arp",
        "log-json-split-stream",
        "log-text-split-stream",
        "masquerade-all",
        "profiling",
        "add-dir-header",
        "alsologtostderr",
        "logtostderr",
        "one-output",
        "skip-headers",
        "skip-log-headers",
        "cleanup-ipvs",
    ];

    #[test]
    fn every_flag_in_every_syntax_of_go() {
        for (flag, value) in FLAGS {
            let boolean = BOOLEANS.contains(&flag);
            config(&format!("--{flag}={value}"));
            config(&format!("--{}={value} --{flag}={value}", flag.replace('-', "_")));
            if boolean {
                config(&format!("--{flag} --{flag}=0 --{flag}=F --v=1"));
                assert!(parse(words(&format!("--{flag}=yes"))).is_err(), "{flag}=yes");
                assert!(
                    parse(words(&format!("--{flag} false"))).is_err(),
                    "--{flag} takes no word of its own"
                );
            } else {
                config(&format!("--{flag} {value} -v=3"));
            }
        }
    }

    #[test]
    fn short_forms_empty_values_repetitions() {
        for line in ["-v=4", "-v 4", "-v4", "--v=4", "--v 4", "--v=1 -v=4"] {
            assert_eq!(config(line).logging.verbosity, 4, "{line}");
        }
        assert_eq!(config("--cluster-cidr=10.0.0.0/8 --cluster-cidr=").node_ports, config("").node_ports);
        let empty = "--config= --kubeconfig= --master= --hostname-override= --proxy-mode= --feature-gates= --bind-address=";
        assert_eq!(format!("{:?}", config(empty)), format!("{:?}", config("")));
        assert_eq!(config("--healthz-bind-address=").healthz, None, "H1: switches it off");
        assert_eq!(config("--metrics-bind-address=").metrics, None);
        assert!(!config("--feature-gates=A=true --feature-gates=AllowServiceExternalIPs=false").external_ips);
        for line in ["--no-such-flag", "--v=x", "extra"] {
            let refused = parse(words(line)).map_or(true, |asked| match asked {
                Asked::Run(args) => load(&args).is_err(),
                _ => false,
            });
            assert!(refused, "{line}");
        }
    }

    #[test]
    fn version_is_told_without_running() {
        for line in ["--version", "--version=true", "--version=raw", "--config=/none --version"] {
            assert!(matches!(parse(words(line)), Ok(Asked::Version)), "{line}");
        }
        assert!(matches!(parse(words("--version=false")), Ok(Asked::Run(_))));
    }

    #[test]
    fn underscores_in_flags_are_dashes_in_values_they_stay() {
        let cases = [
            ("--cluster_cidr=10.0.0.0/8", "--cluster-cidr=10.0.0.0/8"),
            ("--config=/var/lib/my_file", "--config=/var/lib/my_file"),
            ("--masquerade_all", "--masquerade-all"),
            ("my_file", "my_file"),
            ("-v_", "-v_"),
        ];
        for (given, want) in cases {
            assert_eq!(with_dashes(given.into()), OsString::from(want), "{given}");
        }
    }
}
