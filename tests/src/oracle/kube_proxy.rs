//! Upstream's kube-proxy, as the process that it is, in a node's namespace.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Mode;
use crate::api::{Binaries, Process};
use crate::lab::command::run_in;
use crate::lab::namespace::{Namespace, enter};
use crate::wait::until;

/// A running kube-proxy; it ends with this, its rules with the namespace.
pub struct KubeProxy {
    process: Process,
    netns: PathBuf,
    mode: Mode,
}

/// Each family's proxier tells when it has written its rules for the first time.
const SYNCED: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
/// Writing a few hundred rules by two processes a family, on two busy cores.
const PATIENCE: Duration = Duration::from_secs(60);

impl KubeProxy {
    /// Starts it with this configuration file.
    ///
    /// # Errors
    /// It has not been built, or cannot be started.
    pub fn start(node: &Namespace, mode: Mode, config: &Path, log: &Path) -> Result<Self> {
        let binary = Binaries::cached("kube-proxy")?;
        let arguments = [binary.display().to_string(), format!("--config={}", config.display())];
        let process = Process::spawn("kube-proxy", node, &arguments, log)?;
        Ok(Self { process, netns: node.path().to_owned(), mode })
    }

    /// Waits until both families' rules stand.
    ///
    /// # Errors
    /// It ends or never writes them.
    pub fn ready(&mut self) -> Result<()> {
        let synced = until("kube-proxy writes its rules", PATIENCE, || {
            self.process.check()?;
            let metrics = std::thread::scope(|scope| {
                let get = scope.spawn(|| enter(&self.netns).and_then(|()| metrics()));
                get.join().map_err(|_| anyhow::anyhow!("the thread that asks kube-proxy panicked"))?
            })?;
            let families = metrics.lines().filter(|line| line.starts_with(SYNCED) && !line.ends_with(" 0"));
            anyhow::ensure!(families.count() == 2, "its metrics do not tell of two families");
            Ok(())
        });
        synced.with_context(|| self.process.last_words())
    }

    /// Those of its rules that hold `word`, for failure messages.
    #[must_use]
    pub fn rules(&self, word: &str) -> String {
        let commands: &[&[&str]] = match self.mode {
            Mode::Nftables => &[
                &["nft", "list", "table", "ip", "kube-proxy"],
                &["nft", "list", "table", "ip6", "kube-proxy"],
            ],
            Mode::Iptables => &[&["iptables-save"], &["ip6tables-save"]],
        };
        let mut found = Vec::new();
        for command in commands {
            match run_in(&self.netns, command[0], &command[1..]) {
                Ok(text) => found.extend(text.lines().filter(|line| line.contains(word)).map(str::to_owned)),
                Err(error) => found.push(format!("{error:#}")),
            }
        }
        found.join("\n")
    }
}

fn metrics() -> Result<String> {
    let mut stream = TcpStream::connect("127.0.0.1:10249")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
