//! C-10, C-12: an API server that refuses, or that cannot be believed. The state stays, the message says where to look,
//! and nothing needs a restart.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Authority, Bed, ControlPlane, ServiceAccount, audit};
use sluice_tests::wait::until;

use crate::node::{Login, Node};
use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("refusal_c10_role_removed_and_restored", role_removed),
    ("refusal_c11_token_of_nobody", token_of_nobody),
    ("refusal_c12_wrong_authority_at_start", wrong_authority_at_start),
    ("refusal_c12_authority_replaced_while_running", authority_replaced),
];

const CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

fn role_removed(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::prepare(plane, Login::InCluster)?;
    node.usual_log();
    node.launch()?;
    node.synced()?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "refusal-role")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;

    let account = ServiceAccount::set_up(plane.admin())?;
    account.unbind()?;
    let mark = plane.mark();
    node.bed.cut_connections()?;
    node.complains(&["403", "system:node-proxier"])?;
    let rate = refusals_per_second(plane, &node, mark)?;
    node.carries(&address, &Bed::BACKENDS[..1])?;
    ensure!(node.has(&space.key("web"))?, "state was dropped on 403");
    ensure!(rate <= 1.0, "{rate:.2} refused requests a second");
    node.says_once()?;

    // What happened meanwhile is caught up with.
    space.set_endpoints("web", &Bed::BACKENDS[1..2])?;
    account.bind()?;
    node.installed(&space.key("web"), &["10.244.1.22:8080"])?;
    node.recovered()?;
    node.finish(id)
}

fn token_of_nobody(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::prepare(plane, Login::InCluster)?;
    node.secrets.publish(Some("bm90LWEtdG9rZW4"), Some(plane.authority().pem()))?;
    node.launch()?;
    let id = node.id()?;
    let text = node.complains(&["401", TOKEN])?;
    ensure!(!text.contains("bm90LWEtdG9rZW4"), "the token was printed: {text}");
    node.rotate(plane)?;
    node.synced()?;
    node.recovered()?;
    ensure!(!node.agent()?.log().contains("bm90LWEtdG9rZW4"), "the token was logged");
    node.finish(id)
}

fn wrong_authority_at_start(plane: &mut ControlPlane) -> Result<()> {
    let mut node = Node::prepare(plane, Login::Kubeadm)?;
    let stranger = Authority::new("somebody-else")?;
    node.secrets.publish(Some(node.token()), Some(stranger.pem()))?;
    let mark = plane.mark();
    node.launch()?;
    let id = node.id()?;
    node.complains(&[CA])?;
    let asked = node.requests(plane, mark)?;
    ensure!(asked.is_empty(), "the token was sent to a server that cannot be believed: {asked:?}");

    // No authority at all is as bad, and says so.
    node.secrets.publish(Some(node.token()), None)?;
    node.complains(&[CA])?;
    node.secrets.publish(Some(node.token()), Some(plane.authority().pem()))?;
    node.synced()?;
    node.recovered()?;
    node.finish(id)
}

/// As a cluster's authority is replaced: first a bundle of both, then the server's certificate, then the new one alone.
fn authority_replaced(plane: &mut ControlPlane) -> Result<()> {
    let outcome = replace_authority(plane);
    // The other tests' agents trust the old one.
    plane.serve_by(plane.authority())?;
    outcome
}

fn replace_authority(plane: &ControlPlane) -> Result<()> {
    let mut node = Node::start(plane, Login::InCluster)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), "refusal-authority")?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;

    let next = plane.next_authority();
    let both = format!("{}{}", plane.authority().pem(), next.pem());
    node.secrets.publish(Some(node.token()), Some(&both))?;
    plane.serve_by(next)?;
    node.bed.cut_connections()?;
    space.set_endpoints("web", &Bed::BACKENDS[1..2])?;
    node.installed(&space.key("web"), &["10.244.1.22:8080"])?;

    node.secrets.publish(Some(node.token()), Some(next.pem()))?;
    node.bed.cut_connections()?;
    space.set_endpoints("web", &Bed::BACKENDS[2..])?;
    node.installed(&space.key("web"), &["10.244.1.23:8080"])?;
    node.carries(&address, &Bed::BACKENDS[2..])?;
    node.recovered()?;
    node.finish(id)
}

/// Refused requests a second, by the audit log's own clock, once each kind has been refused three times.
fn refusals_per_second(plane: &ControlPlane, node: &Node, mark: u64) -> Result<f64> {
    until("each kind is refused three times", Duration::from_secs(60), || {
        let mut refused = node.requests(plane, mark)?;
        refused.retain(|entry| entry.code() == 403);
        for target in ["/services", "discovery.k8s.io/endpointslices", "/nodes"] {
            let seen = refused.iter().filter(|entry| entry.target() == target).count();
            ensure!(seen >= 3, "{target}: refused {seen} times");
        }
        let times = refused.iter().map(audit::Entry::seconds).collect::<Result<Vec<f64>>>()?;
        let first = times.iter().copied().fold(f64::INFINITY, f64::min);
        let last = times.iter().copied().fold(0.0, f64::max);
        #[expect(clippy::cast_precision_loss, reason = "a handful of requests")]
        let gaps = (times.len() - 1) as f64;
        Ok(gaps / (last - first))
    })
}
