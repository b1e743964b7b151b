//! Sockets made in the right namespace *and* the right cgroup.
//!
//! A socket keeps the namespace and the cgroup of the thread that made it. Namespaces are a thread's affair, cgroups
//! a process's: so a small helper process lives in each cgroup, makes sockets on request and passes them over.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socket,
};

use super::namespace;
use super::plan::Family;
use crate::wire::Transport;

/// First argument that turns an executable into a helper.
const HELPER: &str = "--laboratory-sockets";

/// A helper process in one cgroup. It ends with its standard input.
#[derive(Debug)]
pub struct Sockets {
    channel: Mutex<UnixStream>,
    child: Child,
}

impl Sockets {
    /// Starts the helper; `cgroup` none leaves it in this process's.
    ///
    /// # Errors
    /// The helper cannot be started.
    pub fn start(cgroup: Option<&Path>) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new("/proc/self/exe")
            .arg(HELPER)
            .args(cgroup)
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .context("cannot start the laboratory's helper process")?;
        Ok(Self { channel: Mutex::new(ours), child })
    }

    /// A new socket of the namespace at `netns`.
    ///
    /// # Errors
    /// What the kernel refuses the helper.
    pub fn open(&self, netns: &Path, family: Family, transport: Transport) -> Result<OwnedFd> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(channel, "{} {family} {transport}", netns.display())?;
        let mut status = [0; 1];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let mut buffers = [IoSliceMut::new(&mut status)];
        let received =
            recvmsg::<()>(channel.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let descriptor = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
        let Some(fd) = descriptor else {
            bail!(
                "the laboratory's helper could not open a {family} {transport} socket in {}",
                netns.display()
            )
        };
        Ok(crate::sys::adopt(fd))
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = channel.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

/// In a helper process: serves until its input ends, then exits. Elsewhere: returns at once.
pub fn serve_if_asked() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|first| first != HELPER) {
        return;
    }
    let cgroup = arguments.next();
    let served = (|| -> Result<()> {
        if let Some(cgroup) = cgroup {
            std::fs::write(Path::new(&cgroup).join("cgroup.procs"), "0")
                .with_context(|| format!("cannot enter the cgroup {}", cgroup.display()))?;
        }
        serve(&io::stdin())
    })();
    if let Err(error) = &served {
        eprintln!("laboratory helper: {error:#}");
    }
    std::process::exit(i32::from(served.is_err()));
}

fn serve(channel: &io::Stdin) -> Result<()> {
    let fd = channel.as_raw_fd();
    for line in BufReader::new(channel.lock()).lines() {
        let line = line?;
        let answer = make(&line);
        if let Err(error) = &answer {
            eprintln!("laboratory helper: {error:#}");
        }
        let fds: Vec<RawFd> = answer.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &control };
        sendmsg::<()>(fd, &[IoSlice::new(b".")], control, MsgFlags::empty(), None)?;
    }
    Ok(())
}

fn make(request: &str) -> Result<OwnedFd> {
    let [netns, family, transport] = request.split(' ').collect::<Vec<_>>()[..] else {
        bail!("request {request:?} not understood");
    };
    namespace::enter(Path::new(netns))?;
    let family = if family == "v4" { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = if transport == "tcp" { SockType::Stream } else { SockType::Datagram };
    Ok(socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?)
}
