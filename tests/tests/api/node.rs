//! A node with its agent, and the questions that every test asks of it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::api::{
    Agent, AgentOptions, Bed, BoundToken, ControlPlane, PLANE_ADDRESS, PLANE_ADDRESS6, ServiceAccount,
    TokenDir, USER, audit, in_cluster,
};

/// How the agent learns where the API server is and who it is itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Login {
    /// Environment and the mounted ServiceAccount.
    InCluster,
    /// The same by an IPv6 address, among proxy variables that lead nowhere.
    InClusterIpv6,
    /// `--kubeconfig` with kubeadm's `kubeconfig.conf`.
    Kubeadm,
}

/// One node. Its agent goes first when it is dropped.
pub struct Node {
    agent: Option<Agent>,
    /// The mounted ServiceAccount.
    pub secrets: TokenDir,
    kubeconfig: Option<PathBuf>,
    environment: Vec<String>,
    token: BoundToken,
    issued: Vec<String>,
    flags: Vec<&'static str>,
    /// Namespaces, cgroup, bpffs.
    pub bed: Bed,
}

impl Node {
    /// A node with a good token, its agent not started yet.
    pub fn prepare(plane: &ControlPlane, login: Login) -> Result<Self> {
        let token = ServiceAccount::set_up(plane.admin())?.token()?;
        let bed = Bed::new(plane)?;
        let secrets = TokenDir::new(plane, &token.token)?;
        let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
        let (kubeconfig, environment) = match login {
            Login::InCluster => (None, in_cluster(PLANE_ADDRESS)),
            Login::InClusterIpv6 => {
                let nowhere = proxies.map(|name| format!("{name}=http://192.0.2.1:3128"));
                (None, [in_cluster(PLANE_ADDRESS6), nowhere.into()].concat())
            }
            Login::Kubeadm => (Some(secrets.kubeadm_kubeconfig(&plane.url())?), Vec::new()),
        };
        let issued = vec![token.token.clone()];
        // By default the whole log is written, to be searched for tokens.
        let flags = vec!["--v=10"];
        Ok(Self { agent: None, secrets, kubeconfig, environment, token, issued, flags, bed })
    }

    /// The log that operators have, for an agent that is launched later.
    pub fn usual_log(&mut self) {
        self.flags.clear();
    }

    /// A further flag for an agent that is launched later.
    pub fn flag(&mut self, flag: &'static str) {
        self.flags.push(flag);
    }

    /// A node whose agent has its first complete state.
    pub fn start(plane: &ControlPlane, login: Login) -> Result<Self> {
        let mut node = Self::prepare(plane, login)?;
        node.launch()?;
        node.synced()?;
        Ok(node)
    }

    /// Starts the agent, or a successor of the one before.
    pub fn launch(&mut self) -> Result<()> {
        let options = AgentOptions {
            secrets: self.secrets.path(),
            kubeconfig: self.kubeconfig.as_deref(),
            environment: &self.environment,
            flags: &self.flags,
        };
        self.agent = Some(Agent::start(&self.bed, &options)?);
        Ok(())
    }

    /// Kills the agent as the kernel's memory killer would.
    pub fn kill(&mut self) -> Result<()> {
        self.agent()?.process().signal(Signal::SIGKILL)?;
        self.agent = None;
        Ok(())
    }

    /// The running agent.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the agent has not been started")
    }

    /// Waits for the first complete state.
    pub fn synced(&mut self) -> Result<()> {
        self.agent()?.wait("the agent is in step with the API server", |agent| {
            let status = agent.status()?;
            ensure!(status["synced"] == true && status["source"]["connected"] == true, "{status}");
            Ok(())
        })
    }

    /// Waits until the Service `key` is installed with exactly these endpoints (`ADDRESS:PORT`).
    pub fn installed(&mut self, key: &str, endpoints: &[&str]) -> Result<()> {
        let mut wanted: Vec<String> = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        wanted.sort();
        self.agent()?.wait(&format!("{key} is installed with {endpoints:?}"), |agent| {
            let found = endpoints_of(agent, key)?.context("not installed")?;
            ensure!(found == wanted, "installed with {found:?}");
            Ok(())
        })
    }

    /// Whether the Service `key` is installed right now.
    pub fn has(&mut self, key: &str) -> Result<bool> {
        Ok(endpoints_of(self.agent()?, key)?.is_some())
    }

    /// Waits until the Service `key` is not installed.
    pub fn gone(&mut self, key: &str) -> Result<()> {
        self.agent()?.wait(&format!("{key} goes away"), |agent| match endpoints_of(agent, key)? {
            None => Ok(()),
            Some(found) => bail!("still installed with {found:?}"),
        })
    }

    /// Waits until one entry of `degraded` holds all of `words`, in one line, and a line of the log as well; returns the
    /// entry's text.
    pub fn complains(&mut self, words: &[&str]) -> Result<String> {
        let has_all = |text: &str| words.iter().all(|word| text.contains(word));
        self.agent()?.wait(&format!("status and log complain of {words:?}"), |agent| {
            let status = agent.status()?;
            let parts = status["degraded"].as_array().context("no list of what is degraded")?;
            let texts = parts.iter().map(|part| {
                let word = |name: &str| part[name].as_str().unwrap_or_default();
                format!("{}: {}; {}", word("what"), word("why"), word("next"))
            });
            let text = texts.into_iter().find(|text| has_all(text));
            let text = text.with_context(|| format!("degraded is {}", status["degraded"]))?;
            ensure!(!text.contains('\n'), "more than one line: {text:?}");
            ensure!(agent.log().lines().any(has_all), "no line of the log says it");
            let last = status["last_error"].as_str().unwrap_or_default();
            ensure!(has_all(last) && !last.contains('\n'), "last_error is {}", status["last_error"]);
            Ok(text)
        })
    }

    /// Asserts that no warning stands in the log twice, however often its cause has been met.
    pub fn says_once(&mut self) -> Result<()> {
        let log = self.agent()?.log();
        let mut warnings: Vec<&str> =
            log.lines().filter_map(|line| line.split_once(" WARN ").map(|(_, text)| text)).collect();
        ensure!(!warnings.is_empty(), "no warning at all");
        let all = warnings.len();
        warnings.sort_unstable();
        warnings.dedup();
        ensure!(warnings.len() == all, "the same warning again:\n{log}");
        Ok(())
    }

    /// Waits until no part is degraded and the source is connected again.
    pub fn recovered(&mut self) -> Result<()> {
        self.agent()?.wait("the agent has recovered", |agent| {
            let status = agent.status()?;
            ensure!(status["source"]["connected"] == true, "{status}");
            let source = |part: &Value| part["what"].as_str().is_some_and(|what| what.contains("API server"));
            let trouble: Vec<&Value> = status["degraded"].as_array().into_iter().flatten().collect();
            ensure!(!trouble.iter().any(|part| source(part)), "{trouble:?}");
            Ok(())
        })
    }

    /// Puts a new token in place of the present one, which stays valid; returns the old one.
    pub fn rotate(&mut self, plane: &ControlPlane) -> Result<BoundToken> {
        let fresh = ServiceAccount::set_up(plane.admin())?.token()?;
        self.secrets.publish(Some(&fresh.token), Some(plane.authority().pem()))?;
        self.issued.push(fresh.token.clone());
        Ok(std::mem::replace(&mut self.token, fresh))
    }

    /// Puts another text in the token's place, of which nothing may be printed either.
    pub fn spoil(&mut self, plane: &ControlPlane, text: &str) -> Result<()> {
        self.issued.push(text.to_owned());
        self.secrets.publish(Some(text), Some(plane.authority().pem()))
    }

    /// The token that is good at present.
    pub fn token(&self) -> &str {
        &self.token.token
    }

    /// What this node's agent has asked for since `mark`.
    pub fn requests(&self, plane: &ControlPlane, mark: u64) -> Result<Vec<audit::Entry>> {
        let mut requests = plane.audit(mark)?;
        requests.retain(|entry| entry.sources.iter().any(|source| self.bed.uplink().is_address(source)));
        Ok(requests)
    }

    /// Asserts that one of `names` answers at `address` for the client pod.
    pub fn carries(&self, address: &str, names: &[&str]) -> Result<()> {
        let answer = self.bed.ask(address)?;
        ensure!(names.contains(&answer.as_str()), "{address} is answered by {answer:?}, not by {names:?}");
        Ok(())
    }

    /// Asserts what holds of every run: the process is the one that was started (`id`), and no token was printed.
    pub fn finish(mut self, id: u32) -> Result<()> {
        let agent = self.agent.as_mut().context("the agent has not been started")?;
        agent.process().check()?;
        ensure!(agent.process().id() == id, "the agent was restarted");
        let told = format!("{}{}", agent.log(), agent.status()?);
        for token in &self.issued {
            // The first part says only which algorithm signs.
            for part in token.split('.').skip(1) {
                ensure!(!told.contains(part), "a part of a token was printed: {}…", &part[..8]);
            }
        }
        Ok(())
    }

    /// Process id of the agent.
    pub fn id(&mut self) -> Result<u32> {
        Ok(self.agent()?.process().id())
    }
}

/// Asserts that `requests` are all the ServiceAccount's, allowed to it and granted.
pub fn all_granted(requests: &[audit::Entry]) -> Result<()> {
    ensure!(!requests.is_empty(), "the agent asked for nothing");
    for entry in requests {
        ensure!(entry.user.username == USER, "somebody else asked: {entry:?}");
        ensure!(entry.is_allowed_to_a_proxy(), "not among the verbs of system:node-proxier: {entry:?}");
        // 0: the connection ended first, as every watch does.
        ensure!([0, 200, 201].contains(&entry.code()), "refused: {entry:?}");
    }
    Ok(())
}

/// The endpoints of all ports of the Service `key`, sorted; `None` if it is not installed.
fn endpoints_of(agent: &Agent, key: &str) -> Result<Option<Vec<String>>> {
    let ports = agent.service(key)?;
    if ports.is_empty() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for port in &ports {
        for endpoint in port["internal"].as_array().context("no list of internal endpoints")? {
            found.push(endpoint.as_str().context("an endpoint is not ADDRESS:PORT")?.to_owned());
        }
    }
    found.sort();
    Ok(Some(found))
}
