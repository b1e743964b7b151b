//! From a kubeconfig or the pod's ServiceAccount to what a client needs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderValue, Uri};
use kube::Config;
use kube::client::{AuthError, RustlsTlsError};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use secrecy::ExposeSecret;

use crate::status::first_line;

/// Where a pod finds its ServiceAccount.
pub const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A request whose answer does not begin or stalls for this long has failed (C-05). Watches end by themselves
/// before, see [`super::watch::WATCH_SECONDS`].
const READ_TIMEOUT: Duration = Duration::from_secs(58);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the pod's environment says about the API server.
#[derive(Clone, Debug)]
pub struct Environment {
    /// `KUBERNETES_SERVICE_HOST`.
    pub host: Option<String>,
    /// `KUBERNETES_SERVICE_PORT`.
    pub port: Option<String>,
    /// [`SERVICE_ACCOUNT`]; holds `token` and `ca.crt`.
    pub folder: PathBuf,
}

impl Environment {
    #[must_use]
    pub fn of_process() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            host: variable("KUBERNETES_SERVICE_HOST"),
            port: variable("KUBERNETES_SERVICE_PORT"),
            folder: SERVICE_ACCOUNT.into(),
        }
    }
}

/// How to reach the API server and who to be there.
#[derive(Clone, Debug)]
pub struct Login {
    pub config: Config,
    /// The bearer token's file, read by [`super::token`].
    pub token: Option<PathBuf>,
    /// Names for error messages.
    pub hints: Hints,
}

/// Which files stand behind a login.
#[derive(Clone, Debug)]
pub struct Hints {
    pub server: String,
    pub ca: String,
    pub identity: String,
}

/// Why there is no login. Each message names the file to look at.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("{variable} is not set and no --kubeconfig is given; run in a pod or name a kubeconfig")]
    NotInCluster { variable: &'static str },
    #[error("{what} {value:?} is no address of an API server; write https://HOST:PORT")]
    Address { what: String, value: String },
    #[error("cannot read {}: {source}; name a readable kubeconfig by --kubeconfig or clientConnection.kubeconfig", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("cannot read {}: {source}; {next}", path.display())]
    Read { path: PathBuf, source: std::io::Error, next: &'static str },
    #[error("{}: {}; correct the kubeconfig", path.display(), first_line(cause))]
    Kubeconfig { path: PathBuf, cause: Box<KubeconfigError> },
    #[error("{}: {by} names the {kind} {name:?}, which is not there; correct the kubeconfig", path.display())]
    NotThere { path: PathBuf, by: String, kind: &'static str, name: String },
    #[error(
        "{what} holds a user name or a password; give them to the kubeconfig's user, in a field of its own"
    )]
    UserInfo { what: String },
    #[error("{}: the token of its user is no bearer token: it has line ends or control characters; correct the kubeconfig", path.display())]
    Token { path: PathBuf },
    #[error("cannot use the credentials of {identity}: {cause}; correct the kubeconfig, or what it names")]
    Identity { identity: String, cause: String },
    #[error("{}: proxy-url {url:?} is not supported; remove it, the API server must be reachable directly", path.display())]
    Proxy { path: PathBuf, url: String },
    #[error("cannot use the CA certificates of {ca}: {source}; put the cluster's CA there, in PEM")]
    Client { ca: String, source: Box<kube::Error> },
}

impl LoginError {
    /// Whether waiting cannot help. Flags, environment and kubeconfig are an operator's and stay as they are; token and CA
    /// are put there by others, and may come late or be replaced.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Client { .. } | Self::Identity { .. })
    }

    /// Why there is no client with this login.
    #[must_use]
    pub fn unusable(hints: &Hints, error: kube::Error) -> Self {
        let identity = |cause| Self::Identity { identity: hints.identity.clone(), cause };
        match error {
            kube::Error::Auth(error) => identity(refused(&error)),
            kube::Error::RustlsTls(
                error @ (RustlsTlsError::InvalidIdentityPem(_)
                | RustlsTlsError::MissingPrivateKey
                | RustlsTlsError::MissingCertificate
                | RustlsTlsError::InvalidPrivateKey(_)
                | RustlsTlsError::UnknownPrivateKeyFormat),
            ) => identity(first_line(&error)),
            error => Self::Client { ca: hints.ca.clone(), source: Box::new(error) },
        }
    }
}

/// What is wrong with an identity, without what a plugin has printed: it may be half a credential.
#[must_use]
pub fn refused(error: &AuthError) -> String {
    match error {
        AuthError::AuthExecParse(_) => "what its plugin printed is no ExecCredential".to_owned(),
        AuthError::AuthExecRun { cmd, out } => format!("its plugin {cmd} failed with {}", out.status),
        error => first_line(error),
    }
}

/// Reads the kubeconfig, or (`None`) the pod's ServiceAccount. `master` replaces the server's address; alone it is
/// used without any identity, as kube-proxy does it.
///
/// # Errors
/// See [`LoginError`].
pub async fn login(
    kubeconfig: Option<&Path>,
    master: Option<&str>,
    environment: &Environment,
) -> Result<Login, LoginError> {
    let mut login = match (kubeconfig, master) {
        (Some(path), _) => from_kubeconfig(path).await?,
        (None, Some(master)) => anonymous(master)?,
        (None, None) => in_cluster(environment)?,
    };
    if let Some(master) = master {
        login.config.cluster_url = address("--master", master)?;
        login.hints.server = master.to_owned();
    }
    let config = &mut login.config;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
    // Refused and throttled requests are repeated by the watch, which knows its pace.
    config.default_retry = false;
    config.proxy_url = None;
    Ok(login)
}

fn address(what: &str, text: &str) -> Result<Uri, LoginError> {
    let refuse = || LoginError::Address { what: what.to_owned(), value: text.to_owned() };
    // Before it is told to anybody.
    if text.contains('@') {
        return Err(LoginError::UserInfo { what: what.to_owned() });
    }
    let uri = text.parse::<Uri>().map_err(|_| refuse())?;
    let scheme = uri.scheme_str().is_some_and(|scheme| scheme == "https" || scheme == "http");
    if scheme && uri.host().is_some() { Ok(uri) } else { Err(refuse()) }
}

fn anonymous(master: &str) -> Result<Login, LoginError> {
    let config = Config::new(address("--master", master)?);
    let none = || "(none: only --master is given)".to_owned();
    Ok(Login {
        config,
        token: None,
        hints: Hints { server: master.to_owned(), ca: none(), identity: none() },
    })
}

fn in_cluster(environment: &Environment) -> Result<Login, LoginError> {
    let required =
        |value: &Option<String>, variable| value.clone().ok_or(LoginError::NotInCluster { variable });
    let host = required(&environment.host, "KUBERNETES_SERVICE_HOST")?;
    let port = required(&environment.port, "KUBERNETES_SERVICE_PORT")?;
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host };
    let server = format!("https://{bracketed}:{port}");
    let (ca, token) = (environment.folder.join("ca.crt"), environment.folder.join("token"));
    let next = "mount the ServiceAccount into the pod (automountServiceAccountToken)";
    readable(&ca, next)?;
    readable(&token, next)?;
    let mut config = Config::new(address("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT", &server)?);
    config.root_cert_file = Some(ca.clone());
    // Never used for verification, but without it the builder would look for the host's own CA certificates.
    config.root_cert = Some(Vec::new());
    let hints = Hints { server, ca: ca.display().to_string(), identity: token.display().to_string() };
    Ok(Login { config, token: Some(token), hints })
}

fn readable(path: &Path, next: &'static str) -> Result<(), LoginError> {
    std::fs::File::open(path).map(drop).map_err(|source| LoginError::Read {
        path: path.to_owned(),
        source,
        next,
    })
}

async fn from_kubeconfig(path: &Path) -> Result<Login, LoginError> {
    let wrong = |cause| LoginError::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    // kube's own error would quote the path twice, and name no next step.
    std::fs::read(path).map_err(|source| LoginError::Unreadable { path: path.to_owned(), source })?;
    let mut file = Kubeconfig::read_from(path).map_err(wrong)?;
    all_there(path, &file)?;
    for cluster in file.clusters.iter_mut().filter_map(|named| named.cluster.as_mut()) {
        if let Some(url) = cluster.proxy_url.take().filter(|url| !url.is_empty()) {
            let url = url.rsplit('@').next().unwrap_or_default().to_owned();
            return Err(LoginError::Proxy { path: path.to_owned(), url });
        }
        // kube takes the environment's proxy where the file names none (C-13); `login` drops this one.
        cluster.proxy_url = Some("http://none.invalid".to_owned());
        cluster.certificate_authority = cluster.certificate_authority.take().filter(|ca| !ca.is_empty());
    }
    let ca = authority(&file);
    if let Some(ca) = &ca {
        readable(ca, "put the cluster's CA there, or correct certificate-authority")?;
    }
    let mut config =
        Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(wrong)?;
    address(&format!("{}: server", path.display()), &config.cluster_url.to_string())?;
    config.root_cert_file = ca.clone();
    // kube sends the file's content untrimmed: our own layer reads it. A file wins over a token in the kubeconfig.
    let token = config.auth_info.token_file.take().filter(|file| !file.is_empty()).map(PathBuf::from);
    if let Some(token) = &token {
        config.auth_info.token = None;
        readable(token, "put the token there, or correct tokenFile")?;
    }
    if config.auth_info.token.as_ref().is_some_and(|token| !is_bearer(token.expose_secret())) {
        return Err(LoginError::Token { path: path.to_owned() });
    }
    let in_file = |file: Option<&PathBuf>, rest: &str| {
        file.map_or_else(|| format!("{rest} of {}", path.display()), |file| file.display().to_string())
    };
    let hints = Hints {
        server: config.cluster_url.to_string(),
        ca: in_file(ca.as_ref(), "certificate-authority-data"),
        identity: in_file(token.as_ref(), "the user"),
    };
    Ok(Login { config, token, hints })
}

/// Whether this can stand in a header; kube takes it for granted.
fn is_bearer(token: &str) -> bool {
    HeaderValue::from_str(token).is_ok()
}

/// What the current context names must be there. kube takes an unknown user for nobody, and requests would be refused.
fn all_there(path: &Path, file: &Kubeconfig) -> Result<(), LoginError> {
    let missing = |by, kind, name: &str| {
        Err(LoginError::NotThere { path: path.to_owned(), by, kind, name: name.to_owned() })
    };
    let Some(current) = file.current_context.as_deref().filter(|name| !name.is_empty()) else {
        return Ok(());
    };
    let named = file.contexts.iter().find(|named| named.name == current);
    let Some(context) = named.and_then(|named| named.context.as_ref()) else {
        return missing("current-context".to_owned(), "context", current);
    };
    let by = format!("context {current:?}");
    if !file.clusters.iter().any(|named| named.name == context.cluster) {
        return missing(by, "cluster", &context.cluster);
    }
    match context.user.as_deref().filter(|name| !name.is_empty()) {
        Some(user) if !file.auth_infos.iter().any(|named| named.name == user) => missing(by, "user", user),
        _ => Ok(()),
    }
}

/// The CA file of the current context's cluster, unless the certificates stand in the kubeconfig itself.
fn authority(file: &Kubeconfig) -> Option<PathBuf> {
    let current = file.current_context.as_ref()?;
    let context = file.contexts.iter().find(|named| named.name == *current)?.context.as_ref()?;
    let cluster = file.clusters.iter().find(|named| named.name == context.cluster)?.cluster.as_ref()?;
    if cluster.certificate_authority_data.as_ref().is_some_and(|data| !data.is_empty()) {
        return None;
    }
    cluster.certificate_authority.as_ref().map(PathBuf::from)
}

#[cfg(test)]
#[path = "login_tests.rs"]
mod tests;
