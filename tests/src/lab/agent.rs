//! The agent under test: the real binary, in a node's namespace and cgroup, driven by its contract only.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::wait::{PATIENCE, until};

/// Where an agent lives and what it is told.
#[derive(Clone, Debug)]
pub struct AgentHome {
    pub netns: PathBuf,
    /// The node's whole subtree: `--cgroup`.
    pub cgroup: PathBuf,
    /// The cgroup that the agent's process is put in.
    pub own_cgroup: PathBuf,
    /// A mounted bpffs, or none.
    pub bpffs: Option<PathBuf>,
    pub run_dir: PathBuf,
    pub log: PathBuf,
    /// Where objects come from, and further flags.
    pub flags: Vec<String>,
    /// The binary.
    pub program: PathBuf,
}

fn dropped(status: &Value, reason: &str) -> u64 {
    status["drops"][reason].as_u64().unwrap_or_default()
}

impl AgentHome {
    /// The four flags that name a node.
    fn node_flags(&self) -> Vec<String> {
        let none = self.run_dir.join("none");
        let bpffs = self.bpffs.as_ref().unwrap_or(&none);
        let pairs = [("--cgroup", &self.cgroup), ("--bpffs", bpffs), ("--run-dir", &self.run_dir)];
        pairs
            .into_iter()
            .filter(|(flag, _)| *flag != "--bpffs" || self.bpffs.is_some())
            .flat_map(|(flag, path)| [flag.to_owned(), path.display().to_string()])
            .collect()
    }

    fn command(&self, arguments: &[String]) -> Command {
        // The shell enters the cgroup, then becomes nsenter, which becomes the agent: one process id throughout.
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.own_cgroup.join("cgroup.procs"))
            .arg("nsenter")
            .arg(format!("--net={}", self.netns.display()))
            .arg(&self.program)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    /// Runs an operator's command to its end: exit status, standard output, standard error.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn ask(&self, arguments: &[&str]) -> Result<(ExitStatus, String, String)> {
        let mut all: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let flags = self.node_flags();
        if arguments.first() == Some(&"cleanup") || arguments.first() == Some(&"run") {
            all.extend(flags);
        } else {
            all.extend(["--run-dir".to_owned(), self.run_dir.display().to_string()]);
        }
        let output = self.command(&all).output().context("cannot run sluice")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status, text(&output.stdout), text(&output.stderr)))
    }

    /// The same, for commands that must succeed: what they print.
    ///
    /// # Errors
    /// The command fails.
    pub fn tell(&self, arguments: &[&str]) -> Result<String> {
        let (status, out, err) = self.ask(arguments)?;
        if !status.success() {
            bail!("sluice {} ended with {status}: {out}{}", arguments.join(" "), err.trim());
        }
        Ok(out)
    }

    /// The same, for commands that print JSON.
    ///
    /// # Errors
    /// The command fails, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        let out = self.tell(&all)?;
        serde_json::from_str(&out).with_context(|| format!("sluice {} printed no JSON: {out}", all.join(" ")))
    }

    /// What is installed (`sluice services`), for comparison: two agents on the same input print the same.
    ///
    /// # Errors
    /// As [`AgentHome::json`].
    pub fn services(&self) -> Result<Value> {
        self.json(&["services"])
    }

    /// The flow of this client to this frontend (`sluice flows`). By both: a client's port may have been another
    /// frontend's before, whose flow is closed and still told.
    ///
    /// # Errors
    /// As [`AgentHome::json`]; there is no such flow, or the two have more than one.
    pub fn flow(&self, client: SocketAddr, frontend: SocketAddr) -> Result<Value> {
        let flows = self.json(&["flows", "--client", &client.ip().to_string()])?;
        let ends = [client.to_string(), frontend.to_string()];
        let own = |flow: &&Value| flow["client"] == ends[0] && flow["frontend"] == ends[1];
        let own: Vec<_> = flows.as_array().into_iter().flatten().filter(own).collect();
        let [flow] = own[..] else { bail!("{client} has one flow to {frontend}, not {own:?}") };
        Ok(flow.clone())
    }

    /// How often packets have been dropped for this reason.
    ///
    /// # Errors
    /// As [`AgentHome::json`].
    pub fn dropped(&self, reason: &str) -> Result<u64> {
        Ok(dropped(&self.json(&["status"])?, reason))
    }

    /// Waits until packets have been dropped so often for this reason.
    ///
    /// # Errors
    /// As [`AgentHome::wait_status`].
    pub fn wait_dropped(&self, reason: &str, enough: impl Fn(u64) -> bool) -> Result<()> {
        self.wait_status(&format!("drops as {reason}"), |status| enough(dropped(status, reason))).map(drop)
    }

    /// Waits until `sluice status` satisfies `enough` and returns it.
    ///
    /// # Errors
    /// It never does; the error shows the last answer and the log's end.
    pub fn wait_status(&self, what: &str, enough: impl Fn(&Value) -> bool) -> Result<Value> {
        until(what, PATIENCE, || match self.json(&["status"]) {
            Ok(status) if enough(&status) => Ok(status),
            Ok(status) => Err(format!("status: {status}")),
            Err(error) => Err(format!("{error:#}")),
        })
        .with_context(|| self.log_tail())
    }

    /// The end of the agent's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("the agent's log ends:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
    }
}

/// Names and numbers of the devices that have both programs, in an answer of `status`.
#[must_use]
pub fn served(status: &Value) -> Vec<(String, u64)> {
    let edges = status["edges"].as_array().into_iter().flatten();
    edges
        .filter(|edge| edge["hooks"].as_array().is_some_and(|hooks| hooks.len() == 2))
        .filter_map(|edge| Some((edge["name"].as_str()?.to_owned(), edge["ifindex"].as_u64()?)))
        .collect()
}

/// The binary: `SLUICE_BIN`, or the one that was built beside this executable.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("cannot find out where this executable lies")?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join("sluice")).find(|path| path.is_file());
    found.with_context(|| {
        format!("no sluice binary near {}; build it with: cargo build -p proxy-userspace", own.display())
    })
}

/// The mode of shortcuts in which agents run: `SLUICE_SHORTCUTS`, or the agent's own default.
#[must_use]
pub fn shortcuts() -> String {
    std::env::var("SLUICE_SHORTCUTS").unwrap_or_else(|_| "established".to_owned())
}

/// A running agent. Dropping it kills it; its data plane stays until the bed goes.
#[derive(Debug)]
pub struct Agent {
    pub home: AgentHome,
    child: Child,
}

impl Agent {
    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(home: AgentHome) -> Result<Self> {
        fs::create_dir_all(&home.run_dir)?;
        let log = File::options().create(true).append(true).open(&home.log)?;
        let mut arguments = vec!["run".to_owned()];
        arguments.extend(home.flags.clone());
        arguments.extend(home.node_flags());
        if !arguments.iter().any(|argument| argument == "--shortcuts") {
            arguments.extend(["--shortcuts".to_owned(), shortcuts()]);
        }
        let child = home
            .command(&arguments)
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start the agent in {}", home.netns.display()))?;
        Ok(Self { home, child })
    }

    /// Waits until it has programmed its first complete list and serves at least `edges` edges.
    ///
    /// # Errors
    /// It ends, or never gets there.
    pub fn ready(&mut self, edges: usize) -> Result<Value> {
        let synced = |status: &Value| status["synced"] == true && served(status).len() >= edges;
        let home = self.home.clone();
        let answer = until("the agent to be in sync", PATIENCE, || {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Ok(Err(status));
            }
            match home.json(&["status"]) {
                Ok(status) if synced(&status) => Ok(Ok(status)),
                Ok(status) => Err(format!("status: {status}")),
                Err(error) => Err(format!("{error:#}")),
            }
        });
        match answer {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(ended)) => bail!("the agent has ended with {ended}; {}", self.home.log_tail()),
            Err(error) => Err(error.context(self.home.log_tail())),
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id out of range")?;
        kill(Pid::from_raw(pid), signal).context("cannot signal the agent")
    }

    /// Kills it as the kernel's out-of-memory killer would.
    ///
    /// # Errors
    /// It has ended before.
    pub fn kill(mut self) -> Result<AgentHome> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait()?;
        Ok(self.home.clone())
    }

    /// Asks it to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// It has ended before, or ends with another status than 0.
    pub fn stop(mut self) -> Result<AgentHome> {
        self.signal(Signal::SIGTERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the agent ended with {status} on SIGTERM; {}", self.home.log_tail());
        }
        Ok(self.home.clone())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names in a directory, without those that the kernel itself puts into every bpffs.
///
/// # Errors
/// The directory cannot be read.
pub fn entries(path: &Path) -> Result<Vec<String>> {
    let read = fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))?;
    let names = read.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| !matches!(name.as_str(), "progs.debug" | "maps.debug")).collect())
}
