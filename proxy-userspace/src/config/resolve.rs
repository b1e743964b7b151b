//! From flags and file to the checked [`Config`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::error::ConfigError;
use super::file::{self, Table};
use super::parse::Given;
use super::sluice;
use super::table::{flag_of, flags};
use super::{
    Action, Config, Conntrack, DetectLocal, Logging, NodePortAddresses, NodePorts, Profile, ProxyArgs,
    RunArgs, Source, SyncPeriods,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Checks flags, reads the file that `--config` names, and fills in every default.
///
/// # Errors
/// See [`ConfigError`].
pub fn load(args: &RunArgs) -> Result<Config, ConfigError> {
    let mut warnings = args.ignored.warnings();
    let options = match args.proxy.config.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => Options { table: file::read(path, &mut warnings)?, file: Some(path.as_path()) },
        None => Options { table: flags(args), file: None },
    };
    resolve(args, &options, warnings)
}

/// kube-proxy's options, from one place: the file wins over nearly all flags (I13).
struct Options<'a> {
    table: Table,
    file: Option<&'a Path>,
}

impl Options<'_> {
    fn get(&self, field: &str) -> Given<'_> {
        let name = match self.file {
            Some(path) => file::named(path, field),
            None => flag_of(field).map_or_else(|| field.to_owned(), str::to_owned),
        };
        Given { name, text: self.table.get(field).map(String::as_str) }
    }
}

fn resolve(args: &RunArgs, options: &Options<'_>, mut warnings: Vec<String>) -> Result<Config, ConfigError> {
    let profile = profile(options, &mut warnings)?;
    without_effect(options, profile, &mut warnings)?;
    let bind = bind_address(options)?;
    let own = sluice::resolve(&args.sluice)?;
    Ok(Config {
        action: action(&args.proxy),
        file: options.file.map(Path::to_owned),
        source: source(args, options)?,
        hostname_override: hostname(args, options)?,
        node_ip: Some(bind).filter(|ip| !ip.is_unspecified()),
        healthz: listener(
            args.proxy.healthz_port.as_deref(),
            "--healthz-port",
            options.get("healthzBindAddress"),
            bind,
            Server::Health,
        )?
        .filter(|_| !switched_off(options, args.proxy.healthz_bind_address.as_deref())),
        metrics: listener(
            args.proxy.metrics_port.as_deref(),
            "--metrics-port",
            options.get("metricsBindAddress"),
            bind,
            Server::Metrics,
        )?
        .filter(|_| !switched_off(options, args.proxy.metrics_bind_address.as_deref())),
        bind_hard_fail: options.get("bindAddressHardFail").boolean()?.unwrap_or(false),
        profile,
        masquerade_bit: masquerade_bit(options, profile)?,
        masquerade_all: options.get(&section(profile, "masqueradeAll")).boolean()?.unwrap_or(false),
        detect_local: detect_local(options, &mut warnings)?,
        node_ports: node_ports(options, profile)?,
        external_ips: external_ips(options)?,
        sync: sync_periods(options, profile)?,
        conntrack: conntrack(options)?,
        oom_score_adj: narrow(
            options.get("oomScoreAdj").number(-1000, 1000, "a number from -1000 to 1000")?,
            -999,
        ),
        logging: logging(args, options)?,
        cgroup: args.sluice.cgroup.clone(),
        bpffs: args.sluice.bpffs.clone(),
        run_dir: args.sluice.run_dir.clone(),
        edges: own.edges,
        sockets: own.sockets,
        shortcuts: own.shortcuts,
        flows: own.flows,
        limits: own.limits,
        warnings,
    })
}

fn narrow<T: TryFrom<i64>>(value: Option<i64>, default: T) -> T {
    value.and_then(|n| T::try_from(n).ok()).unwrap_or(default)
}

fn action(args: &ProxyArgs) -> Action {
    let file = args.write_config_to.as_ref().filter(|path| !path.as_os_str().is_empty());
    match (file, args.cleanup, args.init_only) {
        (_, Some(true), _) => Action::Cleanup,
        (Some(path), _, _) => Action::WriteConfig(path.clone()),
        (_, _, Some(true)) => Action::InitOnly,
        _ => Action::Run,
    }
}

fn source(args: &RunArgs, options: &Options<'_>) -> Result<Source, ConfigError> {
    let kubeconfig = options.get("clientConnection.kubeconfig").text.map(PathBuf::from);
    if let Some(folder) = &args.sluice.manifests {
        if args.proxy.master.is_some() {
            return Err(ConfigError::Exclusive { one: "--manifests", other: "--master" });
        }
        if args.proxy.kubeconfig.is_some() {
            return Err(ConfigError::Exclusive { one: "--manifests", other: "--kubeconfig" });
        }
        return Ok(Source::Manifests(folder.clone()));
    }
    let master = args.proxy.master.clone().filter(|master| !master.is_empty());
    Ok(Source::Kubernetes { kubeconfig, master })
}

fn hostname(args: &RunArgs, options: &Options<'_>) -> Result<Option<String>, ConfigError> {
    let file = options.get("hostnameOverride");
    let given = match args.proxy.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => Given { name: "--hostname-override".to_owned(), text: Some(name) },
        None => file,
    };
    let name = given.text.map(|name| name.trim().to_lowercase());
    match name {
        Some(name) if name.is_empty() => Err(given.refuse("a node's name, not empty")),
        name => Ok(name),
    }
}

fn bind_address(options: &Options<'_>) -> Result<IpAddr, ConfigError> {
    let address = options.get("bindAddress").parse("an IP address")?;
    Ok(address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
}

#[derive(Clone, Copy)]
enum Server {
    Health,
    Metrics,
}

fn listener(
    port_flag: Option<&str>,
    flag: &str,
    given: Given<'_>,
    bind: IpAddr,
    server: Server,
) -> Result<Option<SocketAddr>, ConfigError> {
    let (default, v4, v6) = match server {
        Server::Health => (10256, Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
        Server::Metrics => (10249, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
    };
    let port_flag = Given { name: flag.to_owned(), text: port_flag };
    let port = port_flag.number(0, 65535, "a port from 0 (off) to 65535")?;
    if port == Some(0) {
        return Ok(None);
    }
    let port = narrow(port, default);
    let host = if bind.is_ipv4() { IpAddr::V4(v4) } else { IpAddr::V6(v6) };
    Ok(Some(given.socket(port)?.unwrap_or_else(|| SocketAddr::new(host, port))))
}

/// H1: in a file an empty address means the default, as a flag no server.
fn switched_off(options: &Options<'_>, flag: Option<&str>) -> bool {
    options.file.is_none() && flag == Some("")
}

fn profile(options: &Options<'_>, warnings: &mut Vec<String>) -> Result<Profile, ConfigError> {
    let words = [("iptables", Profile::Iptables), ("ipvs", Profile::Ipvs), ("nftables", Profile::Nftables)];
    let profile =
        options.get("mode").word(&words, "iptables, ipvs or nftables")?.unwrap_or(Profile::Iptables);
    let scheduler = options.get("ipvs.scheduler");
    if profile == Profile::Ipvs && scheduler.text.is_some_and(|name| name != "rr") {
        let (name, text) = (&scheduler.name, scheduler.text.unwrap_or_default());
        warnings.push(format!("{name}: {text:?} is not implemented, endpoints are drawn at random"));
    }
    Ok(profile)
}

/// Fields that are checked as kube-proxy checks them and change nothing here: a warning where somebody may wait for an effect.
fn without_effect(
    options: &Options<'_>,
    profile: Profile,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    options.get("configSyncPeriod").duration()?;
    options.get("clientConnection.qps").parse::<f32>("a number")?;
    options.get("clientConnection.burst").number(0, i64::MAX, "a number, not negative")?;
    let excluded = options.get("ipvs.excludeCIDRs");
    excluded.cidrs("CIDRs separated by commas")?;
    let mut warn = |given: Given<'_>| warnings.push(format!("{} has no effect", given.name));
    let profiling = options.get("enableProfiling");
    if profiling.boolean()?.unwrap_or(false) {
        warn(profiling);
    }
    for field in ["ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout"] {
        let given = options.get(field);
        if given.duration()?.is_some_and(|timeout| !timeout.is_zero()) && profile == Profile::Ipvs {
            warn(given);
        }
    }
    Ok(())
}

/// The field of the section that the profile reads (F4); `iptables` also serves ipvs.
fn section(profile: Profile, field: &str) -> String {
    let section = if profile == Profile::Nftables { "nftables" } else { "iptables" };
    format!("{section}.{field}")
}

fn masquerade_bit(options: &Options<'_>, profile: Profile) -> Result<u8, ConfigError> {
    let bit = options.get(&section(profile, "masqueradeBit")).number(0, 31, "a bit from 0 to 31")?;
    Ok(narrow(bit, 14))
}

fn detect_local(options: &Options<'_>, warnings: &mut Vec<String>) -> Result<DetectLocal, ConfigError> {
    #[derive(Clone, Copy)]
    enum Mode {
        Cluster,
        Node,
        Bridge,
        Prefix,
    }
    let words = [
        ("ClusterCIDR", Mode::Cluster),
        ("NodeCIDR", Mode::Node),
        ("BridgeInterface", Mode::Bridge),
        ("InterfaceNamePrefix", Mode::Prefix),
    ];
    let allowed = "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix";
    let required = |field| {
        let given = options.get(field);
        given
            .text
            .map(str::to_owned)
            .ok_or_else(|| given.refuse("a device name when detectLocalMode asks for it"))
    };
    Ok(match options.get("detectLocalMode").word(&words, allowed)?.unwrap_or(Mode::Cluster) {
        Mode::Cluster => cluster_cidr(options, warnings)?,
        Mode::Node => DetectLocal::NodeCidr,
        Mode::Bridge => DetectLocal::BridgeInterface(required("detectLocal.bridgeInterface")?),
        Mode::Prefix => DetectLocal::InterfaceNamePrefix(required("detectLocal.interfaceNamePrefix")?),
    })
}

fn cluster_cidr(options: &Options<'_>, warnings: &mut Vec<String>) -> Result<DetectLocal, ConfigError> {
    let given = options.get("clusterCIDR");
    let allowed = "one CIDR, or one IPv4 and one IPv6 CIDR, such as 10.244.0.0/16,fd00:10::/56";
    let (mut v4, mut v6) = (None, None);
    for cidr in given.cidrs(allowed)? {
        let taken = match cidr {
            IpNet::V4(net) => v4.replace(net.trunc()).is_some(),
            IpNet::V6(net) => v6.replace(net.trunc()).is_some(),
        };
        if taken {
            return Err(given.refuse(allowed));
        }
    }
    if v4.is_none() && v6.is_none() {
        warnings.push(format!(
            "{} is empty: traffic from outside the cluster to ClusterIPs is not masqueraded",
            given.name
        ));
    }
    Ok(DetectLocal::ClusterCidr { v4, v6 })
}

fn node_ports(options: &Options<'_>, profile: Profile) -> Result<NodePorts, ConfigError> {
    let given = options.get("nodePortAddresses");
    let allowed = "CIDRs separated by commas, or the single word primary";
    let words: Vec<_> = given.items().collect();
    let addresses = match (words.as_slice(), profile) {
        ([], Profile::Nftables) | (["primary"], _) => NodePortAddresses::Primary,
        ([] | ["all"], _) => NodePortAddresses::All,
        _ => NodePortAddresses::Cidrs(given.cidrs(allowed)?),
    };
    let localhost = match profile {
        Profile::Iptables => options.get("iptables.localhostNodePorts").boolean()?.unwrap_or(true),
        Profile::Ipvs | Profile::Nftables => false,
    };
    Ok(NodePorts { addresses, localhost })
}

/// Any gate of Kubernetes is accepted (I16); one has a meaning here.
fn external_ips(options: &Options<'_>) -> Result<bool, ConfigError> {
    let given = options.get("featureGates");
    let mut external_ips = true;
    for item in given.items() {
        let allowed = "NAME=true or NAME=false, separated by commas";
        let (gate, on) = item.split_once('=').ok_or_else(|| given.refuse(allowed))?;
        let on = Given { name: given.name.clone(), text: Some(on) }.boolean()?;
        if gate == "AllowServiceExternalIPs" {
            external_ips = on.unwrap_or(true);
        }
    }
    Ok(external_ips)
}

fn sync_periods(options: &Options<'_>, profile: Profile) -> Result<SyncPeriods, ConfigError> {
    let (section, min) = match profile {
        Profile::Iptables => ("iptables", Duration::from_secs(1)),
        Profile::Nftables => ("nftables", Duration::from_secs(1)),
        Profile::Ipvs => ("ipvs", Duration::ZERO),
    };
    let period = options.get(&format!("{section}.syncPeriod")).duration_or(Duration::from_secs(30))?;
    let given = options.get(&format!("{section}.minSyncPeriod"));
    let min = given.duration_or(min)?;
    if min > period {
        return Err(given.refuse("a duration not longer than the syncPeriod"));
    }
    Ok(SyncPeriods { period, min })
}

fn conntrack(options: &Options<'_>) -> Result<Conntrack, ConfigError> {
    let number = |field, default| {
        let allowed = "a number, not negative";
        options.get(field).number(0, u32::MAX.into(), allowed).map(|n| narrow(n, default))
    };
    let timeout = |field, default| options.get(field).duration().map(|d| d.unwrap_or(default));
    Ok(Conntrack {
        max_per_core: number("conntrack.maxPerCore", 32_768)?,
        min: number("conntrack.min", 131_072)?,
        tcp_established: timeout("conntrack.tcpEstablishedTimeout", 24 * HOUR)?,
        tcp_close_wait: timeout("conntrack.tcpCloseWaitTimeout", HOUR)?,
        tcp_be_liberal: options.get("conntrack.tcpBeLiberal").boolean()?.unwrap_or(false),
        udp: timeout("conntrack.udpTimeout", Duration::ZERO)?,
        udp_stream: timeout("conntrack.udpStreamTimeout", Duration::ZERO)?,
    })
}

/// Logging flags win over the file.
fn logging(args: &RunArgs, options: &Options<'_>) -> Result<Logging, ConfigError> {
    let pick = |flag: &str, value: &'_ Option<String>, field: &str| match value {
        Some(text) => (flag.to_owned(), Some(text.clone())),
        None => {
            let given = options.get(field);
            (given.name, given.text.map(str::to_owned))
        }
    };
    let (name, text) = pick("--v", &args.proxy.v, "logging.verbosity");
    let verbosity = Given { name, text: text.as_deref() }.number(0, 1_000, "a number from 0 to 1000")?;
    let (name, text) = pick("--logging-format", &args.proxy.logging_format, "logging.format");
    let json =
        Given { name, text: text.as_deref() }.word(&[("text", false), ("json", true)], "text or json")?;
    Ok(Logging { json: json.unwrap_or(false), verbosity: narrow(verbosity, 0) })
}
