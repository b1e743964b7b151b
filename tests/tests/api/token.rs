//! C-11: what may happen to a bearer token and to the file that holds it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Admin, Bed, ControlPlane, Login as Credentials, ServiceAccount, refusal};
use sluice_tests::wait::until;

use crate::node::{Login, Node, all_granted};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("token_c11_rotated_and_old_one_revoked", rotation),
    ("token_c11_file_with_newline_empty_and_gone", file_states),
    ("token_c11_missing_at_start", missing_at_start),
];

const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// The old token stops to work while the agent runs, then every connection is cut: not one request is refused.
fn rotation(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::Kubeadm)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "token-rotation")?;
    space.service("before", &json!({}))?;
    space.slice("before", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("before"), &["10.244.1.21:8080"])?;

    let old = node.rotate(plane)?;
    let mark = plane.mark();
    let probe = old.token.clone();
    ServiceAccount::set_up(plane.admin())?.revoke(old)?;
    is_refused(plane, &probe)?;
    node.bed.cut_connections()?;

    let address = space.service("after", &json!({}))?;
    space.slice("after", &Bed::BACKENDS[1..2])?;
    node.installed(&space.key("after"), &["10.244.1.22:8080"])?;
    node.carries(&address, &Bed::BACKENDS[1..2])?;
    // The probe above comes from the servers' namespace and is not the node's.
    all_granted(&node.requests(plane, mark)?)?;
    node.finish(id)
}

fn file_states(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "token-file")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;
    let (token, ca) = (node.token().to_owned(), plane.authority().pem().to_owned());

    // An editor's newline at the end is no part of the token.
    let mark = plane.mark();
    node.secrets.publish(Some(&format!("{token}\n")), Some(&ca))?;
    node.bed.cut_connections()?;
    space.set_endpoints("web", &Bed::BACKENDS[1..2])?;
    node.installed(&space.key("web"), &["10.244.1.22:8080"])?;
    all_granted(&node.requests(plane, mark)?)?;

    // Empty or missing, the file stops nothing that works; the agent may go on with the token it knows.
    for broken in [Some(""), None] {
        node.secrets.publish(broken, Some(&ca))?;
        node.bed.cut_connections()?;
        node.carries(&address, &Bed::BACKENDS[1..2])?;
        ensure!(node.has(&space.key("web"))?, "state was dropped with token file {broken:?}");
    }

    let fresh = node.rotate(plane)?;
    space.set_endpoints("web", &Bed::BACKENDS[2..])?;
    node.installed(&space.key("web"), &["10.244.1.23:8080"])?;
    node.recovered()?;
    drop(fresh);
    node.finish(id)
}

fn missing_at_start(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::prepare(plane, Login::Kubeadm)?;
    node.secrets.publish(None, Some(plane.authority().pem()))?;
    node.launch()?;
    let id = node.id()?;
    node.complains(&[TOKEN])?;
    node.secrets.publish(Some(node.token()), Some(plane.authority().pem()))?;
    node.synced()?;
    node.recovered()?;
    node.finish(id)
}

/// Waits until the API server's cache has forgotten a revoked token.
fn is_refused(plane: &ControlPlane, token: &str) -> Result<()> {
    let login = Credentials::Token(token);
    let client = Admin::new(plane.netns(), "https://127.0.0.1:6443", &plane.file("ca.crt"), &login)?;
    until("the revoked token is refused", Duration::from_secs(30), || {
        let error = client.get("/api/v1/services").err().context("still accepted")?;
        ensure!(refusal(&error) == Some(401), "{error:?}");
        Ok(())
    })
}
