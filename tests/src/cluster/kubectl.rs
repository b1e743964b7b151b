use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Settings;
use crate::lab::command;

/// kubectl for one cluster.
#[derive(Clone, Debug)]
pub struct Kubectl {
    program: String,
    before: Vec<String>,
}

impl Kubectl {
    /// # Errors
    /// No command is given.
    pub fn new(settings: &Settings) -> Result<Self> {
        let mut words = settings.kubectl.split_whitespace().map(str::to_owned);
        let program = words.next().context("SLUICE_KUBECTL is empty")?;
        let before = words.chain(["--kubeconfig".to_owned(), settings.kubeconfig.clone()]).collect();
        Ok(Self { program, before })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It fails; the message has what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.with_input(arguments, "")
    }

    /// # Errors
    /// As [`Kubectl::run`].
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        let all: Vec<&str> =
            self.before.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
        command::with_input(&self.program, &all, input)
    }

    /// # Errors
    /// As [`Kubectl::run`], or it prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// Waits until a workload's pods are those that it asks for.
    ///
    /// # Errors
    /// They are not in time.
    pub fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        self.run(&["-n", namespace, "rollout", "status", workload, "--timeout=180s"]).map(drop)
    }

    /// Runs a shell's line in a pod.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn shell(&self, namespace: &str, pod: &str, line: &str) -> Result<String> {
        self.run(&["-n", namespace, "exec", pod, "--", "sh", "-c", line])
    }
}

/// Asks again until the answer is yes.
///
/// # Errors
/// It is not in time; the last reason is told.
pub fn until(seconds: u64, what: &str, mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(seconds);
    loop {
        let answer = ask();
        match answer {
            Ok(true) => return Ok(()),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("{what}: not within {seconds} s")));
            }
            Ok(false) if Instant::now() > end => bail!("{what}: not within {seconds} s"),
            _ => std::thread::sleep(Duration::from_millis(500)),
        }
    }
}
