//! A control: the same Services by a handful of nftables rules, in the shape of kube-proxy's. It shows that bed,
//! clients, servers and oracles work; what fails with Sluice and not with it is Sluice's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::app::{App, Objects, Via};
use super::plan::{Family, gateway};
use super::{Who, command};
use crate::wire::Transport;

/// nftables rules in one namespace.
#[derive(Debug)]
pub struct Nftables {
    netns: PathBuf,
    apps: Mutex<BTreeMap<String, App>>,
}

impl Nftables {
    #[must_use]
    pub const fn new(netns: PathBuf) -> Self {
        Self { netns, apps: Mutex::new(BTreeMap::new()) }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, App>)) -> Result<()> {
        let mut apps = self.apps.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut apps);
        let net = format!("--net={}", self.netns.display());
        command::with_input("nsenter", &[&net, "nft", "-f", "-"], &rules(apps.values())).map(drop)
    }
}

impl Objects for Nftables {
    fn apply(&self, app: &App) -> Result<()> {
        self.change(|apps| drop(apps.insert(app.name.clone(), app.clone())))
    }

    fn delete(&self, app: &App) -> Result<()> {
        self.change(|apps| drop(apps.remove(&app.name)))
    }

    fn flags(&self) -> Vec<String> {
        Vec::new()
    }

    fn name(&self) -> &'static str {
        "nftables rules"
    }
}

fn rules<'a>(apps: impl Iterator<Item = &'a App>) -> String {
    let (mut nat, mut reject) = (String::new(), String::new());
    for app in apps {
        for family in Family::BOTH {
            for transport in Transport::BOTH {
                service(app, family, transport, &mut nat, &mut reject);
            }
        }
    }
    for (ip, prefix) in
        [("ip", "10.96.0.0/16"), ("ip", "203.0.113.0/24"), ("ip6", "fd00:96::/112"), ("ip6", "fd00:203::/64")]
    {
        let _ = writeln!(reject, "    {ip} daddr {prefix} reject");
    }
    // Hairpin: source and destination are the same pod.
    let hairpin: String = Who::LOCAL_PODS
        .iter()
        .flat_map(|pod| Family::BOTH.map(|f| (family_word(f), pod.address(f))))
        .map(|(ip, a)| format!("    {ip} saddr {a} {ip} daddr {a} masquerade\n"))
        .collect();
    format!(
        "table inet control\ndelete table inet control\ntable inet control {{
  chain services {{\n{nat}  }}
  chain prerouting {{ type nat hook prerouting priority -100; jump services; }}
  chain output {{ type nat hook output priority -100; jump services; }}
  chain postrouting {{ type nat hook postrouting priority 100; meta mark & 0x4000 == 0x4000 masquerade\n{hairpin}  }}
  chain refuse {{\n{reject}  }}
  chain in {{ type filter hook input priority -10; ct state new jump refuse; }}
  chain forward {{ type filter hook forward priority -10; ct state new jump refuse; }}
  chain out {{ type filter hook output priority -10; ct state new jump refuse; }}
}}\n"
    )
}

const fn family_word(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn service(app: &App, family: Family, transport: Transport, nat: &mut String, reject: &mut String) {
    let ip = family_word(family);
    let pods = if family == Family::V4 { "10.244.0.0/16" } else { "fd00:10::/32" };
    let targets: Vec<_> = app
        .backends
        .iter()
        .enumerate()
        .map(|(n, b)| format!("{n} : {} . {}", b.who.address(family), b.port))
        .collect();
    let choose = format!("dnat {ip} to numgen random mod {} map {{ {} }}", targets.len(), targets.join(", "));
    let gateway_port = (gateway(family), app.node_port()).into();
    let addresses = Via::ALL.map(|via| (via, app.address(via, family)));
    for (via, address) in addresses.into_iter().chain([(Via::NodePort, gateway_port)]) {
        let (to, port) = (address.ip(), address.port());
        let matches = format!("{ip} daddr {to} {transport} dport {port}");
        let mark = match via {
            Via::ClusterIp => format!("{ip} saddr != {pods} meta mark set meta mark | 0x4000"),
            _ => "meta mark set meta mark | 0x4000".into(),
        };
        let line = if targets.is_empty() {
            writeln!(reject, "    {matches} reject")
        } else {
            writeln!(nat, "    {matches} {mark}").and_then(|()| writeln!(nat, "    {matches} {choose}"))
        };
        debug_assert!(line.is_ok(), "writing to a string");
    }
}
