//! Services that ask for more than a plain choice: policies, source ranges, affinity, health checks, loopback.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{Backlog, SockaddrStorage, connect, getsockname, listen};
use serde_json::json;
use sluice_tests::lab::agent::shortcuts;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Answer, Dial, Outcome};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

const HEALTH: u16 = 32_001;
const SILENCE: Duration = Duration::from_millis(300);

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("C6_policy_local_keeps_the_client_address", local),
                ("C7_C8_pods_and_node_are_not_bound_by_policy_local", short_circuits),
                ("C16_C17_source_ranges", ranges),
                ("D1_affinity_for_pods_outside_and_host", affinity),
                ("E5_NodePort_on_loopback", loopback),
            ],
        ));
        // With `always` the operator says that netfilter need not see packets.
        if shortcuts() != "always" {
            stories
                .extend(both_transports(family, &[("J17_netfilter_sees_clients_and_endpoints", netfilter)]));
        }
        stories
            .push(Story::new(format!("H7_health_check_node_port::{family}"), move |bed| health(bed, family)));
    }
    let config = BedConfig::new(wiring);
    Group { name: format!("policy::{wiring}"), config, setup: Box::new(setup), stories }
}

/// Policy Local with an endpoint on each node.
fn here() -> App {
    App::new("here", 1, [Backend::new(Who::Pb, 8_080), Backend::new(Who::Pd, 8_080)])
        .with("externalTrafficPolicy", json!("Local"))
        .with("healthCheckNodePort", json!(HEALTH))
}

/// Policy Local with its endpoint on the other node.
fn away() -> App {
    App::new("away", 2, [Backend::new(Who::Pd, 8_080)]).with("externalTrafficPolicy", json!("Local"))
}

/// Open to the outside client's addresses only.
fn closed() -> App {
    let ranges = Family::BOTH.map(|family| Who::Client.address(family).to_string());
    let ranges = ranges.map(|ip| format!("{ip}/{}", if ip.contains(':') { 128 } else { 32 }));
    App::new("closed", 3, [Backend::new(Who::Pb, 8_080)]).with("loadBalancerSourceRanges", json!(ranges))
}

fn sticky() -> App {
    let backends = [Who::Pa, Who::Pb, Who::Pc, Who::Pd].map(|who| Backend::new(who, 8_080));
    App::new("sticky", 4, backends).with("sessionAffinity", json!("ClientIP"))
}

fn plain() -> App {
    App::new("plain", 5, [Backend::new(Who::Pb, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pa, Who::Pb, Who::Pc, Who::Pd] {
        bed.serve(who, 8_080)?;
    }
    bed.start()?;
    [here(), away(), closed(), sticky(), plain()].iter().try_for_each(|app| bed.apply(app))
}

fn answer(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<Answer> {
    Dial::new(bed.place(from), to, transport).probe().ok().with_context(|| format!("{} to {to}", from.name()))
}

fn silent(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<()> {
    let outcome = Dial::new(bed.place(from), to, transport).patience(SILENCE).probe();
    ensure!(outcome == Outcome::Timeout, "{} to {to}: {outcome}", from.name());
    Ok(())
}

const OUTER: [Via; 3] = [Via::NodePort, Via::LoadBalancer, Via::ExternalIp];

fn local(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for via in OUTER {
        for _ in 0..6 {
            let answer = answer(bed, Who::Client, here().address(via, family), transport)?;
            ensure!(answer.backend == "pb:8080", "{}: answered by {}", via.name(), answer.backend);
            let seen = answer.seen.ip();
            ensure!(seen == Who::Client.address(family), "{}: the backend sees {seen}", via.name());
        }
        silent(bed, Who::Client, away().address(via, family), transport)?;
    }
    Ok(())
}

fn short_circuits(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for via in OUTER {
        let answer_pod = answer(bed, Who::Pa, away().address(via, family), transport)?;
        let seen = answer_pod.seen.ip();
        ensure!(seen == Who::Pa.address(family), "{}: the backend sees {seen}", via.name());
        let answer_host = answer(bed, Who::Host, away().address(via, family), transport)?;
        ensure!(answer_host.backend == "pd:8080", "answered by {}", answer_host.backend);
    }
    Ok(())
}

/// Between the edges there are a client and an endpoint, to the node's policies as well: rules about these bind whoever dials
/// the Service, rules about its address nobody, as with kube-proxy (J17, P-73). Connection tracking has these two as well, where kube-proxy
/// has the Service's address: whoever reads there finds the endpoint (J16).
fn netfilter(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let (cluster, node) = (plain().address(Via::ClusterIp, family), plain().address(Via::NodePort, family));
    let backend = Who::Pb.address(family);
    let policy = |rules: &str| {
        let chain = format!("chain forward {{ type filter hook forward priority 0; {rules}; }}");
        bed.nft(&format!("table inet rules {{}}\ndelete table inet rules\ntable inet rules {{ {chain}; }}\n"))
    };
    let (address, port) = (cluster.ip(), node.port());
    policy(&format!("{ip} daddr {address} drop; tcp dport {port} drop; udp dport {port} drop"))?;
    answer(bed, Who::Pa, cluster, transport)?;
    answer(bed, Who::Client, node, transport)?;
    policy(&format!("ct original {ip} daddr {address} drop"))?;
    answer(bed, Who::Pa, cluster, transport)?;
    for (from, to) in [(Who::Pa, cluster), (Who::Client, node)] {
        for rule in [
            format!("{ip} saddr {} {ip} daddr {backend} drop", from.address(family)),
            format!("ct original {ip} saddr {} ct original {ip} daddr {backend} drop", from.address(family)),
        ] {
            policy(&rule)?;
            silent(bed, from, to, transport)?;
        }
    }
    bed.nft("delete table inet rules\n")
}

/// Parity with kube-proxy, and none of the ways round them that others have had.
fn ranges(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let balancer = closed().address(Via::LoadBalancer, family);
    answer(bed, Who::Client, balancer, transport)?;
    silent(bed, Who::Pa, balancer, transport)?;
    let host = Dial::new(bed.place(Who::Host), balancer, transport).probe();
    ensure!(host == Outcome::Refused, "the node, not in the ranges: {host}");
    for via in [Via::NodePort, Via::ExternalIp, Via::ClusterIp] {
        answer(bed, Who::Pa, closed().address(via, family), transport)?;
    }
    Ok(())
}

/// By chance 12 connections to four endpoints are all the same once in four million times.
/// S-18: a pod's sockets leave a choice that depends on the client to the packet path; the node's own share one record.
fn affinity(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for (from, ways) in [
        (Who::Pa, [Via::ClusterIp, Via::NodePort]),
        (Who::Client, [Via::NodePort, Via::LoadBalancer]),
        (Who::Host, [Via::ClusterIp, Via::LoadBalancer]),
    ] {
        let mut answers = BTreeSet::new();
        for n in 0..12 {
            let to = sticky().address(ways[n % 2], family);
            answers.insert(answer(bed, from, to, transport)?.backend);
        }
        ensure!(answers.len() == 1, "{} is answered by {answers:?}", from.name());
    }
    Ok(())
}

/// kube-proxy serves IPv4 only; at sockets both are served, and nothing is opened to the network.
fn loopback(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let loopback = if family == Family::V4 {
        Ipv4Addr::LOCALHOST.into()
    } else {
        IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1_u16])
    };
    let port = plain().node_port();
    let got = answer(bed, Who::Host, SocketAddr::new(loopback, port), transport)?;
    ensure!(got.backend == "pb:8080", "answered by {}", got.backend);
    let (to, protocol) = (SocketAddr::new(loopback, port).to_string(), transport.to_string());
    let question = ["explain", "--from", &loopback.to_string(), "--to", &to, "--protocol", &protocol];
    let told = bed.agent()?.home.json(&question)?;
    ensure!(told["verdict"] == "translate" && told["path"] == "socket", "{told:#}");
    let other = Dial::new(bed.place(Who::Host), SocketAddr::new(loopback, port + 900), transport).probe();
    ensure!(other == Outcome::Refused, "a port that nobody serves: {other}");
    // The node's daemons talk to each other there.
    let host = bed.place(Who::Host);
    let server = host.bound(SocketAddr::new(loopback, 0), transport)?;
    if transport == Transport::Tcp {
        listen(&server, Backlog::new(1)?)?;
    }
    let own: SockaddrStorage = getsockname(server.as_raw_fd())?;
    let client = host.socket(family, transport)?;
    match connect(client.as_raw_fd(), &own) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(error) => bail!("a server of the node's own on loopback: {error}"),
    }
    let pod = Dial::new(bed.place(Who::Pa), SocketAddr::new(loopback, port), transport).probe();
    ensure!(pod == Outcome::Refused, "a pod's loopback is its own: {pod}");
    Ok(())
}

fn health(bed: &mut Bed, family: Family) -> Result<()> {
    let socket = SocketAddr::new(Who::Host.address(family), HEALTH);
    let ask = |bed: &Bed| -> Result<String> {
        bed.namespace("cl").within(|| {
            let mut stream = TcpStream::connect_timeout(&socket, Duration::from_secs(5))?;
            stream.write_all(b"GET /any/path HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
    };
    let becomes = |bed: &Bed, code: &str, weight: &str| -> Result<()> {
        until("the health check to change", PATIENCE, || {
            let text = ask(bed).map_err(|error| format!("{error:#}"))?;
            let header = format!("x-load-balancing-endpoint-weight: {weight}\r\n");
            let right = text.starts_with(&format!("HTTP/1.0 {code}")) && text.contains(&header);
            if right { Ok(()) } else { Err(text) }
        })
    };
    becomes(bed, "200", "1")?;
    let remote = App { backends: vec![Backend::new(Who::Pd, 8_080)], ..here() };
    bed.apply(&remote)?;
    becomes(bed, "503", "0")?;
    bed.apply(&here())?;
    becomes(bed, "200", "1")?;
    bed.apply(&App { spec: serde_json::Map::new(), ..here() })?;
    until("the health check node port to close", PATIENCE, || {
        if ask(bed).is_ok() { Err("it is open".to_owned()) } else { Ok(()) }
    })?;
    bed.apply(&here())?;
    becomes(bed, "200", "1")
}
