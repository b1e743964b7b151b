//! A network namespace, a cgroup and a bpffs of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use proxy_userspace::datapath::{Options, Sizes};
use proxy_userspace::node::{Edge, EdgeKind, Ways};

/// Runs `test` in a thread with a network namespace of its own, holding the veth pair `edge0`/`pod0`, both up.
/// Says why and does nothing where that is not possible.
pub fn in_namespace<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !geteuid().is_root() {
        eprintln!("skipped: needs root for BPF and network namespaces");
        return None;
    }
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip("link add edge0 type veth peer name pod0");
        ip("link set edge0 up");
        ip("link set pod0 up");
        test()
    });
    Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

/// `ip` in the calling thread's namespace.
pub fn ip(arguments: &str) {
    let status =
        Command::new("ip").args(arguments.split_whitespace()).status().expect("iproute2 is installed");
    assert!(status.success(), "ip {arguments}");
}

pub fn edge(name: &str) -> Edge {
    let ifindex = nix::net::if_::if_nametoindex(name).expect("the device exists");
    Edge {
        name: name.into(),
        ifindex,
        kind: EdgeKind::Veth,
        ethernet: true,
        masquerade_v4: None,
        masquerade_v6: None,
        mtu: 1500,
        pod: true,
        address: Vec::new(),
        port: false,
        detected: false,
        ways: Ok(Ways { peer: true, neighbour: true }),
    }
}

/// Small maps, so that tests run side by side.
pub fn options() -> Options {
    let sizes = Sizes {
        services: 1024,
        frontends: 1024,
        endpoints: 4096,
        slots: 65_536,
        addresses: 4096,
        flows: 1024,
        ranges: 64,
        affinity: 64,
    };
    Options { sizes, ..Options::default() }
}

/// A directory under the temporary directory, removed with what is mounted or grouped there.
pub struct Scratch {
    path: PathBuf,
    kind: Kind,
}

enum Kind {
    Bpffs,
    Cgroup,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn unique(parent: &Path) -> PathBuf {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = parent.join(format!("sluice-test-{}-{number}", std::process::id()));
    std::fs::create_dir(&path).expect("a directory of the test's own");
    path
}

impl Scratch {
    /// A bpffs, mounted.
    pub fn bpffs() -> Self {
        let path = unique(&std::env::temp_dir());
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>).expect("bpffs can be mounted");
        Self { path, kind: Kind::Bpffs }
    }

    /// An empty cgroup v2, if there is such a hierarchy.
    pub fn cgroup() -> Option<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("proc is mounted");
        let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let root = fields.find(|fields| fields.get(2) == Some(&"cgroup2"))?;
        Some(Self { path: unique(Path::new(root[1])), kind: Kind::Cgroup })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Kind::Bpffs = self.kind {
            umount2(&self.path, MntFlags::MNT_DETACH).expect("the test's mount");
        }
        std::fs::remove_dir(&self.path).expect("the test's directory");
    }
}
