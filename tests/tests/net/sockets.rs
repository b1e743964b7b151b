//! Sockets of the node that are used in unusual ways: bound, dialled again and again, older than the agent, of another
//! namespace, or under other people's programs.

use std::io::{ErrorKind, IoSlice, Read};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    MsgFlags, MultiHeaders, SockaddrStorage, connect, sendmmsg, sendto, setsockopt, sockopt,
};
use sluice_tests::bpf::Asm;
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::namespace::Namespace;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::client::{exchange_unconnected, take};
use sluice_tests::traffic::{Dial, Outcome, Servers};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

const PB: Backend = Backend::new(Who::Pb, 8_080);
const PC: Backend = Backend::new(Who::Pc, 8_080);
const PD: Backend = Backend::new(Who::Pd, 8_080);

pub fn groups() -> Vec<Group> {
    let (mut unusual, mut older, mut foreign) = (Vec::new(), Vec::new(), Vec::new());
    for family in Family::BOTH {
        unusual.extend(both_transports(
            family,
            &[
                ("S12_a_bound_socket_keeps_its_port", bound),
                ("S05_another_namespace's_sockets_are_left_alone", elsewhere),
            ],
        ));
        let mut story = |name: &str, run: fn(&mut Bed, Family) -> Result<()>| {
            unusual.push(Story::new(format!("{name}::{family}"), move |bed| run(bed, family)));
        };
        story("S12_one_port_to_one_endpoint_twice_is_refused", collision);
        story("S13_data_in_the_call_that_connects", fast_open);
        story("S13_a_connect_that_is_called_again_and_again", called_again);
        story("S13_a_connected_datagram_socket_dials_others", dials_others);
        story("S13_many_datagrams_in_one_call", many);
        older.push(Story::new(format!("S21_sockets_and_flows_older_than_the_agent::{family}"), move |bed| {
            older_than_the_agent(bed, family)
        }));
    }
    foreign.push(Story::new("S19_beside_other_programs_of_the_cgroup", beside_others));
    let group = |name: &str, setup: fn(&mut Bed) -> Result<()>, stories| Group {
        name: name.into(),
        config: BedConfig::new(Wiring::Routed),
        setup: Box::new(setup),
        stories,
    };
    vec![
        group("sockets", with_agent, unusual),
        group("sockets::older", servers, older),
        group("sockets::foreign", servers, foreign),
    ]
}

fn one() -> App {
    App::new("one", 1, [PB])
}

/// The same endpoint.
fn two() -> App {
    App::new("two", 2, [PB])
}

fn far() -> App {
    App::new("far", 3, [PD])
}

fn third() -> App {
    App::new("third", 5, [PC])
}

/// Two endpoints.
fn both() -> App {
    App::new("both", 4, [PB, PD])
}

fn servers(bed: &mut Bed) -> Result<()> {
    for who in [Who::Pb, Who::Pc, Who::Pd, Who::OtherHost] {
        bed.serve(who, 8_080)?;
    }
    Ok(())
}

fn with_agent(bed: &mut Bed) -> Result<()> {
    servers(bed)?;
    bed.start_agent()?;
    [one(), two(), far(), both(), third()].iter().try_for_each(|app| bed.apply(app))
}

fn cluster_ip(app: &App, family: Family) -> SocketAddr {
    app.address(Via::ClusterIp, family)
}

fn blocking(fd: OwnedFd) -> Result<UdpSocket> {
    let socket = UdpSocket::from(fd);
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(socket)
}

/// Address and port that the application has bound are the endpoint's to see.
fn bound(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for (number, app) in (0..).zip([one(), far(), both()]) {
        let to = cluster_ip(&app, family);
        let source = SocketAddr::new(bed.route_source(PB.who.address(family))?, 26_000 + number);
        let dial = Dial::new(bed.place(Who::Host), to, transport).from_address(source);
        let connection = dial.open().or_else(|outcome| bail!("{source} to {to}: {outcome}"))?;
        ensure!(connection.local()? == source, "bound to {source}, is {}", connection.local()?);
        ensure!(
            connection.answer.seen.port() == source.port(),
            "{source} is seen as {}",
            connection.answer.seen
        );
    }
    Ok(())
}

/// Both would be one connection to the endpoint: the second is told so, the first lives.
fn collision(bed: &mut Bed, family: Family) -> Result<()> {
    let host = bed.place(Who::Host);
    let source = SocketAddr::new(bed.route_source(PB.who.address(family))?, 26_100);
    let from =
        |app: &App| Dial::new(host, cluster_ip(app, family), Transport::Tcp).from_address(source).open();
    let mut first = from(&one()).or_else(|outcome| bail!("{outcome}"))?;
    let second = from(&two()).err().context("two connections are one")?;
    let want = std::io::Error::from_raw_os_error(Errno::EADDRNOTAVAIL as i32).to_string();
    ensure!(second == Outcome::Failed(want), "the second one: {second}");
    first.ask(b"alive").ok()?;
    let mut third = from(&far()).or_else(|outcome| bail!("to another endpoint: {outcome}"))?;
    third.ask(b"alive").ok().map(drop)
}

/// TCP Fast Open: sendto(2) connects.
fn fast_open(bed: &mut Bed, family: Family) -> Result<()> {
    let to = cluster_ip(&one(), family);
    let fd = bed.place(Who::Host).socket(family, Transport::Tcp)?;
    let mut stream = TcpStream::from(fd);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let data = b"early";
    let sent = sendto(
        stream.as_raw_fd(),
        data,
        &SockaddrStorage::from(to),
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
    )?;
    ensure!(sent == data.len(), "{sent} bytes were taken");
    let mut said = Vec::new();
    while !said.ends_with(data) {
        let mut more = [0; 256];
        let length = stream.read(&mut more)?;
        ensure!(length > 0, "ended after {said:?}");
        said.extend_from_slice(&more[..length]);
    }
    ensure!(said.starts_with(PB.id().as_bytes()), "{:?}", String::from_utf8_lossy(&said));
    ensure!(stream.peer_addr()? == to, "the socket says that it talks to {}", stream.peer_addr()?);
    Ok(())
}

/// As programs do that ask by connect(2) whether it has connected: none of the calls chooses another endpoint or another name.
fn called_again(bed: &mut Bed, family: Family) -> Result<()> {
    let to = cluster_ip(&both(), family);
    for round in 0..20 {
        let fd = bed.place(Who::Host).socket(family, Transport::Tcp)?;
        let again = || connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
        until("the socket to be connected", PATIENCE, || match again() {
            Ok(()) | Err(Errno::EISCONN) => Ok(()),
            Err(error) => Err(error),
        })?;
        for _ in 0..8 {
            ensure!(again() == Err(Errno::EISCONN), "round {round}: connected twice");
        }
        let mut stream = TcpStream::from(fd);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        ensure!(stream.read(&mut [0; 256])? > 0, "round {round}: nobody greets");
        let peer = stream.peer_addr()?;
        ensure!(peer == to, "round {round}: the socket says that it talks to {peer}");
    }
    Ok(())
}

fn dials_others(bed: &mut Bed, family: Family) -> Result<()> {
    let socket = blocking(bed.place(Who::Host).socket(family, Transport::Udp)?)?;
    let stranger = SocketAddr::new(Who::OtherHost.address(family), 8_080);
    let ways = [
        (cluster_ip(&one(), family), PB.id()),
        (stranger, "host2:8080".to_owned()),
        (cluster_ip(&far(), family), PD.id()),
        (cluster_ip(&two(), family), PB.id()),
    ];
    for round in 0..3 {
        for (to, want) in &ways {
            socket.connect(to)?;
            ensure!(socket.peer_addr()? == *to, "round {round}: dialled {to}, is {}", socket.peer_addr()?);
            socket.send(b"hello")?;
            let (answer, from, _) = take(&socket).with_context(|| format!("round {round}: {to}"))?;
            ensure!(answer.backend == *want && from == *to, "round {round}: {to}: {answer:?} from {from}");
        }
    }
    // Refused as a route that does not exist would be, by nobody's translation.
    let refused = socket.connect(SocketAddr::new(cluster_ip(&one(), family).ip(), 81)).map_err(|e| e.kind());
    ensure!(refused == Err(ErrorKind::ConnectionRefused), "a port that is not listed: {refused:?}");
    Ok(())
}

fn many(bed: &mut Bed, family: Family) -> Result<()> {
    let socket = blocking(bed.place(Who::Host).socket(family, Transport::Udp)?)?;
    // An endpoint each: which of two Services it was asked by an answer does not say.
    let to = [one(), far(), third()].map(|app| cluster_ip(&app, family));
    let addresses = to.map(|to| Some(SockaddrStorage::from(to)));
    let payload = [[IoSlice::new(b"hello")]; 3];
    let mut headers = MultiHeaders::preallocate(to.len(), None);
    let sent =
        sendmmsg(socket.as_raw_fd(), &mut headers, &payload, addresses, [], MsgFlags::empty())?.count();
    ensure!(sent == to.len(), "{sent} were sent");
    let mut answered = Vec::new();
    for _ in to {
        answered.push(take(&socket)?.1);
    }
    answered.sort_unstable();
    let mut want = to;
    want.sort_unstable();
    ensure!(answered == want, "{answered:?} answered");
    Ok(())
}

/// A process of the node that has entered a namespace without ways out: what is a Service's address outside is its own there.
fn elsewhere(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    let to = cluster_ip(&one(), family);
    let other = Namespace::create(bed.names.full("other"))?;
    let place = bed.place(Who::Host).inside(&other);
    let outcome = Dial::new(&place, to, transport).probe();
    let unreachable = std::io::Error::from_raw_os_error(Errno::ENETUNREACH as i32).to_string();
    ensure!(outcome == Outcome::Failed(unreachable), "there is no way: {outcome}");
    let address = to.ip().to_string();
    let mut add = vec!["-n", other.name(), "addr", "add", &address, "dev", "lo"];
    // Even there an address cannot be bound at once, unless nobody looks for duplicates.
    add.extend((family == Family::V6).then_some("nodad"));
    sluice_tests::lab::command::run("ip", &add)?;
    let mut servers = Servers::new()?;
    servers.start_at(&place, to, transport)?;
    // An IPv6 address can be bound before it has its route, which the kernel leaves to a worker.
    let answer =
        until("the address to have its route", PATIENCE, || Dial::new(&place, to, transport).probe().ok())?;
    ensure!(answer.seen.ip() == to.ip(), "seen as {}", answer.seen);
    let answer = Dial::new(bed.place(Who::Host), to, transport).probe().ok()?;
    ensure!(answer.backend == PB.id(), "in the node's own namespace {} answers", answer.backend);
    Ok(())
}

/// They were made when no program saw them, and go on when none does any more.
fn older_than_the_agent(bed: &mut Bed, family: Family) -> Result<()> {
    let host = bed.place(Who::Host).clone();
    let direct = SocketAddr::new(PB.who.address(family), PB.port);
    let mut flows = Vec::new();
    for transport in Transport::BOTH {
        for from in [Who::Host, Who::Pa, Who::Client] {
            let opened = Dial::new(bed.place(from), direct, transport).open();
            flows.push(opened.or_else(|outcome| bail!("{from:?}: {outcome}"))?);
        }
    }
    let datagrams = blocking(host.socket(family, Transport::Udp)?)?;
    exchange_unconnected(&datagrams, direct)?;
    let port = datagrams.local_addr()?.port();
    let stream = host.socket(family, Transport::Tcp)?;
    bed.start_agent()?;
    bed.apply(&one())?;
    let to = cluster_ip(&one(), family);
    let (answer, from) = exchange_unconnected(&datagrams, to).context("a socket that has sent before")?;
    ensure!(answer.backend == PB.id() && from == to, "{answer:?} from {from}");
    ensure!(datagrams.local_addr()?.port() == port, "its port has changed");
    setsockopt(&stream, sockopt::ReuseAddr, &true)?;
    let stream = TcpStream::from(stream);
    stream.set_nonblocking(false)?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to)).context("a socket that was not connected")?;
    ensure!(stream.peer_addr()? == to, "the socket says that it talks to {}", stream.peer_addr()?);
    let dialled = Dial::new(&host, to, Transport::Tcp).open();
    flows.push(dialled.or_else(|outcome| bail!("through the Service: {outcome}"))?);
    let mut all = |when: &str| {
        flows.iter_mut().enumerate().try_for_each(|(number, flow)| {
            flow.ask(when.as_bytes()).ok().map(drop).with_context(|| format!("flow {number} {when}"))
        })
    };
    all("once the agent is there")?;
    bed.delete(&one())?;
    let home = bed.agent.take().context("an agent runs")?.stop()?;
    home.tell(&["cleanup"])?;
    all("once nothing of it is left")
}

/// Another agent's programs, attached before ours and after, forbid what they forbid, and ours serves where they do not.
fn beside_others(bed: &mut Bed) -> Result<()> {
    let mut deny = Asm::default();
    deny.exit(0);
    let mut allow = Asm::default();
    allow.exit(1);
    let node = bed.cgroup().join("n1");
    let host = bed.cgroup().join("n1/host");
    let dial = |bed: &Bed, family| {
        Dial::new(bed.place(Who::Host), cluster_ip(&far(), family), Transport::Tcp).probe()
    };
    allow.attach_to_connect(&node, false)?;
    bed.start_agent()?;
    bed.apply(&far())?;
    allow.attach_to_connect(&node, true)?;
    for family in Family::BOTH {
        let answer = dial(bed, family).ok().with_context(|| format!("{family}, beside one that allows"))?;
        ensure!(answer.backend == PD.id(), "{family}: {} answers", answer.backend);
    }
    deny.attach_to_connect(&host, false)?;
    let forbidden = || std::io::Error::from_raw_os_error(Errno::EPERM as i32).to_string();
    let outcome = dial(bed, Family::V4);
    ensure!(outcome == Outcome::Failed(forbidden()), "beside one that forbids: {outcome}");
    dial(bed, Family::V6).ok().context("it forbids IPv4")?;
    if let Some(agent) = bed.agent.take() {
        agent.kill()?;
    }
    bed.start_agent()?;
    let outcome = dial(bed, Family::V4);
    ensure!(outcome == Outcome::Failed(forbidden()), "a new agent has replaced it: {outcome}");
    dial(bed, Family::V6).ok().map(drop)
}
