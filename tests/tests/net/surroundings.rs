//! What else a node has around a Service: other people's DNAT, a second uplink, neighbours that move, routers that count hops,
//! namespaces within pods.

use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, connect, recvmsg, setsockopt, sockopt,
};
use serde_json::json;
use sluice_tests::lab::agent::served;
use sluice_tests::lab::app::{App, Backend, SERVICE_PORT, Via};
use sluice_tests::lab::namespace::Namespace;
use sluice_tests::lab::wiring::host_device;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Connection, Dial, Outcome};
use sluice_tests::wait::until;
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

pub fn groups() -> Vec<Group> {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("P31_J19_host_ports_beside_services", host_ports),
                ("P74_J20_a_second_uplink", second_uplink),
                ("P75_neighbours_are_forgotten_and_move", neighbours),
                ("J11_a_namespace_within_a_pod", nested),
                ("B9_an_external_address_that_is_another_nodes", another_nodes_address),
            ],
        ));
        stories.push(Story::new(format!("P22_each_hop_counts_once::{family}"), move |bed| hops(bed, family)));
        stories.push(Story::new(format!("P75_a_router_is_replaced_in_silence::{family}"), move |bed| {
            router_replaced(bed, family)
        }));
    }
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "surroundings".into(), config, setup: Box::new(setup), stories }]
}

fn near() -> App {
    App::new("near", 1, [Backend::new(Who::Pb, 8_080)])
}

fn far() -> App {
    App::new("far", 2, [Backend::new(Who::Pd, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc, Who::Pd, Who::OtherHost] {
        bed.serve(who, 8_080)?;
    }
    bed.start_agent()?;
    bed.apply(&near())?;
    bed.apply(&far())
}

fn open(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<Connection> {
    Dial::new(bed.place(from), to, transport).open().or_else(|outcome| bail!("{from:?} to {to}: {outcome}"))
}

fn answered_by(bed: &Bed, from: Who, to: SocketAddr, transport: Transport, who: Who) -> Result<()> {
    let backend = open(bed, from, to, transport)?.answer.backend;
    ensure!(backend == Backend::new(who, 8_080).id(), "{from:?} to {to}: {backend} answers");
    Ok(())
}

/// Load balancers in software give their Services the nodes' own addresses, of which some are endpoints as well: the Service's port is
/// taken there, and nothing else to or from that node.
fn another_nodes_address(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let addresses = Family::BOTH.map(|family| Who::OtherHost.address(family).to_string());
    let shared = App::new("shared", 3, [Backend::new(Who::Pb, 8_080)]).with("externalIPs", json!(addresses));
    let other = SocketAddr::new(Who::OtherHost.address(family), 8_080);
    let pod = SocketAddr::new(Who::Pb.address(family), 8_080);
    let ways = [
        (Who::Pa, other, Who::OtherHost),
        (Who::Host, other, Who::OtherHost),
        (Who::OtherHost, pod, Who::Pb),
    ];
    let mut held: Vec<_> =
        ways.iter().map(|(from, to, _)| open(bed, *from, *to, transport)).collect::<Result<_>>()?;
    let api = App::new("api", 4, [Backend::new(Who::OtherHost, 8_080)]);
    bed.apply(&api)?;
    bed.apply(&shared)?;
    let result = (|| {
        let service = SocketAddr::new(other.ip(), SERVICE_PORT);
        for from in [Who::Pa, Who::Host] {
            answered_by(bed, from, service, transport, Who::Pb).context("the Service")?;
        }
        for (from, to, who) in ways {
            answered_by(bed, from, to, transport, who)?;
        }
        for ((from, ..), connection) in ways.iter().zip(&mut held) {
            connection.ask(b"still").ok().with_context(|| format!("{from:?}'s from before"))?;
        }
        Ok(())
    })();
    bed.delete(&shared)?;
    bed.delete(&api)?;
    result
}

/// Rules as the CNI's portmap plugin writes them: a port of the node leads to a pod. The Services' own addresses keep that
/// port; where it is a NodePort as well, the Service wins, whichever came first.
fn host_ports(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let (ip, pod) = match (family, Who::Pc.address(family)) {
        (Family::V4, pod) => ("ip", pod.to_string()),
        (Family::V6, pod) => ("ip6", format!("[{pod}]")),
    };
    let node = Who::Host.address(family);
    let node_port = near().address(Via::NodePort, family);
    let lead = |port: u16| format!("{ip} daddr {node} {transport} dport {port} dnat {ip} to {pod}:8080;");
    let rules = [lead(80), lead(node_port.port())].concat();
    bed.nft(&format!(
        "table inet portmap {{ chain pre {{ type nat hook prerouting priority -100; {rules} }}
         chain out {{ type nat hook output priority -100; {rules} }}\n}}"
    ))?;
    let host_port = SocketAddr::new(node, 80);
    let result = (|| {
        for round in ["the Service first", "the rules first"] {
            for from in [Who::Client, Who::Pa, Who::Host] {
                answered_by(bed, from, host_port, transport, Who::Pc).context("the host port")?;
                for via in [Via::LoadBalancer, Via::ExternalIp, Via::ClusterIp, Via::NodePort] {
                    let to = near().address(via, family);
                    answered_by(bed, from, to, transport, Who::Pb)
                        .with_context(|| format!("{via:?}, {round}"))?;
                }
            }
            bed.delete(&near())?;
            for from in [Who::Client, Who::Pa, Who::Host] {
                answered_by(bed, from, node_port, transport, Who::Pc).context("no Service is there")?;
            }
            bed.apply(&near())?;
        }
        Ok(())
    })();
    bed.nft("delete table inet portmap")?;
    result
}

/// The new device serves NodePorts and LoadBalancer addresses; answers leave by where the routes lead, and flows go on when the
/// routes change.
fn second_uplink(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let (n1, rt) = (bed.names.full("n1"), bed.names.full("rt"));
    bed.ip("rt", &format!("link add up2 netns {rt} type veth peer name eth1 netns {n1}"))?;
    // Ways that differ by direction are what a strict filter is there to forbid, whoever translates.
    bed.namespace("n1").sysctls(&[("net/ipv4/conf/all/rp_filter", "2")])?;
    for (place, device, last) in [("rt", "up2", "1"), ("n1", "eth1", "11")] {
        bed.ip(place, &format!("link set {device} up"))?;
        bed.ip(place, &format!("addr add 192.0.9.{last}/24 dev {device}"))?;
        bed.ip(place, &format!("addr add fd00:9::{last}/64 dev {device} nodad"))?;
    }
    let default = |number: u8, device: &str| {
        let via =
            if family == Family::V4 { format!("192.0.{number}.1") } else { format!("fd00:{number}::1") };
        bed.ip("n1", &format!("route replace default via {via} dev {device}"))
    };
    let own = family.pick(Ipv4Addr::new(192, 0, 9, 11), Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x11));
    let balanced = near().address(Via::LoadBalancer, family);
    let result = (|| {
        let serves = |status: &serde_json::Value| served(status).iter().any(|(name, _)| name == "eth1");
        bed.agent()?.home.wait_status("the new device to be served", serves)?;
        let length = if family == Family::V4 { 32 } else { 128 };
        bed.ip("rt", &format!("route add {}/{length} via {own}", balanced.ip()))?;
        let mut held = Vec::new();
        for app in [near(), far()] {
            let to = SocketAddr::new(own, app.node_port());
            held.push(open(bed, Who::Client, to, transport).context("in by the second, out by the first")?);
        }
        held.push(open(bed, Who::Client, balanced, transport).context("a LoadBalancer address")?);
        held.push(open(bed, Who::Client, near().address(Via::NodePort, family), transport)?);
        held.push(open(bed, Who::Pa, far().address(Via::ClusterIp, family), transport)?);
        default(9, "eth1")?;
        let mut goes_on = |when: &str| {
            held.iter_mut().enumerate().try_for_each(|(number, flow)| {
                flow.ask(when.as_bytes()).ok().map(drop).with_context(|| format!("flow {number} {when}"))
            })
        };
        goes_on("after the default route has moved to the second")?;
        default(2, "eth0")?;
        goes_on("and back")
    })();
    default(2, "eth0")?;
    bed.ip("rt", "link del up2")?;
    bed.namespace("n1").sysctls(&[("net/ipv4/conf/all/rp_filter", "1")])?;
    result
}

/// The stack finds neighbours: what the programs send on has the hardware address that it knows just then.
fn neighbours(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let mut held = [
        open(bed, Who::Pa, near().address(Via::ClusterIp, family), transport)?,
        open(bed, Who::Client, near().address(Via::NodePort, family), transport)?,
        open(bed, Who::Host, near().address(Via::ClusterIp, family), transport)?,
        open(bed, Who::Client, far().address(Via::NodePort, family), transport)?,
    ];
    let mut go_on = |what: &str| {
        held.iter_mut().enumerate().try_for_each(|(number, flow)| {
            flow.ask(what.as_bytes()).ok().map(drop).with_context(|| format!("flow {number}, {what}"))
        })
    };
    for place in ["n1", "rt", "pa", "pb", "cl"] {
        bed.ip(place, "neigh flush all")?;
    }
    go_on("nobody knows a neighbour")?;
    let device = host_device(Wiring::Routed, "pb");
    let announce = [("net/ipv4/conf/all/arp_notify", "1"), ("net/ipv6/conf/all/ndisc_notify", "1")];
    for (place, device, address) in
        [("pb", "eth0", "02:00:00:00:07:01"), ("n1", &device, "02:00:00:00:07:02")]
    {
        bed.namespace(place).sysctls(&announce)?;
        bed.ip(place, &format!("link set {device} address {address}"))?;
        go_on("a neighbour has announced another hardware address")?;
    }
    Ok(())
}

/// Nobody announces the router's other hardware address. The stack finds out by asking a neighbour that is in use, so it has to learn of
/// packets that pass it by.
fn router_replaced(bed: &mut Bed, family: Family) -> Result<()> {
    let version = if family == Family::V4 { "ipv4" } else { "ipv6" };
    let times =
        ["base_reachable_time_ms", "retrans_time_ms"].map(|name| format!("net/{version}/neigh/eth0/{name}"));
    let delay = format!("net/{version}/neigh/eth0/delay_first_probe_time");
    bed.namespace("n1").sysctls(&[(&times[0], "500"), (&times[1], "100"), (&delay, "1")])?;
    let mut flow = open(bed, Who::Pa, far().address(Via::ClusterIp, family), Transport::Udp)?;
    bed.ip("rt", "link set n1 address 02:00:00:00:07:03")?;
    until("the flow to go by the other router", Duration::from_secs(60), || flow.ask(b"again").ok().map(drop))
}

/// As a container engine within a pod makes it: the node sees one more address behind the pod's device.
fn nested(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let inner = Namespace::create(bed.names.full("in"))?;
    let (pa, name) = (bed.names.full("pa"), inner.name());
    bed.namespace("pa").sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
    let (own, via, length) = match family {
        Family::V4 => ("10.244.1.77", "169.254.7.1", 32),
        Family::V6 => ("fd00:10:1::77", "fd00:77::1", 128),
    };
    let pod = Who::Pa.address(family);
    let inside =
        |line: String| sluice_tests::lab::command::run("ip", &[&["-n", name], &*words(&line)].concat());
    bed.ip("pa", &format!("link add in0 netns {pa} type veth peer name eth0 netns {name}"))?;
    bed.ip("pa", "link set in0 up")?;
    bed.ip("pa", &format!("addr add {via}/{length} dev in0{}", if length == 128 { " nodad" } else { "" }))?;
    inside("link set eth0 up".into())?;
    inside(format!("addr add {own}/{length} dev eth0{}", if length == 128 { " nodad" } else { "" }))?;
    inside(format!("route add {via}/{length} dev eth0"))?;
    inside(format!("route add default via {via} dev eth0"))?;
    bed.ip("pa", &format!("route add {own}/{length} dev in0"))?;
    let device = host_device(Wiring::Routed, "pa");
    bed.ip("n1", &format!("route add {own}/{length} via {pod} dev {device}"))?;
    let place = bed.place(Who::Pa).inside(&inner);
    let result = (|| {
        for (via, app) in [(Via::ClusterIp, near()), (Via::ClusterIp, far()), (Via::ExternalIp, near())] {
            let to = app.address(via, family);
            let answer = Dial::new(&place, to, transport).probe().ok().with_context(|| to.to_string())?;
            ensure!(answer.backend == app.backends[0].id(), "{to}: {} answers", answer.backend);
            let masqueraded = via != Via::ClusterIp;
            ensure!((answer.seen.ip().to_string() == own) != masqueraded, "{to}: seen as {}", answer.seen);
        }
        let mut unlisted = near().address(Via::ClusterIp, family);
        unlisted.set_port(81);
        let outcome = Dial::new(&place, unlisted, transport).probe();
        ensure!(outcome == Outcome::Refused, "a port that is not listed: {outcome}");
        Ok(())
    })();
    bed.ip("n1", &format!("route del {own}/{length}"))?;
    bed.ip("pa", "link del in0")?;
    result
}

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

/// What a datagram that may make so many hops meets.
#[derive(Debug, PartialEq, Eq)]
enum Met {
    /// The router where it ended.
    Router(IpAddr),
    Backend,
}

/// The way of a datagram from each client, as traceroute finds it: each router takes one hop, and none behind the node is heard
/// under another name than the frontend's (J1).
fn hops(bed: &mut Bed, family: Family) -> Result<()> {
    let router = family.pick(Ipv4Addr::new(198, 51, 100, 1), Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 1));
    let gateway = sluice_tests::lab::plan::gateway(family);
    let outside = |app: App| app.address(Via::NodePort, family);
    let inside = |app: App| app.address(Via::ClusterIp, family);
    let rows = [
        (Who::Client, outside(near()), router, 3),
        (Who::Client, outside(far()), router, 5),
        (Who::Pa, inside(near()), gateway, 2),
        (Who::Pa, inside(far()), gateway, 4),
    ];
    for (from, to, first, distance) in rows {
        for limit in 1..=distance {
            let met =
                meets(bed, from, to, limit).with_context(|| format!("{from:?} to {to}, {limit} hops"))?;
            let want = match limit {
                _ if limit == distance => vec![Met::Backend],
                // The node itself is the frontend to who is outside.
                1 => vec![Met::Router(first), Met::Router(to.ip())],
                _ => vec![Met::Router(to.ip())],
            };
            ensure!(want.contains(&met), "{from:?} to {to}, {limit} hops: met {met:?}, not one of {want:?}");
        }
    }
    Ok(())
}

fn meets(bed: &Bed, from: Who, to: SocketAddr, limit: u8) -> Result<Met> {
    let fd = bed.place(from).socket(Family::of(&to.ip()), Transport::Udp)?;
    if to.is_ipv4() {
        setsockopt(&fd, sockopt::Ipv4Ttl, &limit.into())?;
        setsockopt(&fd, sockopt::Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&fd, sockopt::Ipv6Ttl, &limit.into())?;
        setsockopt(&fd, sockopt::Ipv6RecvErr, &true)?;
    }
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    socket.send(b"how far?")?;
    match socket.recv(&mut [0; 256]) {
        Ok(_) => return Ok(Met::Backend),
        Err(error) => ensure!(error.raw_os_error() == Some(libc::EHOSTUNREACH), "{error}"),
    }
    let mut data = [0; 256];
    let mut buffers = [IoSliceMut::new(&mut data)];
    let mut control = vec![0; 512];
    let told = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut buffers,
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    )?;
    let router = told.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(_, Some(from)) => {
            Some(IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(from.sin_addr.s_addr))))
        }
        ControlMessageOwned::Ipv6RecvErr(_, Some(from)) => {
            Some(IpAddr::V6(Ipv6Addr::from(from.sin6_addr.s6_addr)))
        }
        _ => None,
    });
    Ok(Met::Router(router.context("nobody has told the error")?))
}
