//! The control plane itself: what the other tests take for granted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{Admin, Bed, ControlPlane, Login, ServiceAccount, USER, refusal, until};

use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("control_plane_audits_a_service_account_under_rbac", audits_a_service_account),
    ("control_plane_refuses_a_revoked_token", refuses_a_revoked_token),
    ("control_plane_keeps_objects_across_a_restart", keeps_objects),
    ("control_plane_bed_carries_traffic_without_an_agent", bed_carries_traffic),
];

fn client(plane: &ControlPlane, token: &str) -> Result<Admin> {
    Admin::new(plane.netns(), &plane.url(), &plane.file("ca.crt"), &Login::Token(token))
}

fn audits_a_service_account(plane: &mut ControlPlane) -> Result<()> {
    let account = ServiceAccount::set_up(plane.admin())?;
    let token = account.token()?;
    let mark = plane.mark();
    let proxy = client(plane, &token.token)?;
    proxy.get("/api/v1/services?labelSelector=%21service.kubernetes.io%2Fservice-proxy-name")?;
    let refused = proxy.get("/api/v1/secrets").err().context("a proxy may read secrets")?;
    ensure!(refusal(&refused) == Some(403), "{refused:?}");

    let seen = plane.audit(mark)?;
    let seen: Vec<_> = seen.iter().filter(|entry| entry.user.username == USER).collect();
    ensure!(seen.len() == 2, "{seen:?}");
    ensure!(seen[0].verb == "list" && seen[0].target() == "/services" && seen[0].code() == 200, "{seen:?}");
    ensure!(seen[0].is_allowed_to_a_proxy() && !seen[1].is_allowed_to_a_proxy(), "{seen:?}");
    ensure!(seen[1].code() == 403 && seen[1].target() == "/secrets", "{seen:?}");
    Ok(())
}

fn refuses_a_revoked_token(plane: &mut ControlPlane) -> Result<()> {
    let account = ServiceAccount::set_up(plane.admin())?;
    let token = account.token()?;
    let proxy = client(plane, &token.token)?;
    proxy.get("/api/v1/services")?;
    account.revoke(token)?;
    until("the revoked token is refused", Duration::from_secs(30), || {
        let error = proxy.get("/api/v1/services").err().context("still accepted")?;
        ensure!(refusal(&error) == Some(401), "{error:?}");
        Ok(())
    })
}

fn keeps_objects(plane: &mut ControlPlane) -> Result<()> {
    let space = Space::new(plane.admin(), "restart")?;
    let address = space.service("kept", &json!({}))?;
    ensure!(address.starts_with("10.96."), "cluster address {address:?}");
    plane.stop_api();
    ensure!(plane.admin().get("/api/v1/services").is_err(), "a stopped API server answered");
    plane.compact()?;
    plane.start_api()?;
    let kept = plane.admin().get("/api/v1/namespaces/restart/services/kept")?;
    ensure!(kept["spec"]["clusterIP"] == address, "{kept}");
    Ok(())
}

fn bed_carries_traffic(plane: &mut ControlPlane) -> Result<()> {
    let bed = Bed::new(plane)?;
    for (address, name) in [(Bed::BACKENDS[0], Bed::BACKENDS[0]), (Bed::BACKENDS6[1], Bed::BACKENDS[1])] {
        let answer = bed.ask_at(address, 8080)?;
        ensure!(answer == name, "{address} answers {answer:?}");
    }
    let silent = bed.ask("10.96.200.200");
    ensure!(silent.is_err(), "a Service address answers without an agent: {silent:?}");
    Ok(())
}
