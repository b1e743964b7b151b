//! What a bed is made of, part by part.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::agent::AgentHome;
use super::app::Objects;
use super::bed::BedConfig;
use super::cgroup::Cgroup;
use super::command;
use super::manifests::Manifests;
use super::namespace::Namespace;
use super::place::Place;
use super::plan::{CLUSTER_CIDR, Who, Wiring, knowledge};
use super::sockets::Sockets;
use crate::wire::rules::End;
use crate::wire::{Rules, Tap};

pub(super) fn common_flags() -> [String; 4] {
    ["--hostname-override", "n1", "--cluster-cidr", CLUSTER_CIDR].map(String::from)
}

/// Settings that devices inherit when they are made.
pub(super) fn prepare(namespaces: &BTreeMap<&'static str, Namespace>) -> Result<()> {
    for short in ["n1", "n2", "rt"] {
        namespaces[short].sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    }
    // P-70: strict reverse-path filtering on the node.
    namespaces["n1"]
        .sysctls(&[("net/ipv4/conf/all/rp_filter", "1"), ("net/ipv4/conf/default/rp_filter", "1")])
}

/// As a strict host has it: what is forwarded is new or established, and what is invalid is counted.
///
/// The node's own ICMPv6 redirects are let through: conntrack looks for the packet they quote only where no other option
/// stands before it, so it calls those that name the neighbour's hardware address invalid, whoever translates. That none
/// about a translated flow reaches a pod is told by stories of its own (experiment 3).
const INVALID_DROP: &str = "table inet lab {
  chain input { type filter hook input priority 0; ct state invalid counter drop; }
  chain forward { type filter hook forward priority 0; policy drop;
    ct state invalid counter drop
    ct state new,established,related,untracked accept; }
  chain output { type filter hook output priority 0;
    icmpv6 type nd-redirect accept
    ct state invalid counter drop; }
}";

pub(super) fn settle(namespaces: &BTreeMap<&'static str, Namespace>, config: BedConfig) -> Result<()> {
    if !config.offload {
        for short in ["pa", "pb", "pc", "pd", "cl"] {
            command::run_in(namespaces[short].path(), "ethtool", &["-K", "eth0", "tx", "off"])?;
        }
    }
    if config.invalid_drop {
        let n1 = &namespaces["n1"];
        if config.wiring == Wiring::Bridged {
            // Without it conntrack sees only the routed half of a flow between two ports; kube-proxy needs it too.
            n1.sysctls(&[
                ("net/bridge/bridge-nf-call-iptables", "1"),
                ("net/bridge/bridge-nf-call-ip6tables", "1"),
            ])?;
        }
        let net = format!("--net={}", n1.path().display());
        command::with_input("nsenter", &[&net, "nft", "-f", "-"], INVALID_DROP)?;
    }
    Ok(())
}

pub(super) fn places(
    namespaces: &BTreeMap<&'static str, Namespace>,
    cgroup: &Cgroup,
) -> Result<BTreeMap<Who, Place>> {
    let host = Arc::new(Sockets::start(Some(&cgroup.child("n1/host")?))?);
    let pods = Arc::new(Sockets::start(Some(&cgroup.child("n1/pods")?))?);
    let others = Arc::new(Sockets::start(None)?);
    let place = |who: Who| {
        let sockets = match who {
            Who::Host => &host,
            Who::Pd | Who::OtherHost | Who::Client => &others,
            Who::Pa | Who::Pb | Who::Pc => &pods,
        };
        Place { who, netns: namespaces[who.namespace()].path().to_owned(), sockets: sockets.clone() }
    };
    Ok(Who::ALL.into_iter().map(|who| (who, place(who))).collect())
}

pub(super) fn taps(namespaces: &BTreeMap<&'static str, Namespace>) -> Result<Vec<Tap>> {
    let knowledge = Arc::new(knowledge());
    namespaces
        .iter()
        .map(|(short, namespace)| {
            let end = match *short {
                "n1" | "n2" => End::Node,
                "rt" => End::Router,
                _ => End::Host,
            };
            namespace.within(|| Ok(Tap::open(Rules::new(short, end, knowledge.clone()))?))
        })
        .collect()
}

pub(super) fn home(
    n1: &Namespace,
    cgroup: &Cgroup,
    files: &Path,
    config: BedConfig,
    manifests: &Manifests,
) -> Result<AgentHome> {
    let bpffs = files.join("bpf");
    if config.bpffs {
        fs::create_dir(&bpffs)?;
        nix::mount::mount(Some("bpf"), &bpffs, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
            .context("cannot mount a bpffs")?;
    }
    let mut flags = manifests.flags();
    flags.extend(common_flags());
    Ok(AgentHome {
        netns: n1.path().to_owned(),
        cgroup: cgroup.child("n1")?,
        own_cgroup: cgroup.child("n1/agent")?,
        bpffs: config.bpffs.then_some(bpffs),
        run_dir: files.join("run"),
        log: files.join("agent.log"),
        flags,
        program: super::agent::binary()?,
    })
}
