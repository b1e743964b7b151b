//! What a proxy has left on a node, seen from outside: programs on devices, devices, pins, sockets.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::net::if_::if_nameindex;

use super::bed::Bed;
use super::{agent, command};

/// Everything that could tell of a proxy. Equal before and after means: nothing was left.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces {
    /// Names of the programs on each device, by hook (tcx); devices without programs are left out.
    pub programs: BTreeMap<(String, &'static str), Vec<String>>,
    /// Devices of n1 with their masters.
    pub devices: Vec<String>,
    pub routes: Vec<String>,
    pub nftables: String,
    /// Names in the bpffs and in the agent's run directory.
    pub pins: Vec<String>,
    pub files: Vec<String>,
    /// Values of the sysctls that a proxy might set.
    pub sysctls: Vec<String>,
}

const SYSCTLS: [&str; 4] = [
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_reserved_ports",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];

impl Bed {
    /// Looks at n1.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn traces(&mut self) -> Result<Traces> {
        let home = self.home().clone();
        let n1 = self.namespace("n1");
        let (programs, sysctls) = n1.within(|| Ok((programs()?, SYSCTLS.map(sysctl).to_vec())))?;
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let devices = lines(self.ip("n1", "-br link")?);
        let mut routes = lines(self.ip("n1", "route show table all")?);
        routes.extend(lines(self.ip("n1", "-6 route show table all")?));
        // Learnt by the kernel as traffic flows.
        routes.retain(|route| !route.contains("expires"));
        routes.sort();
        Ok(Traces {
            programs,
            devices: devices
                .iter()
                .filter_map(|line| line.split_whitespace().next())
                .map(str::to_owned)
                .collect(),
            routes,
            nftables: command::run_in(n1.path(), "nft", &["-s", "list", "ruleset"])?,
            pins: home.bpffs.as_ref().map_or_else(|| Ok(Vec::new()), |path| pins(path))?,
            files: if home.run_dir.exists() { agent::entries(&home.run_dir)? } else { Vec::new() },
            sysctls,
        })
    }
}

/// What is pinned; the kernel puts two iterators of its own into every bpffs.
fn pins(bpffs: &Path) -> Result<Vec<String>> {
    let mut names = agent::entries(bpffs)?;
    names.retain(|name| !["maps.debug", "progs.debug"].contains(&name.as_str()));
    Ok(names)
}

fn sysctl(name: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    format!("{name}={}", value.trim())
}

/// Programs on the devices of the calling thread's namespace.
fn programs() -> Result<BTreeMap<(String, &'static str), Vec<String>>> {
    let mut found = BTreeMap::new();
    for interface in &if_nameindex()? {
        let name = interface.name().to_string_lossy().into_owned();
        for (hook, kind) in [("ingress", TcAttachType::Ingress), ("egress", TcAttachType::Egress)] {
            let (_, infos) = SchedClassifier::query_tcx(name.as_str(), kind)
                .with_context(|| format!("cannot list the programs at {hook} of {name}"))?;
            let names: Vec<_> = infos.iter().map(|i| i.name_as_str().unwrap_or("?").to_owned()).collect();
            if !names.is_empty() {
                found.insert((name.clone(), hook), names);
            }
        }
    }
    Ok(found)
}
