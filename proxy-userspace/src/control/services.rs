use std::net::IpAddr;

use proxy_common::abi::{FrontendKind, service_flags};

use crate::model::{Family, PortFrontend, PortId, PortState};
use crate::status::{FrontendView, ServiceView};

/// Names of the flags, in the order of their bits.
const FLAGS: [(u32, &str); 3] = [
    (service_flags::MASQUERADE_EXTERNAL, "masquerade-external"),
    (service_flags::DROP_EXTERNAL, "drop-external"),
    (service_flags::DROP_INTERNAL, "drop-internal"),
];

/// What is installed for one Service port, for people and scripts: everything sorted, no ids, so that two agents on
/// the same input print the same. A NodePort is shown once for each of the `node_port` addresses of its family.
#[must_use]
pub fn service_view(id: &PortId, state: &PortState, node_port: &[IpAddr]) -> ServiceView {
    let mut frontends: Vec<_> =
        state.frontends.iter().flat_map(|frontend| frontend_views(id, frontend, node_port)).collect();
    frontends.sort();
    frontends.dedup();
    let sorted = |list: &[std::net::SocketAddr]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list
    };
    let mut flags: Vec<_> =
        FLAGS.iter().filter(|(bit, _)| state.flags & bit != 0).map(|(_, name)| (*name).to_owned()).collect();
    if state.affinity_timeout != 0 {
        flags.push(format!("affinity={}s", state.affinity_timeout));
    }
    ServiceView {
        name: format!("{}/{}", id.namespace, id.service),
        port: id.port.to_string(),
        family: family(id.family).to_owned(),
        protocol: id.protocol.to_string(),
        frontends,
        external: sorted(&state.external),
        internal: sorted(&state.internal),
        flags,
    }
}

fn frontend_views<'a>(
    id: &'a PortId,
    frontend: &'a PortFrontend,
    node_port: &'a [IpAddr],
) -> impl Iterator<Item = FrontendView> {
    let everywhere = frontend.address.is_unspecified();
    let served = node_port.iter().filter(move |ip| everywhere && Family::of(ip) == id.family);
    let own = Some(&frontend.address).filter(|_| !everywhere);
    served.chain(own).map(|address| FrontendView {
        kind: kind(frontend.kind).to_owned(),
        address: *address,
        port: frontend.port,
        protocol: id.protocol.to_string(),
    })
}

/// The API's names.
const fn family(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
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
    use crate::model::Protocol;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn views_are_sorted_and_free_of_placeholders() {
        let id = PortId {
            namespace: "default".into(),
            service: "web".into(),
            port: "http".into(),
            protocol: Protocol::Tcp,
            family: Family::V4,
        };
        let frontend =
            |kind, address: &str, port| PortFrontend { kind, address: address.parse().unwrap(), port };
        let state = PortState {
            frontends: vec![
                frontend(FrontendKind::NodePort, "0.0.0.0", 30080),
                frontend(FrontendKind::ClusterIp, "10.96.0.9", 80),
            ],
            external: vec!["10.2.0.9:8080".parse().unwrap(), "10.2.0.10:8080".parse().unwrap()],
            internal: Vec::new(),
            flags: service_flags::IN_USE | service_flags::MASQUERADE_EXTERNAL | service_flags::DROP_INTERNAL,
            affinity_timeout: 600,
        };
        let node = [ip("192.0.2.9"), ip("fd00::1"), ip("10.0.0.1")];
        let view = service_view(&id, &state, &node);
        let shown: Vec<_> =
            view.frontends.iter().map(|f| format!("{} {}:{}", f.kind, f.address, f.port)).collect();
        assert_eq!(
            shown,
            ["ClusterIP 10.96.0.9:80", "NodePort 10.0.0.1:30080", "NodePort 192.0.2.9:30080"],
            "one NodePort line per serving address of the family"
        );
        assert_eq!((view.name.as_str(), view.port.as_str()), ("default/web", "http"));
        assert_eq!(view.external, ["10.2.0.9:8080".parse().unwrap(), "10.2.0.10:8080".parse().unwrap()]);
        assert_eq!(view.flags, ["masquerade-external", "drop-internal", "affinity=600s"]);
        assert!(
            service_view(&id, &PortState { frontends: state.frontends[..1].to_vec(), ..state }, &[])
                .frontends
                .is_empty()
        );
    }
}
