//! Who the agent is: the ServiceAccount `kube-system/kube-proxy`, its bound tokens, and the folder that a kubelet would
//! mount into its pod.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::admin::refusal;
use super::agent::SECRETS as MOUNTED;
use super::{Admin, ControlPlane, Scratch};

/// The agent's user name in the audit log.
pub const USER: &str = "system:serviceaccount:kube-system:kube-proxy";
const ACCOUNTS: &str = "/api/v1/namespaces/kube-system/serviceaccounts";
const SECRETS: &str = "/api/v1/namespaces/kube-system/secrets";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
/// A role without EndpointSlices, and the binding to it.
const PARTIAL: &str = "node-proxier-without-slices";
/// The name that kubeadm gives to the binding.
const BINDING: &str = "kubeadm:node-proxier";
/// The shortest life that the TokenRequest API grants.
const TOKEN_SECONDS: u32 = 600;

/// kube-proxy's ServiceAccount as kubeadm sets it up.
pub struct ServiceAccount<'a>(&'a Admin);

/// A token and the Secret it is bound to.
pub struct BoundToken {
    /// The bearer token (JWT).
    pub token: String,
    secret: String,
}

impl<'a> ServiceAccount<'a> {
    /// Creates account and binding where they are missing.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn set_up(admin: &'a Admin) -> Result<Self> {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "kube-proxy", "namespace": "kube-system"},
        });
        unless(409, admin.create(ACCOUNTS, &account).map(drop))?;
        let account = Self(admin);
        account.bind()?;
        Ok(account)
    }

    /// Gives the account the role `system:node-proxier` and nothing else.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn bind(&self) -> Result<()> {
        unless(404, self.0.delete(&format!("{BINDINGS}/{PARTIAL}")))?;
        self.bind_role(BINDING, "system:node-proxier")
    }

    /// Gives the account a role that lacks EndpointSlices.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn bind_without_slices(&self) -> Result<()> {
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": PARTIAL},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "nodes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": ["networking.k8s.io"], "resources": ["servicecidrs"], "verbs": ["list", "watch"]},
            ],
        });
        unless(409, self.0.create(ROLES, &role).map(drop))?;
        self.bind_role(PARTIAL, PARTIAL)
    }

    /// Takes all roles away.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn unbind(&self) -> Result<()> {
        unless(404, self.0.delete(&format!("{BINDINGS}/{PARTIAL}")))?;
        unless(404, self.0.delete(&format!("{BINDINGS}/{BINDING}")))
    }

    /// The rules of `system:node-proxier`.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn rules(&self) -> Result<Value> {
        Ok(self.0.get(&format!("{ROLES}/system:node-proxier"))?["rules"].clone())
    }

    /// Replaces the rules of `system:node-proxier`. The API server puts them right when it starts, and not before.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn set_rules(&self, rules: &Value) -> Result<()> {
        self.0.patch(&format!("{ROLES}/system:node-proxier"), &json!({"rules": rules})).map(drop)
    }

    fn bind_role(&self, name: &str, role: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "kube-proxy", "namespace": "kube-system"}],
        });
        unless(409, self.0.create(BINDINGS, &binding).map(drop))
    }

    /// Asks the TokenRequest API for a token of ten minutes, bound to a Secret of its own.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn token(&self) -> Result<BoundToken> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let secret = format!("kube-proxy-token-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}});
        let object = self.0.create(SECRETS, &object)?;
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "expirationSeconds": TOKEN_SECONDS,
                "boundObjectRef":
                    {"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": object["metadata"]["uid"]},
            },
        });
        let answer = self.0.create(&format!("{ACCOUNTS}/kube-proxy/token"), &request)?;
        let token = answer["status"]["token"].as_str().context("TokenRequest without a token")?;
        Ok(BoundToken { token: token.to_owned(), secret })
    }

    /// Revokes `token`. The API server goes on to accept it for up to ten seconds, from a cache.
    ///
    /// # Errors
    /// If the API server refuses.
    pub fn revoke(&self, token: BoundToken) -> Result<()> {
        self.0.delete(&format!("{SECRETS}/{}", token.secret))
    }
}

/// Takes the refusal `code` (409: it is there already; 404: it is gone already) for success.
fn unless(code: u16, outcome: Result<()>) -> Result<()> {
    outcome.or_else(|error| if refusal(&error) == Some(code) { Ok(()) } else { Err(error) })
}

/// `token` and `ca.crt` in the form in which a kubelet projects them: links to `..data/FILE`, where `..data` is a link
/// to a folder that is replaced as a whole.
pub struct TokenDir {
    scratch: Scratch,
    version: AtomicU32,
}

impl TokenDir {
    /// A folder with `token` and the control plane's authority.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn new(plane: &ControlPlane, token: &str) -> Result<Self> {
        let dir = Self { scratch: Scratch::new()?, version: AtomicU32::new(0) };
        dir.publish(Some(token), Some(plane.authority().pem()))?;
        for name in ["token", "ca.crt"] {
            symlink(Path::new("..data").join(name), dir.path().join(name))?;
        }
        Ok(dir)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Replaces both files in one step; `None` leaves a file out, so that its link leads nowhere.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn publish(&self, token: Option<&str>, ca: Option<&str>) -> Result<()> {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        let folder = format!("..v{version}");
        fs::create_dir(self.path().join(&folder))?;
        for (name, text) in [("token", token), ("ca.crt", ca)] {
            if let Some(text) = text {
                self.scratch.write(&format!("{folder}/{name}"), text)?;
            }
        }
        let (link, fresh) = (self.path().join("..data"), self.path().join("..data_tmp"));
        let old = fs::read_link(&link).ok().map(|old| self.path().join(old));
        symlink(&folder, &fresh)?;
        fs::rename(&fresh, &link).with_context(|| format!("cannot replace {}", link.display()))?;
        old.map_or(Ok(()), fs::remove_dir_all).context("cannot remove the old files")
    }

    /// A kubeconfig exactly as kubeadm's ConfigMap `kube-proxy` has it, for the API server at `url`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeadm_kubeconfig(&self, url: &str) -> Result<PathBuf> {
        self.scratch.write("kubeconfig.conf", &KUBEADM.replace("SERVER", url))
    }

    /// The same, but with this folder's own path instead of the one where a pod would see it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn own_kubeconfig(&self, url: &str) -> Result<PathBuf> {
        let here = self.path().display().to_string();
        self.scratch.write("kubeconfig.conf", &KUBEADM.replace("SERVER", url).replace(MOUNTED, &here))
    }
}

/// `kubeconfig.conf` of kubeadm v1.36 with its indentation.
const KUBEADM: &str = "\
apiVersion: v1
kind: Config
clusters:
- cluster:
    certificate-authority: /var/run/secrets/kubernetes.io/serviceaccount/ca.crt
    server: SERVER
  name: default
contexts:
- context:
    cluster: default
    namespace: default
    user: default
  name: default
current-context: default
users:
- name: default
  user:
    tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token
";
