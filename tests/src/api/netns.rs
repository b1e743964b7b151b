//! Network namespaces without names: they live as long as their owner's file descriptor, so nothing can be left behind.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace with its loopback device up.
pub struct NetNs(File);

impl NetNs {
    /// Makes one. Needs CAP_SYS_ADMIN.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn new() -> Result<Self> {
        let made = thread::spawn(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace (are you root?)")?;
            File::open("/proc/thread-self/ns/net").context("cannot open the new network namespace")
        });
        let file = made.join().map_err(|_| anyhow::anyhow!("the thread that makes namespaces died"))??;
        let netns = Self(file);
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A path by which other processes can enter it while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    /// Runs `work` in a thread inside the namespace; sockets made there stay there.
    ///
    /// # Errors
    /// If the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(work())
            });
            inside.join().map_err(|panic| anyhow::anyhow!("panic inside the namespace: {panic:?}"))?
        })
    }

    /// Moves the calling thread into the namespace, for good.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        setns(&self.0, CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")
    }

    /// A second handle on the same namespace.
    ///
    /// # Errors
    /// If the process is out of file descriptors.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone().context("cannot duplicate a namespace's descriptor")?))
    }

    /// A command that starts `program` inside, keeping the process id (`nsenter` only executes).
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs `ip ARGUMENTS` inside.
    ///
    /// # Errors
    /// With what `ip` printed.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        let output = self.command("ip").args(arguments.split_whitespace()).output();
        let output = output.context("cannot run ip (package iproute2)")?;
        if !output.status.success() {
            bail!("ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// A veth pair from here (`name`) to `peer` (`peer_name`), both ends up.
    ///
    /// # Errors
    /// If a name is taken or the kernel refuses.
    pub fn veth(&self, name: &str, peer: &NetNs, peer_name: &str) -> Result<()> {
        let there = peer.path();
        self.ip(&format!("link add {name} type veth peer name {peer_name} netns {}", there.display()))?;
        self.ip(&format!("link set {name} up"))?;
        peer.ip(&format!("link set {peer_name} up"))
    }
}
