use std::path::Path;

use clap::Parser;
use proxy_common::abi::{Addr, config_flags};

use super::abi::tests::ZERO;
use super::file;
use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    run: RunArgs,
}

fn args(line: &str) -> RunArgs {
    Cli::try_parse_from(["sluice"].into_iter().chain(line.split_whitespace())).unwrap().run
}

fn flags(line: &str) -> Config {
    load(&args(line)).unwrap()
}

/// A file of its own for each test, removed at the end.
struct ConfigFile(PathBuf);

impl ConfigFile {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(Self::name(name));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn name(name: &str) -> String {
        format!("sluice-config-{}-{name}", std::process::id())
    }
}

impl Drop for ConfigFile {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

fn file_config(name: &str, body: &str, more: &str) -> Result<Config, ConfigError> {
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let file = ConfigFile::new(name, &format!("{head}{body}"));
    load(&args(&format!("--config={} {more}", file.0.display())))
}

/// As kubeadm writes it: every field, most of them empty.
const KUBEADM: &str = r#"
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.244.0.0/16,fd00:10::/56
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: ""
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

#[test]
fn kubeadms_file_means_the_defaults() {
    let file = file_config("kubeadm", KUBEADM, "--hostname-override=Node-1").unwrap();
    let flags = flags(
        "--cluster-cidr 10.244.0.0/16,fd00:10::/56 --hostname-override node-1 --kubeconfig /var/lib/kube-proxy/kubeconfig.conf",
    );
    assert!(
        file.file.as_ref().is_some_and(|path| path.ends_with(ConfigFile::name("kubeadm"))),
        "{:?}",
        file.file
    );
    let file = Config { file: None, ..file };
    assert_eq!(format!("{file:?}"), format!("{flags:?}"));
    assert_eq!(file.warnings, Vec::<String>::new());
    assert_eq!(file.node_name("other"), "node-1");
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(file.source, Source::Kubernetes { kubeconfig, master: None });
    assert_eq!(file.healthz, Some("0.0.0.0:10256".parse().unwrap()));
    assert_eq!(file.metrics, Some("127.0.0.1:10249".parse().unwrap()));
    let periods = SyncPeriods { period: Duration::from_secs(30), min: Duration::from_secs(1) };
    assert_eq!((file.sync, file.masquerade_bit, file.oom_score_adj), (periods, 14, -999));
    assert_eq!((file.conntrack.max_per_core, file.conntrack.tcp_established.as_secs()), (32_768, 86_400));
    assert_eq!(file.node_ports, NodePorts { addresses: NodePortAddresses::All, localhost: true });
}

#[test]
fn go_syntax_of_flags() {
    for line in ["--masquerade-all", "--masquerade-all=true", "--masquerade-all=T"] {
        assert!(flags(line).masquerade_all, "{line}");
    }
    assert!(Cli::try_parse_from(["sluice", "--no-such-flag"]).is_err());
    assert!(!flags("--masquerade-all=false").masquerade_all);
    assert_eq!(flags("--v=4").logging.verbosity, 4);
    assert_eq!(flags("-v 2 --logging-format json").logging, Logging { json: true, verbosity: 2 });
    assert_eq!(flags("--oom-score-adj -5").oom_score_adj, -5);
    assert_eq!(flags("--healthz-port 0 --metrics-port=0").healthz, None);
    assert_eq!(flags("--bind-address ::").metrics, Some("[::1]:10249".parse().unwrap()));
    assert_eq!(flags("--healthz-bind-address 192.0.2.1").healthz, Some("192.0.2.1:10256".parse().unwrap()));
    assert_eq!(flags("--bind-address 192.0.2.11").node_ip, Some("192.0.2.11".parse().unwrap()));
    assert_eq!(flags("--nodeport-addresses primary").node_ports.addresses, NodePortAddresses::Primary);
    assert_eq!(
        flags("--proxy-mode nftables").node_ports,
        NodePorts { addresses: NodePortAddresses::Primary, localhost: false }
    );
    assert!(!flags("--feature-gates AllowServiceExternalIPs=false,Other=true").external_ips);
    assert_eq!(
        flags("--ipvs-strict-arp --kube-api-qps 5 --ipvs-exclude-cidrs 10.0.0.0/8 --logtostderr=true")
            .warnings[0],
        "--logtostderr has no effect"
    );
    let warnings = flags("--proxy-mode ipvs --ipvs-tcp-timeout 5s").warnings;
    assert!(warnings.contains(&"--ipvs-tcp-timeout has no effect".to_owned()), "{warnings:?}");
    assert_eq!(flags("--cleanup").action, Action::Cleanup);
    assert_eq!(flags("--manifests /m").source, Source::Manifests("/m".into()));
}

#[test]
fn sluices_own_flags() {
    let config = flags("--edges eth0,cali* --sockets all --flows 65536 --shortcuts off");
    let names = [EdgePattern::Name("eth0".to_owned()), EdgePattern::Prefix("cali".to_owned())];
    assert_eq!(config.edges, Edges::Names(names.to_vec()));
    assert!(names[1].matches("cali12") && !names[0].matches("eth01"));
    assert_eq!(
        (config.sockets, config.flows, config.shortcuts),
        (Sockets::All, Some(65_536), Shortcuts::Off)
    );
    let limits = flags("--limits frontends=9,ranges=7 --limits ranges=8").limits;
    assert_eq!(limits, Limits { frontends: Some(9), ranges: Some(8), ..Limits::default() });
    assert_eq!(flags("").shortcuts, Shortcuts::Established);
}

#[test]
fn i13_the_file_wins_but_for_a_few_flags() {
    let body = "mode: nftables\nnftables: {masqueradeAll: true, masqueradeBit: 5}\nlogging: {verbosity: 1}\nhostnameOverride: a\n";
    let more = "--proxy-mode iptables --masquerade-all=false --v 6 --hostname-override b --master https://192.0.2.1:6443";
    let config = file_config("wins", body, more).unwrap();
    assert_eq!((config.profile, config.masquerade_all, config.masquerade_bit), (Profile::Nftables, true, 5));
    assert_eq!((config.logging.verbosity, config.hostname_override.as_deref()), (6, Some("b")));
    assert!(matches!(config.source, Source::Kubernetes { master: Some(_), .. }));
    let other = file_config("section", "mode: iptables\nnftables: {masqueradeAll: true}\n", "").unwrap();
    assert!(!other.masquerade_all, "F4: read from the selected mode's section");
}

#[test]
fn i12_unknown_and_duplicate_fields_are_warnings() {
    let config =
        file_config("lenient", "modee: x\niptables: {syncPeriod: 5s, foo: 1}\nclusterCIDR: 10.0.0.0/8\n", "")
            .unwrap();
    assert_eq!(config.warnings.len(), 2, "{:?}", config.warnings);
    assert!(
        config.warnings.iter().any(|w| w.ends_with("iptables.foo: unknown field, ignored")),
        "{:?}",
        config.warnings
    );
    let config = file_config("double", "clusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.1.0.0/16\n", "").unwrap();
    assert_eq!(config.warnings.len(), 1);
    let v4 = Some("10.1.0.0/16".parse().unwrap());
    assert_eq!(config.detect_local, DetectLocal::ClusterCidr { v4, v6: None });
}

#[test]
fn f9_errors_name_the_option_its_value_and_what_is_allowed() {
    let cases = [
        (
            "--proxy-mode kernelspace",
            "--proxy-mode: \"kernelspace\" is not allowed; it must be iptables, ipvs or nftables",
        ),
        ("--cluster-cidr 10.0.0.0/8,10.1.0.0/16", "--cluster-cidr: \"10.0.0.0/8,10.1.0.0/16\""),
        ("--cluster-cidr 10.0.0.0/40", "such as 10.244.0.0/16"),
        ("--iptables-masquerade-bit 32", "a bit from 0 to 31"),
        ("--iptables-sync-period 30", "a duration such as 30s"),
        ("--iptables-sync-period 1s --iptables-min-sync-period 2s", "--iptables-min-sync-period: \"2s\""),
        ("--nodeport-addresses primary,10.0.0.0/8", "the single word primary"),
        ("--detect-local-mode BridgeInterface", "--pod-bridge-interface: \"\""),
        ("--detect-local-mode Magic", "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
        ("--healthz-bind-address host:1", "an IP address and a port"),
        ("--metrics-port 70000", "a port from 0 (off) to 65535"),
        ("--bind-address x", "an IP address"),
        ("--oom-score-adj 2000", "-1000 to 1000"),
        ("--feature-gates Foo", "NAME=true or NAME=false"),
        ("--conntrack-min=-1", "a number, not negative"),
        ("--kube-api-qps fast", "--kube-api-qps: \"fast\""),
        ("--kube-api-burst=-1", "--kube-api-burst: \"-1\""),
        ("--config-sync-period 15", "--config-sync-period: \"15\""),
        ("--ipvs-exclude-cidrs pods", "--ipvs-exclude-cidrs: \"pods\""),
        ("--ipvs-tcpfin-timeout=-1s", "--ipvs-tcpfin-timeout: \"-1s\""),
        ("--edges eth0,a/b", "--edges: \"eth0,a/b\""),
        ("--sockets pods", "off, host or all"),
        ("--shortcuts some", "off, established or always"),
        ("--flows 12", "1024 to 16777216"),
        ("--limits frontends", "TABLE=N"),
        ("--limits backends=9", "frontends, endpoints"),
        ("--limits slots=0", "from 1 to 16777216"),
        ("--logging-format xml", "text or json"),
        ("--manifests /m --master https://x", "--manifests and --master exclude each other"),
        ("--config /no/such/file", "cannot read /no/such/file"),
    ];
    for (line, want) in cases {
        let error = load(&args(line)).expect_err(line).to_string();
        assert!(error.contains(want), "{line}: {error}");
    }
    let files = [
        ("kind: Pod\n", "kind: \"Pod\" is not allowed; it must be KubeProxyConfiguration"),
        ("- a\n", "a mapping"),
        ("kind: [\n", "not a KubeProxyConfiguration"),
    ];
    for (text, want) in files {
        let head =
            if text.starts_with("kind: P") { "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n" } else { "" };
        let error =
            file::decode(Path::new("c.conf"), &format!("{head}{text}"), &mut Vec::new()).expect_err(text);
        assert!(error.to_string().contains(want) && error.to_string().starts_with("c.conf"), "{error}");
    }
    for more in ["---\n", "--- \nkind: Pod\n", "# end\n"] {
        let config = file_config("documents", &format!("mode: nftables\n{more}"), "");
        assert!(config.is_ok(), "kube-proxy reads the first document: {config:?}");
    }
    let error = file_config("field", "iptables: {syncPeriod: [1]}\n", "").expect_err("a list").to_string();
    assert!(error.contains("iptables.syncPeriod") && error.contains("a single value"), "{error}");
}

#[test]
fn f3_f4_f5_f8_settings_as_programs_read_them() {
    let abi = flags("--cluster-cidr 10.244.7.0/16 --masquerade-all --sockets all").abi(&ZERO, 7, 9);
    assert_eq!(abi.flags, config_flags::DETECT_V4 | config_flags::MASQUERADE_ALL | config_flags::SOCKETS_ALL);
    assert_eq!((abi.masquerade_mark, abi.seed, abi.netns_cookie), (0x4000, 7, 9));
    assert!(
        abi.cluster_v4.contains(&Addr::v4([10, 244, 255, 1]))
            && !abi.cluster_v4.contains(&Addr::v4([10, 245, 0, 1]))
    );
    let abi = flags("--cluster-cidr fd00:10::/56 --iptables-masquerade-bit 0").abi(&ZERO, 0, 0);
    assert_eq!((abi.flags, abi.masquerade_mark), (config_flags::DETECT_V6, 1));
    assert_eq!(flags("").abi(&ZERO, 0, 0).flags, 0);
    assert_eq!(flags("").warnings.len(), 1, "F8 is warned about");
}
