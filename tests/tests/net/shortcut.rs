//! Packets that pass the node's stack by, and what must hold all the same: experiments 1 and 2, P-75. n1's conntrack drops and counts
//! what it calls invalid, and strict reverse path filtering is on; both are asked after every story.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::command::{run, run_in};
use sluice_tests::lab::wiring::host_device;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Connection, Dial};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, Way, both_transports};

/// How long an answer may take that a policy may have dropped.
const SOON: Duration = Duration::from_secs(1);

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    const ROWS: [(&str, Way); 7] = [
        ("E1_bulk_and_close_leave_nothing_invalid", |bed, family, transport| match transport {
            Transport::Tcp => closes(bed, family),
            Transport::Udp => Ok(()),
        }),
        ("E1_a_policy_that_drops_cuts_when_the_lease_ends", cut),
        ("E2_none_past_a_bandwidth_limit", |bed, family, transport| {
            let limit = ["root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "400ms"];
            barred(bed, family, transport, &limit, "queueing discipline tbf")
        }),
        ("E2_none_past_filters_of_somebody_elses", |bed, family, transport| {
            barred(bed, family, transport, &["clsact"], "filters of traffic control")
        }),
        ("E2_none_where_the_CNI_masquerades_in_between", masqueraded),
        ("P75_a_pod_made_anew_with_the_same_address_is_learnt_anew", made_anew),
        ("every_way_has_them", every_way),
    ];
    let mut stories: Vec<Story> =
        Family::BOTH.into_iter().flat_map(|family| both_transports(family, &ROWS)).collect();
    stories.push(Story::new("E1_connection_tracking_is_kept_liberal", liberal));
    let config = BedConfig { invalid_drop: true, ..BedConfig::new(wiring) };
    Group { name: format!("shortcut::{wiring}"), config, setup: Box::new(setup), stories }
}

fn local() -> App {
    App::new("local", 1, [Backend::new(Who::Pb, 8_080)])
}

fn remote() -> App {
    App::new("remote", 2, [Backend::new(Who::Pd, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pd] {
        bed.serve(who, 8_080)?;
    }
    bed.namespace("n1").sysctls(&[("net/ipv4/conf/all/rp_filter", "1")])?;
    bed.home().flags.extend(["--shortcuts".to_owned(), "established".to_owned()]);
    bed.start_agent()?;
    [local(), remote()].iter().try_for_each(|app| bed.apply(app))
}

fn dial(bed: &Bed, who: Who, to: std::net::SocketAddr, transport: Transport) -> Result<Connection> {
    Dial::new(bed.place(who), to, transport).patience(SOON).open().or_else(|outcome| bail!("{outcome}"))
}

/// A pod's flow to the local endpoint.
fn open(bed: &Bed, family: Family, transport: Transport) -> Result<Connection> {
    dial(bed, Who::Pa, local().address(Via::ClusterIp, family), transport)
}

/// How the flow's packets pass the node, as `sluice flows` tells.
fn path(bed: &mut Bed, connection: &Connection) -> Result<String> {
    let flow = bed.home().flow(connection.local()?, connection.peer()?)?;
    Ok(flow["path"].as_str().unwrap_or_default().to_owned())
}

/// Keeps the flow busy until its packets pass the node so.
fn wait_path(bed: &mut Bed, connection: &mut Connection, want: &str) -> Result<()> {
    until(&format!("the path to be {want}"), PATIENCE, || {
        connection.ask(b"which way").ok().map_err(|error| format!("{error:#}"))?;
        match path(bed, connection).map_err(|error| format!("{error:#}"))? {
            is if is == want => Ok(()),
            is => Err(format!("it is {is}")),
        }
    })
}

/// Packets that have taken a shortcut.
fn taken(bed: &mut Bed) -> Result<u64> {
    Ok(bed.home().json(&["status"])?["counts"]["shortcut"].as_u64().unwrap_or_default())
}

/// Packets that reverse path filtering has dropped in n1.
fn strays(bed: &Bed) -> Result<u64> {
    let text = run_in(bed.namespace("n1").path(), "cat", &["/proc/net/netstat"])?;
    let mut rows = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
    let (Some(names), Some(values)) = (rows.next(), rows.next()) else { bail!("no TcpExt in {text}") };
    let found = names.split_whitespace().zip(values.split_whitespace());
    let value = found.filter(|(name, _)| *name == "IPReversePathFilter").map(|(_, value)| value).next();
    Ok(value.unwrap_or("0").parse()?)
}

fn closes(bed: &mut Bed, family: Family) -> Result<()> {
    let before = strays(bed)?;
    let mut connection = open(bed, family, Transport::Tcp)?;
    wait_path(bed, &mut connection, "shortcut")?;
    connection.bulk(100_000_000).or_else(|outcome| bail!("100 MB each way: {outcome}"))?;
    ensure!(path(bed, &connection)? == "shortcut", "it has gone by the stack");
    let (client, port) = (connection.local()?.ip(), connection.local()?.port());
    connection.close()?;
    // As conntrack writes it: IPv6 in full.
    let table = run_in(bed.namespace("n1").path(), "cat", &["/proc/net/nf_conntrack"])?;
    let own = table.lines().filter(|line| line.contains(&format!("sport={port} ")) && line.contains("tcp"));
    let open: Vec<_> = own.filter(|line| line.contains("ESTABLISHED") && !is_short(line)).collect();
    ensure!(open.is_empty(), "conntrack has not seen {client} end: {open:?}");
    ensure!(strays(bed)? == before, "reverse path filtering has dropped packets");
    Ok(())
}

/// An entry that will be forgotten within minutes: the kernel shortens the time of what was reset.
fn is_short(line: &str) -> bool {
    line.split_whitespace().nth(4).and_then(|left| left.parse::<u64>().ok()).is_some_and(|left| left < 600)
}

fn cut(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let mut connection = open(bed, family, transport)?;
    wait_path(bed, &mut connection, "shortcut")?;
    let port = local().backends[0].port;
    bed.nft(&format!(
        "table inet cut {{ chain forward {{ type filter hook forward priority 10; {transport} dport {port} counter drop; }}\n}}"
    ))?;
    let cut = until("the policy to cut the flow", PATIENCE, || match connection.ask(b"still there?").ok() {
        Ok(_) => Err("it is answered"),
        Err(_) => Ok(()),
    });
    let dropped = run_in(bed.namespace("n1").path(), "nft", &["list", "table", "inet", "cut"])?;
    bed.nft("delete table inet cut")?;
    cut?;
    ensure!(!dropped.contains("packets 0 "), "the rule has seen nothing: {dropped}");
    Ok(())
}

/// Something that shortcuts would get round is at the endpoint's device for a while.
fn barred(bed: &mut Bed, family: Family, transport: Transport, what: &[&str], why: &str) -> Result<()> {
    let mut connection = open(bed, family, transport)?;
    wait_path(bed, &mut connection, "shortcut")?;
    let device = host_device(bed.config.wiring, "pb");
    let tc = |bed: &Bed, verb: &str| {
        let netns = bed.namespace("n1").name().to_owned();
        run("tc", &[&["-n", &netns, "qdisc", verb, "dev", &device], what].concat())
    };
    tc(bed, "add")?;
    let is_told = |status: &serde_json::Value, told: bool| {
        let edges = status["edges"].as_array().into_iter().flatten();
        let mut whys = edges.filter(|edge| edge["name"] == *device).filter_map(|edge| edge["why"].as_str());
        whys.any(|is| is.contains(why) == told)
    };
    let seen = bed.home().wait_status("the edge to tell", |status| is_told(status, true));
    let seen = seen.and_then(|_| wait_path(bed, &mut connection, "stack"));
    tc(bed, "del")?;
    seen?;
    bed.home().wait_status("the edge to tell", |status| is_told(status, false))?;
    wait_path(bed, &mut connection, "shortcut")
}

fn masqueraded(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let family_word = if family == Family::V4 { "ip" } else { "ip6" };
    let (from, to) = (Who::Pa.address(family), Who::Pb.address(family));
    bed.nft(&format!(
        "table {family_word} cni {{ chain post {{ type nat hook postrouting priority 100; {family_word} saddr {from} {family_word} daddr {to} masquerade; }}\n}}"
    ))?;
    let told = (|| {
        let mut connection = open(bed, family, transport)?;
        for _ in 0..20 {
            connection.ask(b"masqueraded").ok()?;
        }
        ensure!(connection.answer.seen != connection.local()?, "the CNI masquerades nothing");
        let path = path(bed, &connection)?;
        ensure!(path == "stack", "the path is {path}");
        // Its NAT ends with the table.
        Ok(connection.close()?)
    })();
    bed.nft(&format!("delete table {family_word} cni"))?;
    told
}

fn made_anew(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let mut connection = open(bed, family, transport)?;
    wait_path(bed, &mut connection, "shortcut")?;
    bed.renew_device(Who::Pb)?;
    until("the new device to be served", PATIENCE, || connection.ask(b"and now?").ok().map(drop))?;
    wait_path(bed, &mut connection, "shortcut")
}

/// From pods and from outside, to endpoints here and elsewhere.
fn every_way(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for (who, via, app) in [
        (Who::Pa, Via::ClusterIp, local()),
        (Who::Pa, Via::ClusterIp, remote()),
        (Who::Client, Via::NodePort, remote()),
        (Who::Client, Via::LoadBalancer, local()),
    ] {
        let before = (strays(bed)?, taken(bed)?);
        let mut connection = dial(bed, who, app.address(via, family), transport)?;
        wait_path(bed, &mut connection, "shortcut")?;
        connection.ask(b"this way").ok()?;
        ensure!(taken(bed)? > before.1, "{who:?} to {}: no packet has taken it", app.name);
        ensure!(strays(bed)? == before.0, "reverse path filtering has dropped packets");
    }
    Ok(())
}

fn liberal(bed: &mut Bed) -> Result<()> {
    const SETTING: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
    bed.namespace("n1").sysctls(&[(SETTING, "0")])?;
    let path = bed.namespace("n1").path().to_owned();
    until("the agent to set it again", PATIENCE, || {
        let is =
            run_in(&path, "cat", &[&format!("/proc/sys/{SETTING}")]).map_err(|error| format!("{error:#}"))?;
        if is.trim() == "1" { Ok(()) } else { Err(format!("it is {is}")) }
    })
}
