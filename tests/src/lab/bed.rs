//! A bed: all namespaces, their wires, taps and helpers, made and taken away together.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result};

use super::agent::{Agent, AgentHome};
use super::app::{App, Backend, Objects};
use super::cgroup::Cgroup;
use super::control::Nftables;
use super::manifests::Manifests;
use super::namespace::Namespace;
use super::parts::{common_flags, home, places, prepare, settle, taps};
use super::place::Place;
use super::plan::{Family, Who, Wiring};
use super::wiring::{NAMESPACES, Names, script};
use super::{cleanup, command};
use crate::traffic::Servers;
use crate::wait::{PATIENCE, until};
use crate::wire::Capture;

/// What a bed looks like.
#[derive(Clone, Copy, Debug)]
pub struct BedConfig {
    pub wiring: Wiring,
    /// Leave checksums and segmentation to the (virtual) hardware, as machines do by default (P-80). Off, checksums
    /// on the wire are finished and the oracle sees them.
    pub offload: bool,
    /// n1 drops and counts what conntrack calls invalid (P-49).
    pub invalid_drop: bool,
    /// Give the agent a bpffs.
    pub bpffs: bool,
    /// The wire oracle captures and judges every packet.
    pub watched: bool,
}

impl BedConfig {
    #[must_use]
    pub const fn new(wiring: Wiring) -> Self {
        Self { wiring, offload: false, invalid_drop: false, bpffs: true, watched: true }
    }
}

/// Fields are dropped in this order: processes, then sockets, then namespaces, then files.
pub struct Bed {
    pub config: BedConfig,
    /// The agent of n1, if one was started.
    pub agent: Option<Agent>,
    pub servers: Servers,
    pub capture: Capture,
    pub manifests: Manifests,
    /// Where objects are put instead of the folder.
    objects: Option<Box<dyn Objects>>,
    /// Rules serve, no agent does.
    control: bool,
    places: BTreeMap<Who, Place>,
    namespaces: BTreeMap<&'static str, Namespace>,
    pub names: Names,
    home: AgentHome,
    cgroup: Cgroup,
    invalid_before: AtomicU64,
    files: Files,
}

/// The bed's directory.
#[derive(Debug)]
struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        cleanup::remove_files(&self.0);
    }
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

impl Bed {
    /// Builds it; no agent runs yet.
    ///
    /// # Errors
    /// Whatever the kernel or a tool refuses; what was made is taken away.
    pub fn build(config: BedConfig) -> Result<Self> {
        cleanup::undisturbed(|| Self::make(config)).context("cannot build the laboratory's bed")
    }

    fn make(config: BedConfig) -> Result<Self> {
        let prefix = format!("{}{}", cleanup::own_prefix(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let names = Names::new(prefix.clone());
        let files = Files(cleanup::directory().join(&prefix));
        fs::create_dir(&files.0).with_context(|| format!("cannot make {}", files.0.display()))?;
        let cgroup = Cgroup::create(&prefix)?;
        let mut namespaces = BTreeMap::new();
        for short in NAMESPACES {
            namespaces.insert(short, Namespace::create(names.full(short))?);
        }
        prepare(&namespaces)?;
        script(&names, config.wiring).run()?;
        settle(&namespaces, config)?;
        let places = places(&namespaces, &cgroup)?;
        let taps = if config.watched { taps(&namespaces)? } else { Vec::new() };
        let capture = Capture::start(taps)?;
        let manifests = Manifests::create(files.0.join("manifests"))?;
        let home = home(&namespaces["n1"], &cgroup, &files.0, config, &manifests)?;
        let servers = Servers::new()?;
        Ok(Self {
            config,
            agent: None,
            servers,
            capture,
            manifests,
            objects: None,
            control: false,
            places,
            namespaces,
            names,
            home,
            cgroup,
            invalid_before: AtomicU64::new(0),
            files,
        })
    }

    /// Starts the agent on n1 and waits until it serves the pods' and the NIC's edges.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_agent(&mut self) -> Result<()> {
        let mut agent = Agent::start(self.home.clone())?;
        agent.ready(Who::LOCAL_PODS.len() + 1)?;
        self.agent = Some(agent);
        Ok(())
    }

    /// Starts what is under test: the agent; or, with `SLUICE_LAB_CONTROL` set in the environment, the control, to
    /// try out stories by themselves.
    ///
    /// # Errors
    /// As [`Bed::start_agent`].
    pub fn start(&mut self) -> Result<()> {
        if std::env::var_os("SLUICE_LAB_CONTROL").is_some() {
            self.start_control();
            return Ok(());
        }
        self.start_agent()
    }

    /// Serves Services by nftables rules from now on.
    pub fn start_control(&mut self) {
        self.objects = Some(Box::new(Nftables::new(self.namespaces["n1"].path().to_owned())));
        self.control = true;
    }

    /// Whether rules serve instead of an agent.
    #[must_use]
    pub const fn is_control(&self) -> bool {
        self.control
    }

    /// Where the agent lives; flags may be added before it starts.
    pub fn home(&mut self) -> &mut AgentHome {
        &mut self.home
    }

    /// Puts objects into another place than the folder from now on; an agent started later reads from there.
    pub fn use_objects(&mut self, objects: Box<dyn Objects>) {
        let mut flags = objects.flags();
        flags.extend(common_flags());
        self.home.flags = flags;
        self.objects = Some(objects);
    }

    /// Where objects are put.
    #[must_use]
    pub fn objects(&self) -> &dyn Objects {
        self.objects.as_deref().unwrap_or(&self.manifests)
    }

    /// Applies an application and waits until the agent has it installed.
    ///
    /// # Errors
    /// The agent does not take it over.
    pub fn apply(&self, app: &App) -> Result<()> {
        self.apply_unawaited(app)?;
        self.wait_installed(app)
    }

    /// Applies an application without waiting for the agent.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn apply_unawaited(&self, app: &App) -> Result<()> {
        self.objects().apply(app)
    }

    /// Removes an application and waits until the agent has done so.
    ///
    /// # Errors
    /// The agent keeps it.
    pub fn delete(&self, app: &App) -> Result<()> {
        self.objects().delete(app)?;
        let Some(agent) = &self.agent else { return Ok(()) };
        until(&format!("{} to be removed", app.name), PATIENCE, || {
            let services = agent.home.services().map_err(|e| format!("{e:#}"))?;
            let left = installed(&services, &format!("lab/{}", app.name), &["external", "internal"]);
            if left.is_empty() { Ok(()) } else { Err(format!("installed: {services}")) }
        })
    }

    /// The running agent.
    ///
    /// # Errors
    /// None runs here: the control does, or it was killed.
    pub fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs in this bed")
    }

    /// Gives a pod of n1 a new network device, as if it were another pod with the same address.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn renew_device(&self, pod: Who) -> Result<()> {
        self.ip(pod.namespace(), "link del eth0")?;
        super::wiring::pod_script(&self.names, self.config.wiring, pod).run()?;
        if !self.config.offload {
            command::run_in(
                self.namespaces[pod.namespace()].path(),
                "ethtool",
                &["-K", "eth0", "tx", "off"],
            )?;
        }
        Ok(())
    }

    /// Waits until what `sluice services` prints for an application is what it should be.
    ///
    /// # Errors
    /// It never is.
    pub fn wait_installed(&self, app: &App) -> Result<()> {
        let Some(agent) = &self.agent else { return Ok(()) };
        let want = |family: Family| -> Vec<String> {
            let sockets = app.backends.iter().map(|b| SocketAddr::new(b.who.address(family), b.port));
            sockets.collect::<BTreeSet<_>>().iter().map(ToString::to_string).collect()
        };
        let (v4, v6) = (want(Family::V4), want(Family::V6));
        // A policy may leave endpoints out of the external list.
        let lists = if app.spec.is_empty() { &["external", "internal"][..] } else { &["internal"] };
        // In two families.
        let complete = |found: &[(bool, Vec<&str>)]| {
            found.len() == 2 * app.ports().len() * lists.len()
                && found.iter().all(|(is_v6, list)| *list == if *is_v6 { &*v6 } else { &*v4 })
        };
        until(&format!("{} to be installed", app.name), PATIENCE, || {
            let services = agent.home.services().map_err(|e| format!("{e:#}"))?;
            if complete(&installed(&services, &format!("lab/{}", app.name), lists)) {
                Ok(())
            } else {
                Err(format!("installed: {services}"))
            }
        })
        .with_context(|| agent.home.log_tail())
    }

    /// Starts a server of a place at a port.
    ///
    /// # Errors
    /// The port is taken.
    pub fn serve(&mut self, who: Who, port: u16) -> Result<Backend> {
        self.servers.start(&self.places[&who], port)
    }

    /// Runs iproute2 in a namespace.
    ///
    /// # Errors
    /// iproute2 refuses.
    pub fn ip(&self, short: &str, arguments: &str) -> Result<String> {
        let mut all = vec!["-n", self.namespaces[short].name()];
        all.extend(arguments.split(' '));
        command::run("ip", &all)
    }

    /// Loads nftables rules in n1.
    ///
    /// # Errors
    /// nft refuses.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let net = format!("--net={}", self.namespaces["n1"].path().display());
        command::with_input("nsenter", &[&net, "nft", "-f", "-"], rules).map(drop)
    }

    /// The address that n1's kernel writes from towards `to`: what masquerading takes on that route's device.
    ///
    /// # Errors
    /// No route.
    pub fn route_source(&self, to: std::net::IpAddr) -> Result<std::net::IpAddr> {
        let n1 = self.namespaces["n1"].name();
        let route = command::run("ip", &["-n", n1, "route", "get", &to.to_string()])?;
        let source = route.split_whitespace().skip_while(|word| *word != "src").nth(1);
        source.and_then(|word| word.parse().ok()).with_context(|| format!("no source address in {route:?}"))
    }

    #[must_use]
    pub fn place(&self, who: Who) -> &Place {
        &self.places[&who]
    }

    /// The namespace with this short name.
    #[must_use]
    pub fn namespace(&self, short: &str) -> &Namespace {
        &self.namespaces[short]
    }

    /// The node's cgroup subtree.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The bed's own directory, gone with the bed.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.files.0
    }

    /// Packets that n1 has dropped as invalid since this was last asked; `None` without the rules.
    ///
    /// # Errors
    /// nft fails.
    pub fn invalid_drops(&self) -> Result<Option<u64>> {
        if !self.config.invalid_drop {
            return Ok(None);
        }
        let rules = command::run_in(self.namespaces["n1"].path(), "nft", &["list", "table", "inet", "lab"])?;
        let counts = rules.lines().filter_map(|line| line.split("packets ").nth(1)?.split(' ').next());
        let total: u64 = counts.filter_map(|count| count.parse::<u64>().ok()).sum();
        Ok(Some(total - self.invalid_before.swap(total, Ordering::Relaxed)))
    }
}

/// Endpoint lists of each port and family of `service` in the answer of `sluice services`.
fn installed<'a>(
    services: &'a serde_json::Value,
    service: &str,
    lists: &[&str],
) -> Vec<(bool, Vec<&'a str>)> {
    let ports = services.as_array().into_iter().flatten().filter(|port| port["name"] == service);
    ports
        .flat_map(|port| lists.iter().map(|list| (port["family"] == "IPv6", &port[*list])))
        .map(|(v6, list)| (v6, list.as_array().into_iter().flatten().filter_map(|e| e.as_str()).collect()))
        .collect()
}
