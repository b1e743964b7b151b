use std::time::Duration;

use serde_json::{Value, json};

use crate::config::{Config, DetectLocal, NodePortAddresses, Profile, Source};

/// The configuration in force, in the words of KubeProxyConfiguration (H11).
#[must_use]
pub fn configuration(config: &Config) -> Value {
    let kubeconfig = match &config.source {
        Source::Kubernetes { kubeconfig: Some(path), .. } => path.display().to_string(),
        Source::Kubernetes { .. } | Source::Manifests(_) => String::new(),
    };
    let (mode, bridge, prefix) = match &config.detect_local {
        DetectLocal::ClusterCidr { .. } => ("ClusterCIDR", "", ""),
        DetectLocal::NodeCidr => ("NodeCIDR", "", ""),
        DetectLocal::BridgeInterface(name) => ("BridgeInterface", name.as_str(), ""),
        DetectLocal::InterfaceNamePrefix(prefix) => ("InterfaceNamePrefix", "", prefix.as_str()),
    };
    let mut value = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "iptables": {"localhostNodePorts": config.node_ports.localhost},
        "clientConnection": {"kubeconfig": kubeconfig},
        "logging": {
            "format": if config.logging.json { "json" } else { "text" },
            "verbosity": config.logging.verbosity,
        },
        "hostnameOverride": config.hostname_override.as_deref().unwrap_or_default(),
        "bindAddress": config.node_ip.map_or_else(|| "0.0.0.0".to_owned(), |ip| ip.to_string()),
        "healthzBindAddress": config.healthz.map(|at| at.to_string()).unwrap_or_default(),
        "metricsBindAddress": config.metrics.map(|at| at.to_string()).unwrap_or_default(),
        "bindAddressHardFail": config.bind_hard_fail,
        "mode": profile(config.profile),
        "detectLocalMode": mode,
        "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
        "clusterCIDR": cluster_cidr(&config.detect_local),
        "nodePortAddresses": node_port_addresses(&config.node_ports.addresses),
        "oomScoreAdj": config.oom_score_adj,
        "conntrack": {
            "maxPerCore": config.conntrack.max_per_core,
            "min": config.conntrack.min,
            "tcpEstablishedTimeout": go(config.conntrack.tcp_established),
            "tcpCloseWaitTimeout": go(config.conntrack.tcp_close_wait),
            "tcpBeLiberal": config.conntrack.tcp_be_liberal,
            "udpTimeout": go(config.conntrack.udp),
            "udpStreamTimeout": go(config.conntrack.udp_stream),
        },
    });
    let own = profile(config.profile);
    value[own]["syncPeriod"] = go(config.sync.period).into();
    value[own]["minSyncPeriod"] = go(config.sync.min).into();
    // kube-proxy's ipvs mode masquerades by rules of iptables.
    let masquerade = if config.profile == Profile::Ipvs { profile(Profile::Iptables) } else { own };
    value[masquerade]["masqueradeBit"] = config.masquerade_bit.into();
    value[masquerade]["masqueradeAll"] = config.masquerade_all.into();
    if !config.external_ips {
        value["featureGates"]["AllowServiceExternalIPs"] = false.into();
    }
    value
}

const fn profile(profile: Profile) -> &'static str {
    match profile {
        Profile::Iptables => "iptables",
        Profile::Ipvs => "ipvs",
        Profile::Nftables => "nftables",
    }
}

fn cluster_cidr(detect: &DetectLocal) -> String {
    let DetectLocal::ClusterCidr { v4, v6 } = detect else { return String::new() };
    let cidrs = v4.iter().map(ToString::to_string).chain(v6.iter().map(ToString::to_string));
    cidrs.collect::<Vec<_>>().join(",")
}

fn node_port_addresses(addresses: &NodePortAddresses) -> Value {
    match addresses {
        NodePortAddresses::All => Value::Null,
        NodePortAddresses::Primary => json!(["primary"]),
        NodePortAddresses::Cidrs(cidrs) => cidrs.iter().map(ToString::to_string).collect(),
    }
}

/// As Go writes a duration of a millisecond or more: `250ms`, `1.5s`, `1h0m0s`.
fn go(duration: Duration) -> String {
    let (whole, rest) = (duration.as_secs(), duration.subsec_millis());
    if whole == 0 && rest > 0 {
        return format!("{rest}ms");
    }
    let (hours, minutes) = (whole / 3_600, whole / 60 % 60);
    let seconds = Duration::new(whole % 60, duration.subsec_nanos()).as_secs_f64();
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ProxyArgs, RunArgs, load};

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let cases = [
            (0, "0s"),
            (250, "250ms"),
            (1_500, "1.5s"),
            (30_000, "30s"),
            (90_000, "1m30s"),
            (3_600_000, "1h0m0s"),
            (86_400_000, "24h0m0s"),
        ];
        for (milliseconds, want) in cases {
            assert_eq!(go(Duration::from_millis(milliseconds)), want);
        }
    }

    #[test]
    fn what_configz_shows_can_be_read_as_a_configuration_file() {
        let args = |proxy| {
            let mut args = RunArgs { proxy, ..RunArgs::default() };
            args.sluice.edges = "auto".to_owned();
            args.sluice.sockets = "host".to_owned();
            args
        };
        for mode in ["iptables", "ipvs", "nftables"] {
            let proxy = ProxyArgs {
                proxy_mode: Some(mode.to_owned()),
                cluster_cidr: Some("10.244.0.0/16,fd00:10::/56".to_owned()),
                nodeport_addresses: vec!["192.0.2.0/24".to_owned()],
                iptables_min_sync_period: Some("250ms".to_owned()),
                masquerade_all: Some(true),
                iptables_masquerade_bit: Some("5".to_owned()),
                hostname_override: Some("n1".to_owned()),
                feature_gates: vec!["AllowServiceExternalIPs=false".to_owned()],
                ..ProxyArgs::default()
            };
            let shown = configuration(&load(&args(proxy)).unwrap());
            let masquerade = if mode == "nftables" { mode } else { "iptables" };
            assert_eq!(shown[masquerade]["masqueradeAll"], true, "{mode}");
            assert_eq!(shown[masquerade]["masqueradeBit"], 5, "{mode}");
            assert_eq!(shown["clusterCIDR"], "10.244.0.0/16,fd00:10::/56", "{mode}");
            let path = std::env::temp_dir().join(format!("sluice-configz-{}-{mode}", std::process::id()));
            std::fs::write(&path, shown.to_string()).unwrap();
            let again = load(&args(ProxyArgs { config: Some(path.clone()), ..ProxyArgs::default() }));
            std::fs::remove_file(&path).unwrap();
            let again = again.unwrap();
            assert_eq!(configuration(&again), shown, "{mode}");
            assert_eq!(again.warnings, Vec::<String>::new(), "{mode}");
        }
    }
}
