//! The node that every story plays on.

use std::net::IpAddr;

use proxy_common::abi::{
    Addr, AddressClass, Backend, Cidr, Config, Device, Frontend, FrontendKey, FrontendKind, Port, Run,
    Service, config_flags, protocol, service_flags,
};

/// The device all packets are seen on: the loopback of the namespace, as test runs have it.
pub const IFINDEX: u32 = 1;
/// kube-proxy's masquerade mark (F3).
pub const MARK: u32 = 0x4000;

/// An address plan of one family. Asymmetric on purpose (P-08).
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub pod: IpAddr,
    pub outside: IpAddr,
    pub router: IpAddr,
    pub vip: IpAddr,
    /// A second Service with the same endpoint.
    pub other_vip: IpAddr,
    pub load_balancer: IpAddr,
    pub node: IpAddr,
    pub backend: IpAddr,
    /// What packets are masqueraded with on [`IFINDEX`].
    pub masquerade: IpAddr,
}

pub const PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8081;
pub const NODE_PORT: u16 = 30_080;
/// A port of the VIP whose Service has no endpoint.
pub const EMPTY_PORT: u16 = 81;
/// A port of the VIP whose endpoints are elsewhere and whose policy forbids them (C3).
pub const SILENT_PORT: u16 = 82;

/// The protocols that stories are told in.
pub const PROTOCOLS: [u8; 2] = [protocol::TCP, protocol::UDP];

/// First index of a family in the maps that both share.
const fn base(v6: bool) -> u32 {
    if v6 { 32 } else { 0 }
}

/// The endpoint id of the family's backend.
#[must_use]
pub const fn endpoint_id(v6: bool) -> u32 {
    base(v6) + 5
}

/// The plan of `v6` or IPv4.
#[must_use]
pub fn plan(v6: bool) -> Plan {
    let ip = |v4: &str, v6_text: &str| -> IpAddr {
        let text = if v6 { v6_text } else { v4 };
        text.parse().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    };
    Plan {
        pod: ip("10.244.1.5", "fd00:10:1::5"),
        outside: ip("192.0.2.9", "fd00:2::9"),
        router: ip("198.51.100.7", "fd00:99::7"),
        vip: ip("10.96.0.17", "fd00:96::17"),
        other_vip: ip("10.96.3.200", "fd00:96::c8"),
        load_balancer: ip("203.0.113.40", "fd00:113::40"),
        node: ip("192.0.2.11", "fd00:2::11"),
        backend: ip("10.244.2.66", "fd00:10:2::42"),
        masquerade: ip("10.244.2.1", "fd00:10:2::1"),
    }
}

/// `address` as it lies in maps. The family must be `N`'s.
#[must_use]
pub fn addr<const N: usize>(address: IpAddr) -> Addr<N> {
    let octets = match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Addr(words)
}

/// Where a world is written to.
pub trait Writer<const N: usize> {
    fn address(&mut self, address: Addr<N>, class: u32);
    fn frontend(&mut self, key: FrontendKey<N>, frontend: Frontend);
    fn service(&mut self, index: u32, service: Service);
    fn backend(&mut self, slot: u32, backend: Backend<N>);
    fn endpoint(&mut self, id: u32, generation: u32);
    fn device(&mut self, ifindex: u32, device: Device);
}

/// The configuration all stories share; the clock starts at 1000 ticks.
#[must_use]
pub fn config() -> Config {
    Config {
        cluster_v4: Cidr { address: Addr::v4([10, 244, 0, 0]), mask: Addr::v4([255, 255, 0, 0]) },
        cluster_v6: Cidr {
            address: Addr([u32::from_ne_bytes([0xfd, 0, 0, 0x10]), 0, 0, 0]),
            mask: Addr([u32::MAX, 0, 0, 0]),
        },
        flags: config_flags::DETECT_V4 | config_flags::DETECT_V6,
        masquerade_mark: MARK,
        seed: 0x5eed,
        test_clock: 1000,
        netns_cookie: 0,
    }
}

/// Writes the node's state of one family. Indices of the two families do not overlap.
pub fn fill<const N: usize>(to: &mut impl Writer<N>) {
    let p = plan(N == 4);
    let base = base(N == 4);
    let classes = [
        (p.vip, AddressClass::SERVICE),
        (p.other_vip, AddressClass::SERVICE),
        (p.load_balancer, AddressClass::SERVICE),
        (p.node, AddressClass::LOCAL | AddressClass::NODE_PORT),
        (p.masquerade, AddressClass::LOCAL),
        (p.backend, AddressClass::ENDPOINT),
    ];
    for (address, class) in classes {
        to.address(addr(address), class);
    }
    to.backend(
        7,
        Backend {
            address: addr(p.backend),
            port: Port::new(BACKEND_PORT),
            generation: 3,
            id: endpoint_id(N == 4),
        },
    );
    to.endpoint(endpoint_id(N == 4), 3);
    let run = Run::new(7, 1);
    let used = service_flags::IN_USE | service_flags::MASQUERADE_EXTERNAL;
    let served = Service { external: run, internal: run, flags: used, affinity_timeout: 0 };
    let empty = Service { external: Run::EMPTY, internal: Run::EMPTY, ..served };
    let silent = Service { flags: used | service_flags::DROP_INTERNAL, ..empty };
    for (index, service) in [(1, served), (2, served), (3, empty), (4, silent)] {
        to.service(base + index, service);
    }
    let unspecified = Addr::UNSPECIFIED;
    let frontends = [
        (addr(p.vip), PORT, 1, FrontendKind::ClusterIp),
        (addr(p.other_vip), PORT, 2, FrontendKind::ClusterIp),
        (addr(p.load_balancer), PORT, 1, FrontendKind::LoadBalancer),
        (unspecified, NODE_PORT, 1, FrontendKind::NodePort),
        (addr(p.vip), EMPTY_PORT, 3, FrontendKind::ClusterIp),
        (addr(p.vip), SILENT_PORT, 4, FrontendKind::ClusterIp),
    ];
    for (address, port, index, kind) in frontends {
        for protocol in PROTOCOLS {
            let key = FrontendKey { address, port: Port::new(port), protocol, pad: 0 };
            to.frontend(key, Frontend { service: base + index, kind: kind as u32 });
        }
    }
    let (v4, v6) = (plan(false), plan(true));
    to.device(
        IFINDEX,
        Device {
            masquerade_v4: addr(v4.masquerade),
            masquerade_v6: addr(v6.masquerade),
            mtu: 1500,
            flags: 0,
        },
    );
}
