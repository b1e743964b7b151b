//! The smallest node that shows traffic: a node, a client pod and backend pods, routed, both families.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{Shutdown, shutdown};

use super::scratch::{namespace, unique};
use super::{ControlPlane, Flows, Scratch, Uplink, objects};
use crate::lab::cgroup::Cgroup;
use crate::lab::command::ip_batch;
use crate::lab::namespace::Namespace;

/// The port of every backend.
const PORT: u16 = 8080;
/// Long enough for a loaded machine; a dropped SYN would be sent again within it.
const PATIENCE: Duration = Duration::from_secs(3);

/// One node under the control plane, with its pods, its cgroup and its bpffs.
pub struct Bed {
    name: String,
    uplink: Uplink,
    node: Namespace,
    client: Namespace,
    backends: Vec<Backend>,
    cgroup: Cgroup,
    bpffs: PathBuf,
    scratch: Scratch,
}

struct Backend {
    netns: Namespace,
    listener: TcpListener,
    server: Option<JoinHandle<()>>,
}

impl Bed {
    /// The addresses of the backend pods; each answers with its own, IPv4 form.
    pub const BACKENDS: [&str; 3] = ["10.244.1.21", "10.244.1.22", "10.244.1.23"];
    /// The same pods' IPv6 addresses.
    pub const BACKENDS6: [&str; 3] = ["fd00:10:1::21", "fd00:10:1::22", "fd00:10:1::23"];

    /// Builds a node that reaches `plane` and registers its Node object.
    ///
    /// # Errors
    /// If the kernel or the API server refuses a part.
    pub fn new(plane: &ControlPlane) -> Result<Self> {
        let node = namespace("node")?;
        node.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        let uplink = Uplink::connect(plane, &node, "eth0")?;
        let name = format!("node-{}", uplink.address().replace('.', "-"));
        objects::create_node(plane.admin(), &name, uplink.address())?;

        let client = pod(&node, "10")?;
        let backends =
            ["21", "22", "23"].map(|host| backend(&node, host)).into_iter().collect::<Result<_>>()?;
        let scratch = Scratch::new()?;
        let cgroup = Cgroup::create(&unique("cgroup"))?;
        let bpffs = mount_bpffs(scratch.path())?;
        Ok(Self { name, uplink, node, client, backends, cgroup, bpffs, scratch })
    }

    /// Name of the Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's wire to the API server.
    pub fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    /// Cuts every connection between the agent and the API server.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn cut_connections(&self) -> Result<()> {
        self.uplink.cut(&self.node)
    }

    /// Takes the API server out of the node's reach: what is sent is lost, what was connected is cut.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn part(&self, plane: &ControlPlane) -> Result<()> {
        self.uplink.part(plane)?;
        self.cut_connections()
    }

    /// The node's namespace, where the agent runs.
    pub fn node(&self) -> &Namespace {
        &self.node
    }

    /// Holds `count` connections from the client pod to the Service at `address`, whose only endpoint is the first backend at
    /// [`super::HELD_PORT`].
    ///
    /// # Errors
    /// As [`Flows::open`].
    pub fn hold(&self, address: &str, count: usize) -> Result<Flows> {
        let server = self.backends.first().context("a bed without backends")?;
        Flows::open(&self.client, &server.netns, address, count)
    }

    /// Where the agent attaches its socket programs.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// Where the agent pins its maps.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// A folder for the agent's socket and logs.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Connects from the client pod to a Service's `address`, port 80, and returns the name that the backend answers.
    ///
    /// # Errors
    /// With the client's own error: refused, timed out.
    pub fn ask(&self, address: &str) -> Result<String> {
        self.ask_at(address, 80)
    }

    /// As [`Bed::ask`], at another port.
    ///
    /// # Errors
    /// As [`Bed::ask`].
    pub fn ask_at(&self, address: &str, port: u16) -> Result<String> {
        let address = address.parse().with_context(|| format!("no address: {address}"))?;
        let target = SocketAddr::new(address, port);
        let dial = || {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        self.client.within(|| Ok(dial()?)).with_context(|| format!("from the client pod to {target}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for Backend { listener, server, .. } in &mut self.backends {
            // Wakes `accept`, which then fails and ends the thread.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
            let _ = server.take().map(JoinHandle::join);
        }
    }
}

/// A pod `10.244.1.HOST` / `fd00:10:1::HOST` whose routes lead to the node by a link-local gateway, as Calico's do.
fn pod(node: &Namespace, host: &str) -> Result<Namespace> {
    let (pod, link) = (namespace("pod")?, format!("pod{host}"));
    let node_side = [
        format!("link add {link} type veth peer name eth0 netns {}", pod.name()),
        format!("link set {link} up"),
        format!("addr add 169.254.1.1/32 dev {link}"),
        format!("addr add fe80::1/64 dev {link} nodad"),
        format!("route add 10.244.1.{host}/32 dev {link}"),
        format!("route add fd00:10:1::{host}/128 dev {link}"),
    ];
    let pod_side = [
        "link set eth0 up".to_owned(),
        format!("addr add 10.244.1.{host}/32 dev eth0"),
        format!("addr add fd00:10:1::{host}/128 dev eth0 nodad"),
        "route add 169.254.1.1/32 dev eth0".to_owned(),
        "route add default via 169.254.1.1 dev eth0".to_owned(),
        "route add ::/0 via fe80::1 dev eth0".to_owned(),
    ];
    ip_batch(Some(node.name()), &node_side)?;
    ip_batch(Some(pod.name()), &pod_side)?;
    Ok(pod)
}

fn backend(node: &Namespace, host: &str) -> Result<Backend> {
    let netns = pod(node, host)?;
    let listener = netns.within(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))?))?;
    let inbox = listener.try_clone()?;
    let name = format!("10.244.1.{host}");
    let server = thread::spawn(move || {
        while let Ok((mut stream, _)) = inbox.accept() {
            // A client that has gone away already is its own concern.
            let _ = stream.write_all(name.as_bytes());
        }
    });
    Ok(Backend { netns, listener, server: Some(server) })
}

fn mount_bpffs(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("bpf");
    fs::create_dir(&path)?;
    mount(Some("bpffs"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
    Ok(path)
}
