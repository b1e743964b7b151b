//! The suite `cluster`: Sluice in place of kube-proxy in a whole cluster, and back, by the name of the image alone (L-07).
//! The environment names the cluster; see [`Settings`].

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use sluice_tests::cluster::{Bed, Held, Settings, Where};
use sluice_tests::harness::{Group, Skip, Story, main as run};

/// Connections of each kind from each client.
const EACH: usize = 8;

/// The bed, once there is one, and what is held open in it.
struct Suite {
    bed: Result<Bed, Skip>,
    of_kube_proxy: Option<Held>,
    of_sluice: Option<Held>,
}

impl Suite {
    fn make() -> Result<Self> {
        let bed = match Settings::of_environment() {
            Ok(settings) => Ok(Bed::make(settings)?),
            Err(skip) => Err(skip),
        };
        Ok(Self { bed, of_kube_proxy: None, of_sluice: None })
    }

    fn bed(&self) -> Result<&Bed> {
        self.bed.as_ref().map_err(|skip| Skip(skip.0.clone()).into())
    }
}

fn main() -> ExitCode {
    let stories = vec![
        Story::new("L-07 connections through kube-proxy live through the swap", swap_in),
        Story::new("pods and nodes reach ClusterIP and NodePorts, at every endpoint", serves),
        Story::new("pods reach a Service by its name", names),
        Story::new("H3 H11 every node is healthy and says who serves", healthy),
        Story::new("I15 endpoints that are replaced are followed", follows),
        Story::new("L-07 connections through Sluice live through the swap back", swap_back),
        Story::new("L-07 after the swap back kube-proxy serves what changes", hands_over),
        Story::new("L-06 cleanup takes away what is left", cleans),
    ];
    let group = Group { name: "swap".into(), bed: Box::new(Suite::make), oracle: |_| Ok(()), stories };
    run("cluster", vec![group])
}

fn swap_in(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    let held = Held::open(bed, "before", EACH)?;
    println!("{} TCP connections are held through kube-proxy", held.count());
    bed.swap_in()?;
    held.live(bed)?;
    suite.of_kube_proxy = Some(held);
    Ok(())
}

/// Every client gets an answer every time, and all endpoints answer.
fn ask(bed: &Bed, address: &str, clients: Option<Where>) -> Result<()> {
    const TIMES: usize = 24;
    let endpoints: BTreeSet<String> = bed.endpoints()?.into_iter().collect();
    let line = format!("for i in $(seq {TIMES}); do curl -s -m 2 http://{address}/hostname; echo; done");
    for client in bed.clients.iter().filter(|client| clients.is_none_or(|place| place == client.place)) {
        let told = bed.shell(client, &line)?;
        let answers: Vec<&str> = told.lines().filter(|line| !line.is_empty()).collect();
        let who: BTreeSet<String> = answers.iter().map(|name| (*name).to_owned()).collect();
        ensure!(
            answers.len() == TIMES,
            "{} of {TIMES} answers from {address} to {}",
            answers.len(),
            client.pod
        );
        ensure!(
            who == endpoints,
            "{address} to {}: {who:?} answered, the endpoints are {endpoints:?}",
            client.pod
        );
    }
    Ok(())
}

fn serves(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    ask(bed, &bed.cluster_ip, None)?;
    for (_, address) in &bed.nodes {
        ask(bed, &format!("{address}:{}", bed.node_port), Some(Where::Pod))?;
    }
    Ok(())
}

fn names(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    if !bed.has_dns() {
        return Err(Skip("the cluster has no Service kube-dns".to_owned()).into());
    }
    ask(bed, "web.sluice-suite.svc", Some(Where::Pod))
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
    bed.replace_endpoints()?;
    ask(bed, &bed.cluster_ip, None)
}

fn swap_back(suite: &mut Suite) -> Result<()> {
    // The endpoints of the first ones have been replaced.
    suite.of_kube_proxy = None;
    let bed = suite.bed()?;
    let held = Held::open(bed, "after", EACH)?;
    println!("{} TCP connections are held through Sluice", held.count());
    bed.swap_back()?;
    held.live(bed)?;
    suite.of_sluice = Some(held);
    Ok(())
}

fn hands_over(suite: &mut Suite) -> Result<()> {
    const SECONDS: u64 = 45;
    let bed = suite.bed()?;
    // Ten until the agent counts as gone, twenty for the other's rules.
    std::thread::sleep(std::time::Duration::from_secs(SECONDS));
    if let Some(held) = &suite.of_sluice {
        held.live(bed)?;
    }
    bed.replace_endpoints()?;
    // kube-proxy programs a second after the change.
    std::thread::sleep(std::time::Duration::from_secs(3));
    ask(bed, &bed.cluster_ip, None)?;
    for (_, address) in &bed.nodes {
        ask(bed, &format!("{address}:{}", bed.node_port), Some(Where::Pod))?;
    }
    Ok(())
}

fn cleans(suite: &mut Suite) -> Result<()> {
    let bed = suite.bed()?;
    for (node, _) in &bed.nodes {
        let told = bed.clean(node)?;
        ensure!(told.starts_with("removed: programs from "), "{node}: {told}");
        let told = bed.clean(node)?;
        ensure!(told.trim() == "nothing of sluice was here", "{node}: {told}");
    }
    ask(bed, &bed.cluster_ip, None)
}
