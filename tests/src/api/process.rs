//! Processes that cannot outlive the run.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::namespace::Namespace;
use crate::wait::poll;

/// A child whose output goes to a file; killed on drop, and by the kernel should the run itself be killed.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `arguments` (program first) inside `netns`; what it prints is appended to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn<S: AsRef<str>>(
        name: &'static str,
        netns: &Namespace,
        arguments: &[S],
        log: &Path,
    ) -> Result<Self> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        // Each of these only executes the next: the process id stays.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", netns.path().display()));
        command.args(["--", "setpriv", "--pdeathsig", "KILL", "--"]);
        command.args(arguments.iter().map(AsRef::as_ref));
        command.stdin(Stdio::null()).stderr(file.try_clone()?).stdout(file);
        let child = spawn_lastingly(command).with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Its process id, the same from start to end.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs; an error with the end of its log when it does not.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended ({status}); its last words:\n{}", self.name, self.last_words());
        }
        Ok(())
    }

    /// Everything it has printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Sends `signal`.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).context("process id out of range")?;
        kill(Pid::from_raw(id), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Errors
    /// If it does not end within `limit`; it is killed then.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match poll(limit, || self.child.try_wait().transpose()) {
            Some(status) => Ok(status?),
            None => bail!("{} ignored SIGTERM for {limit:?}:\n{}", self.name, self.last_words()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The kernel's death signal follows the *thread* that forked, so one thread that never ends starts all processes.
fn spawn_lastingly(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, outcome) = channel();
    let gone = || io::Error::other("the thread that starts processes is gone");
    spawner.send((command, answer)).map_err(|_| gone())?;
    outcome.recv().map_err(|_| gone())?
}
