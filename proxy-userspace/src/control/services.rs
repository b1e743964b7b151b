use std::net::IpAddr;

use proxy_common::abi::FrontendKind;

use crate::model::Family;
use crate::status::{FrontendView, ServiceView};
use crate::sync::{InstalledFrontend, InstalledPort};

/// Name of a port that was found in the maps and that no known Service has claimed: until the first complete lists
/// are there, everything that an earlier agent has left.
const UNCLAIMED: &str = "unclaimed";

/// What is installed for one Service port, for people and scripts: everything sorted, no ids, so that two agents on
/// the same input print the same. A NodePort is shown once for each of the `node_port` addresses of its family.
#[must_use]
pub fn service_view(installed: &InstalledPort, node_port: &[IpAddr]) -> ServiceView {
    let mut frontends: Vec<_> =
        installed.frontends.iter().flat_map(|frontend| frontend_views(frontend, node_port)).collect();
    frontends.sort();
    frontends.dedup();
    let mut flags: Vec<_> = installed.flags.iter().map(|flag| (*flag).to_owned()).collect();
    if installed.affinity_timeout != 0 {
        flags.push(format!("affinity={}s", installed.affinity_timeout));
    }
    let first = installed.frontends.first();
    let family = first.map(|frontend| Family::of(&frontend.address));
    let (name, port, protocol, family) = match &installed.id {
        Some(id) => {
            let name = format!("{}/{}", id.namespace, id.service);
            (name, id.port.to_string(), Some(id.protocol), Some(id.family))
        }
        None => (UNCLAIMED.to_owned(), String::new(), first.map(|frontend| frontend.protocol), family),
    };
    ServiceView {
        name,
        port,
        family: family.map(Family::name).unwrap_or_default().to_owned(),
        protocol: protocol.map(|protocol| protocol.to_string()).unwrap_or_default(),
        frontends,
        external: installed.external.clone(),
        internal: installed.internal.clone(),
        cluster: installed.cluster.clone(),
        ranges: installed.ranges.clone(),
        flags,
    }
}

fn frontend_views<'a>(
    frontend: &'a InstalledFrontend,
    node_port: &'a [IpAddr],
) -> impl Iterator<Item = FrontendView> {
    let everywhere = frontend.address.is_unspecified();
    let same = |ip: &&IpAddr| Family::of(ip) == Family::of(&frontend.address);
    let served = node_port.iter().filter(same).filter(move |_| everywhere);
    let own = Some(&frontend.address).filter(|_| !everywhere);
    served.chain(own).map(|address| FrontendView {
        kind: frontend.kind.map_or("unknown", kind).to_owned(),
        address: *address,
        port: frontend.port,
        protocol: frontend.protocol.to_string(),
    })
}

const fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "ClusterIP",
        FrontendKind::NodePort => "NodePort",
        FrontendKind::ExternalIp => "ExternalIP",
        FrontendKind::LoadBalancer => "LoadBalancer",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PortId, Protocol};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn installed() -> InstalledPort {
        let frontend = |kind, address: &str, port| InstalledFrontend {
            kind: Some(kind),
            address: ip(address),
            port,
            protocol: Protocol::Tcp,
        };
        InstalledPort {
            id: Some(PortId {
                namespace: "default".into(),
                service: "web".into(),
                port: "http".into(),
                protocol: Protocol::Tcp,
                family: Family::V4,
            }),
            frontends: vec![
                frontend(FrontendKind::NodePort, "0.0.0.0", 30080),
                frontend(FrontendKind::ClusterIp, "10.96.0.9", 80),
            ],
            external: vec!["10.2.0.9:8080".parse().unwrap()],
            internal: Vec::new(),
            cluster: Vec::new(),
            ranges: Vec::new(),
            flags: vec!["masquerade-external"],
            affinity_timeout: 600,
        }
    }

    #[test]
    fn views_are_sorted_and_free_of_placeholders() {
        let view = service_view(&installed(), &[ip("192.0.2.9"), ip("fd00::1"), ip("10.0.0.1")]);
        let shown: Vec<_> =
            view.frontends.iter().map(|f| format!("{} {}:{}", f.kind, f.address, f.port)).collect();
        assert_eq!(
            shown,
            ["ClusterIP 10.96.0.9:80", "NodePort 10.0.0.1:30080", "NodePort 192.0.2.9:30080"],
            "one NodePort line per serving address of the family"
        );
        assert_eq!((view.name.as_str(), view.port.as_str()), ("default/web", "http"));
        assert_eq!((view.family.as_str(), view.protocol.as_str()), ("IPv4", "TCP"));
        assert_eq!(view.external, ["10.2.0.9:8080".parse().unwrap()]);
        assert_eq!(view.flags, ["masquerade-external", "affinity=600s"]);
        let nowhere = service_view(&installed(), &[]);
        assert_eq!(nowhere.frontends.len(), 1, "a NodePort that no address serves");
    }

    #[test]
    fn what_an_earlier_agent_left_is_shown_without_a_name() {
        let view = service_view(&InstalledPort { id: None, ..installed() }, &[]);
        assert_eq!((view.name.as_str(), view.family.as_str()), ("unclaimed", "IPv4"));
        assert_eq!(view.protocol, "TCP");
    }
}
