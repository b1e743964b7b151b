//! The process under test: `sluice run` in a node's namespace, with a kubelet's mount at the fixed path.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Bed, Process};
use crate::lab::agent::binary;
use crate::wait::until;

/// Where a pod finds its ServiceAccount, fixed by Kubernetes.
pub const SECRETS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long the agent may take to follow a change on a machine that is busy with other work.
const FOLLOW: Duration = Duration::from_secs(45);

/// Binds the token folder ($1) at the fixed path; `/run` is a fresh one, so the machine's own is not touched.
const IN_POD: &str = r#"
set -e
mount -t tmpfs -o mode=755 tmpfs "$(readlink -f /var/run)"
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$1" /var/run/secrets/kubernetes.io/serviceaccount
shift
exec "$@"
"#;

/// How an agent is started.
pub struct AgentOptions<'a> {
    /// Folder with `token` and `ca.crt`.
    pub secrets: &'a Path,
    /// `None` logs in as in-cluster, by [`SECRETS`] and [`in_cluster`].
    pub kubeconfig: Option<&'a Path>,
    /// `NAME=VALUE` pairs of the pod's environment.
    pub environment: &'a [String],
    /// Further flags.
    pub flags: &'a [&'a str],
}

/// A running agent; killed on drop.
pub struct Agent {
    process: Process,
    run_dir: PathBuf,
    binary: PathBuf,
}

impl Agent {
    /// Starts an agent on `bed`'s node.
    ///
    /// # Errors
    /// If the binary is missing or does not start.
    pub fn start(bed: &Bed, options: &AgentOptions<'_>) -> Result<Self> {
        let binary = binary()?;
        let run_dir = bed.scratch().path().join("run");
        let show = |path: &Path| path.display().to_string();
        let mut arguments: Vec<String> =
            ["unshare", "--mount", "sh", "-c", IN_POD, "sh"].map(str::to_owned).into();
        arguments.push(show(options.secrets));
        arguments.extend(["env", "-u", "KUBECONFIG"].map(str::to_owned));
        arguments.extend(options.environment.iter().cloned());
        arguments.extend([show(&binary), "run".to_owned()]);
        arguments.extend(options.flags.iter().map(ToString::to_string));
        arguments.push(format!("--hostname-override={}", bed.name()));
        arguments.push(format!("--cgroup={}", show(bed.cgroup())));
        arguments.push(format!("--bpffs={}", show(bed.bpffs())));
        arguments.push(format!("--run-dir={}", show(&run_dir)));
        if let Some(kubeconfig) = options.kubeconfig {
            arguments.push(format!("--kubeconfig={}", show(kubeconfig)));
        }
        let log = bed.scratch().path().join("agent.log");
        let process = Process::spawn("sluice", bed.node(), &arguments, &log)?;
        Ok(Self { process, run_dir, binary })
    }

    /// The process, for signals and its log.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it has printed, including agents started earlier on the same bed.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// `sluice status -o json`.
    ///
    /// # Errors
    /// If the command fails.
    pub fn status(&self) -> Result<Value> {
        self.query(&["status"])
    }

    /// `sluice services NAMESPACE/NAME -o json`: what is installed of one Service, one entry a port.
    ///
    /// # Errors
    /// If the command fails.
    pub fn service(&self, key: &str) -> Result<Vec<Value>> {
        let all = self.query(&["services"])?;
        let all = all.as_array().context("`sluice services -o json` is not a list")?;
        let mine = |entry: &&Value| {
            let name = entry["name"].as_str().unwrap_or_default();
            name == key || name.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
        };
        Ok(all.iter().filter(mine).cloned().collect())
    }

    /// All that is installed.
    ///
    /// # Errors
    /// If the command fails.
    pub fn services(&self) -> Result<Value> {
        self.query(&["services"])
    }

    /// Waits until `condition` holds of the agent; fails at once when it has ended.
    ///
    /// # Errors
    /// If the condition does not come true; with the condition's last error and the end of the agent's log.
    pub fn wait<T>(&mut self, what: &str, mut condition: impl FnMut(&Self) -> Result<T>) -> Result<T> {
        let mut ended = None;
        let outcome = until(what, FOLLOW, || match self.process.check() {
            Ok(()) => condition(self).map(Some),
            Err(error) => {
                ended = Some(error);
                Ok(None)
            }
        });
        match (outcome, ended) {
            (_, Some(ended)) => Err(ended.context(format!("while waiting: {what}"))),
            (Ok(Some(value)), None) => Ok(value),
            (Err(error), None) => {
                Err(error.context(format!("the agent's last words:\n{}", self.process.last_words())))
            }
            (Ok(None), None) => bail!("the agent's end was not noticed: {what}"),
        }
    }

    fn query(&self, command: &[&str]) -> Result<Value> {
        let output = Command::new(&self.binary)
            .args(command)
            .args(["-o", "json", "--run-dir"])
            .arg(&self.run_dir)
            .output()
            .with_context(|| format!("cannot run {}", self.binary.display()))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "sluice {command:?}: {}", errors.trim());
        serde_json::from_slice(&output.stdout).with_context(|| format!("sluice {command:?}: no JSON"))
    }
}

/// What a kubelet puts into a pod's environment to say where the API server is.
pub fn in_cluster(host: &str) -> Vec<String> {
    vec![format!("KUBERNETES_SERVICE_HOST={host}"), "KUBERNETES_SERVICE_PORT=6443".to_owned()]
}
