use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

struct Place(PathBuf);

impl Place {
    fn new(files: &[&str]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-login-{}-{n}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        files.iter().for_each(|file| fs::write(path.join(file), CERTIFICATE).unwrap());
        Self(path)
    }

    fn environment(&self, host: &str, port: &str) -> Environment {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        Environment { host: given(host), port: given(port), folder: self.0.clone() }
    }

    /// As kubeadm's ConfigMap has it, with files relative to its own folder.
    fn kubeconfig(&self, cluster: &str, user: &str) -> PathBuf {
        let server = if cluster.contains("server:") { "" } else { "server: 'https://192.0.2.2:6443', " };
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster: {{{server}{cluster}}}\n  name: default\n- cluster: {{server: 'https://192.0.2.3:6443', certificate-authority: other.crt}}\n  name: other\ncontexts:\n- context: {{cluster: default, namespace: default, user: default}}\n  name: default\ncurrent-context: default\nusers:\n- name: default\n  user: {{{user}}}\n"
        );
        let path = self.0.join("kubeconfig.conf");
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// No certificate is looked into before a client is made of it, only the PEM around it.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

#[tokio::test]
async fn c_14_in_cluster_addresses() {
    let place = Place::new(&["token", "ca.crt"]);
    let cases = [
        ("10.96.0.1", "443", "https://10.96.0.1:443"),
        ("fd00::1", "6443", "https://[fd00::1]:6443"),
        ("api.example", "8443", "https://api.example:8443"),
    ];
    for (host, port, want) in cases {
        let login = login(None, None, &place.environment(host, port)).await.unwrap();
        assert_eq!(login.config.cluster_url.to_string().trim_end_matches('/'), want);
        assert_eq!(login.token, Some(place.0.join("token")));
        assert_eq!(login.config.root_cert_file, Some(place.0.join("ca.crt")), "C-12: reloaded");
        assert!(login.config.proxy_url.is_none() && login.config.read_timeout.is_some());
    }
}

#[tokio::test]
async fn a_login_that_cannot_be_says_where_to_look() {
    let cases: [(&[&str], &str, &str, &str); 5] = [
        (&["token", "ca.crt"], "", "443", "KUBERNETES_SERVICE_HOST is not set"),
        (&["token", "ca.crt"], "10.96.0.1", "", "KUBERNETES_SERVICE_PORT is not set"),
        (&["token", "ca.crt"], "a b", "443", "is no address of an API server"),
        (&["ca.crt"], "10.96.0.1", "443", "/token: No such file"),
        (&["token"], "10.96.0.1", "443", "/ca.crt: No such file"),
    ];
    for (files, host, port, want) in cases {
        let place = Place::new(files);
        let error = login(None, None, &place.environment(host, port)).await.unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("; "), "{error}");
    }
    let place = Place::new(&["ca.crt", "token"]);
    let kubeconfigs = [
        ("certificate-authority: no.crt", "tokenFile: token", "/no.crt: No such file"),
        ("certificate-authority: ca.crt", "tokenFile: none", "/none: No such file"),
        ("certificate-authority: ca.crt, proxy-url: 'http://x:1'", "tokenFile: token", "proxy-url"),
        ("certificate-authority-data: '%'", "tokenFile: token", "correct the kubeconfig"),
    ];
    for (cluster, user, want) in kubeconfigs {
        let path = place.kubeconfig(cluster, user);
        let error = login(Some(&path), None, &place.environment("", "")).await.unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("; "), "{error}");
    }
    let secrets = [
        (
            "certificate-authority: ca.crt, proxy-url: 'http://x:canary@y:1'",
            "tokenFile: token",
            "proxy-url \"y:1\"",
        ),
        ("certificate-authority: ca.crt", "token: \"canary\\n\"", "no bearer token"),
        (
            "certificate-authority: ca.crt, server: 'https://x:canary@192.0.2.2'",
            "tokenFile: token",
            "a user name",
        ),
    ];
    for (cluster, user, want) in secrets {
        let path = place.kubeconfig(cluster, user);
        let error = login(Some(&path), None, &place.environment("", "")).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want) && error.is_final() && !text.contains("canary"), "X-14: {text}");
    }
    let error = login(None, Some("https://x:canary@y"), &place.environment("", "")).await.unwrap_err();
    assert!(!error.to_string().contains("canary"), "X-14: {error}");
    let error = login(Some(Path::new("/no/such")), None, &place.environment("", "")).await.unwrap_err();
    assert!(error.to_string().contains("/no/such") && error.to_string().contains("kubeconfig"), "{error}");
    let error = login(None, Some("ftp://x"), &place.environment("", "")).await.unwrap_err();
    assert!(error.to_string().contains("--master \"ftp://x\""), "{error}");
}

#[tokio::test]
async fn kubeadms_kubeconfig() {
    let place = Place::new(&["ca.crt", "token", "other.crt"]);
    let path = place.kubeconfig("certificate-authority: ca.crt", "tokenFile: token, token: stale");
    let login_with = async |master| login(Some(&path), master, &place.environment("", "")).await.unwrap();
    let login = login_with(None).await;
    assert_eq!(login.config.cluster_url.to_string(), "https://192.0.2.2:6443/");
    assert_eq!(login.config.root_cert_file, Some(place.0.join("ca.crt")));
    assert_eq!(login.token, Some(place.0.join("token")));
    assert!(login.config.auth_info.token.is_none() && login.config.auth_info.token_file.is_none());
    assert!(login.config.proxy_url.is_none(), "C-13");
    let login = login_with(Some("https://192.0.2.9:6443")).await;
    assert_eq!(login.config.cluster_url.to_string(), "https://192.0.2.9:6443/", "--master wins");
}
