//! What the socket path adds to connect(2).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use proxy_common::abi::FrontendKind;
use proxy_userspace::datapath::{Datapath, Named, Options, cleanup, netns_cookie};
use proxy_userspace::model::{Family, PortFrontend, PortId, PortState, Protocol};
use proxy_userspace::sync::{Settings, Syncer};

use crate::bench::Effort;
use crate::bench::place::Bpffs;
use crate::bench::report::{Figure, Row, Unit};
use crate::bench::stats::differences;
use crate::lab::cgroup::Cgroup;
use crate::lab::{cleanup as lab, command};

const SERVICE: [u8; 4] = [10, 96, 0, 1];
const BACKEND: [u8; 4] = [10, 245, 0, 1];

/// connect(2) of a UDP socket to a Service, and to its endpoint without programs, beside each other.
pub fn row(bpffs: &Bpffs, effort: Effort) -> Result<Row> {
    command::run("ip", &["addr", "add", "10.244.0.1/8", "dev", "lo"])?;
    let cgroup = Cgroup::create(&format!("{}bench", lab::own_prefix()))?;
    let options = Options {
        bpffs: Some(bpffs.directory("sockets")?),
        cgroup: Some(cgroup.path().to_owned()),
        ..Options::default()
    };
    let mut datapath = Datapath::load(&options)?;
    let config = proxy_common::abi::Config { netns_cookie: netns_cookie()?, ..super::node::config() };
    datapath.set_config(&config)?;
    datapath.attach_sockets()?;
    let mut syncer = Syncer::adopt(&datapath, Settings::default())?;
    if !syncer.replace_all(&mut datapath, vec![service()], Duration::ZERO).is_clean() {
        bail!("the Service cannot be written");
    }
    let (inside, outside) = samples(&cgroup, effort.rounds(15, 61))?;
    cleanup(&options, Named::ALL)?;
    let net = differences(&inside, &outside);
    let figure = |samples: &[f64]| Figure::of(Unit::Nanoseconds, samples);
    Ok(Row {
        what: "connect(2), udp v4, to a Service; floor: to its endpoint, no program".into(),
        figures: vec![figure(&inside)?, figure(&outside)?, figure(&net)?],
    })
}

fn service() -> (PortId, PortState) {
    let id = PortId {
        namespace: "bench".into(),
        service: "socket".into(),
        port: "".into(),
        protocol: Protocol::Udp,
        family: Family::V4,
    };
    let endpoints: Arc<[_]> = [SocketAddr::new(IpAddr::from(BACKEND), 8080)].into();
    let frontend = PortFrontend { kind: FrontendKind::ClusterIp, address: IpAddr::from(SERVICE), port: 80 };
    let state = PortState {
        frontends: vec![frontend],
        external: endpoints.clone(),
        internal: endpoints,
        ..PortState::default()
    };
    (id, state)
}

/// Nanoseconds of a connect with the programs and of one without, round by round.
fn samples(cgroup: &Cgroup, rounds: u64) -> Result<(Vec<f64>, Vec<f64>)> {
    let procs = |directory: &std::path::Path| directory.join("cgroup.procs");
    let own =
        std::fs::read_to_string("/proc/thread-self/cgroup").context("cannot read this thread's cgroup")?;
    let home = own.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
    let home = crate::lab::cgroup::mount_point()?.join(home);
    let pid = std::process::id().to_string();
    let fd = || -> Result<OwnedFd> {
        Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
    };
    // A socket belongs to the cgroup that its process was in when it was made.
    std::fs::write(procs(cgroup.path()), &pid).context("cannot enter the bench's cgroup")?;
    let inside = fd();
    std::fs::write(procs(&home), &pid).context("cannot leave the bench's cgroup")?;
    let (inside, outside) = (inside?, fd()?);
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        with.push(connects(&inside, SERVICE, 80)?);
        without.push(connects(&outside, BACKEND, 8080)?);
    }
    Ok((with, without))
}

fn connects(socket: &OwnedFd, address: [u8; 4], port: u16) -> Result<f64> {
    const COUNT: u32 = 5_000;
    let [a, b, c, d] = address;
    let to = SockaddrIn::new(a, b, c, d, port);
    let started = Instant::now();
    for _ in 0..COUNT {
        connect(socket.as_raw_fd(), &to)?;
    }
    Ok(started.elapsed().as_nanos() as f64 / f64::from(COUNT))
}
