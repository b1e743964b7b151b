//! The suite `cluster`: Sluice in place of kube-proxy in a whole cluster, and back, by the name of the image alone (L-07).
//! The environment names the cluster; see [`Settings`].

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use sluice_tests::cluster::{Bed, Client, Frontend, Held, Own, Settings, Where, until};
use sluice_tests::harness::{Group, Skip, Story, main as run};

/// Flows that each client holds to each frontend, by TCP and by UDP: on three nodes of two families, with a client outside,
/// 336 in all.
const EACH: (usize, usize) = (6, 2);
/// Requests that show who answers.
const TIMES: usize = 40;

/// The bed, once there is one, and what is held open in it.
struct Suite {
    bed: Result<Bed, Skip>,
    of_sluice: Option<Held>,
}

impl Suite {
    fn make() -> Result<Self> {
        let bed = match Settings::of_environment() {
            Ok(settings) => Ok(Bed::make(settings)?),
            Err(skip) => Err(skip),
        };
        Ok(Self { bed, of_sluice: None })
    }

    fn bed(&self) -> Result<&Bed> {
        self.bed.as_ref().map_err(|skip| Skip(skip.0.clone()).into())
    }
}

fn main() -> ExitCode {
    let stories = vec![
        Story::new("L-07 flows through kube-proxy live through the swap", swap_in),
        Story::new("pods, nodes and others reach ClusterIPs and NodePorts, at every endpoint", serves),
        Story::new("pods reach a Service by its name", names),
        Story::new("H3 H11 every node is healthy and says who serves", healthy),
        Story::new("I15 endpoints that are replaced are followed", follows),
        Story::new("L-07 flows through Sluice live through the swap back", swap_back),
        Story::new("L-07 after the swap back kube-proxy serves what changes", hands_over),
        Story::new("L-06 cleanup takes away what is left", cleans),
        Story::new(
            "the overlay `own` serves with single capabilities, and leaves kube-proxy the node again",
            own,
        ),
    ];
    let group = Group { name: "swap".into(), bed: Box::new(Suite::make), oracle: |_| Ok(()), stories };
    run("cluster", vec![group])
}

fn swap_in(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    let held = Held::open(bed, "before", EACH)?;
    println!("{} flows are held through kube-proxy", held.count());
    bed.swap_in()?;
    held.live(bed)?;
    // Their endpoints are going to be replaced. conntrack keeps what an endpoint has closed alone for an hour, and leads
    // whoever comes by the same port to where the endpoint was, once that is kube-proxy's again.
    held.finish(bed)
}

/// The client gets an answer from a Service every time, and all endpoints answer.
fn ask(bed: &Bed, client: &Client, service: &str, host: &str) -> Result<()> {
    let endpoints: BTreeSet<String> = bed.endpoints(service)?.into_iter().collect();
    // A server on a busy machine may take seconds; what is lost or refused is told by curl.
    let line = format!("for i in $(seq {TIMES}); do curl -sS -m 20 http://{host}/hostname 2>&1; echo; done");
    let told = bed.shell(client, &line)?;
    let answers: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
    if let Some(lost) = answers.iter().find(|line| line.starts_with("curl:")) {
        bail!("from {host} to {}: {lost}", client.name);
    }
    let who: BTreeSet<String> = answers.iter().map(|name| (*name).to_owned()).collect();
    let count = answers.len();
    ensure!(count == TIMES, "{count} of {TIMES} answers from {host} to {}", client.name);
    ensure!(who == endpoints, "{host} to {}: {who:?} answered, the endpoints are {endpoints:?}", client.name);
    Ok(())
}

fn host(Frontend { address, tcp, .. }: Frontend) -> String {
    SocketAddr::new(address, tcp).to_string()
}

fn ask_everywhere(bed: &Bed) -> Result<()> {
    bed.clients.iter().try_for_each(|client| {
        bed.frontends(client).try_for_each(|frontend| ask(bed, client, "web", &host(frontend)))
    })
}

fn serves(suite: &mut Suite) -> Result<()> {
    ask_everywhere(suite.bed()?)
}

fn names(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    if !bed.has_dns() {
        return Err(Skip("the cluster has no Service kube-dns".to_owned()).into());
    }
    let mut pods = bed.clients.iter().filter(|client| client.place == Where::Pod);
    pods.try_for_each(|client| ask(bed, client, "web", "web.sluice-suite.svc"))
}

fn healthy(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    for client in bed.clients.iter().filter(|client| client.place == Where::Node) {
        let told = bed.shell(client, "curl -s -m 2 -w ' %{http_code}' http://127.0.0.1:10256/healthz")?;
        ensure!(told.ends_with(" 200") && told.contains("lastUpdated"), "{}: {told}", client.node);
        let told = bed.shell(client, "curl -s -m 2 http://127.0.0.1:10249/proxyMode")?;
        ensure!(told == "sluice", "{}: {told}", client.node);
    }
    Ok(())
}

fn follows(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    bed.replace_endpoints("daemonset/web")?;
    ask_everywhere(bed)
}

fn swap_back(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    let held = Held::open(bed, "after", EACH)?;
    println!("{} flows are held through Sluice", held.count());
    bed.swap_back()?;
    // Programs without an agent serve what is new until kube-proxy's rules have had their time: meanwhile both are there.
    ask_everywhere(bed)?;
    held.live(bed)?;
    suite.of_sluice = Some(held);
    Ok(())
}

/// Sluice's maps stay as they were, so a new endpoint is found only where new connections are kube-proxy's.
fn hands_over(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    bed.replace_endpoints("deployment/moved")?;
    for frontend in bed.cluster_ips("moved")? {
        for client in bed.clients.iter().filter(|client| client.place != Where::Outside) {
            until(90, "kube-proxy serves what has changed", || {
                ask(bed, client, "moved", &host(frontend)).map(|()| true)
            })?;
        }
    }
    if let Some(held) = &suite.of_sluice {
        held.live(bed)?;
    }
    ask_everywhere(bed)
}

fn cleans(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    clean_everywhere(bed)?;
    ask_everywhere(bed)
}

fn clean_everywhere(bed: &Bed) -> Result<()> {
    bed.nodes.iter().map(|node| &node.name).try_for_each(|node| {
        let told = bed.clean(node)?;
        ensure!(told.starts_with("removed: programs from "), "{node}: {told}");
        let told = bed.clean(node)?;
        ensure!(told.trim() == "nothing of sluice was here", "{node}: {told}");
        Ok(())
    })
}

fn own(suite: &mut Suite) -> Result<()> {
    suite.of_sluice = None;
    let bed = suite.bed()?;
    let held = Held::open(bed, "own", EACH)?;
    let own = Own::apply(&bed.kubectl, bed.image())?;
    bed.synced("k8s-app=sluice")?;
    held.live(bed)?;
    bed.replace_endpoints("deployment/moved")?;
    ask_everywhere(bed)?;
    drop(own);
    held.live(bed)?;
    clean_everywhere(bed)?;
    ask_everywhere(bed)
}
