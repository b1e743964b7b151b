//! Telling one story to two nodes.

use proxy_common::abi::Reason;
use proxy_common::path::Verdict;

use super::host::Host;
use super::kernel::Kernel;

/// What a hook did, in the kernel's terms: the reason of a drop is seen by its counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    Reject,
}

impl From<Verdict> for Action {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Pass => Self::Pass,
            Verdict::Drop(_) => Self::Drop,
            Verdict::Reject(_) => Self::Reject,
        }
    }
}

/// A packet after a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub action: Action,
    pub bytes: Vec<u8>,
    pub mark: u32,
}

/// A node that stories are told to.
pub trait Node {
    /// Runs one hook on a frame.
    fn run(&mut self, ingress: bool, bytes: &[u8], mark: u32) -> Outcome;
    /// Moves the clock.
    fn set_clock(&mut self, tick: u32);
    /// Writes the generation of the world's endpoint; 0: it has left.
    fn set_endpoint(&mut self, v6: bool, generation: u32);
    /// Reads a counter.
    fn count(&mut self, reason: Reason) -> u64;
}

/// Both nodes as one: every outcome must be the same.
pub struct Both {
    host: Host,
    kernel: Option<Kernel>,
}

impl Both {
    /// A fresh pair. Without the right to load programs only the host listens.
    pub fn new() -> anyhow::Result<Self> {
        let kernel = if nix::unistd::geteuid().is_root() { Some(Kernel::load()?) } else { None };
        Ok(Self { host: Host::default(), kernel })
    }

    /// The host alone.
    #[must_use]
    pub fn host_only() -> Self {
        Self { host: Host::default(), kernel: None }
    }
}

impl Node for Both {
    fn run(&mut self, ingress: bool, bytes: &[u8], mark: u32) -> Outcome {
        let host = self.host.run(ingress, bytes, mark);
        if let Some(kernel) = &mut self.kernel {
            let kernel = kernel.run(ingress, bytes, mark);
            assert_eq!(kernel.action, host.action, "kernel (left) and host disagree on the verdict");
            if host.action != Action::Drop {
                assert_eq!(kernel.mark, host.mark, "kernel (left) and host disagree on the mark");
                assert_eq!(
                    hex(&kernel.bytes),
                    hex(&host.bytes),
                    "kernel (left) and host disagree on the bytes"
                );
            }
        }
        host
    }

    fn set_clock(&mut self, tick: u32) {
        self.host.set_clock(tick);
        if let Some(kernel) = &mut self.kernel {
            kernel.set_clock(tick);
        }
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        self.host.set_endpoint(v6, generation);
        if let Some(kernel) = &mut self.kernel {
            kernel.set_endpoint(v6, generation);
        }
    }

    fn count(&mut self, reason: Reason) -> u64 {
        let host = self.host.count(reason);
        if let Some(kernel) = &mut self.kernel {
            assert_eq!(kernel.count(reason), host, "kernel (left) and host disagree on {}", reason.name());
        }
        host
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(2)
        .map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect::<String>())
        .collect::<Vec<_>>()
        .join(" ")
}
