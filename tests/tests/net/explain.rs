//! `explain` and how the packet then fares: the same verdict, backend and source; and that asking changes nothing.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Answer, Dial, Outcome};
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

mod special;

pub fn groups() -> Vec<Group> {
    let usual = Wiring::BOTH.into_iter().flat_map(|wiring| [group(wiring, "host"), group(wiring, "off")]);
    usual.chain(special::groups()).collect()
}

fn group(wiring: Wiring, sockets: &'static str) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        for transport in Transport::BOTH {
            for case in CASES {
                stories.push(Story::new(format!("{}::{family}::{transport}", case.name), move |bed| {
                    as_it_fares(bed, &case, family, transport)
                }));
            }
        }
    }
    if sockets == "host" {
        stories.push(Story::new("every_reason_is_told_or_cannot_be", |_| {
            special::all_told(&CASES.map(|case| case.reason))
        }));
        stories.push(Story::new("an_edge_by_name", by_name));
        stories.push(Story::new("asked_often", often));
        stories.push(Story::new("wrong_use", wrong_use));
    } else {
        stories.push(Story::new("the_nodes_own_node_port_without_sockets", own_node_port));
    }
    let setup = Box::new(move |bed: &mut Bed| setup(bed, sockets));
    Group {
        name: format!("explain::{wiring}::sockets_{sockets}"),
        config: BedConfig::new(wiring),
        setup,
        stories,
    }
}

/// What is dialled.
#[derive(Clone, Copy)]
enum To {
    Service(Via, fn() -> App),
    Unlisted(fn() -> App),
    Place(Who, u16),
}

struct Case {
    name: &'static str,
    from: Who,
    to: To,
    verdict: &'static str,
    reason: &'static str,
}

impl Clone for Case {
    fn clone(&self) -> Self {
        *self
    }
}

impl Copy for Case {}

const fn case(name: &'static str, from: Who, to: To, verdict: &'static str, reason: &'static str) -> Case {
    Case { name, from, to, verdict, reason }
}

const CASES: [Case; 27] = [
    case("pod_to_cluster_ip", Who::Pa, To::Service(Via::ClusterIp, near), "translate", "new_flow"),
    case("pod_to_remote_endpoint", Who::Pa, To::Service(Via::ClusterIp, far), "translate", "new_flow"),
    case("pod_to_node_port", Who::Pa, To::Service(Via::NodePort, far), "translate", "new_flow"),
    case("hairpin", Who::Pb, To::Service(Via::ClusterIp, near), "translate", "new_flow"),
    case("outside_to_node_port", Who::Client, To::Service(Via::NodePort, near), "translate", "new_flow"),
    case(
        "outside_to_load_balancer_and_out_again",
        Who::Client,
        To::Service(Via::LoadBalancer, far),
        "translate",
        "new_flow",
    ),
    case(
        "outside_to_endpoint_on_the_node",
        Who::Client,
        To::Service(Via::ExternalIp, on_host),
        "translate",
        "new_flow",
    ),
    case("host_to_cluster_ip", Who::Host, To::Service(Via::ClusterIp, near), "translate", "new_flow"),
    case("host_to_no_endpoint", Who::Host, To::Service(Via::ClusterIp, empty), "reject", "no_endpoint"),
    case("pod_to_no_endpoint", Who::Pa, To::Service(Via::ClusterIp, empty), "reject", "no_endpoint"),
    case("outside_to_no_endpoint", Who::Client, To::Service(Via::NodePort, empty), "reject", "no_endpoint"),
    case("unlisted_port", Who::Pa, To::Unlisted(near), "reject", "unlisted"),
    case("unlisted_port_from_outside", Who::Client, To::Unlisted(near), "reject", "unlisted"),
    case("unlisted_port_from_the_host", Who::Host, To::Unlisted(near), "reject", "unlisted"),
    case("pod_to_load_balancer", Who::Pa, To::Service(Via::LoadBalancer, near), "translate", "new_flow"),
    case("pod_to_external_ip", Who::Pa, To::Service(Via::ExternalIp, far), "translate", "new_flow"),
    case(
        "outside_to_second_address",
        Who::Client,
        To::Service(Via::NodePortSecond, near),
        "translate",
        "new_flow",
    ),
    case("outside_to_cluster_ip", Who::Client, To::Service(Via::ClusterIp, near), "translate", "new_flow"),
    case(
        "another_nodes_pod_to_node_port",
        Who::Pd,
        To::Service(Via::NodePort, near),
        "translate",
        "new_flow",
    ),
    case("pod_under_policy_local", Who::Pa, To::Service(Via::NodePort, local), "translate", "new_flow"),
    case("outside_its_ranges", Who::Client, To::Service(Via::LoadBalancer, closed), "drop", "source_range"),
    case("pod_outside_its_ranges", Who::Pa, To::Service(Via::LoadBalancer, closed), "drop", "source_range"),
    case("unassigned_address", Who::Pa, To::Service(Via::ClusterIp, nobody), "drop", "unassigned"),
    case(
        "unassigned_address_from_the_host",
        Who::Host,
        To::Service(Via::ClusterIp, nobody),
        "drop",
        "unassigned",
    ),
    case("no_local_endpoint", Who::Client, To::Service(Via::NodePort, local), "drop", "no_local_endpoint"),
    case("pod_to_pod", Who::Pa, To::Place(Who::Pb, 8_080), "pass", "not_a_service"),
    case("pod_to_outside", Who::Pa, To::Place(Who::Client, 8_080), "pass", "not_a_service"),
];

fn near() -> App {
    App::new("near", 1, [Backend::new(Who::Pb, 8_080)])
}

fn far() -> App {
    App::new("far", 2, [Backend::new(Who::Pd, 8_080)])
}

fn on_host() -> App {
    App::new("own", 3, [Backend::new(Who::Host, 8_081)])
}

fn empty() -> App {
    App::new("empty", 4, [])
}

/// Policy Local, and no endpoint here.
fn local() -> App {
    App::new("local", 5, [Backend::new(Who::Pd, 8_080)])
}

/// Open to the nodes.
fn closed() -> App {
    App::new("closed", 7, [Backend::new(Who::Pb, 8_080)])
        .with("loadBalancerSourceRanges", json!(["192.0.2.0/24", "fd00:2::/64"]))
}

/// A Service that is not there.
fn nobody() -> App {
    App::new("nobody", 77, [])
}

fn setup(bed: &mut Bed, sockets: &str) -> Result<()> {
    for who in [Who::Pb, Who::Pd, Who::Client] {
        bed.serve(who, 8_080)?;
    }
    bed.serve(Who::Host, 8_081)?;
    // Addresses that no Service has are guarded in this mode only.
    let mode = ["--proxy-mode", "nftables", "--nodeport-addresses", "0.0.0.0/0,::/0"];
    bed.home().flags.extend(["--sockets", sockets].into_iter().chain(mode).map(String::from));
    bed.start_agent()?;
    [near(), far(), on_host(), empty(), closed()].iter().try_for_each(|app| bed.apply(app))?;
    let mut objects = local().objects();
    objects[0]["spec"]["externalTrafficPolicy"] = json!("Local");
    objects.push(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112"]},
    }));
    let list = json!({"kind": "List", "apiVersion": "v1", "items": objects});
    std::fs::write(bed.directory().join("manifests/local.json"), list.to_string())?;
    until("the Service with policy Local", PATIENCE, || {
        let services = bed.agent()?.home.services()?.to_string();
        ensure!(services.contains("lab/local") && services.contains("drop-external"), "{services}");
        let unassigned = nobody().address(Via::ClusterIp, Family::V6);
        let told = explain(bed, &Who::Pa.address(Family::V6).to_string(), unassigned, Transport::Tcp)?;
        ensure!(told["reason"] == "unassigned", "{told:#}");
        Ok(())
    })
}

fn target(to: To, family: Family) -> SocketAddr {
    match to {
        To::Service(via, app) => app().address(via, family),
        To::Unlisted(app) => SocketAddr::new(app().address(Via::ClusterIp, family).ip(), 99),
        To::Place(who, port) => SocketAddr::new(who.address(family), port),
    }
}

fn explain(bed: &Bed, from: &str, to: SocketAddr, transport: Transport) -> Result<Value> {
    let (to, transport) = (to.to_string(), transport.to_string());
    bed.agent()?.home.json(&["explain", "--from", from, "--to", &to, "--protocol", &transport])
}

/// What must not change by being asked: the client's flows, and the counter that the packet itself would move. (Other
/// packets of the bed may move other counters meanwhile; the number of flows in `status` is not counted anew each time.)
fn state(bed: &Bed, client: IpAddr, reason: &str) -> Result<(usize, Value)> {
    let home = &bed.agent()?.home;
    let flows = home.json(&["flows", "--client", &client.to_string()])?;
    Ok((flows.as_array().context("a list")?.len(), home.json(&["status"])?["drops"][reason].clone()))
}

fn as_it_fares(bed: &mut Bed, case: &Case, family: Family, transport: Transport) -> Result<()> {
    let to = target(case.to, family);
    let client = case.from.address(family);
    let before = state(bed, client, case.reason)?;
    let told = explain(bed, &client.to_string(), to, transport)?;
    let after = state(bed, client, case.reason)?;
    ensure!(after == before, "asking has changed the node: {before:?} {after:?}");
    ensure!(told["verdict"] == case.verdict && told["reason"] == case.reason, "{told:#}");
    let patience = Duration::from_millis(if case.verdict == "drop" { 300 } else { 5_000 });
    let outcome = Dial::new(bed.place(case.from), to, transport).patience(patience).probe();
    match case.verdict {
        "translate" => translated(&told, case, family, outcome.ok()?),
        "pass" => outcome.ok().map(drop),
        "reject" if outcome == Outcome::Refused => Ok(()),
        "drop" if outcome == Outcome::Timeout => Ok(()),
        _ => bail!("{outcome}, but told was {told:#}"),
    }
}

fn translated(told: &Value, case: &Case, family: Family, answer: Answer) -> Result<()> {
    let To::Service(_, app) = case.to else { bail!("only Services are translated") };
    let [backend] = app().backends[..] else { bail!("one endpoint, so that the answer is certain") };
    let want = SocketAddr::new(backend.who.address(family), backend.port).to_string();
    ensure!(told["backend"] == want && told["candidates"] == json!([want]), "{told:#}");
    ensure!(
        told["service"].as_str().is_some_and(|name| name.starts_with(&format!("lab/{}:", app().name))),
        "{told:#}"
    );
    ensure!(answer.backend == backend.id(), "{answer:?}, but told was {told:#}");
    let socket = told["path"] == "socket";
    if case.from == Who::Host && socket {
        return Ok(());
    }
    let source = match told["masquerade"].as_str() {
        Some(masquerade) => masquerade.parse::<SocketAddr>()?.ip(),
        None => case.from.address(family),
    };
    ensure!(answer.seen.ip() == source, "the endpoint saw {}, but told was {told:#}", answer.seen.ip());
    Ok(())
}

fn by_name(bed: &mut Bed) -> Result<()> {
    let to = near().address(Via::ClusterIp, Family::V4).to_string();
    // An outside address by the NIC, told by the NIC's name: the routes need not lead there.
    let told =
        bed.agent()?.home.json(&["explain", "--from", "203.0.113.250", "--to", &to, "--edge", "eth0"])?;
    ensure!(told["verdict"] == "translate" && told["masquerade"].is_string(), "{told:#}");
    let steps = told["steps"].to_string();
    ensure!(steps.contains("ingress eth0") && steps.contains("egress"), "{told:#}");
    let (code, out, _) =
        bed.agent()?.home.ask(&["explain", "--from", "203.0.113.250", "--to", &to, "--edge", "eth0"])?;
    ensure!(code.success() && out.contains("verdict") && out.contains("lab/near"), "{out}");
    Ok(())
}

/// More questions than the copies' own tables have room for.
fn often(bed: &mut Bed) -> Result<()> {
    let to = near().address(Via::ClusterIp, Family::V4);
    for port in 0..150_u16 {
        let told =
            explain(bed, &format!("{}:{}", Who::Pa.address(Family::V4), 20_000 + port), to, Transport::Tcp)?;
        ensure!(told["verdict"] == "translate", "question {port}: {told:#}");
    }
    Ok(())
}

fn wrong_use(bed: &mut Bed) -> Result<()> {
    let home = &bed.agent()?.home;
    for (wrong, status) in [
        (&["explain"][..], 2),
        (&["explain", "--from", "10.0.0.1", "--to", "10.0.0.2"], 2),
        (&["explain", "--from", "10.0.0.1", "--to", "[fd00::1]:80"], 2),
        (&["explain", "--from", "10.0.0.1", "--to", "10.0.0.2:80", "--edge", "none0"], 1),
    ] {
        let (code, _, said) = home.ask(wrong)?;
        ensure!(code.code() == Some(status) && !said.is_empty(), "{wrong:?} ended with {code}: {said}");
    }
    Ok(())
}

fn own_node_port(bed: &mut Bed) -> Result<()> {
    let to = near().address(Via::NodePort, Family::V4);
    let from: IpAddr = Who::Host.address(Family::V4);
    let told = explain(bed, &from.to_string(), to, Transport::Tcp)?;
    ensure!(told["verdict"] == "pass" && told["reason"] == "no_edge", "{told:#}");
    let outcome = Dial::new(bed.place(Who::Host), to, Transport::Tcp).probe();
    ensure!(outcome == Outcome::Refused, "{outcome}");
    Ok(())
}
