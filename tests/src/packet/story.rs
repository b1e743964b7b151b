//! Telling one story to the host and to the kernel.

use std::fmt::Debug;
use std::net::IpAddr;

use proxy_common::abi::{Config, Device, Flow, FlowKey, Guard, Kind, Reason, state};
use proxy_userspace::datapath::Summed;

use crate::lab::command;

use super::host::Host;
use super::kernel::Kernel;
use super::world::{CATCH_ALL_IFINDEX, IFINDEX, PODS_IFINDEX};

/// What a hook did, in the kernel's terms: the reason of a drop is seen by its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Reject,
    Shortcut(PassedBy),
}

/// The way of a packet that leaves past the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedBy {
    pub device: u32,
    /// Straight into the namespace at its other end.
    pub peer: bool,
}

/// A packet after a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub bytes: Vec<u8>,
    pub mark: u32,
    /// What it carries through the stack.
    pub note: u16,
}

/// Which program sees a packet, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub ingress: bool,
    /// Whether the device has Ethernet headers (P-06).
    pub ethernet: bool,
    /// Segments of a super-packet (P-81); 0: an ordinary packet.
    pub segments: u32,
    pub ifindex: u32,
    /// What the packet carries.
    pub note: u16,
    /// Its frame is for somebody else on the link.
    pub flooded: bool,
    /// No socket of the node's has written it.
    pub forwarded: bool,
    /// Devices that routes lead to, in the order in which they are asked; 0: to none.
    pub routes: [u32; 2],
}

impl At {
    pub const INGRESS: Self = Self {
        ingress: true,
        ethernet: true,
        segments: 0,
        ifindex: IFINDEX,
        note: 0,
        flooded: false,
        forwarded: false,
        routes: [0; 2],
    };
    pub const EGRESS: Self = Self { ingress: false, ..Self::INGRESS };
}

/// The flow tables of both families, in order.
#[derive(Debug, PartialEq, Eq)]
pub struct Flows {
    v4: Vec<(FlowKey<1>, Flow<1>)>,
    v6: Vec<(FlowKey<4>, Flow<4>)>,
}

impl Flows {
    #[must_use]
    pub fn new(mut v4: Vec<(FlowKey<1>, Flow<1>)>, mut v6: Vec<(FlowKey<4>, Flow<4>)>) -> Self {
        v4.sort_unstable();
        v6.sort_unstable();
        Self { v4, v6 }
    }

    #[must_use]
    pub const fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Masqueraded flows of which one edge knows and the other does not.
    #[must_use]
    pub fn parted(&self) -> usize {
        parted(&self.v4) + parted(&self.v6)
    }
}

fn parted<const N: usize>(flows: &[(FlowKey<N>, Flow<N>)]) -> usize {
    let find = |key: &FlowKey<N>| flows.iter().find(|(other, _)| other == key).map(|(_, flow)| flow);
    let is_parted = |(key, flow): &&(FlowKey<N>, Flow<N>)| {
        let missing = match flow.kind() {
            Some(Kind::Masquerade) => Kind::Restore,
            Some(Kind::Restore)
                if find(&flow.partner(key)).is_some_and(|flow| flow.state & state::MARK != 0) =>
            {
                Kind::Masquerade
            }
            _ => return false,
        };
        find(&key.mirrored()).and_then(Flow::kind) != Some(missing)
    };
    flows.iter().filter(is_parted).count()
}

/// A node that stories are told to.
pub trait Node {
    /// Runs one hook on a frame.
    fn run(&mut self, at: &At, bytes: &[u8], mark: u32) -> Outcome;
    /// Makes it as it was in the beginning.
    fn reset(&mut self);
    fn set_config(&mut self, config: Config);
    fn set_guard(&mut self, guard: Guard);
    /// Writes a device's entry; `None`: it is gone.
    fn set_device(&mut self, ifindex: u32, device: Option<Device>);
    /// Writes the generation of the world's first endpoint; 0: it has left.
    fn set_endpoint(&mut self, v6: bool, generation: u32);
    /// Takes a Service's address away, and its frontends, as the agent does when the Service goes.
    fn remove(&mut self, address: IpAddr);
    /// Every counter, in the order of [`Reason::ALL`].
    fn counts(&mut self) -> Vec<u64>;
    /// Every flow entry.
    fn flows(&mut self) -> Flows;
}

/// Both nodes as one: every outcome must be the same.
pub struct Both {
    host: Host,
    /// Programs that read how a checksum stands, where this kernel shows it, and such that ask the helper.
    kernels: Vec<Kernel>,
}

impl Both {
    /// A fresh pair. Without the right to load programs only the host listens.
    ///
    /// # Errors
    /// If the programs cannot be loaded.
    pub fn new() -> anyhow::Result<Self> {
        let mut kernels = Vec::new();
        if nix::unistd::geteuid().is_root() {
            own_devices()?;
            kernels.push(Kernel::load(None)?);
            if let Ok(summed) = Summed::of_this_kernel() {
                kernels.push(Kernel::load(Some(summed))?);
            }
        }
        Ok(Self { host: Host::default(), kernels })
    }

    /// The host alone.
    #[must_use]
    pub fn host_only() -> Self {
        Self { host: Host::default(), kernels: Vec::new() }
    }

    /// What `ask` gets from the host, once the kernel has said the same.
    fn agreed<T: Debug + PartialEq>(&mut self, what: &str, ask: impl Fn(&mut dyn Node) -> T) -> T {
        let host = ask(&mut self.host);
        for kernel in &mut self.kernels {
            assert_eq!(ask(kernel), host, "kernel (left) and host disagree on {what}");
        }
        host
    }

    fn tell(&mut self, tell: impl Fn(&mut dyn Node)) {
        tell(&mut self.host);
        for kernel in &mut self.kernels {
            tell(kernel);
        }
    }

    /// A counter.
    pub fn count(&mut self, reason: Reason) -> u64 {
        self.counts()[reason as usize]
    }
}

impl Node for Both {
    fn run(&mut self, at: &At, bytes: &[u8], mark: u32) -> Outcome {
        let host = self.host.run(at, bytes, mark);
        for kernel in &mut self.kernels {
            let kernel = kernel.run(at, bytes, mark);
            assert_eq!(kernel.action, host.action, "kernel (left) and host disagree on the verdict");
            if host.action != Action::Drop {
                assert_eq!(kernel.mark, host.mark, "kernel (left) and host disagree on the mark");
                assert_eq!(kernel.note, host.note, "kernel (left) and host disagree on the note");
                assert_eq!(
                    hex(&kernel.bytes),
                    hex(&host.bytes),
                    "kernel (left) and host disagree on the bytes"
                );
            }
        }
        host
    }

    fn reset(&mut self) {
        self.tell(|node| node.reset());
    }

    fn set_config(&mut self, config: Config) {
        self.tell(|node| node.set_config(config));
    }

    fn set_guard(&mut self, guard: Guard) {
        self.tell(|node| node.set_guard(guard));
    }

    fn set_device(&mut self, ifindex: u32, device: Option<Device>) {
        self.tell(|node| node.set_device(ifindex, device));
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        self.tell(|node| node.set_endpoint(v6, generation));
    }

    fn remove(&mut self, address: IpAddr) {
        self.tell(|node| node.remove(address));
    }

    fn counts(&mut self) -> Vec<u64> {
        self.agreed("the counters", |node| node.counts())
    }

    fn flows(&mut self) -> Flows {
        self.agreed("the flow tables", |node| node.flows())
    }
}

/// A network namespace for this thread, with the world's devices: a test run takes those of its caller's.
fn own_devices() -> anyhow::Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    assert_eq!(IFINDEX, 1, "the loopback device");
    for (name, index) in [("pod", PODS_IFINDEX), ("catch", CATCH_ALL_IFINDEX)] {
        command::run("ip", &["link", "add", name, "index", &index.to_string(), "type", "veth"])?;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(2)
        .map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect::<String>())
        .collect::<Vec<_>>()
        .join(" ")
}
