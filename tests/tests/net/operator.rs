//! What an operator sees and does: the commands' answers, the HTTP end points, and the way to stop it all.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sluice_tests::lab::agent::{Agent, served, shortcuts};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::command::run_in;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, Outcome};
use sluice_tests::wire::Transport;

use crate::departure::may_end_sockets;
use crate::harness::{Group, Story};

pub fn groups() -> Vec<Group> {
    let stories = vec![
        Story::new("status_tells_edges_addresses_and_modes", status),
        Story::new("services_by_name", services),
        Story::new("flows_by_service_and_client", flows),
        Story::new("what_is_not_there_yet_says_so", later),
        Story::new("H1_to_H12_http", http),
        Story::new("L08_a_new_device_is_served_and_timed", new_device),
        Story::new("sockets_off_takes_the_earlier_programs_away", sockets_off),
        Story::new("L18_a_stuck_agent_is_not_cleaned_up_under", stuck),
        Story::new("cleanup_stops_a_running_agent", cleanup),
        Story::new("L07_B20_cleanup_takes_kube_proxys_rules_and_what_leads_to_them", kube_proxys_rules),
    ];
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "operator".into(), config, setup: Box::new(setup), stories }]
}

fn app() -> App {
    App::new("app", 1, [Backend::new(Who::Pb, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    bed.serve(Who::Pb, 8_080)?;
    bed.start_agent()?;
    bed.apply(&app())
}

fn status(bed: &mut Bed) -> Result<()> {
    let status = bed.agent()?.home.wait_status("services to be known", |s| s["services"] == 1)?;
    ensure!(status["source"]["kind"] == "manifests" && status["source"]["connected"] == true, "{status}");
    ensure!(status["node"]["name"] == "n1" && status["sockets"]["mode"] == "host", "{status}");
    ensure!(status["shortcuts"]["mode"] == shortcuts(), "{status}");
    // Where sockets cannot be ended, that and nothing else.
    if may_end_sockets().is_ok() {
        ensure!(status["last_error"].is_null() && status["degraded"] == serde_json::json!([]), "{status}");
    } else {
        let degraded = status["degraded"].as_array().context("no list")?;
        let is_it = |line: &Value| line.to_string().contains("connected UDP sockets");
        ensure!(degraded.len() == 1 && degraded.iter().all(is_it), "{status}");
    }
    ensure!(status["flows"]["max"].as_u64() > Some(0), "{status}");
    let addresses = status["node"]["addresses"].to_string();
    for family in Family::BOTH {
        let own = Who::Host.address(family).to_string();
        ensure!(addresses.contains(&format!("\"{own}\"")), "{own} is not in {addresses}");
    }
    for edge in status["edges"].as_array().context("edges is a list")? {
        ensure!(edge["attach_ms"].is_null(), "an edge that was there before the agent: {edge}");
    }
    let (code, text, _) = bed.agent()?.home.ask(&["status"])?;
    ensure!(code.success() && text.contains("synced"), "{text}");
    for (name, _) in served(&status) {
        ensure!(text.contains(&name), "the page for people does not show {name}: {text}");
    }
    Ok(())
}

fn services(bed: &mut Bed) -> Result<()> {
    let home = &bed.agent()?.home;
    let one = home.json(&["services", "lab/app"])?;
    ensure!(one == home.services()?, "the only Service: {one}");
    let text = one.to_string();
    for via in [Via::ClusterIp, Via::NodePort] {
        let address = app().address(via, Family::V6);
        let want = format!("\"address\":\"{}\"", address.ip());
        ensure!(text.contains(&want), "{want} is missing in {text}");
    }
    ensure!(!text.contains("\"0.0.0.0\"") && !text.contains("\"::\""), "a placeholder in {text}");
    let (code, _, said) = home.ask(&["services", "lab/none"])?;
    ensure!(code.code() == Some(1) && said.contains("lab/none"), "ended with {code}: {said}");
    let (code, _, said) = home.ask(&["services", "app"])?;
    ensure!(code.code() == Some(2) && said.contains("NAMESPACE/NAME"), "ended with {code}: {said}");
    Ok(())
}

fn flows(bed: &mut Bed) -> Result<()> {
    for family in Family::BOTH {
        let frontend = app().address(Via::NodePort, family);
        let dial = Dial::new(bed.place(Who::Client), frontend, Transport::Tcp);
        let connection = dial.open().or_else(|outcome| bail!("{outcome}"))?;
        let client = connection.local()?;
        let home = &bed.agent()?.home;
        // Without what the clock changes between two looks.
        let own = |flows: &Value| -> Vec<Value> {
            let mut all = flows.as_array().cloned().unwrap_or_default();
            all.retain(|flow| {
                flow["client"] == client.to_string() && flow["frontend"] == frontend.to_string()
            });
            for flow in all.iter_mut().filter_map(Value::as_object_mut) {
                flow.retain(|field, _| !["age", "idle"].contains(&field.as_str()));
            }
            all
        };
        let told = home.json(&["flows", "--client", &client.ip().to_string()])?;
        // In other units it would be as old as the machine.
        let is_young = |flow: &Value| flow["age"].as_u64().is_some_and(|seconds| seconds < 60);
        ensure!(
            told.as_array().is_some_and(|all| all.iter().any(is_young)),
            "none has just been opened: {told}"
        );
        let of_client = own(&told);
        let [flow] = of_client.as_slice() else { bail!("{client} has one flow, not {of_client:?}") };
        ensure!(flow["backend"] == SocketAddr::new(Who::Pb.address(family), 8_080).to_string(), "{flow}");
        let path = if shortcuts() == "off" { "stack" } else { "shortcut" };
        ensure!(flow["state"] == "established" && flow["path"] == path, "{flow}");
        ensure!(flow["masquerade"].is_string(), "traffic from outside to a NodePort is masqueraded: {flow}");
        ensure!(own(&home.json(&["flows", "--service", "lab/app"])?) == of_client, "by full name");
        ensure!(own(&home.json(&["flows", "--service", "app"])?) == of_client, "by bare name");
        ensure!(own(&home.json(&["flows", "--service", "lab/ap"])?).is_empty(), "by part of a name");
    }
    Ok(())
}

fn later(bed: &mut Bed) -> Result<()> {
    let home = &bed.agent()?.home;
    for command in ["monitor", "top"] {
        let (code, out, said) = home.ask(&[command])?;
        ensure!(code.code() == Some(2) && out.is_empty(), "{command} ended with {code}: {out}");
        ensure!(said.lines().count() == 1 && said.contains("not available"), "{command}: {said}");
    }
    Ok(())
}

/// Status line and body.
pub fn fetch(bed: &Bed, port: u16, path: &str) -> Result<(String, String)> {
    let answer = bed.namespace("n1").within(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: n1\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer}"))?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

fn http(bed: &mut Bed) -> Result<()> {
    for path in ["/healthz", "/livez"] {
        let (line, body) = fetch(bed, 10_256, path)?;
        ensure!(line.contains("200 OK") && body.contains("lastUpdated"), "{path}: {line} {body}");
        let body: Value = serde_json::from_str(&body)?;
        ensure!(body["status"]["IPv6"]["healthy"] == true, "{path}: {body}");
    }
    ensure!(fetch(bed, 10_256, "/readyz")?.0.contains("404"), "kube-proxy has no /readyz");
    ensure!(fetch(bed, 10_249, "/proxyMode")?.1 == "sluice", "proxyMode");
    let configz: Value = serde_json::from_str(&fetch(bed, 10_249, "/configz")?.1)?;
    ensure!(configz["kubeproxy.config.k8s.io"]["hostnameOverride"] == "n1", "{configz}");
    let metrics = fetch(bed, 10_249, "/metrics")?.1;
    for name in [
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
        "kubeproxy_proxy_healthz_total{code=\"200\"}",
        "sluice_synced 1",
        "sluice_source_connected 1",
    ] {
        ensure!(metrics.contains(name), "{name} is missing in {metrics}");
    }
    Ok(())
}

fn new_device(bed: &mut Bed) -> Result<()> {
    bed.renew_device(Who::Pb)?;
    let timed = |status: &Value| {
        let edges = status["edges"].as_array().cloned().unwrap_or_default();
        served(status).len() > Who::LOCAL_PODS.len() && edges.iter().any(|edge| edge["attach_ms"].is_number())
    };
    bed.agent()?.home.wait_status("the new device to be served", timed)?;
    let to = app().address(Via::ClusterIp, Family::V4);
    Dial::new(bed.place(Who::Pa), to, Transport::Tcp).probe().ok()?;
    let metrics = fetch(bed, 10_249, "/metrics")?.1;
    ensure!(!metrics.contains("sluice_edge_attach_seconds_count 0"), "{metrics}");
    Ok(())
}

/// Restarts the agent with further flags.
fn restart(bed: &mut Bed, flags: &[&str]) -> Result<()> {
    bed.agent = None;
    let mut home = bed.home().clone();
    home.flags.extend(flags.iter().map(ToString::to_string));
    let mut agent = Agent::start(home)?;
    agent.ready(Who::LOCAL_PODS.len() + 1)?;
    bed.agent = Some(agent);
    Ok(())
}

fn sockets_off(bed: &mut Bed) -> Result<()> {
    let service = app().address(Via::ClusterIp, Family::V4);
    Dial::new(bed.place(Who::Host), service, Transport::Tcp).probe().ok()?;
    restart(bed, &["--sockets", "off"])?;
    let status = bed.agent()?.home.json(&["status"])?;
    ensure!(status["sockets"]["mode"] == "off", "{status}");
    // In place of the catch-all device's route: what is translated at the socket does not ask for it.
    bed.ip("n1", &format!("route replace unreachable {}", service.ip()))?;
    let outcome = Dial::new(bed.place(Who::Host), service, Transport::Tcp).probe();
    bed.ip("n1", &format!("route del unreachable {}", service.ip()))?;
    ensure!(matches!(outcome, Outcome::Failed(_)), "the node's sockets are still translated: {outcome}");
    Dial::new(bed.place(Who::Pa), service, Transport::Tcp)
        .probe()
        .ok()
        .context("a pod's are not at a socket")?;
    restart(bed, &[])?;
    Dial::new(bed.place(Who::Host), service, Transport::Tcp).probe().ok().map(drop)
}

/// An agent that cannot stop would go on writing: cleanup refuses and takes nothing away.
fn stuck(bed: &mut Bed) -> Result<()> {
    let home = bed.agent()?.home.clone();
    let before = bed.traces()?;
    bed.agent()?.signal(Signal::SIGSTOP)?;
    let (status, _, said) = home.ask(&["cleanup"])?;
    let after = bed.traces()?;
    bed.agent()?.signal(Signal::SIGCONT)?;
    ensure!(status.code() == Some(1), "ended with {status}: {said}");
    ensure!(said.contains("did not end") && said.contains("agent.lock"), "the cause is missing: {said}");
    ensure!(before == after, "taken away:{}", before.difference(&after));
    // What it was asked while it stood still it does when it can: it ends.
    restart(bed, &[]).context("after SIGCONT")
}

fn cleanup(bed: &mut Bed) -> Result<()> {
    let home = bed.agent()?.home.clone();
    home.tell(&["cleanup"])?;
    let left = bed.traces()?;
    ensure!(left.programs.is_empty(), "programs are left: {:?}", left.programs);
    ensure!(left.pins.is_empty() && left.files.is_empty(), "left: {:?} {:?}", left.pins, left.files);
    let (status, _, said) = home.ask(&["status"])?;
    ensure!(status.code() == Some(1) && said.contains("no agent answers"), "ended with {status}: {said}");
    // It has ended on its own, with success: nothing is left to be killed.
    restart(bed, &[])?;
    bed.wait_installed(&app())
}

/// As kube-proxy leaves them, beside a CNI's and the kubelet's.
const RULES: &str = "
table ip nat {
    chain KUBE-MARK-MASQ { meta mark set meta mark or 0x4000; }
    chain KUBE-SEP-A { ip saddr 10.244.1.6 jump KUBE-MARK-MASQ; meta l4proto tcp dnat to 10.244.1.6:8080; }
    chain KUBE-SVC-A { jump KUBE-SEP-A; }
    chain KUBE-SERVICES { ip daddr 10.96.0.9 tcp dport 80 jump KUBE-SVC-A; }
    chain CNI-HOSTPORT { ip saddr 10.244.0.0/16 jump KUBE-MARK-MASQ; }
    chain PREROUTING { type nat hook prerouting priority -100; jump KUBE-SERVICES; jump CNI-HOSTPORT; }
}
table ip6 filter {
    chain KUBE-FORWARD { ct state invalid drop; }
    chain KUBE-FIREWALL { ip6 daddr ::1 drop; }
    chain FORWARD { type filter hook forward priority 0; ct state new jump KUBE-FORWARD; jump KUBE-FIREWALL; }
}
table ip6 kube-proxy { chain services { drop; }; }
table ip mangle { chain KUBE-IPTABLES-HINT { }; }
";

fn kube_proxys_rules(bed: &mut Bed) -> Result<()> {
    let home = bed.agent()?.home.clone();
    home.tell(&["cleanup"])?;
    bed.nft(RULES)?;
    let left = |bed: &Bed| -> Result<Vec<String>> {
        let rules = run_in(bed.namespace("n1").path(), "nft", &["list", "ruleset"])?;
        Ok(rules
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| is_about_kubernetes(line))
            .collect())
    };
    let before = left(bed)?;
    ensure!(
        home.tell(&["cleanup"])?.trim() == "nothing of sluice was here",
        "kube-proxy's rules are not asked for"
    );
    ensure!(left(bed)? == before, "kube-proxy's rules are not asked for");
    ensure!(home.tell(&["cleanup", "--kube-proxy"])?.contains("rules in nf_tables"), "it does not tell");
    let mut want = vec!["chain KUBE-MARK-MASQ {", "ip saddr 10.244.0.0/16 jump KUBE-MARK-MASQ"];
    want.extend(["chain KUBE-FIREWALL {", "jump KUBE-FIREWALL", "chain KUBE-IPTABLES-HINT {"]);
    ensure!(left(bed)? == want, "left: {:?}", left(bed)?);
    bed.nft("flush chain ip nat CNI-HOSTPORT")?;
    home.tell(&["cleanup", "--kube-proxy"])?;
    ensure!(left(bed)? == want[2..], "left: {:?}", left(bed)?);
    ensure!(home.tell(&["cleanup", "--kube-proxy"])?.trim() == "nothing of sluice was here", "there is more");
    bed.nft("delete table ip nat; delete table ip6 filter; delete table ip mangle")?;
    restart(bed, &[])?;
    bed.wait_installed(&app())
}

fn is_about_kubernetes(line: &str) -> bool {
    line.contains("KUBE-") || line.contains("kube-proxy")
}
