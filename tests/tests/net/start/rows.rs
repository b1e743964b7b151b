//! The table.

use super::{End, Lacks, Row};

/// Files below `{dir}`; there are also the folder `manifests`, and `locked`, which only a stranger may open.
pub const FILES: [(&str, &str); 16] = [
    ("file", "no directory\n"),
    ("token", "a-token\n"),
    ("ca", "no certificate\n"),
    ("broken", "clusters: [\n"),
    ("empty", ""),
    ("kubeconfig", KUBECONFIG),
    ("no-context", "current-context: prod\ncontexts: []\n"),
    ("no-cluster", "current-context: prod\ncontexts: [{name: prod, context: {cluster: c, user: u}}]\n"),
    (
        "no-user",
        "current-context: prod\ncontexts: [{name: prod, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443'}}]\n",
    ),
    (
        "no-server",
        "current-context: prod\ncontexts: [{name: prod, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: '192.0.2.9'}}]\n",
    ),
    (
        "no-ca",
        "current-context: prod\ncontexts: [{name: prod, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443', certificate-authority: '{dir}/gone'}}]\n",
    ),
    (
        "no-token",
        "current-context: prod\ncontexts: [{name: prod, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443'}}]\nusers: [{name: u, user: {tokenFile: '{dir}/gone'}}]\n",
    ),
    (
        "unknown.yaml",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.0.0.0/8\niptables: {masqueradeByte: 1}\n",
    ),
    (
        "twice.yaml",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.0.0.0/9\n",
    ),
    ("kind.yaml", "apiVersion: kubeproxy.config.k8s.io/v1\nkind: KubeProxyConfiguration\n"),
    (
        "value.yaml",
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\niptables: {masqueradeBit: 32}\n",
    ),
];

const KUBECONFIG: &str = "current-context: prod
contexts: [{name: prod, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: 'https://192.0.2.9:6443', certificate-authority: '{dir}/ca'}}]
users: [{name: u, user: {tokenFile: '{dir}/token'}}]
";

/// Root without the power to read and write what is not its own.
const NO_OVERRIDE: Lacks = Lacks::Powers("-dac_override,-dac_read_search");

/// It ends with status 1.
const fn fails(name: &'static str, arguments: &'static str, says: &'static str) -> Row {
    Row { name, arguments, lacks: Lacks::Nothing, taken: None, end: End::With(1), says }
}

/// A wrong command line.
const fn wrong(name: &'static str, arguments: &'static str, says: &'static str) -> Row {
    Row { end: End::With(2), ..fails(name, arguments, says) }
}

/// It runs with manifests.
const fn runs(name: &'static str, arguments: &'static str, says: &'static str) -> Row {
    Row { end: End::Runs, ..fails(name, arguments, says) }
}

/// The source is there, and the agent lacks something else.
const fn lacking(name: &'static str, lacks: Lacks, says: &'static str) -> Row {
    Row { lacks, ..fails(name, "--manifests {dir}/manifests", says) }
}

/// Somebody else listens there.
const fn taken(address: &'static str, row: Row) -> Row {
    Row { taken: Some(address), ..row }
}

pub const ROWS: &[Row] = &[
    // --- places
    fails(
        "manifests_that_are_not_there",
        "--manifests {dir}/none",
        "--manifests {dir}/none: No such file or directory (os error 2); it must name a directory with YAML or JSON files that the agent can read",
    ),
    fails(
        "manifests_that_are_a_file",
        "--manifests {dir}/file",
        "--manifests {dir}/file: Not a directory (os error 20); it must name a directory with YAML or JSON files that the agent can read",
    ),
    Row {
        lacks: NO_OVERRIDE,
        ..fails(
            "manifests_that_cannot_be_read",
            "--manifests {dir}/locked",
            "--manifests {dir}/locked: Permission denied (os error 13); it must name a directory with YAML or JSON files that the agent can read",
        )
    },
    Row {
        lacks: NO_OVERRIDE,
        ..fails(
            "a_run_dir_that_cannot_be_written",
            "--manifests {dir}/manifests --run-dir {dir}/locked/run",
            "run directory {dir}/locked/run: Permission denied (os error 13); --run-dir must name a directory that root can write",
        )
    },
    fails(
        "a_run_dir_that_is_a_file",
        "--manifests {dir}/manifests --run-dir {dir}/file",
        "run directory {dir}/file: File exists (os error 17); --run-dir must name a directory that root can write",
    ),
    fails(
        "a_run_dir_with_a_path_too_long_for_a_socket",
        "--manifests {dir}/manifests --run-dir {dir}/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "control socket {dir}/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx/control.sock: path must be shorter than SUN_LEN; --run-dir must name a directory that root can write, with a short path",
    ),
    // S-01.
    fails(
        "no_cgroup_v2",
        "--manifests {dir}/manifests --cgroup /proc",
        "/proc: not in a cgroup v2 hierarchy; name one with --cgroup, or turn sockets off with --sockets off",
    ),
    fails(
        "a_cgroup_that_is_not_there",
        "--manifests {dir}/manifests --cgroup {dir}/none",
        "cannot open cgroup {dir}/none: No such file or directory (os error 2); see that it exists and that its file system is writable",
    ),
    fails(
        "no_bpffs",
        "--manifests {dir}/manifests --bpffs /proc",
        "/proc: not a BPF file system; mount one with `mount -t bpf bpf /proc`, or leave --bpffs out",
    ),
    // --- privileges
    lacking(
        "without_root",
        Lacks::Root,
        "capabilities: CAP_NET_ADMIN (to attach programs to devices), CAP_PERFMON (to load programs that read kernel pointers), CAP_BPF (to load programs and maps) missing; run as root, or add them to the container's securityContext",
    ),
    lacking(
        "without_cap_bpf",
        Lacks::Powers("-bpf,-perfmon,-sys_admin"),
        "capabilities: CAP_PERFMON (to load programs that read kernel pointers), CAP_BPF (to load programs and maps) missing; run as root, or add them to the container's securityContext",
    ),
    lacking(
        "without_cap_net_admin",
        Lacks::Powers("-net_admin"),
        "capabilities: CAP_NET_ADMIN (to attach programs to devices) missing; run as root, or add them to the container's securityContext",
    ),
    lacking(
        "bpf_refused_by_seccomp",
        Lacks::Bpf(libc::EPERM as u16),
        "bpf(2) is not permitted (look for our programs): Operation not permitted (os error 1); the capabilities are there, so a seccomp filter refuses it: let it allow bpf (in a pod: securityContext.seccompProfile)",
    ),
    lacking(
        "no_bpf",
        Lacks::Bpf(libc::ENOSYS as u16),
        "this kernel has no bpf(2) or hides it (look for our programs): Function not implemented (os error 38); a kernel built with CONFIG_BPF_SYSCALL is needed, and a seccomp filter that allows bpf",
    ),
    // --- the API server
    fails(
        "no_pod_and_no_kubeconfig",
        "",
        "login to the API server: KUBERNETES_SERVICE_HOST is not set and no --kubeconfig is given; run in a pod or name a kubeconfig",
    ),
    fails(
        "a_master_that_is_no_address",
        "--master tcp://192.0.2.9",
        "login to the API server: --master \"tcp://192.0.2.9\" is no address of an API server; write https://HOST:PORT",
    ),
    fails(
        "kubeconfig_that_is_not_there",
        "--kubeconfig {dir}/none",
        "login to the API server: cannot read {dir}/none: No such file or directory (os error 2); name a readable kubeconfig by --kubeconfig or clientConnection.kubeconfig",
    ),
    fails(
        "kubeconfig_that_is_no_yaml",
        "--kubeconfig {dir}/broken",
        "login to the API server: {dir}/broken: failed to parse kubeconfig YAML: line 1 column 11: unclosed bracket '['; correct the kubeconfig",
    ),
    fails(
        "kubeconfig_that_is_empty",
        "--kubeconfig {dir}/empty",
        "login to the API server: {dir}/empty: failed to determine current context; correct the kubeconfig",
    ),
    fails(
        "kubeconfig_of_an_unknown_context",
        "--kubeconfig {dir}/no-context",
        "login to the API server: {dir}/no-context: current-context names the context \"prod\", which is not there; correct the kubeconfig",
    ),
    fails(
        "kubeconfig_of_an_unknown_cluster",
        "--kubeconfig {dir}/no-cluster",
        "login to the API server: {dir}/no-cluster: context \"prod\" names the cluster \"c\", which is not there; correct the kubeconfig",
    ),
    fails(
        "kubeconfig_of_an_unknown_user",
        "--kubeconfig {dir}/no-user",
        "login to the API server: {dir}/no-user: context \"prod\" names the user \"u\", which is not there; correct the kubeconfig",
    ),
    fails(
        "kubeconfig_without_a_servers_address",
        "--kubeconfig {dir}/no-server",
        "login to the API server: {dir}/no-server: server \"192.0.2.9\" is no address of an API server; write https://HOST:PORT",
    ),
    // CA and token are put there by others, and waited for.
    runs(
        "kubeconfig_with_a_ca_that_is_not_there",
        "--kubeconfig {dir}/no-ca --cluster-cidr 10.0.0.0/8",
        "login to the API server: cannot read {dir}/gone: No such file or directory (os error 2); put the cluster's CA there, or correct certificate-authority",
    ),
    runs(
        "kubeconfig_with_a_broken_ca",
        "--kubeconfig {dir}/kubeconfig --cluster-cidr 10.0.0.0/8",
        "login to the API server: cannot use the CA certificates of {dir}/ca: rustls tls error: failed to add a root certificate: no root trust anchors were provided; put the cluster's CA there, in PEM",
    ),
    runs(
        "kubeconfig_with_a_token_that_is_not_there",
        "--kubeconfig {dir}/no-token --cluster-cidr 10.0.0.0/8",
        "login to the API server: cannot read {dir}/gone: No such file or directory (os error 2); put the token there, or correct tokenFile",
    ),
    // --- configuration
    fails(
        "configuration_that_is_not_there",
        "--config {dir}/none",
        "cannot read {dir}/none: No such file or directory (os error 2); --config must name a readable KubeProxyConfiguration file",
    ),
    fails(
        "configuration_that_is_no_yaml",
        "--config {dir}/broken",
        "{dir}/broken: not a KubeProxyConfiguration: line 1 column 11: unclosed bracket '['; correct the file",
    ),
    fails(
        "configuration_of_another_version",
        "--config {dir}/kind.yaml",
        "{dir}/kind.yaml: apiVersion: \"kubeproxy.config.k8s.io/v1\" is not allowed; it must be kubeproxy.config.k8s.io/v1alpha1",
    ),
    fails(
        "configuration_with_a_bad_value",
        "--config {dir}/value.yaml",
        "{dir}/value.yaml: iptables.masqueradeBit: \"32\" is not allowed; it must be a bit from 0 to 31",
    ),
    runs(
        "I12_configuration_with_an_unknown_field",
        "--config {dir}/unknown.yaml --manifests {dir}/manifests",
        "{dir}/unknown.yaml: iptables.masqueradeByte: unknown field, ignored",
    ),
    runs(
        "I12_configuration_with_a_field_twice",
        "--config {dir}/twice.yaml --manifests {dir}/manifests",
        "{dir}/twice.yaml: line 4 column 1: duplicate mapping key: clusterCIDR; the last one counts",
    ),
    // --- flags
    wrong(
        "a_bad_cluster_cidr",
        "--cluster-cidr 10.244.0.0/33",
        "--cluster-cidr: \"10.244.0.0/33\" is not allowed; it must be one CIDR, or one IPv4 and one IPv6 CIDR, such as 10.244.0.0/16,fd00:10::/56",
    ),
    wrong(
        "a_bad_sockets_mode",
        "--manifests {dir}/manifests --sockets sometimes",
        "--sockets: \"sometimes\" is not allowed; it must be off, host or all",
    ),
    wrong(
        "two_sources",
        "--manifests {dir}/manifests --kubeconfig {dir}/kubeconfig",
        "--manifests and --kubeconfig exclude each other; give one of them",
    ),
    // --- what the node has not, or somebody else has
    taken(
        "0.0.0.0:10256",
        runs(
            "H6_healthz_port_in_use",
            "--manifests {dir}/manifests --cluster-cidr 10.0.0.0/8",
            "healthz server at 0.0.0.0:10256: Address already in use (os error 98); free the port, or give another with --healthz-bind-address; trying again every 5 s",
        ),
    ),
    taken(
        "127.0.0.1:10249",
        runs(
            "H6_metrics_port_in_use",
            "--manifests {dir}/manifests --cluster-cidr 10.0.0.0/8",
            "metrics server at 127.0.0.1:10249: Address already in use (os error 98); free the port, or give another with --metrics-bind-address; trying again every 5 s",
        ),
    ),
    runs(
        "healthz_address_that_the_node_has_not",
        "--manifests {dir}/manifests --cluster-cidr 10.0.0.0/8 --healthz-bind-address 203.0.113.9:10256",
        "healthz server at 203.0.113.9:10256: Cannot assign requested address (os error 99); give an address that this node has with --healthz-bind-address; trying again every 5 s",
    ),
    runs(
        "I7_an_ip_family_that_the_node_has_not",
        "--manifests {dir}/manifests --cluster-cidr 10.0.0.0/8 --bind-address fd00::5",
        "the node's address fd00::5: no device of the node has an IPv6 address; correct --bind-address or the Node object, or give a device such an address",
    ),
    runs(
        "an_edge_that_the_node_has_not",
        "--manifests {dir}/manifests --cluster-cidr 10.0.0.0/8 --edges eth7,cali*",
        "--edges: no device that could be served is called eth7 or cali*; correct the name; a device that appears later is served then",
    ),
];
