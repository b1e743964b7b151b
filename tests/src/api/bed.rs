//! The smallest node that shows traffic: a node, a client pod and backend pods, routed, both families.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{Shutdown, shutdown};

use super::{ControlPlane, NetNs, PLANE_ADDRESS, Scratch};

/// The port of every backend.
const PORT: u16 = 8080;
/// Long enough for a loaded machine; a dropped SYN would be sent again within it.
const PATIENCE: Duration = Duration::from_secs(3);

/// One node under the control plane, with its pods, its cgroup and its bpffs.
pub struct Bed {
    name: String,
    node: NetNs,
    client: NetNs,
    backends: Vec<Backend>,
    cgroup: PathBuf,
    bpffs: PathBuf,
    scratch: Scratch,
}

struct Backend {
    _netns: NetNs,
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
        static NUMBER: AtomicU8 = AtomicU8::new(10);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let (name, address) = (format!("node-{number}"), format!("198.51.100.{number}"));
        let node = NetNs::new()?;
        forward(&node)?;
        plane.netns().veth(&name, &node, "eth0")?;
        plane.netns().ip(&format!("route add {address}/32 dev {name}"))?;
        node.ip(&format!("addr add {address}/32 dev eth0"))?;
        node.ip(&format!("route add {PLANE_ADDRESS}/32 dev eth0 src {address}"))?;
        super::objects::create_node(plane.admin(), &name, &address)?;

        let client = pod(&node, "10")?;
        let backends =
            ["21", "22", "23"].map(|host| backend(&node, host)).into_iter().collect::<Result<_>>()?;
        let scratch = Scratch::new()?;
        let cgroup = make_cgroup(&format!("sluice-api-{}-{number}", std::process::id()))?;
        let bpffs = mount_bpffs(scratch.path())?;
        Ok(Self { name, node, client, backends, cgroup, bpffs, scratch })
    }

    /// Name of the Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's namespace, where the agent runs.
    pub fn node(&self) -> &NetNs {
        &self.node
    }

    /// Where the agent attaches its socket programs.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
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
        let answer = self.client.run(|| {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        })?;
        answer.with_context(|| format!("from the client pod to {target}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for Backend { listener, server, .. } in &mut self.backends {
            // Wakes `accept`, which then fails and ends the thread.
            let _ = shutdown(listener.as_raw_fd(), Shutdown::Both);
            let _ = server.take().map(JoinHandle::join);
        }
        let _ = umount2(&self.bpffs, MntFlags::MNT_DETACH);
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// Moves the process into a mount namespace of its own, so that nothing a bed mounts can be left behind. To be called
/// before the first thread starts.
///
/// # Errors
/// If the kernel refuses.
pub fn privatise_mounts() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .context("cannot make a mount namespace (are you root?)")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make mounts private")
}

/// A pod `10.244.1.HOST` / `fd00:10:1::HOST` whose routes lead to the node by a link-local gateway, as Calico's do.
fn pod(node: &NetNs, host: &str) -> Result<NetNs> {
    let (pod, link) = (NetNs::new()?, format!("pod{host}"));
    node.veth(&link, &pod, "eth0")?;
    node.ip(&format!("addr add 169.254.1.1/32 dev {link}"))?;
    node.ip(&format!("addr add fe80::1/64 dev {link} nodad"))?;
    pod.ip(&format!("addr add 10.244.1.{host}/32 dev eth0"))?;
    pod.ip(&format!("addr add fd00:10:1::{host}/128 dev eth0 nodad"))?;
    pod.ip("route add 169.254.1.1/32 dev eth0")?;
    pod.ip("route add default via 169.254.1.1 dev eth0")?;
    pod.ip("-6 route add default via fe80::1 dev eth0")?;
    node.ip(&format!("route add 10.244.1.{host}/32 dev {link}"))?;
    node.ip(&format!("-6 route add fd00:10:1::{host}/128 dev {link}"))?;
    Ok(pod)
}

fn backend(node: &NetNs, host: &str) -> Result<Backend> {
    let netns = pod(node, host)?;
    let listener = netns.run(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)))??;
    let inbox = listener.try_clone()?;
    let name = format!("10.244.1.{host}");
    let server = thread::spawn(move || {
        while let Ok((mut stream, _)) = inbox.accept() {
            // A client that has gone away already is its own concern.
            let _ = stream.write_all(name.as_bytes());
        }
    });
    Ok(Backend { _netns: netns, listener, server: Some(server) })
}

fn forward(node: &NetNs) -> Result<()> {
    node.run(|| {
        for switch in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{switch}"), "1")
                .with_context(|| format!("cannot switch on net/{switch}"))?;
        }
        Ok(())
    })?
}

fn make_cgroup(name: &str) -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mount table")?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(place))
    });
    let path = root.context("cgroup v2 is not mounted")?.join(name);
    fs::create_dir(&path).with_context(|| format!("cannot create the cgroup {}", path.display()))?;
    Ok(path)
}

fn mount_bpffs(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("bpf");
    fs::create_dir(&path)?;
    mount(Some("bpffs"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount a bpffs at {}", path.display()))?;
    Ok(path)
}
