//! Starts that cannot work, or not wholly (acceptance 12, C-38): one error each that names object, cause and next step, as an
//! operator reads it, and nothing else.

mod rows;

use std::fs::{self, File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, chown};
use sluice_tests::bpf::may_iterate_over_sockets;
use sluice_tests::lab::cleanup::own_prefix;
use sluice_tests::lab::namespace::Namespace;
use sluice_tests::lab::{Bed, BedConfig, Wiring, deny_bpf};
use sluice_tests::wait::{PATIENCE, until};

use crate::harness::{Group, Story};
use rows::{FILES, ROWS};

/// A start: how, and what comes of it.
struct Row {
    name: &'static str,
    /// Arguments after `sluice run`, by white space; `{dir}` is a folder with [`FILES`].
    arguments: &'static str,
    lacks: Lacks,
    /// An address that somebody else listens on.
    taken: Option<&'static str>,
    end: End,
    /// The one error, or the one warning, whole.
    says: &'static str,
}

/// What the agent is kept from having.
#[derive(Clone, Copy)]
enum Lacks {
    Nothing,
    /// Capabilities, as setpriv(1) names them.
    Powers(&'static str),
    /// Root's user id.
    Root,
    /// bpf(2), refused with this error in spite of all capabilities.
    Bpf(u16),
}

/// What comes of it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// Exit status.
    With(i32),
    /// It runs, and the log and `status` say what is wrong.
    Runs,
}

/// nobody.
const STRANGER: u32 = 65_534;

pub fn groups() -> Vec<Group> {
    let stories = ROWS.iter().map(|row| Story::new(row.name, move |bed| start(bed, row))).collect();
    // So that the machine's own bpffs is not used.
    let config = BedConfig { bpffs: true, ..BedConfig::new(Wiring::Routed) };
    vec![Group { name: "start".into(), config, setup: Box::new(prepare), stories }]
}

/// The files that rows name, below the bed's own directory.
fn prepare(bed: &mut Bed) -> Result<()> {
    let dir = bed.directory().join("start");
    fs::create_dir_all(dir.join("manifests"))?;
    for (name, text) in FILES {
        fs::write(dir.join(name), text.replace("{dir}", &dir.display().to_string()))?;
    }
    let locked = dir.join("locked");
    fs::create_dir(&locked)?;
    chown(&locked, Some(Uid::from_raw(STRANGER)), Some(Gid::from_raw(STRANGER)))?;
    fs::set_permissions(&locked, Permissions::from_mode(0o700))?;
    // Wherever the checkout is: a stranger may not be able to look into it.
    fs::copy(sluice_tests::lab::agent::binary()?, dir.join("sluice"))?;
    for open in [dir.as_path(), bed.directory()] {
        fs::set_permissions(open, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn start(bed: &mut Bed, row: &Row) -> Result<()> {
    let node = Namespace::create(format!("{}start", own_prefix()))?;
    let taken = row.taken.map(|address| node.within(|| Ok(TcpListener::bind(address)?))).transpose()?;
    let place = Place::new(bed, node);
    let says = place.fill(row.says);
    match row.end {
        End::With(status) => {
            let output = place.command(row)?.output()?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(status), "{}, not {status}: {said}", output.status);
            ensure!(said == format!("sluice: {says}\n"), "it said\n{said}and not\nsluice: {says}");
            let left = place.ask("cleanup")?;
            ensure!(left == "nothing of sluice was here\n", "the failed start has left something: {left}");
        }
        End::Runs => place.runs(row, &says)?,
    }
    drop(taken);
    Ok(())
}

/// Where a row's agent runs: the places of n1, on which no agent runs here, in an empty namespace.
struct Place {
    node: Namespace,
    dir: PathBuf,
    /// `--cgroup`, `--bpffs`, unless the row gives its own.
    flags: Vec<(String, PathBuf)>,
}

impl Place {
    fn new(bed: &mut Bed, node: Namespace) -> Self {
        let dir = bed.directory().join("start");
        let home = bed.home();
        let mut flags = vec![("--cgroup".to_owned(), home.cgroup.clone())];
        flags.extend(home.bpffs.clone().map(|bpffs| ("--bpffs".to_owned(), bpffs)));
        flags.push(("--run-dir".to_owned(), dir.join("run")));
        Self { node, dir, flags }
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{dir}", &self.dir.display().to_string())
    }

    fn sluice(&self, before: &[String]) -> Command {
        let mut command = Command::new("timeout");
        command.args(["60", "nsenter"]).arg(format!("--net={}", self.node.path().display()));
        command.args(before).arg(self.dir.join("sluice")).stdin(Stdio::null());
        command
    }

    fn command(&self, row: &Row) -> Result<Command> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let before = match row.lacks {
            Lacks::Nothing | Lacks::Bpf(_) => Vec::new(),
            Lacks::Powers(lost) => {
                words(&format!("setpriv --bounding-set={lost} --inh-caps=-all --no-new-privs"))
            }
            Lacks::Root => words(&format!("setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups")),
        };
        let arguments = words(&self.fill(row.arguments));
        let mut command = self.sluice(&before);
        command.arg("run").args(&arguments);
        for (flag, value) in self.flags.iter().filter(|(flag, _)| !arguments.contains(flag)) {
            command.arg(flag).arg(value);
        }
        command.env_remove("KUBERNETES_SERVICE_HOST").env_remove("KUBECONFIG").env_remove("RUST_LOG");
        if let Lacks::Bpf(errno) = row.lacks {
            deny_bpf(&mut command, errno);
        }
        Ok(command)
    }

    /// The agent runs, warns once of this and of nothing else, and ends on request.
    fn runs(&self, row: &Row, says: &str) -> Result<()> {
        let log = self.dir.join("log");
        let mut agent = Running(self.command(row)?.stderr(File::create(&log)?).spawn()?);
        let outcome = until("the agent to say what is wrong", PATIENCE, || {
            let text = read(&log)?;
            ensure!(text.contains("the agent is running") && text.contains(says), "it says\n{text}");
            Ok(())
        });
        let status = outcome.and_then(|()| self.ask("status"));
        agent.stop()?;
        self.ask("cleanup")?;
        let (status, text) = (status?, read(&log)?);
        // Where the kernel keeps programs from looking at sockets it says so besides.
        let besides = may_iterate_over_sockets().is_err();
        let is_besides = |line: &str| besides && line.contains("WARN connected UDP sockets");
        let is_warning = |line: &&str| line.contains("WARN") || line.contains("ERROR");
        let warnings: Vec<_> = text.lines().filter(is_warning).filter(|line| !is_besides(line)).collect();
        ensure!(warnings.len() == 1 && warnings[0].ends_with(says), "it says\n{text}and not only\n{says}");
        // What concerns the file of configuration is over once it is read.
        let standing = says.split("; trying again").next().unwrap_or(says);
        ensure!(row.arguments.contains("--config") || status.contains(standing), "status says\n{status}");
        Ok(())
    }

    fn ask(&self, command: &str) -> Result<String> {
        let mut sluice = self.sluice(&[]);
        sluice.arg(command);
        for (flag, value) in self.flags.iter().filter(|(flag, _)| command == "cleanup" || flag == "--run-dir")
        {
            sluice.arg(flag).arg(value);
        }
        let output = sluice.output()?;
        ensure!(output.status.success(), "sluice {command}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn read(log: &Path) -> Result<String> {
    fs::read_to_string(log).context("no log yet")
}

/// A process that does not outlive its test. timeout(1) hands on the signal.
struct Running(Child);

impl Running {
    fn stop(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            drop(self.stop());
        }
    }
}
