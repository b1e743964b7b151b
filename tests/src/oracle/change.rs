//! Objects that change while both proxies run.

use anyhow::Result;
use serde_json::{Value, json};

use super::case::{Case, Endpoint, SPACE, State, both, ready};
use super::cell::Way;
use super::plane::{Plane, SLICES};
use crate::lab::app::SERVICE_PORT;
use crate::lab::plan::{Family, Who, cluster_ip, load_balancer_ip};

/// What becomes of one case: merge patches there and back.
#[derive(Clone, Debug, Default)]
pub struct Change {
    service: Option<[Value; 2]>,
    status: Option<[Value; 2]>,
    endpoints: Option<Vec<Endpoint>>,
}

impl Change {
    /// Whether clients stick to a backend afterwards.
    pub(super) fn makes_sticky(&self) -> bool {
        self.service.as_ref().is_some_and(|[there, _]| there["spec"]["sessionAffinity"] == "ClientIP")
    }
}

/// Made last: who serves this one has seen all other changes.
#[must_use]
pub fn sentinel() -> Case {
    let mut case = Case::new("sentinel", [ready(Who::Pb)]);
    case.number = 99;
    case
}

/// A2, A3, A11, C1, C4, C6, D5, E4, E9: cases that are asked again after their change. `first` is the number of the first.
#[must_use]
pub fn cases(first: u8) -> Vec<Case> {
    let service = |there: Value, back: Value| Change { service: Some([there, back]), ..Change::default() };
    let spec = |there: Value, back: Value| service(json!({"spec": there}), json!({"spec": back}));
    let proxy = "service.kubernetes.io/service-proxy-name";
    let endpoints = |list: &[Endpoint]| Change { endpoints: Some(list.to_vec()), ..Change::default() };
    let (pb, pd) = (ready(Who::Pb), ready(Who::Pd));
    let terminating = Endpoint::new(Who::Pb, State::Terminating);
    let policies = |policy| json!({"externalTrafficPolicy": policy, "internalTrafficPolicy": policy});
    let changes = [
        (
            "label",
            both(),
            service(
                json!({"metadata": {"labels": {proxy: ""}}}),
                json!({"metadata": {"labels": {proxy: null}}}),
            ),
        ),
        ("type", both(), Change::default()),
        ("policies", both(), spec(policies("Local"), policies("Cluster"))),
        ("policies-remote", vec![pd], spec(policies("Local"), policies("Cluster"))),
        (
            "affinity",
            both(),
            spec(json!({"sessionAffinity": "ClientIP"}), json!({"sessionAffinity": "None"})),
        ),
        (
            "ranges",
            both(),
            spec(
                json!({"loadBalancerSourceRanges": ["198.51.100.0/24"]}),
                json!({"loadBalancerSourceRanges": null}),
            ),
        ),
        ("node-port", both(), Change::default()),
        ("ip-mode", both(), Change::default()),
        ("endpoint-gone", both(), endpoints(&[pb])),
        ("endpoint-new", vec![pd], endpoints(&[pb, pd])),
        ("endpoint-terminating", both(), endpoints(&[terminating, pd])),
        ("endpoints-gone", both(), endpoints(&[])),
    ];
    let named = (first..).zip(changes).map(|(number, (name, list, change))| {
        let mut case = Case::new(format!("change-{name}"), list);
        case.number = number;
        case.change = Some(match name {
            "type" => away(&case),
            "node-port" => moved(&case),
            "ip-mode" => proxied(&case),
            _ => change,
        });
        if name == "endpoint-gone" {
            case.ways.push(Way::NodePortAdded);
        }
        if name == "node-port" {
            case.ways = vec![Way::NodePort, Way::NodePortMoved, Way::ClusterIp, Way::NodePortSecond];
        }
        case
    });
    named.collect()
}

/// To an `ExternalName` and back to the same addresses.
fn away(case: &Case) -> Change {
    let addresses = Family::BOTH.map(|family| cluster_ip(family, case.number).to_string());
    let there = json!({"spec": {
        "type": "ExternalName", "externalName": "elsewhere.example", "externalIPs": null,
        "clusterIP": null, "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null,
        "externalTrafficPolicy": null, "internalTrafficPolicy": null, "allocateLoadBalancerNodePorts": null,
        "ports": [{"name": "tcp", "protocol": "TCP", "port": SERVICE_PORT}],
    }});
    let mut back = case.service();
    back["spec"]["externalName"] = Value::Null;
    back["spec"]["clusterIPs"] = json!(addresses);
    Change { service: Some([there, back]), ..Change::default() }
}

/// To another NodePort.
fn moved(case: &Case) -> Change {
    let back = case.service();
    let mut there = back.clone();
    for port in there["spec"]["ports"].as_array_mut().into_iter().flatten() {
        port["nodePort"] = json!(case.moved_node_port());
    }
    let ports = |service: &Value| json!({"spec": {"ports": service["spec"]["ports"]}});
    Change { service: Some([ports(&there), ports(&back)]), ..Change::default() }
}

/// From addresses that the node serves to addresses that the balancer's own machine does.
fn proxied(case: &Case) -> Change {
    let status = |mode: &str| {
        let ingress = Family::BOTH
            .map(|family| json!({"ip": load_balancer_ip(family, case.number).to_string(), "ipMode": mode}));
        json!({"status": {"loadBalancer": {"ingress": ingress}}})
    };
    Change { status: Some([status("Proxy"), status("VIP")]), ..Change::default() }
}

impl Plane {
    /// Makes every case's change; the sentinel comes last.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn change(&self, cases: &[Case]) -> Result<()> {
        self.turn(cases, 0)?;
        self.create(&sentinel())
    }

    /// Takes all of it back.
    ///
    /// # Errors
    /// The API server refuses.
    pub fn restore(&self, cases: &[Case]) -> Result<()> {
        self.turn(cases, 1)?;
        self.remove(&sentinel())
    }

    fn turn(&self, cases: &[Case], side: usize) -> Result<()> {
        for (case, change) in cases.iter().filter_map(|case| Some((case, case.change.as_ref()?))) {
            let path = format!("/api/v1/namespaces/{SPACE}/services/{}", case.name);
            if let Some(patches) = &change.service {
                self.admin().patch(&path, &patches[side])?;
            }
            if let Some(patches) = &change.status {
                self.admin().patch(&format!("{path}/status"), &patches[side])?;
            }
            // A Service that was of another type has lost its addresses.
            if let (1, Some(status)) = (side, case.status()) {
                self.admin().patch(&format!("{path}/status"), &status)?;
            }
            if let Some(endpoints) = &change.endpoints {
                let endpoints = if side == 0 { endpoints } else { &case.endpoints };
                for family in Family::BOTH {
                    let list: Vec<_> = endpoints.iter().map(|endpoint| endpoint.object(family)).collect();
                    let path = format!("{SLICES}/{SPACE}/endpointslices/{}-{family}", case.name);
                    self.admin().patch(&path, &json!({"endpoints": list}))?;
                }
            }
        }
        Ok(())
    }
}
