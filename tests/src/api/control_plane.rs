//! etcd and kube-apiserver as processes, and the folder and namespace that they live in.

use std::env;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::pki::Identity;
use super::{Admin, Authority, Login, Process, Scratch, audit, scratch};
use crate::lab::command::ip_batch;
use crate::lab::namespace::Namespace;
use crate::wait::until;

/// Where nodes reach the API server. From the range for benchmarks (RFC 2544): nothing else uses it.
pub const PLANE_ADDRESS: &str = "198.18.0.1";
/// The same in the other family.
pub const PLANE_ADDRESS6: &str = "fd00:198:18::1";
const ETCD: &str = "127.0.0.1:2379";
/// Holds the laboratory's cluster addresses. The Service `kubernetes` takes the first address of the first range, which
/// therefore must not be 10.96.0.1.
const CLUSTER_RANGES: &str = "10.64.0.0/10,fd00:96::/112";
/// A cold start of kube-apiserver on two busy cores was seen to take 15 s.
const START_LIMIT: Duration = Duration::from_secs(90);

/// The two programs, built from their Go modules by `cargo xtask setup --api`.
pub struct Binaries {
    etcd: PathBuf,
    api: PathBuf,
}

impl Binaries {
    /// Finds them in the cache.
    ///
    /// # Errors
    /// With the missing file and the command that makes it; tests tell this as the reason for a skip.
    pub fn find() -> Result<Self> {
        Ok(Self { etcd: Self::cached("etcd")?, api: Self::cached("kube-apiserver")? })
    }

    /// A program of upstream's in the cache.
    ///
    /// # Errors
    /// As [`Binaries::find`].
    pub fn cached(name: &str) -> Result<PathBuf> {
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = cache.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?;
        let path = cache.join("sluice/k8s").join(name);
        ensure!(path.is_file(), "{} is missing; `cargo xtask setup --api` builds it", path.display());
        Ok(path)
    }
}

/// A running control plane. Everything ends with it.
pub struct ControlPlane {
    // Order matters on drop: the API server goes before etcd, both before their folder.
    api: Option<Process>,
    etcd: Process,
    admin: Admin,
    authority: Authority,
    next_authority: Authority,
    netns: Namespace,
    scratch: Scratch,
    binaries: Binaries,
}

impl ControlPlane {
    /// Starts both servers and waits until the API server is ready and has made its bootstrap roles.
    ///
    /// # Errors
    /// If a program is missing or does not come up; its last output is part of the message.
    pub fn start() -> Result<Self> {
        let binaries = Binaries::find()?;
        let scratch = Scratch::new()?;
        let netns = scratch::namespace("plane")?;
        let addresses = [
            format!("addr add {PLANE_ADDRESS}/32 dev lo"),
            format!("addr add {PLANE_ADDRESS6}/128 dev lo nodad"),
        ];
        ip_batch(Some(netns.name()), &addresses)?;
        let (authority, next_authority) = (Authority::new("laboratory")?, Authority::new("laboratory-next")?);
        let (certificate, key) = write_files(&scratch, &authority)?;
        let etcd = start_etcd(&binaries, &netns, &scratch)?;
        let login = Login::Certificate(&certificate, &key);
        let both = format!("{}{}", authority.pem(), next_authority.pem());
        let ca = scratch.write("both.crt", &both)?;
        let admin = Admin::new(&netns, "https://127.0.0.1:6443", &ca, &login)?;
        let mut plane = Self { api: None, etcd, admin, authority, next_authority, netns, scratch, binaries };
        plane.start_api()?;
        Ok(plane)
    }

    /// The administrator's client (group `system:masters`).
    pub fn admin(&self) -> &Admin {
        &self.admin
    }

    /// The namespace of the servers: give it an interface to let a node reach [`PLANE_ADDRESS`].
    pub fn netns(&self) -> &Namespace {
        &self.netns
    }

    /// The authority that signed the API server's certificate.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The authority that will sign it after [`ControlPlane::serve_by`].
    pub fn next_authority(&self) -> &Authority {
        &self.next_authority
    }

    /// Gives the API server a certificate signed by `authority`, one of the two, and waits until it is served.
    ///
    /// # Errors
    /// If the API server does not take it.
    pub fn serve_by(&self, authority: &Authority) -> Result<()> {
        let identity = authority.server(&server_names())?;
        // The server looks again when either file changes and keeps what it has while they do not fit together.
        self.scratch.write("server.crt", &identity.certificate)?;
        self.scratch.write("server.key", &identity.key)?;
        let ca = self.scratch.write("served-by.crt", authority.pem())?;
        let login = Login::Certificate(&self.file("admin.crt"), &self.file("admin.key"));
        until("the new certificate is served", START_LIMIT, || {
            Admin::new(&self.netns, "https://127.0.0.1:6443", &ca, &login)?.get("/version").map(drop)
        })
    }

    /// The URL for nodes.
    pub fn url(&self) -> String {
        format!("https://{PLANE_ADDRESS}:6443")
    }

    /// A file in the control plane's folder (`ca.crt`, `admin.crt`, `kube-apiserver.log`, …).
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Stops the API server at once, as a crash would: watches are cut, etcd keeps the objects.
    pub fn stop_api(&mut self) {
        self.api = None;
    }

    /// Runs `work` while the API server's process stands still: connections are accepted by the kernel, and nobody answers.
    ///
    /// # Errors
    /// Those of `work`, or there is no process to stop.
    pub fn while_standing_still<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let api = self.api.as_ref().context("the API server does not run")?;
        api.signal(Signal::SIGSTOP)?;
        let outcome = work();
        api.signal(Signal::SIGCONT)?;
        outcome
    }

    /// Starts the API server again and waits until it is ready.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_api(&mut self) -> Result<()> {
        let arguments = self.api_arguments();
        let log = self.scratch.path().join("kube-apiserver.log");
        let mut api = Process::spawn("kube-apiserver", &self.netns, &arguments, &log)?;
        until("kube-apiserver becomes ready", START_LIMIT, || {
            if api.check().is_err() {
                return Ok(());
            }
            // The body is plain text, so anything but a refusal to connect or a status would be a parse error.
            self.admin.get("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node-proxier")?;
            self.admin.get("/api/v1/namespaces/kube-system").map(drop)
        })?;
        api.check()?;
        self.api = Some(api);
        Ok(())
    }

    /// Starts the API server if it does not run.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn ensure_api(&mut self) -> Result<()> {
        let runs = self.api.as_mut().is_some_and(|api| api.check().is_ok());
        if runs { Ok(()) } else { self.start_api() }
    }

    /// Everything asked of the API server since `mark` (see [`ControlPlane::mark`]).
    ///
    /// # Errors
    /// If the audit log cannot be read.
    pub fn audit(&self, mark: u64) -> Result<Vec<audit::Entry>> {
        audit::read(&self.file("audit.log"), mark)
    }

    /// The present end of the audit log.
    pub fn mark(&self) -> u64 {
        fs::metadata(self.file("audit.log")).map_or(0, |log| log.len())
    }

    /// Drops etcd's history: a watch that resumes at an older version is answered with 410 (C-06).
    ///
    /// # Errors
    /// If etcd refuses.
    pub fn compact(&self) -> Result<()> {
        let now = self.etcd_call("/v3/kv/range", &json!({"key": "AA==", "limit": 1}))?;
        let revision = now["header"]["revision"].clone();
        let order = json!({"revision": revision, "physical": true});
        self.etcd_call("/v3/kv/compaction", &order).map(drop)
    }

    /// The end of both servers' logs, for failure messages.
    pub fn last_words(&self) -> String {
        let api = self.api.as_ref().map_or_else(|| "(stopped)".to_owned(), Process::last_words);
        format!("kube-apiserver:\n{api}\netcd:\n{}", self.etcd.last_words())
    }

    fn api_arguments(&self) -> Vec<String> {
        let file = |name: &str| self.scratch.path().join(name).display().to_string();
        vec![
            self.binaries.api.display().to_string(),
            format!("--etcd-servers=http://{ETCD}"),
            "--bind-address=::".to_owned(),
            "--secure-port=6443".to_owned(),
            format!("--advertise-address={PLANE_ADDRESS}"),
            format!("--service-cluster-ip-range={CLUSTER_RANGES}"),
            "--authorization-mode=Node,RBAC".to_owned(),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("sa.crt")),
            format!("--service-account-signing-key-file={}", file("sa.key")),
            format!("--audit-policy-file={}", file("audit-policy.json")),
            format!("--audit-log-path={}", file("audit.log")),
            // Nothing listens for these, and each costs start-up time.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--enable-aggregator-routing=false".to_owned(),
        ]
    }

    fn etcd_call(&self, path: &str, body: &Value) -> Result<Value> {
        self.netns.within(|| post(ETCD, path, &body.to_string())).with_context(|| format!("etcd: {path}"))
    }
}

/// All names by which somebody calls the API server.
fn server_names() -> [&'static str; 8] {
    let [name, full] = ["kubernetes", "kubernetes.default.svc"];
    [name, full, "localhost", "127.0.0.1", "::1", "10.64.0.1", PLANE_ADDRESS, PLANE_ADDRESS6]
}

fn write_files(scratch: &Scratch, authority: &Authority) -> Result<(PathBuf, PathBuf)> {
    let write = |name: &str, identity: &Identity| {
        let certificate = scratch.write(&format!("{name}.crt"), &identity.certificate)?;
        anyhow::Ok((certificate, scratch.write(&format!("{name}.key"), &identity.key)?))
    };
    scratch.write("ca.crt", authority.pem())?;
    scratch.write("audit-policy.json", audit::POLICY)?;
    write("server", &authority.server(&server_names())?)?;
    // Signs ServiceAccount tokens; the certificate only carries the public key.
    write("sa", &authority.client("service-accounts", &[])?)?;
    write("admin", &authority.client("admin", &["system:masters"])?)
}

fn start_etcd(binaries: &Binaries, netns: &Namespace, scratch: &Scratch) -> Result<Process> {
    let peer = "http://127.0.0.1:2380";
    let arguments = [
        binaries.etcd.display().to_string(),
        format!("--data-dir={}", scratch.path().join("etcd").display()),
        format!("--listen-client-urls=http://{ETCD}"),
        format!("--advertise-client-urls=http://{ETCD}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        // The data does not outlive the run.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    let mut etcd = Process::spawn("etcd", netns, &arguments, &scratch.path().join("etcd.log"))?;
    until("etcd answers", START_LIMIT, || {
        let answer = netns.within(|| post(ETCD, "/v3/maintenance/status", "{}"));
        if answer.is_err() && etcd.check().is_err() {
            return Ok(());
        }
        answer.map(drop)
    })?;
    etcd.check()?;
    Ok(etcd)
}

/// One HTTP/1.0 request to etcd's JSON gateway.
fn post(address: &str, path: &str, body: &str) -> Result<Value> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.0\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of headers")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{status}: {body}");
    }
    serde_json::from_str(body).with_context(|| format!("not JSON: {body}"))
}
