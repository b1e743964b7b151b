//! The control plane itself: what the other tests take for granted.

use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::api::objects::Space;
use sluice_tests::api::{
    Admin, Bed, Cluster, ControlPlane, Login, PLANE_ADDRESS, ServiceAccount, USER, refusal,
};
use sluice_tests::wait::until;

use sluice_tests::lab::app::Objects;
use sluice_tests::lab::cleanup::own_prefix;
use sluice_tests::lab::namespace::Namespace;
use sluice_tests::lab::{App, Backend, Who};

use crate::suite::Test;

pub const TESTS: &[Test] = &[
    ("control_plane_audits_a_service_account_under_rbac", audits_a_service_account),
    ("control_plane_refuses_a_revoked_token", refuses_a_revoked_token),
    ("control_plane_changes_its_certificate", changes_its_certificate),
    ("control_plane_keeps_objects_across_a_restart", keeps_objects),
    ("control_plane_bed_carries_traffic_without_an_agent", bed_carries_traffic),
    ("control_plane_holds_the_laboratorys_applications", holds_applications),
    ("control_plane_bed_is_cut_off_and_healed", bed_is_cut_off),
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

fn changes_its_certificate(plane: &mut ControlPlane) -> Result<()> {
    let account = ServiceAccount::set_up(plane.admin())?;
    let token = account.token()?;
    client(plane, &token.token)?.get("/api/v1/services")?;
    plane.serve_by(plane.next_authority())?;
    let trusting_the_old_one = client(plane, &token.token)?.get("/api/v1/services");
    plane.serve_by(plane.authority())?;
    ensure!(trusting_the_old_one.is_err_and(|error| refusal(&error).is_none()), "trusted after the change");
    Ok(())
}

fn keeps_objects(plane: &mut ControlPlane) -> Result<()> {
    let space = Space::new(plane.admin(), "restart")?;
    let address = space.service("kept", &json!({}))?;
    ensure!(address.starts_with("10."), "cluster address {address:?}");
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
    let node = plane.admin().get(&format!("/api/v1/nodes/{}", bed.name()))?;
    ensure!(node["status"]["addresses"][0]["address"] == bed.uplink().address(), "{node}");
    let silent = bed.ask("10.96.0.200");
    ensure!(silent.is_err(), "a Service address answers without an agent: {silent:?}");
    Ok(())
}

fn bed_is_cut_off(plane: &mut ControlPlane) -> Result<()> {
    let bed = Bed::new(plane)?;
    let server = SocketAddr::new(PLANE_ADDRESS.parse()?, 6443);
    let connect = |seconds| {
        bed.node().within(|| Ok(TcpStream::connect_timeout(&server, Duration::from_secs(seconds))?))
    };
    let mut connection = connect(5)?;
    bed.cut_connections()?;
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let end = connection.read(&mut [0]).map_err(|error| error.kind());
    ensure!(end == Err(ErrorKind::ConnectionAborted), "after the cut: {end:?}");
    bed.part(plane)?;
    ensure!(connect(1).is_err(), "the API server can be reached across the partition");
    bed.uplink().heal(plane)?;
    connect(5).context("after the partition")?;
    Ok(())
}

/// The seam to the laboratory: an application in all its addresses is accepted by a real API server, as it is meant.
fn holds_applications(_: &mut ControlPlane) -> Result<()> {
    let node = Namespace::create(format!("{}holds", own_prefix()))?;
    let cluster = Cluster::start(&node)?;
    let admin = cluster.plane().admin();
    let backend = Backend::new(Who::Pa, 8080);
    cluster.apply(&App::new("web", 1, [backend]))?;
    cluster.apply(&App::new("web", 1, [backend, Backend::new(Who::Pb, 9090)]))?;
    let service = admin.get("/api/v1/namespaces/lab/services/web")?;
    ensure!(service["spec"]["clusterIPs"] == json!(["10.96.0.1", "fd00:96::1"]), "{service}");
    ensure!(service["spec"]["ports"][1]["nodePort"] == 30_001, "{service}");
    ensure!(service["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1", "{service}");

    let slices = |expected: usize| {
        let slices = admin.get("/apis/discovery.k8s.io/v1/namespaces/lab/endpointslices")?;
        ensure!(slices["items"].as_array().is_some_and(|list| list.len() == expected), "{slices}");
        Ok(())
    };
    slices(4)?;
    cluster.apply(&App::new("web", 1, [backend]))?;
    slices(2)?;
    cluster.delete(&App::new("web", 1, []))?;
    slices(0)?;
    cluster.rotate_token()?;
    ensure!(cluster.asked()?.is_empty(), "nobody has used the agent's token: {:?}", cluster.asked()?);
    Ok(())
}
