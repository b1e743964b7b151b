//! Which flag sets which field of the configuration file.

use super::RunArgs;
use super::file::Table;

/// Field of the configuration file and the flag that sets it.
const FLAGS: [(&str, &str); 39] = [
    ("clientConnection.kubeconfig", "--kubeconfig"),
    ("bindAddress", "--bind-address"),
    ("bindAddressHardFail", "--bind-address-hard-fail"),
    ("healthzBindAddress", "--healthz-bind-address"),
    ("metricsBindAddress", "--metrics-bind-address"),
    ("featureGates", "--feature-gates"),
    ("mode", "--proxy-mode"),
    ("iptables.masqueradeBit", "--iptables-masquerade-bit"),
    ("nftables.masqueradeBit", "--iptables-masquerade-bit"),
    ("iptables.masqueradeAll", "--masquerade-all"),
    ("nftables.masqueradeAll", "--masquerade-all"),
    ("iptables.localhostNodePorts", "--iptables-localhost-nodeports"),
    ("iptables.syncPeriod", "--iptables-sync-period"),
    ("nftables.syncPeriod", "--iptables-sync-period"),
    ("iptables.minSyncPeriod", "--iptables-min-sync-period"),
    ("nftables.minSyncPeriod", "--iptables-min-sync-period"),
    ("ipvs.syncPeriod", "--ipvs-sync-period"),
    ("ipvs.minSyncPeriod", "--ipvs-min-sync-period"),
    ("ipvs.scheduler", "--ipvs-scheduler"),
    ("detectLocalMode", "--detect-local-mode"),
    ("detectLocal.bridgeInterface", "--pod-bridge-interface"),
    ("detectLocal.interfaceNamePrefix", "--pod-interface-name-prefix"),
    ("clusterCIDR", "--cluster-cidr"),
    ("nodePortAddresses", "--nodeport-addresses"),
    ("oomScoreAdj", "--oom-score-adj"),
    ("conntrack.maxPerCore", "--conntrack-max-per-core"),
    ("conntrack.min", "--conntrack-min"),
    ("conntrack.tcpEstablishedTimeout", "--conntrack-tcp-timeout-established"),
    ("conntrack.tcpCloseWaitTimeout", "--conntrack-tcp-timeout-close-wait"),
    ("conntrack.tcpBeLiberal", "--conntrack-tcp-be-liberal"),
    ("conntrack.udpTimeout", "--conntrack-udp-timeout"),
    ("conntrack.udpStreamTimeout", "--conntrack-udp-timeout-stream"),
    ("clientConnection.qps", "--kube-api-qps"),
    ("clientConnection.burst", "--kube-api-burst"),
    ("configSyncPeriod", "--config-sync-period"),
    ("ipvs.excludeCIDRs", "--ipvs-exclude-cidrs"),
    ("ipvs.tcpTimeout", "--ipvs-tcp-timeout"),
    ("ipvs.tcpFinTimeout", "--ipvs-tcpfin-timeout"),
    ("ipvs.udpTimeout", "--ipvs-udp-timeout"),
];

/// The flag that sets a field.
pub fn flag_of(field: &str) -> Option<&'static str> {
    FLAGS.iter().find(|(name, _)| *name == field).map(|(_, flag)| *flag)
}

/// The flags that were given, as if they stood in a file.
pub fn flags(args: &RunArgs) -> Table {
    let RunArgs { proxy: args, ignored, .. } = args;
    let boolean = |value: Option<bool>| value.map(|on| on.to_string());
    let list = |items: &[String]| Some(items.join(",")).filter(|text| !text.is_empty());
    let value = |flag: &str| match flag {
        "--kubeconfig" => args.kubeconfig.as_ref().map(|path| path.display().to_string()),
        "--bind-address" => args.bind_address.clone(),
        "--bind-address-hard-fail" => boolean(args.bind_address_hard_fail),
        "--healthz-bind-address" => args.healthz_bind_address.clone(),
        "--metrics-bind-address" => args.metrics_bind_address.clone(),
        "--feature-gates" => list(&args.feature_gates),
        "--proxy-mode" => args.proxy_mode.clone(),
        "--iptables-masquerade-bit" => args.iptables_masquerade_bit.clone(),
        "--masquerade-all" => boolean(args.masquerade_all),
        "--iptables-localhost-nodeports" => boolean(args.iptables_localhost_nodeports),
        "--iptables-sync-period" => args.iptables_sync_period.clone(),
        "--iptables-min-sync-period" => args.iptables_min_sync_period.clone(),
        "--ipvs-sync-period" => args.ipvs_sync_period.clone(),
        "--ipvs-min-sync-period" => args.ipvs_min_sync_period.clone(),
        "--ipvs-scheduler" => args.ipvs_scheduler.clone(),
        "--detect-local-mode" => args.detect_local_mode.clone(),
        "--pod-bridge-interface" => args.pod_bridge_interface.clone(),
        "--pod-interface-name-prefix" => args.pod_interface_name_prefix.clone(),
        "--cluster-cidr" => args.cluster_cidr.clone(),
        "--nodeport-addresses" => list(&args.nodeport_addresses),
        "--oom-score-adj" => args.oom_score_adj.clone(),
        "--conntrack-max-per-core" => args.conntrack_max_per_core.clone(),
        "--conntrack-min" => args.conntrack_min.clone(),
        "--conntrack-tcp-timeout-established" => args.conntrack_tcp_timeout_established.clone(),
        "--conntrack-tcp-timeout-close-wait" => args.conntrack_tcp_timeout_close_wait.clone(),
        "--conntrack-tcp-be-liberal" => boolean(args.conntrack_tcp_be_liberal),
        "--conntrack-udp-timeout" => args.conntrack_udp_timeout.clone(),
        "--conntrack-udp-timeout-stream" => args.conntrack_udp_timeout_stream.clone(),
        "--kube-api-qps" => ignored.kube_api_qps.clone(),
        "--kube-api-burst" => ignored.kube_api_burst.clone(),
        "--config-sync-period" => ignored.config_sync_period.clone(),
        "--ipvs-exclude-cidrs" => ignored.ipvs_exclude_cidrs.clone(),
        "--ipvs-tcp-timeout" => ignored.ipvs_tcp_timeout.clone(),
        "--ipvs-tcpfin-timeout" => ignored.ipvs_tcpfin_timeout.clone(),
        "--ipvs-udp-timeout" => ignored.ipvs_udp_timeout.clone(),
        _ => None,
    };
    FLAGS
        .iter()
        .filter_map(|(field, flag)| Some((field.to_string(), value(flag)?.trim().to_owned())))
        .filter(|(_, text)| !text.is_empty())
        .collect()
}
