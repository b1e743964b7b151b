//! Command line flags of `sluice run`: kube-proxy's own (section 2.3 of its reference) and Sluice's.

use std::path::PathBuf;

use clap::Args;

/// All flags of the agent. A flag that was not given is `None` (or empty), so that a configuration file and the
/// defaults can be told from the command line. Values are checked by [`super::load`].
#[derive(Args, Clone, Debug, Default)]
pub struct RunArgs {
    #[command(flatten)]
    pub sluice: SluiceArgs,
    #[command(flatten)]
    pub proxy: ProxyArgs,
    #[command(flatten)]
    pub ignored: IgnoredArgs,
}

/// Flags that kube-proxy does not have.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Sluice")]
pub struct SluiceArgs {
    /// No API server: Services, EndpointSlices, Nodes, ServiceCIDRs from YAML or JSON files in DIR, followed live
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where socket programs are attached [default: root of cgroup v2 as seen]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Where maps are pinned [default: /sys/fs/bpf if mounted, else none]
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,
    /// Holds the control socket
    #[arg(long, value_name = "DIR", default_value = "/run/sluice")]
    pub run_dir: PathBuf,
    /// Devices to serve: `auto`, or names separated by commas; a name may be a prefix ending in `*`
    #[arg(long, value_name = "auto|NAME[,...]", default_value = "auto")]
    pub edges: String,
    /// Whose sockets are translated at connect time: off, host, all
    #[arg(long, value_name = "WHOSE", default_value = "host")]
    pub sockets: String,
    /// How much of the stack translated packets may skip: off, established, always [default: established]
    #[arg(long, value_name = "MODE")]
    pub shortcuts: Option<String>,
    /// Entries of the flow table of each family [default: 32768 a core, at least 131072]
    #[arg(long, value_name = "N")]
    pub flows: Option<String>,
    /// How much the other tables hold: services, frontends, endpoints, slots, addresses, ranges, affinity
    #[arg(long, value_name = "TABLE=N[,...]")]
    pub limits: Vec<String>,
}

/// kube-proxy's flags that have a meaning here.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "kube-proxy")]
pub struct ProxyArgs {
    /// Configuration file (KubeProxyConfiguration); wins over nearly all other kube-proxy flags
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub config: Option<PathBuf>,
    /// Write the default configuration to FILE and exit
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub write_config_to: Option<PathBuf>,
    /// Remove every trace from the node and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub cleanup: Option<bool>,
    /// Do only what needs the most privileges, the conntrack settings, and exit
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub init_only: Option<bool>,
    /// How to reach the API server [default: the pod's ServiceAccount]
    #[arg(long, value_name = "FILE", value_parser = path)]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server, in place of the kubeconfig's
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// This node's address, if not unspecified; nothing listens on it
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<String>,
    /// Whether a port that cannot be bound ends the agent
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub bind_address_hard_fail: Option<bool>,
    /// Address of the health server [default: 0.0.0.0:10256]
    #[arg(long, value_name = "IP:PORT")]
    pub healthz_bind_address: Option<String>,
    /// Address of the metrics server [default: 127.0.0.1:10249]
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_bind_address: Option<String>,
    /// Port of the health server; 0 disables it (deprecated)
    #[arg(long, value_name = "PORT")]
    pub healthz_port: Option<String>,
    /// Port of the metrics server; 0 disables it (deprecated)
    #[arg(long, value_name = "PORT")]
    pub metrics_port: Option<String>,
    /// Feature gates: NAME=BOOL[,...]
    #[arg(long, value_name = "NAME=BOOL[,...]")]
    pub feature_gates: Vec<String>,
    /// Compatibility profile: iptables, ipvs, nftables
    #[arg(long, value_name = "MODE")]
    pub proxy_mode: Option<String>,
    /// Bit of the packet mark that asks for masquerading [default: 14]
    #[arg(long, value_name = "BIT")]
    pub iptables_masquerade_bit: Option<String>,
    /// Masquerade all traffic to ClusterIPs
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub masquerade_all: Option<bool>,
    /// Serve NodePorts on loopback addresses
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, value_name = "BOOL")]
    pub iptables_localhost_nodeports: Option<bool>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub iptables_sync_period: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub iptables_min_sync_period: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_sync_period: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_min_sync_period: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub ipvs_scheduler: Option<String>,
    /// How local traffic is told: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix
    #[arg(long, value_name = "MODE")]
    pub detect_local_mode: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub pod_bridge_interface: Option<String>,
    #[arg(long, value_name = "PREFIX", hide = true)]
    pub pod_interface_name_prefix: Option<String>,
    /// The cluster's pods: one CIDR, or one per family
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub cluster_cidr: Option<String>,
    /// Addresses that serve NodePorts: `primary` or CIDRs
    #[arg(long, value_name = "CIDR[,...]", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,
    /// How readily the kernel kills the agent for its memory, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub oom_score_adj: Option<String>,
    #[arg(long, value_name = "N", hide = true)]
    pub conntrack_max_per_core: Option<String>,
    #[arg(long, value_name = "N", hide = true)]
    pub conntrack_min: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub conntrack_tcp_timeout_established: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub conntrack_tcp_timeout_close_wait: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub conntrack_tcp_be_liberal: Option<bool>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub conntrack_udp_timeout: Option<String>,
    #[arg(long, value_name = "DURATION", hide = true)]
    pub conntrack_udp_timeout_stream: Option<String>,
    /// Verbosity of the log, 0 to 10
    #[arg(short, long = "v", value_name = "N")]
    pub v: Option<String>,
    /// Format of the log: text, json
    #[arg(long, value_name = "FORMAT")]
    pub logging_format: Option<String>,
}

/// kube-proxy's flags, present and past, that change nothing here: accepted so that a manifest written for
/// kube-proxy starts Sluice.
#[derive(Args, Clone, Debug, Default)]
pub struct IgnoredArgs {
    #[arg(long, hide = true)]
    pub kube_api_content_type: Option<String>,
    #[arg(long, hide = true)]
    pub kube_api_qps: Option<String>,
    #[arg(long, hide = true)]
    pub kube_api_burst: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub profiling: Option<bool>,
    #[arg(long, hide = true)]
    pub show_hidden_metrics_for_version: Option<String>,
    #[arg(long, hide = true)]
    pub proxy_port_range: Option<String>,
    #[arg(long, hide = true)]
    pub ipvs_exclude_cidrs: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub ipvs_strict_arp: Option<bool>,
    #[arg(long, hide = true)]
    pub ipvs_tcp_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub ipvs_tcpfin_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub ipvs_udp_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub config_sync_period: Option<String>,
    #[arg(long, hide = true)]
    pub vmodule: Option<String>,
    #[arg(long, hide = true)]
    pub log_flush_frequency: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub log_text_split_stream: Option<bool>,
    #[arg(long, hide = true)]
    pub log_text_info_buffer_size: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub log_json_split_stream: Option<bool>,
    #[arg(long, hide = true)]
    pub log_json_info_buffer_size: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub logtostderr: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub alsologtostderr: Option<bool>,
    #[arg(long, hide = true)]
    pub log_dir: Option<String>,
    #[arg(long, hide = true)]
    pub log_file: Option<String>,
    #[arg(long, hide = true)]
    pub log_file_max_size: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub skip_headers: Option<bool>,
    #[arg(long, hide = true)]
    pub stderrthreshold: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub add_dir_header: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub one_output: Option<bool>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub skip_log_headers: Option<bool>,
    #[arg(long, hide = true)]
    pub log_backtrace_at: Option<String>,
    #[arg(long, hide = true)]
    pub udp_timeout: Option<String>,
    #[arg(long, hide = true)]
    pub conntrack_max: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool, hide = true)]
    pub cleanup_ipvs: Option<bool>,
}

/// Go's spellings of a boolean.
pub(super) fn go_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("write true or false"),
    }
}

/// As in Go, an empty one is none; see [`super::load`].
#[expect(clippy::unnecessary_wraps, reason = "the shape of a parser")]
fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(text.into())
}

impl IgnoredArgs {
    /// Flags that were given and whose user may expect an effect: one warning each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let gone = [
            ("--logtostderr", self.logtostderr.is_some()),
            ("--alsologtostderr", self.alsologtostderr.is_some()),
            ("--log-dir", self.log_dir.is_some()),
            ("--log-file", self.log_file.is_some()),
            ("--log-file-max-size", self.log_file_max_size.is_some()),
            ("--skip-headers", self.skip_headers.is_some()),
            ("--stderrthreshold", self.stderrthreshold.is_some()),
            ("--add-dir-header", self.add_dir_header.is_some()),
            ("--one-output", self.one_output.is_some()),
            ("--skip-log-headers", self.skip_log_headers.is_some()),
            ("--log-backtrace-at", self.log_backtrace_at.is_some()),
            ("--udp-timeout", self.udp_timeout.is_some()),
            ("--conntrack-max", self.conntrack_max.is_some()),
            ("--cleanup-ipvs", self.cleanup_ipvs.is_some()),
            ("--vmodule", self.vmodule.is_some()),
            ("--profiling", self.profiling == Some(true)),
        ];
        gone.iter().filter(|(_, given)| *given).map(|(flag, _)| format!("{flag} has no effect")).collect()
    }
}
