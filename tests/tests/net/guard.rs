//! Neighbours that pretend: loopback addresses on the wire, the ends of other pods' flows.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::packet::frame::{ACK, FIN, Flags, RST, SYN, packet};
use sluice_tests::traffic::{Connection, Dial, send, send_by};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

const PB: Backend = Backend::new(Who::Pb, 8_080);

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("X07_a_pod_in_another_pods_name", spoofed_by_a_pod),
                ("X07_an_outsider_in_a_pods_name", spoofed_from_outside),
            ],
        ));
        stories.push(Story::new(format!("X01_loopback_addresses_from_a_pod::{family}"), move |bed| {
            martians(bed, family)
        }));
        stories
            .push(Story::new(format!("P04_a_tag_that_gives_a_priority_is_no_VLAN::{family}"), move |bed| {
                priority_tagged(bed, family)
            }));
        stories.push(Story::new(format!("what_a_switch_floods_is_not_answered::{family}"), move |bed| {
            flooded(bed, family)
        }));
    }
    Group {
        name: format!("guard::{wiring}"),
        config: BedConfig::new(wiring),
        setup: Box::new(|bed| {
            bed.serve(PB.who, PB.port)?;
            // As kube-proxy leaves it behind in iptables mode: the kernel lets martians in.
            bed.namespace("n1").sysctls(&[("net/ipv4/conf/all/route_localnet", "1")])?;
            // And nobody's reverse path check keeps forgeries from us.
            for (short, device) in [("n1", "eth0"), ("rt", "cl")] {
                let device = format!("net/ipv4/conf/{device}/rp_filter");
                bed.namespace(short).sysctls(&[("net/ipv4/conf/all/rp_filter", "0"), (&device, "0")])?;
            }
            bed.start()?;
            bed.apply(&app())?;
            bed.apply(&empty())
        }),
        stories,
    }
}

fn app() -> App {
    App::new("app", 1, [PB])
}

/// Nobody serves it: what dials it is refused.
fn empty() -> App {
    App::new("empty", 2, [])
}

/// A datagram whose frame has a tag with a priority and the number 0 (IEEE 802.1Q) is translated like one without.
fn priority_tagged(bed: &mut Bed, family: Family) -> Result<()> {
    let front = app().address(Via::NodePort, family);
    let own = SocketAddr::new(Who::Client.address(family), 4_002);
    let client = UdpSocket::from(bed.place(Who::Client).bound(own, Transport::Udp)?);
    client.set_nonblocking(true)?;
    let plain = packet(
        Transport::Udp.number(),
        Flags::default(),
        (own.ip(), own.port()),
        (front.ip(), front.port()),
        b"tagged",
    );
    let tagged = [&plain[..12], &[0x81, 0x00, 0xa0, 0x00], &plain[12..]].concat();
    let node = hardware(&bed.ip("n1", "-o link show dev eth0")?, "link/ether")?;
    until("an answer", PATIENCE, || {
        send_by(bed.namespace("rt"), "n1", &node, [tagged.clone()])?;
        let (_, from) = client.recv_from(&mut [0; 512])?;
        ensure!(from == front, "answered by {from}");
        Ok(())
    })
}

/// A frame for another host, which a switch shows to this one as well. If it were refused, the switch would look for the other host
/// here from then on.
fn flooded(bed: &mut Bed, family: Family) -> Result<()> {
    const ANOTHER: [u8; 6] = [2, 0, 0, 0, 0xff, 1];
    let front = empty().address(Via::NodePort, family);
    let client = (Who::Client.address(family), 4_001);
    let frame = |to| packet(Transport::Tcp.number(), SYN, client, to, b"");
    let count = |bed: &mut Bed, reason| bed.agent()?.home.dropped(reason);
    let before = (count(bed, "no_endpoint")?, count(bed, "loopback")?);
    send_by(bed.namespace("rt"), "n1", &ANOTHER, [frame((front.ip(), front.port()))])?;
    // Behind it one that is for the node.
    let own = hardware(&bed.ip("n1", "-o link show dev eth0")?, "link/ether")?;
    let loopback = family.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    send_by(bed.namespace("rt"), "n1", &own, [frame((loopback, 1))])?;
    bed.agent()?.home.wait_dropped("loopback", |now| now > before.1)?;
    ensure!(count(bed, "no_endpoint")? == before.0, "it has been refused");
    Ok(())
}

/// Whatever a pod sends to loopback addresses, or from them, ends at its edge: a NodePort that the node's own sockets may dial
/// there, and what listens there.
fn martians(bed: &mut Bed, family: Family) -> Result<()> {
    let loopback = family.pick(Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let own = bed.place(Who::Host).bound(SocketAddr::new(loopback, 0), Transport::Udp)?;
    let own = UdpSocket::from(own);
    let open = bed.place(Who::Host).bound(SocketAddr::new(any(family), 0), Transport::Udp)?;
    let open = UdpSocket::from(open);
    let pod = (Who::Pa.address(family), 4_000);
    let node = Who::Host.address(family);
    let front = app().address(Via::ClusterIp, family);
    let ways = [
        (pod, (loopback, own.local_addr()?.port())),
        (pod, (loopback, app().node_port())),
        ((loopback, 4_000), (node, open.local_addr()?.port())),
        ((loopback, 4_000), (front.ip(), front.port())),
    ];
    let before = bed.agent()?.home.dropped("loopback")?;
    let frames =
        ways.map(|(from, to)| packet(Transport::Udp.number(), Flags::default(), from, to, b"forged"));
    send_by(bed.namespace("pa"), "eth0", &gateway_mac(bed, family)?, frames)?;
    bed.agent()?.home.wait_dropped("loopback", |now| now == before + 4)?;
    for socket in [own, open] {
        socket.set_nonblocking(true)?;
        match socket.recv_from(&mut [0; 64]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            heard => bail!("heard {heard:?}"),
        }
    }
    Ok(())
}

const fn any(family: Family) -> IpAddr {
    family.pick(Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED)
}

/// The hardware address that the pod's packets to the node have.
fn gateway_mac(bed: &Bed, family: Family) -> Result<[u8; 6]> {
    // So that the pod knows its neighbour.
    Dial::new(bed.place(Who::Pa), app().address(Via::ClusterIp, family), Transport::Tcp).probe().ok()?;
    let option = if family == Family::V4 { "-4" } else { "-6" };
    let known = bed.ip("pa", &format!("{option} neigh show dev eth0"))?;
    let known: String = known.lines().filter(|line| !line.starts_with("fe80")).collect();
    hardware(&known, "lladdr")
}

/// The hardware address that follows `word` in what `ip` says.
pub fn hardware(said: &str, word: &str) -> Result<[u8; 6]> {
    let found = said.split_whitespace().skip_while(|is| *is != word).nth(1);
    let word = found.with_context(|| format!("no {word} in {said:?}"))?;
    let mut mac = [0; 6];
    for (byte, digits) in mac.iter_mut().zip(word.split(':')) {
        *byte = u8::from_str_radix(digits, 16)?;
    }
    Ok(mac)
}

fn open(bed: &Bed, to: SocketAddr, transport: Transport, port: u16) -> Result<Connection> {
    let opened = Dial::new(bed.place(Who::Pa), to, transport).port(port).open();
    opened.or_else(|outcome| bail!("{port} to {to}: {outcome}"))
}

/// A pod's RST, FIN, data and SYN with another pod's ends: the flow goes on, and is not thought closed when the other pod uses
/// the same port for a direct connection (P-61).
fn spoofed_by_a_pod(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let front = app().address(Via::ClusterIp, family);
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let mut owned = open(bed, front, transport, 25_000)?;
    let own = owned.local()?;
    let before = bed.agent()?.home.dropped("spoofed")?;
    let kinds = [RST, FIN, ACK, SYN];
    let frames = kinds.map(|flags| {
        packet(transport.number(), flags, (own.ip(), own.port()), (front.ip(), front.port()), b"forged")
    });
    send(bed.namespace("pc"), front.ip(), frames)?;
    bed.agent()?.home.wait_dropped("spoofed", |now| now == before + 4)?;
    let mut beside = open(bed, direct, transport, 25_000)?;
    owned.ask(b"the Service's").ok()?;
    beside.ask(b"direct").ok()?;
    Ok(())
}

/// An outsider opens a flow with a pod's ends: the endpoint's answer does not reach the pod, whose own flow with these very ends
/// is served.
fn spoofed_from_outside(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let front = app().address(Via::NodePort, family);
    let pod = (Who::Pa.address(family), 25_001);
    let before = bed.agent()?.home.dropped("spoofed")?;
    send(
        bed.namespace("cl"),
        front.ip(),
        [packet(transport.number(), SYN, pod, (front.ip(), front.port()), b"forged")],
    )?;
    bed.agent()?.home.wait_dropped("spoofed", |now| now > before)?;
    let mut owned = open(bed, front, transport, pod.1)?;
    let answer = owned.ask(b"the pod's own").ok()?;
    ensure!(answer.backend == PB.id(), "answered by {}", answer.backend);
    Ok(())
}
