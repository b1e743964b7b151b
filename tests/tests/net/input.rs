//! Wrong input (C-31 and acceptance 12): one clear error each that names object, cause and next step; one bad object
//! never stops the others. What keeps an agent from starting is in `start.rs`.

use anyhow::{Context, Result, ensure};
use sluice_tests::lab::app::{App, Backend, Via};
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::Dial;
use sluice_tests::wait::{PATIENCE, until};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story};

/// Name of the file, its content, and a word by which `status` must name the culprit.
const BAD: [(&str, &str, &str); 9] = [
    ("broken.yaml", "kind: Service\n  metadata: [", "broken.yaml"),
    ("binary.yaml", "\u{0}\u{1}\u{2}", "binary.yaml"),
    ("scalar.json", "42", "scalar.json"),
    ("no-kind.yaml", "apiVersion: v1\nmetadata: {name: no-kind, namespace: lab}\n", "no-kind"),
    (
        "bad-ip.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad-ip, namespace: lab}\nspec:\n  clusterIP: 10.96.0.999\n  clusterIPs: [10.96.0.999]\n  ports: [{port: 80, protocol: TCP}]\n",
        "bad-ip",
    ),
    (
        "bad-port.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad-port, namespace: lab}\nspec:\n  clusterIP: 10.96.0.71\n  ports: [{port: 70000, protocol: TCP}]\n",
        "bad-port",
    ),
    (
        "bad-protocol.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: bad-protocol, namespace: lab}\nspec:\n  clusterIP: 10.96.0.72\n  ports: [{port: 80, protocol: TPC}]\n",
        "bad-protocol",
    ),
    (
        "bad-endpoint.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: bad-endpoint, namespace: lab, labels: {kubernetes.io/service-name: good}}\naddressType: IPv4\nports: [{port: 8080, name: tcp, protocol: TCP}]\nendpoints: [{addresses: [10.244.1.300]}]\n",
        "bad-endpoint",
    ),
    (
        "wrong-type.yaml",
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: wrong-type, namespace: lab, labels: {kubernetes.io/service-name: good}}\naddressType: IPv4\nports: [{port: eighty, name: tcp, protocol: TCP}]\nendpoints: []\n",
        "wrong-type",
    ),
];

/// YAML, two documents in a file, a `List` in one of them.
const GOOD: &str = "apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: yaml, namespace: lab}
  spec:
    clusterIP: 10.96.0.70
    ports:
    - {port: 80, protocol: TCP}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: yaml-1, namespace: lab, labels: {kubernetes.io/service-name: yaml}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.1.6]}]
";

pub fn groups() -> Vec<Group> {
    let mut stories: Vec<_> = BAD
        .into_iter()
        .map(|(file, text, culprit)| {
            Story::new(format!("C31_bad_manifest::{file}"), move |bed| bad_manifest(bed, file, text, culprit))
        })
        .collect();
    stories.push(Story::new("C31_all_bad_ones_at_once_and_yaml_of_all_shapes", all_at_once));
    stories.push(Story::new("bad_start::second_agent_on_one_node", second_agent));
    let config = BedConfig::new(Wiring::Routed);
    vec![Group { name: "input".into(), config, setup: Box::new(setup), stories }]
}

fn good() -> App {
    App::new("good", 1, [Backend::new(Who::Pb, 8_080)])
}

fn setup(bed: &mut Bed) -> Result<()> {
    bed.serve(Who::Pb, 8_080)?;
    bed.start_agent()?;
    bed.apply(&good())
}

fn answers(bed: &Bed) -> Result<()> {
    let to = good().address(Via::ClusterIp, Family::V4);
    Dial::new(bed.place(Who::Pa), to, Transport::Tcp).probe().ok().context("the good Service").map(drop)
}

fn bad_manifest(bed: &mut Bed, file: &str, text: &str, culprit: &str) -> Result<()> {
    bed.manifests.write(file, text)?;
    named(bed, culprit)?;
    answers(bed)?;
    // A later change of a good one still gets through, and the trouble ends with its cause.
    let other = App::new("later", 3, [Backend::new(Who::Pb, 8_080)]);
    bed.apply(&other)?;
    bed.delete(&other)?;
    bed.manifests.remove(file)?;
    let home = &bed.agent()?.home;
    home.wait_status("the trouble to end", |status| !status["degraded"].to_string().contains(culprit))?;
    answers(bed)
}

/// `status` names the culprit with a cause and a next step.
fn named(bed: &Bed, culprit: &str) -> Result<()> {
    let home = &bed.agent()?.home;
    let status = home.wait_status(&format!("{culprit} to be named"), |status| {
        status["degraded"].to_string().contains(culprit)
    })?;
    let troubles = status["degraded"].as_array().context("degraded is a list")?;
    for trouble in troubles {
        for part in ["what", "why", "next"] {
            let text = trouble[part].as_str().unwrap_or_default();
            ensure!(!text.trim().is_empty(), "{part} is missing in {trouble}");
        }
    }
    Ok(())
}

fn all_at_once(bed: &mut Bed) -> Result<()> {
    for (file, text, _) in BAD {
        bed.manifests.write(file, text)?;
    }
    bed.manifests.write("yaml.yaml", GOOD)?;
    let later = App::new("later", 3, [Backend::new(Who::Pb, 8_080)]);
    bed.apply(&later)?;
    for (_, _, culprit) in BAD {
        named(bed, culprit)?;
    }
    answers(bed)?;
    let to = "10.96.0.70:80".parse()?;
    until("the YAML Service to answer", PATIENCE, || {
        Dial::new(bed.place(Who::Pa), to, Transport::Tcp).probe().ok().map(drop).map_err(|e| format!("{e:#}"))
    })
}

/// Two agents would write the same maps.
fn second_agent(bed: &mut Bed) -> Result<()> {
    let home = bed.agent()?.home.clone();
    let manifests = bed.manifests.directory().display().to_string();
    let (status, _, said) = home.ask(&["run", "--manifests", &manifests])?;
    ensure!(status.code() == Some(1), "ended with {status}: {said}");
    let run_dir = home.run_dir.display().to_string();
    ensure!(said.contains(&run_dir), "the error does not name {run_dir}: {said}");
    answers(bed)
}
