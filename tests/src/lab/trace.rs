//! What a proxy has left on a node, seen from outside: programs on devices, devices, pins, sockets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use nix::net::if_::if_nameindex;

use super::bed::Bed;
use super::{agent, command};
use crate::wait::{PATIENCE, until};

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

impl Traces {
    /// What has come and what has gone since, a line each; empty if nothing has.
    #[must_use]
    pub fn difference(&self, later: &Self) -> String {
        let (before, after) = (self.lines(), later.lines());
        let gone = before.difference(&after).map(|line| format!("\n- {line}"));
        let come = after.difference(&before).map(|line| format!("\n+ {line}"));
        gone.chain(come).collect()
    }

    fn lines(&self) -> BTreeSet<String> {
        let Self { programs, devices, routes, nftables, pins, files, sysctls } = self;
        let mut lines: BTreeSet<String> = programs
            .iter()
            .map(|((device, hook), programs)| {
                format!("programs at {hook} of {device}: {}", programs.join(", "))
            })
            .collect();
        let nftables: Vec<_> = nftables.lines().map(str::to_owned).collect();
        for (kind, list) in [
            ("device", devices),
            ("route", routes),
            ("nftables", &nftables),
            ("pin", pins),
            ("file", files),
            ("sysctl", sysctls),
        ] {
            lines.extend(list.iter().map(|line| format!("{kind} {}", line.trim())));
        }
        lines
    }
}

const SYSCTLS: [&str; 4] = [
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv4/ip_local_reserved_ports",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];

impl Bed {
    /// Looks at n1, once the kernel has done what follows from the devices that are there.
    ///
    /// # Errors
    /// Something cannot be read.
    pub fn traces(&mut self) -> Result<Traces> {
        until("n1's addresses to have their routes", PATIENCE, || self.settled())?;
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

impl Bed {
    /// A device's link-local address, and the routes of any IPv6 address, come some time after it: the kernel leaves that
    /// to a worker, up to a second after the link is up.
    fn settled(&self) -> Result<()> {
        let (links, addresses) = (self.ip("n1", "-o link show up")?, self.ip("n1", "-6 -o addr show")?);
        let routes = self.ip("n1", "-6 route show table local")?;
        let addresses: Vec<(&str, &str)> = addresses.lines().filter_map(device_and_address).collect();
        for (device, address) in &addresses {
            let route = format!("local {address} dev {device}");
            ensure!(routes.contains(&route) || *device == "lo", "no route yet: {route}");
        }
        for line in links.lines().filter(|line| line.contains("LOWER_UP") && !line.contains("LOOPBACK")) {
            let device = line.split([':', '@']).nth(1).unwrap_or_default().trim();
            // Not any: one that was given by hand is there at once, and the kernel's own still comes.
            let Some(own) = line.split("link/ether ").nth(1).and_then(link_local) else { continue };
            let there = addresses.iter().any(|(of, address)| *of == device && address.parse() == Ok(own));
            ensure!(there, "{device} has not made its link-local address {own} yet");
        }
        Ok(())
    }
}

/// The address that the kernel makes of a link's, by which the text begins.
fn link_local(text: &str) -> Option<Ipv6Addr> {
    let mac: Vec<u8> = text
        .split_whitespace()
        .next()?
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect::<Option<_>>()?;
    let [a, b, c, d, e, f] = mac[..] else { return None };
    let pair = |high, low| u16::from_be_bytes([high, low]);
    Some(Ipv6Addr::new(0xfe80, 0, 0, 0, pair(a ^ 2, b), pair(c, 0xff), pair(0xfe, d), pair(e, f)))
}

/// From a line of `ip -6 -o addr`: `2: eth0    inet6 fe80::1/64 scope link …`.
fn device_and_address(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace().skip(1);
    let device = words.next()?;
    Some((device, words.nth(1)?.split('/').next()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_address_follows_from_the_links() {
        let made = link_local("4e:ef:10:58:85:8e brd ff:ff:ff:ff:ff:ff link-netns x");
        assert_eq!(made, "fe80::4cef:10ff:fe58:858e".parse().ok());
        assert_eq!(link_local("none"), None);
    }

    #[test]
    fn only_the_difference_is_told() {
        let before = Traces { devices: vec!["lo".into(), "eth0".into()], ..Traces::default() };
        let programs = BTreeMap::from([(("eth0".to_owned(), "ingress"), vec!["sluice_ingress".to_owned()])]);
        let after = Traces { devices: vec!["eth0".into()], programs, ..Traces::default() };
        assert_eq!(before.difference(&before), "");
        assert_eq!(before.difference(&after), "\n- device lo\n+ programs at ingress of eth0: sluice_ingress");
    }
}
