//! Connected UDP sockets of the node's own processes when their endpoint departs (S-08, P-52): exactly those that were
//! led there are ended, and a client that dials again, as resolvers do, is served by who is left. Likewise those that are
//! older than the Service that they have dialled (P-54).

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{SockaddrStorage, connect};
use sluice_tests::bpf::may_iterate_over_sockets;
use sluice_tests::harness::Skip;
use sluice_tests::lab::agent::Agent;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::client::exchange_unconnected;
use sluice_tests::traffic::{Connection, Dial, Outcome};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};
use crate::operator::fetch;

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);

pub fn groups() -> Vec<Group> {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        let mut story = |name: &str, run: fn(&mut Bed, Family) -> Result<()>| {
            let name = format!("S08_{name}::{family}");
            stories.push(Story::new(name, move |bed| may_end_sockets().and_then(|()| run(bed, family))));
        };
        story("a_resolver_dials_again_and_is_served", resolver);
        story("who_waits_for_an_answer_is_told_at_once", waiting);
        story("the_last_endpoint_and_the_service", last_one);
        story("everybody_else_keeps_the_socket", others);
        story("an_endpoint_that_departs_while_no_agent_runs", while_dead);
    }
    for family in Family::BOTH {
        let name = format!("P54_a_service_that_comes_later_is_noticed::{family}");
        stories.push(Story::new(name, move |bed| may_end_sockets().and_then(|()| noticed(bed, family))));
    }
    let name = "S08_ipv4_by_an_ipv6_socket";
    stories.push(Story::new(name, |bed| may_end_sockets().and_then(|()| mapped(bed))));
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "departure".into(), config, setup: Box::new(setup), stories }]
}

/// A kernel that keeps programs from looking at sockets has the agent warn of it, and every one stays.
///
/// # Errors
/// A [`Skip`] on such a kernel.
pub fn may_end_sockets() -> Result<()> {
    let refused = |_| Skip("this kernel keeps programs from looking at sockets".to_owned());
    Ok(may_iterate_over_sockets().map_err(refused)?)
}

fn app(backends: &[Backend]) -> App {
    App::new("app", 1, backends.iter().copied())
}

/// Keeps both of its endpoints.
fn other() -> App {
    App::new("other", 2, [PB])
}

fn setup(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    bed.start_agent()?;
    bed.apply(&other())
}

fn open(bed: &Bed, from: Who, to: SocketAddr, transport: Transport) -> Result<Connection> {
    Dial::new(bed.place(from), to, transport).open().or_else(|outcome| bail!("{from:?} to {to}: {outcome}"))
}

/// Its owner is told, soon after the endpoint has left the maps.
fn is_told(socket: &mut Connection) -> Result<()> {
    until("the socket to be ended", PATIENCE, || match socket.ask(b"who now?") {
        Outcome::Ended => Ok(()),
        outcome => Err(outcome.to_string()),
    })
}

fn ended(bed: &Bed) -> Result<u64> {
    let metrics = fetch(bed, 10_249, "/metrics")?.1;
    let line = metrics.lines().find_map(|line| line.strip_prefix("sluice_sockets_ended_total "));
    Ok(line.with_context(|| format!("no such metric in {metrics}"))?.parse()?)
}

/// The metric follows once all are ended.
fn counted(bed: &Bed, before: u64, sockets: u64) -> Result<()> {
    until("the ended sockets to be counted", PATIENCE, || {
        let after = ended(bed)?;
        ensure!(after == before + sockets, "the metric went from {before} to {after}");
        Ok(())
    })
}

fn resolver(bed: &mut Bed, family: Family) -> Result<()> {
    for via in [Via::ClusterIp, Via::NodePort] {
        bed.apply(&app(&[PB]))?;
        let before = ended(bed)?;
        let to = app(&[]).address(via, family);
        let mut sockets = Vec::new();
        for _ in 0..20 {
            sockets.push(open(bed, Who::Host, to, Transport::Udp)?);
        }
        bed.apply(&app(&[PC]))?;
        for mut socket in sockets {
            is_told(&mut socket).with_context(|| format!("{via:?}"))?;
            let backend = open(bed, Who::Host, to, Transport::Udp)?.answer.backend;
            ensure!(backend == PC.id(), "{via:?}: dialled again, {backend} answers");
        }
        counted(bed, before, 20)?;
    }
    Ok(())
}

/// A connected socket that has sent nothing yet.
fn connected(bed: &Bed, from: Who, to: SocketAddr) -> Result<UdpSocket> {
    let fd = bed.place(from).socket(Family::of(&to.ip()), Transport::Udp)?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

/// Who waits for an answer on this socket is told that it has ended, once `change` has been made.
fn told_while_waiting(socket: &UdpSocket, change: impl FnOnce() -> Result<()>) -> Result<()> {
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| socket.recv(&mut [0; 64]));
        change()?;
        let outcome = reader.join().ok().context("the reader panicked")?;
        let kind = outcome.as_ref().map_err(std::io::Error::kind);
        ensure!(kind == Err(std::io::ErrorKind::ConnectionAborted), "{outcome:?}");
        Ok(())
    })
}

fn waiting(bed: &mut Bed, family: Family) -> Result<()> {
    bed.apply(&app(&[PB]))?;
    let socket = connected(bed, Who::Host, app(&[]).address(Via::ClusterIp, family))?;
    told_while_waiting(&socket, || bed.apply(&app(&[PC])))
}

/// The node's own process is told and dials again; a pod's next datagram is served, by the socket that it has.
fn noticed(bed: &mut Bed, family: Family) -> Result<()> {
    for via in [Via::ClusterIp, Via::NodePort] {
        bed.delete(&app(&[]))?;
        let to = app(&[]).address(via, family);
        let elsewhere = SocketAddr::new(to.ip(), to.port() + 100);
        let [node, bystander] = [to, elsewhere].map(|to| connected(bed, Who::Host, to));
        let (node, bystander, pod) = (node?, bystander?, connected(bed, Who::Pa, to)?);
        // To an address that is nobody's yet it would circle between the routers.
        if via == Via::NodePort {
            pod.send(b"anybody there?")?;
        }
        told_while_waiting(&node, || bed.apply(&app(&[PB]))).with_context(|| format!("{via:?}"))?;
        let backend = open(bed, Who::Host, to, Transport::Udp)?.answer.backend;
        ensure!(backend == PB.id(), "{via:?}: dialled again, {backend} answers");
        // It may be told first that nobody was there before.
        let again = || exchange_unconnected(&pod, to);
        let (answer, _) =
            until("the pod's socket to be served", PATIENCE, again).context(format!("{via:?}"))?;
        ensure!(answer.backend == PB.id(), "{via:?}: the pod's: {} answers", answer.backend);
        ensure!(bystander.peer_addr()? == elsewhere, "{via:?}: another port's socket was ended");
    }
    Ok(())
}

/// G4: done better than kube-proxy, which leaves them.
fn last_one(bed: &mut Bed, family: Family) -> Result<()> {
    let to = app(&[]).address(Via::ClusterIp, family);
    for deleted in [false, true] {
        bed.apply(&app(&[PB]))?;
        let mut socket = open(bed, Who::Host, to, Transport::Udp)?;
        if deleted {
            bed.delete(&app(&[]))?
        } else {
            bed.apply(&app(&[]))?
        };
        is_told(&mut socket).with_context(|| format!("Service deleted: {deleted}"))?;
        if !deleted {
            let outcome = Dial::new(bed.place(Who::Host), to, Transport::Udp).probe();
            ensure!(outcome == Outcome::Refused, "nobody is left: {outcome}");
        }
    }
    Ok(())
}

fn others(bed: &mut Bed, family: Family) -> Result<()> {
    bed.apply(&app(&[PB]))?;
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let via = |app: &App| app.address(Via::ClusterIp, family);
    let (first, second) = (via(&app(&[])), via(&other()));
    let mut stay = vec![
        ("to the pod itself", open(bed, Who::Host, direct, Transport::Udp)?),
        ("to another Service of the pod", open(bed, Who::Host, second, Transport::Udp)?),
        ("TCP", open(bed, Who::Host, first, Transport::Tcp)?),
    ];
    let mut pod = open(bed, Who::Pa, first, Transport::Udp)?;
    let unconnected = UdpSocket::from(bed.place(Who::Host).socket(family, Transport::Udp)?);
    unconnected.set_nonblocking(false)?;
    unconnected.set_read_timeout(Some(Duration::from_secs(5)))?;
    exchange_unconnected(&unconnected, first)?;
    let port = unconnected.local_addr()?.port();
    let before = ended(bed)?;
    let mut goes = open(bed, Who::Host, first, Transport::Udp)?;
    bed.apply(&app(&[PC]))?;
    is_told(&mut goes).context("the one that was led there")?;
    for (who, connection) in &mut stay {
        let backend = connection.ask(b"still there?").ok().with_context(|| (*who).to_owned())?.backend;
        ensure!(backend == PB.id(), "{who}: {backend} answers");
    }
    let backend = pod.ask(b"who now?").ok().context("a pod's")?.backend;
    ensure!(backend == PC.id(), "a pod's: {backend} answers");
    let (answer, from) = exchange_unconnected(&unconnected, first).context("unconnected")?;
    ensure!(answer.backend == PC.id() && from == first, "unconnected: {} answers as {from}", answer.backend);
    ensure!(unconnected.local_addr()?.port() == port, "its port has changed");
    counted(bed, before, 1)
}

fn while_dead(bed: &mut Bed, family: Family) -> Result<()> {
    bed.apply(&app(&[PB]))?;
    let mut socket = open(bed, Who::Host, app(&[]).address(Via::ClusterIp, family), Transport::Udp)?;
    let home = bed.agent.take().context("no agent")?.kill()?;
    bed.apply_unawaited(&app(&[PC]))?;
    socket.ask(b"still there?").ok().context("no agent runs: nothing changes")?;
    let mut agent = Agent::start(home)?;
    agent.ready(Who::LOCAL_PODS.len() + 1)?;
    bed.agent = Some(agent);
    bed.wait_installed(&app(&[PC]))?;
    is_told(&mut socket)
}

/// S-10.
fn mapped(bed: &mut Bed) -> Result<()> {
    bed.apply(&app(&[PB]))?;
    let to = app(&[]).address(Via::ClusterIp, Family::V4);
    let std::net::IpAddr::V4(v4) = to.ip() else { bail!("{to} is not IPv4") };
    let to = SocketAddr::new(v4.to_ipv6_mapped().into(), to.port());
    let mut socket = open(bed, Who::Host, to, Transport::Udp)?;
    bed.apply(&app(&[PC]))?;
    is_told(&mut socket)?;
    let backend = open(bed, Who::Host, to, Transport::Udp)?.answer.backend;
    ensure!(backend == PC.id(), "dialled again, {backend} answers");
    Ok(())
}
