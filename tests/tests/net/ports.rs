//! One client port, several ways to one backend; and ports that masquerading must leave alone.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Place, Who, Wiring};
use sluice_tests::traffic::client::exchange_unconnected;
use sluice_tests::traffic::{Connection, Dial, Outcome};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

const PB: Backend = Backend::new(Who::Pb, 8_080);

/// Both wirings: bridges let direct traffic between their ports pass the node's stack, a way of its own.
pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("P60_one_port_three_ways_in_six_orders", three_ways),
                ("P61_a_closed_service_flow_leaves_its_port_to_direct_ones", after_close),
                ("P30_the_nodes_own_flows_from_a_node_port_number", own_flows_from_node_ports),
                ("masquerade_survives_renumbering_by_the_stack", renumbered),
                ("a_forward_chain_that_accepts_the_mark", accepted_by_mark),
                ("masquerade_does_not_collide_with_the_cnis", beside_another_masquerade),
                ("L07_beside_kube_proxys_masquerade", beside_kube_proxys_masquerade),
            ],
        ));
        stories.push(Story::new(format!("P60_one_unconnected_udp_socket_two_ways::{family}"), move |bed| {
            unconnected(bed, family)
        }));
        stories.push(Story::new(
            format!("P30_an_unconnected_socket_at_a_node_port_number::{family}"),
            move |bed| own_unconnected_socket_at_a_node_port(bed, family),
        ));
        stories.push(Story::new(
            format!("one_unconnected_socket_of_the_node_two_services::{family}"),
            move |bed| unconnected_host(bed, family),
        ));
        stories
            .push(Story::new(format!("P64_masquerade_leaves_the_nodes_ports_alone::{family}"), move |bed| {
                live_ports(bed, family)
            }));
        stories.push(Story::new(
            format!("L07_masquerade_leaves_conntracks_ports_alone::{family}"),
            move |bed| conntracks_ports(bed, family),
        ));
    }
    Group {
        name: format!("ports::{wiring}"),
        config: BedConfig::new(wiring),
        setup: Box::new(setup),
        stories,
    }
}

fn first() -> App {
    App::new("first", 1, [PB])
}

fn second() -> App {
    App::new("second", 2, [PB])
}

fn remote() -> App {
    App::new("remote", 3, [Backend::new(Who::Pd, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pd, Who::Client] {
        bed.serve(who, 8_080)?;
    }
    bed.start()?;
    bed.apply(&first())?;
    bed.apply(&second())?;
    bed.apply(&remote())
}

fn open(from: &Place, to: SocketAddr, transport: Transport, port: u16) -> Result<Connection> {
    let opened = Dial::new(from, to, transport).port(port).open();
    opened.or_else(|outcome| bail!("{outcome}")).with_context(|| format!("{port} to {to}"))
}

/// All three are opened one after the other from one port, in each order, and all live at the end.
fn three_ways(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    for (client, base) in [(Who::Pa, 20_000), (Who::Client, 21_000)] {
        // The outside client dials NodePorts: its way in differs, the backend's edge is the same.
        let via = if client == Who::Pa { Via::ClusterIp } else { Via::NodePort };
        let ways = [first().address(via, family), second().address(via, family), direct];
        let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        for (number, order) in orders.into_iter().enumerate() {
            let port = base + u16::try_from(number)?;
            let mut open_ones = Vec::new();
            for way in order {
                let connection = open(bed.place(client), ways[way], transport, port);
                open_ones.push(connection.with_context(|| format!("{client:?}, order {order:?}"))?);
            }
            for (way, connection) in order.into_iter().zip(&mut open_ones) {
                let token = format!("{client:?} {way} {order:?}");
                connection.ask(token.as_bytes()).ok().with_context(|| token.clone())?;
            }
        }
    }
    Ok(())
}

/// P-61: open and close by a Service, at once direct from the same port, at once by another Service.
fn after_close(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    for (client, via, base) in [(Who::Pa, Via::ClusterIp, 22_000), (Who::Client, Via::NodePort, 23_000)] {
        // Three different far ends: the client's own TIME_WAIT is not in the way.
        let ways = [first().address(via, family), direct, second().address(via, family)];
        for round in 0..20_u16 {
            for (step, to) in ways.into_iter().enumerate() {
                let mut connection = open(bed.place(client), to, transport, base + round)
                    .with_context(|| format!("{client:?}, round {round}, step {step}"))?;
                connection.ask(b"still here").ok()?;
            }
        }
    }
    Ok(())
}

/// Answers to flows that the node itself opened from a port with a NodePort's number are no requests; everybody else's
/// packets to that port are.
fn own_flows_from_node_ports(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let far = [(Who::Client, "cl:8080"), (Who::Pb, "pb:8080"), (Who::Pd, "pd:8080")];
    for app in [first(), second()] {
        let mut connections = Vec::new();
        for (who, id) in far {
            let to = SocketAddr::new(who.address(family), 8_080);
            let connection = open(bed.place(Who::Host), to, transport, app.node_port())?;
            ensure!(connection.answer.backend == id, "{to}: answered by {}", connection.answer.backend);
            connections.push(connection);
        }
        let request = Dial::new(bed.place(Who::Client), app.address(Via::NodePort, family), transport);
        ensure!(request.probe().ok()?.backend == "pb:8080", "the NodePort serves beside them");
        for connection in &mut connections {
            connection.ask(b"and again").ok()?;
        }
    }
    Ok(())
}

/// As above from a socket that is not connected. One that has written to nobody listens in vain (B10).
fn own_unconnected_socket_at_a_node_port(bed: &mut Bed, family: Family) -> Result<()> {
    let node_port = first().address(Via::NodePort, family);
    let far = [Who::Client, Who::Pb, Who::Pd].map(|who| SocketAddr::new(who.address(family), 8_080));
    right_names(bed.place(Who::Host), node_port.port(), &far)?;
    let own = bed.place(Who::Host).bound(node_port, Transport::Udp)?;
    let answer = Dial::new(bed.place(Who::Client), node_port, Transport::Udp).probe().ok()?;
    ensure!(answer.backend == PB.id(), "the socket takes the Service's requests: {}", answer.backend);
    drop(own);
    Ok(())
}

/// Experiment 5: a NAT of the stack's gives the flow another source port on its way; the backend must see the
/// masquerade address all the same. A packet that has not been renumbered does not get through.
fn renumbered(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    let client = Who::Client.address(family);
    let bracketed = if family == Family::V4 { client.to_string() } else { format!("[{client}]") };
    bed.nft(&format!(
        "table inet old {{ chain post {{ type nat hook postrouting priority 100;
           meta mark & 0x4000 == 0x4000 meta l4proto {transport} snat {ip} to {bracketed}:50000-50100; }}
         chain after {{ type filter hook postrouting priority 200;
           meta mark & 0x4000 == 0x4000 {transport} sport != 50000-50100 drop; }}\n}}"
    ))?;
    let pod = PB.who.address(family);
    let result = (|| {
        let mut opened = open(bed.place(Who::Client), first().address(Via::NodePort, family), transport, 0)?;
        let seen = opened.answer.seen.ip();
        ensure!(seen == bed.route_source(pod)?, "the backend sees {seen}: not masqueraded");
        opened.ask(b"again").ok()?;
        // What came after the rules have gone would come under the wrong name.
        Ok(opened.close()?)
    })();
    bed.nft("delete table inet old")?;
    result
}

/// Experiment 5, B19: a node whose FORWARD policy is drop, and kube-proxy's rule that lets its mark pass.
fn accepted_by_mark(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    bed.nft(
        "table inet strict { chain forward { type filter hook forward priority 0; policy drop;
           ct state established,related accept; meta mark & 0x4000 == 0x4000 accept;
           meta l4proto ipv6-icmp accept; }\n}",
    )?;
    let marked = open(bed.place(Who::Client), first().address(Via::NodePort, family), transport, 0);
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let patience = Duration::from_millis(100);
    let unmarked = Dial::new(bed.place(Who::Client), direct, transport).patience(patience).probe();
    bed.nft("delete table inet strict")?;
    marked?;
    ensure!(unmarked == Outcome::Timeout, "the chain did not drop what has no mark: {unmarked}");
    Ok(())
}

/// kube-proxy's rule masquerades what comes with its mark, which is ours, and takes the mark off a connection's first packet only: so it is
/// where both are on a node, when one takes the other's place.
fn beside_kube_proxys_masquerade(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    bed.nft(
        "table inet postrouting { chain post { type nat hook postrouting priority 100;
           meta mark & 0x4000 == 0x4000 meta mark set mark xor 0x4000 masquerade fully-random; }
           chain forward { type filter hook forward priority 0; ct state established accept; }\n}",
    )?;
    let opened: Result<Vec<_>> = [first(), remote()]
        .into_iter()
        .map(|app| open(bed.place(Who::Client), app.address(Via::NodePort, family), transport, 0))
        .collect();
    let held = opened.and_then(|mut held| held.iter_mut().try_for_each(goes_on).map(|()| held));
    // Its chain stays, as kube-proxy's do, and somebody else tracks connections: without either the stack would translate no more.
    bed.nft("flush chain inet postrouting post")?;
    let lives =
        held.and_then(|mut held| held.iter_mut().try_for_each(goes_on).context("once the rule has gone"));
    bed.nft("delete table inet postrouting")?;
    lives
}

/// The next packet of a connection is answered by whom the first one was, who sees the same client.
fn goes_on(connection: &mut Connection) -> Result<()> {
    let next = connection.ask(b"next").ok().context("the next packet")?;
    ensure!(next == connection.answer, "first {:?}, then {next:?}", connection.answer);
    Ok(())
}

/// Experiment 6: the CNI masquerades a pod's traffic to the outside and keeps its port, which one of ours has.
fn beside_another_masquerade(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let pd = SocketAddr::new(Who::Pd.address(family), 8_080);
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    bed.nft(&format!(
        "table inet cni {{ chain post {{ type nat hook postrouting priority 100;
           oifname \"eth0\" {ip} saddr {} masquerade; }}\n}}",
        Who::Pa.address(family)
    ))?;
    let result = (|| {
        let ours = open(bed.place(Who::Client), remote().address(Via::NodePort, family), transport, 0);
        let mut ours = ours.context("through the Service")?;
        let taken = ours.answer.seen;
        let mut theirs =
            open(bed.place(Who::Pa), pd, transport, taken.port()).context("the pod, directly")?;
        let seen = theirs.answer.seen;
        ensure!(
            seen.ip() == taken.ip(),
            "the pod is seen as {seen}: nothing was masqueraded, nothing was tested"
        );
        ensure!(seen != taken, "both are seen as {seen}");
        ours.ask(b"ours").ok().context("the Service's flow")?;
        theirs.ask(b"theirs").ok().context("the pod's flow")?;
        Ok(theirs.close()?)
    })();
    bed.nft("delete table inet cni")?;
    result
}

fn unconnected(bed: &mut Bed, family: Family) -> Result<()> {
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let [one, two] = [first(), second()].map(|app| app.address(Via::ClusterIp, family));
    right_names(bed.place(Who::Pa), 24_500, &[one, direct, two, one, direct])
}

/// The node's sockets are translated at sendmsg and restored at recvmsg.
fn unconnected_host(bed: &mut Bed, family: Family) -> Result<()> {
    let [one, two] = [first(), remote()].map(|app| app.address(Via::ClusterIp, family));
    right_names(bed.place(Who::Host), 24_501, &[one, two, one])
}

/// From one unconnected socket to each in turn, four times; each answers under the name it was called by.
fn right_names(place: &Place, port: u16, ways: &[SocketAddr]) -> Result<()> {
    let own = SocketAddr::new(place.address(Family::of(&ways[0].ip())), port);
    let socket = UdpSocket::from(place.bound(own, Transport::Udp)?);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(3)))?;
    for round in 0..4 {
        for to in ways {
            let (_, from) =
                exchange_unconnected(&socket, *to).with_context(|| format!("round {round} to {to}"))?;
            ensure!(from == *to, "round {round}: wrote to {to}, {from} answers");
        }
    }
    Ok(())
}

/// 2,000 connections of the node itself live; 400 masqueraded flows to the same backend take none of their ports.
/// Drawn blindly from 28,976 ports, 400 flows would hit at least one of 2,000 with all but 10^-12 certainty.
fn live_ports(bed: &mut Bed, family: Family) -> Result<()> {
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let source = bed.route_source(direct.ip())?;
    let host = bed.place(Who::Host);
    let mut own = Vec::new();
    for number in 0..2_000_u16 {
        let from = SocketAddr::new(source, 2_000 + number * 14);
        own.push(
            Dial::new(host, direct, Transport::Tcp)
                .from_address(from)
                .open()
                .or_else(|o| bail!("{from}: {o}"))?,
        );
    }
    let node_port = first().address(Via::NodePort, family);
    let mut masqueraded = Vec::new();
    for _ in 0..400 {
        masqueraded.push(open(bed.place(Who::Client), node_port, Transport::Tcp, 0)?);
    }
    for connection in &mut own {
        let local = connection.local()?;
        connection.ask(b"alive").ok().with_context(|| format!("the node's own connection from {local}"))?;
    }
    // The other order: the node opens from a port that a masqueraded flow holds.
    for connection in masqueraded.iter_mut().take(10) {
        let taken = connection.answer.seen;
        let again = Dial::new(host, direct, Transport::Tcp).from_address(taken).open();
        let mut again = again.or_else(|o| bail!("{o}")).with_context(|| format!("from the taken {taken}"))?;
        again.ask(b"own").ok()?;
        connection.ask(b"masqueraded").ok().with_context(|| format!("masqueraded as {taken}"))?;
    }
    Ok(())
}

/// The same of connections that rules masquerade, as kube-proxy's have done before it left: drawn blindly, 400 ports would miss
/// 2,000 that conntrack has drawn from 1024 on once in 200,000 times.
fn conntracks_ports(bed: &mut Bed, family: Family) -> Result<()> {
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let ip = if family == Family::V4 { "ip" } else { "ip6" };
    bed.nft(&format!(
        "table inet earlier {{ chain post {{ type nat hook postrouting priority 100;
           {ip} saddr {} {ip} daddr {} meta mark & 0x4000 == 0 masquerade fully-random; }}\n}}",
        Who::Client.address(family),
        direct.ip()
    ))?;
    let result = (|| {
        let client = bed.place(Who::Client);
        let open_all = |to, count| -> Result<Vec<_>> {
            (0..count).map(|_| open(client, to, Transport::Tcp, 0)).collect()
        };
        let (mut theirs, node) = (open_all(direct, 2_000)?, bed.route_source(direct.ip())?);
        let seen = theirs.first().context("none is open")?.answer.seen.ip();
        ensure!(seen == node, "the pod sees {seen}: nothing was masqueraded, nothing was tested");
        let mut ours = open_all(first().address(Via::NodePort, family), 400)?;
        theirs.iter_mut().try_for_each(goes_on).context("masqueraded by the rules")?;
        ours.iter_mut().try_for_each(goes_on).context("masqueraded by us")?;
        theirs.into_iter().try_for_each(|connection| Ok(connection.close()?))
    })();
    bed.nft("delete table inet earlier")?;
    result
}
