//! 500 connections beside everything that may happen to a login (C-10 … C-12): each lives through it, the process stays,
//! what was installed stays, and new Services come once the login is good again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Bed, ControlPlane, Flows, HELD_PORT, ServiceAccount, audit};
use sluice_tests::wait::until;

use crate::node::{Login, Node};
use crate::suite::Test;

pub const TESTS: &[Test] = &[("credentials_500_flows_live_through_every_change", every_change)];

const FLOWS: usize = 500;
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const NAMESPACE: &str = "credentials";

fn every_change(plane: &mut ControlPlane) -> Result<()> {
    let account = ServiceAccount::set_up(plane.admin())?;
    let rules = account.rules()?;
    let outcome = live_through(plane, &account, &rules);
    // The other tests' agents need both.
    account.set_rules(&rules)?;
    plane.serve_by(plane.authority())?;
    outcome
}

/// What lives, and what is asked of it after each change.
struct Life<'a> {
    space: Space<'a>,
    flows: Flows,
    address: String,
    services: usize,
}

impl Life<'_> {
    /// While the login is bad.
    fn goes_on(&mut self, node: &mut Node) -> Result<()> {
        self.flows.alive()?;
        node.carries(&self.address, &Bed::BACKENDS[..1])?;
        ensure!(node.has(&self.space.key("web"))?, "state was dropped");
        Ok(())
    }

    /// Once it is good again.
    fn is_good(&mut self, node: &mut Node, after: &str) -> Result<()> {
        self.services += 1;
        let name = format!("new-{}", self.services);
        let address = self.space.service(&name, &json!({}))?;
        self.space.slice(&name, &Bed::BACKENDS[1..2])?;
        node.installed(&self.space.key(&name), &["10.244.1.22:8080"])
            .with_context(|| format!("after {after}"))?;
        node.carries(&address, &Bed::BACKENDS[1..2])?;
        node.recovered()?;
        self.goes_on(node).with_context(|| format!("after {after}"))
    }
}

fn live_through(plane: &ControlPlane, account: &ServiceAccount<'_>, rules: &Value) -> Result<()> {
    let mut node = Node::start(plane, Login::Kubeadm)?;
    let id = node.id()?;
    let space = Space::new(plane.admin(), NAMESPACE)?;
    let held = space.service("held", &json!({"spec": {"ports": [{"port": 80, "targetPort": HELD_PORT}]}}))?;
    space.slice("held", &Bed::BACKENDS[..1])?;
    space.patch_slice("held", &json!({"ports": [{"name": "", "port": HELD_PORT, "protocol": "TCP"}]}))?;
    node.installed(&space.key("held"), &[&format!("10.244.1.21:{HELD_PORT}")])?;
    let address = space.service("web", &json!({}))?;
    space.slice("web", &Bed::BACKENDS[..1])?;
    node.installed(&space.key("web"), &["10.244.1.21:8080"])?;
    let flows = node.bed.hold(&held, FLOWS)?;
    let life = &mut Life { space, flows, address, services: 0 };

    let old = node.rotate(plane)?;
    account.revoke(old)?;
    node.bed.cut_connections()?;
    life.is_good(&mut node, "the token was rotated and the old one revoked")?;

    let mark = plane.mark();
    let half = node.token()[..node.token().len() * 2 / 3].to_owned();
    node.spoil(plane, &half)?;
    node.bed.cut_connections()?;
    node.complains(&["401", TOKEN])?;
    life.goes_on(&mut node)?;
    are_few(plane, &node, mark, 401)?;
    let whole = node.token().to_owned();
    node.secrets.publish(Some(&whole), Some(plane.authority().pem()))?;
    life.is_good(&mut node, "the token file was half written")?;

    node.secrets.publish(None, Some(plane.authority().pem()))?;
    node.bed.cut_connections()?;
    life.goes_on(&mut node)?;
    node.secrets.publish(Some(&whole), Some(plane.authority().pem()))?;
    life.is_good(&mut node, "the token file was away")?;

    let mark = plane.mark();
    account.set_rules(&without(rules, "endpointslices")?)?;
    node.bed.cut_connections()?;
    node.complains(&["403", "endpointslices", "system:node-proxier"])?;
    life.space.set_endpoints("web", &Bed::BACKENDS[..2])?;
    are_few(plane, &node, mark, 403)?;
    node.installed(&life.space.key("web"), &["10.244.1.21:8080"])?;
    life.goes_on(&mut node)?;
    account.set_rules(rules)?;
    node.installed(&life.space.key("web"), &["10.244.1.21:8080", "10.244.1.22:8080"])?;
    life.space.set_endpoints("web", &Bed::BACKENDS[..1])?;
    node.installed(&life.space.key("web"), &["10.244.1.21:8080"])?;
    life.is_good(&mut node, "a rule was taken from the role")?;

    let next = plane.next_authority();
    let both = format!("{}{}", plane.authority().pem(), next.pem());
    node.secrets.publish(Some(&whole), Some(&both))?;
    plane.serve_by(next)?;
    node.bed.cut_connections()?;
    life.is_good(&mut node, "the authority was replaced")?;
    node.finish(id)
}

/// The rules without those about `resource`.
fn without(rules: &Value, resource: &str) -> Result<Value> {
    let rules = rules.as_array().context("a role without rules")?;
    let about =
        |rule: &&Value| rule["resources"].as_array().is_some_and(|list| list.contains(&json!(resource)));
    let kept: Vec<_> = rules.iter().filter(|rule| !about(rule)).collect();
    ensure!(kept.len() + 1 == rules.len(), "{resource} has no rule of its own in {rules:?}");
    Ok(json!(kept))
}

/// Kinds that are watched: what is refused at once for all of them is no repetition.
const KINDS: usize = 4;

/// At most one request a second is repeated while they are refused, by the audit log's own clock.
fn are_few(plane: &ControlPlane, node: &Node, mark: u64, code: u16) -> Result<()> {
    let times = until("a few requests are refused", Duration::from_secs(60), || {
        let refused: Vec<_> =
            node.requests(plane, mark)?.into_iter().filter(|entry| entry.code() == code).collect();
        ensure!(refused.len() > KINDS, "{} so far", refused.len());
        let mut times = refused.iter().map(audit::Entry::seconds).collect::<Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        Ok(times)
    })?;
    let (first, last) = (times[0], times[times.len() - 1]);
    #[expect(clippy::cast_precision_loss, reason = "a handful of requests")]
    let repeated = (times.len() - KINDS) as f64;
    ensure!(repeated <= last - first + 1.0, "{repeated} repetitions in {:.2} s: {times:?}", last - first);
    Ok(())
}
