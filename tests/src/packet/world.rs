//! The node that every story plays on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::frame::{CLIENT_MAC, NODE_MAC};
use proxy_common::abi::{
    Addr, AddressClass, Backend, Cidr, Config, Device, Frontend, FrontendKey, FrontendKind, Guard, Port, Run,
    SERVICE_CIDRS, Service, config_flags, device_flags, protocol, service_flags,
};

/// The device that packets are seen on unless a story says otherwise: the loopback of the namespace, as test runs have it.
pub const IFINDEX: u32 = 1;
/// Another one, of a pod.
pub const PODS_IFINDEX: u32 = 77;
/// The catch-all device.
pub const CATCH_ALL_IFINDEX: u32 = 78;
/// kube-proxy's masquerade mark (F3).
pub const MARK: u32 = 0x4000;

/// An address plan of one family. Asymmetric on purpose (P-08).
///
/// Test runs always put an Ethernet header in front. So that programs for devices without one (P-06) can be shown
/// packets that begin with their network header, the bytes of every address that a test run takes for the EtherType are
/// those of the right one: `8.0.…` is 0x0800, `…:86dd:…` is 0x86dd.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub pod: IpAddr,
    pub outside: IpAddr,
    pub router: IpAddr,
    pub vip: IpAddr,
    /// A second Service with the same endpoint.
    pub other_vip: IpAddr,
    pub load_balancer: IpAddr,
    /// A LoadBalancer address that is bound on the node as well (P-28).
    pub bound: IpAddr,
    pub external: IpAddr,
    pub node: IpAddr,
    /// A second address that serves NodePorts.
    pub second: IpAddr,
    /// An address of the node that serves no NodePorts. A host-network endpoint has it.
    pub plain: IpAddr,
    pub backend: IpAddr,
    /// What packets are masqueraded with on [`IFINDEX`].
    pub masquerade: IpAddr,
    /// Serves NodePorts. No device without Ethernet header can be shown packets from there, see above.
    pub loopback: IpAddr,
}

pub const PORT: u16 = 80;
pub const BACKEND_PORT: u16 = 8081;
pub const NODE_PORT: u16 = 30_080;
/// A port of the VIP whose Service has no endpoint; the NodePort too, one higher than [`NODE_PORT`].
pub const EMPTY_PORT: u16 = 81;
/// A port of the VIP whose endpoints are elsewhere and whose policy forbids them (C3); the NodePort likewise.
pub const SILENT_PORT: u16 = 82;
/// A port of the VIP whose Service is just being removed.
pub const LEAVING_PORT: u16 = 83;
/// A port of the VIP whose endpoint is on the host's network.
pub const HOST_PORT: u16 = 84;
/// A port of the VIP for TCP only.
pub const TCP_PORT: u16 = 85;
/// A port of the VIP with another endpoint for each protocol (P-25).
pub const DNS_PORT: u16 = 53;
/// A port of the VIP with three endpoints.
pub const MANY_PORT: u16 = 87;
/// A NodePort under policy Local.
pub const LOCAL_NODE_PORT: u16 = 30_083;
/// A NodePort under policy Local whose endpoints are elsewhere (C6 … C8).
pub const AWAY_NODE_PORT: u16 = 30_086;
/// A port of the LoadBalancer addresses that is open to the network of [`Plan::outside`] only (C16); a NodePort, an external
/// IP and the VIP lead to the same Service.
pub const CLOSED_PORT: u16 = 88;
pub const CLOSED_NODE_PORT: u16 = 30_088;
/// The same, closed to this node too.
pub const FOREIGN_PORT: u16 = 89;
/// A port of the VIP with three endpoints and affinity of [`AFFINITY`] seconds; the NodePort leads to the same Service (D1).
pub const STICKY_PORT: u16 = 90;
pub const STICKY_NODE_PORT: u16 = 30_090;
/// A port of the VIP of another Service with affinity and the same endpoints.
pub const OTHER_STICKY_PORT: u16 = 91;
/// Seconds.
pub const AFFINITY: u32 = 60;

/// The protocols that stories are told in.
pub const PROTOCOLS: [u8; 3] = [protocol::TCP, protocol::UDP, protocol::SCTP];

/// First index of a family in the maps that both share.
const fn base(v6: bool) -> u32 {
    if v6 { 32 } else { 0 }
}

/// The endpoint id of the family's backend.
#[must_use]
pub const fn endpoint_id(v6: bool) -> u32 {
    base(v6) + 5
}

/// The generation that [`endpoint_id`] has in the beginning.
pub const GENERATION: u16 = 3;

/// The plan of `v6` or IPv4.
#[must_use]
pub fn plan(v6: bool) -> Plan {
    let ip = |v4: [u8; 2], v6_words: [u16; 2]| -> IpAddr {
        if v6 {
            [0xfd00, v6_words[0], 0x86dd, 0, 0, 0, 0, v6_words[1]].into()
        } else {
            [8, 0, v4[0], v4[1]].into()
        }
    };
    Plan {
        pod: ip([129, 5], [0x1001, 0x5]),
        outside: ip([2, 9], [0x2, 0x9]),
        router: ip([99, 7], [0x99, 0x7]),
        vip: ip([96, 17], [0x96, 0x17]),
        other_vip: ip([97, 200], [0x96, 0xc8]),
        load_balancer: ip([113, 40], [0x113, 0x40]),
        bound: ip([113, 41], [0x113, 0x41]),
        external: ip([114, 3], [0x114, 0x3]),
        node: ip([2, 11], [0x2, 0x11]),
        second: ip([3, 12], [0x3, 0x12]),
        plain: ip([4, 13], [0x4, 0x13]),
        backend: ip([130, 66], [0x1002, 0x42]),
        masquerade: ip([130, 1], [0x1002, 0x1]),
        loopback: if v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() },
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
    /// All slots, from the first on.
    fn backends(&mut self, slots: &[Backend<N>]);
    fn endpoint(&mut self, id: u32, generation: u32);
    fn range(&mut self, service: u32, address: Addr<N>, length: u32);
    fn device(&mut self, ifindex: u32, device: Device);
}

/// The configuration all stories begin with; the clock starts at 1000 ticks.
#[must_use]
pub fn config() -> Config {
    Config {
        cluster_v4: Cidr { address: Addr::v4([8, 0, 128, 0]), mask: Addr::v4([255, 255, 128, 0]) },
        cluster_v6: Cidr {
            address: Addr([u32::from_ne_bytes([0xfd, 0, 0x10, 0]), 0, 0, 0]),
            mask: Addr([u32::from_ne_bytes([0xff, 0xff, 0xff, 0]), 0, 0, 0]),
        },
        services_v4: [Cidr::NONE; SERVICE_CIDRS],
        services_v6: [Cidr::NONE; SERVICE_CIDRS],
        flags: config_flags::DETECT_V4 | config_flags::DETECT_V6,
        masquerade_mark: MARK,
        seed: 0x5eed,
        test_clock: 1000,
        netns_cookie: 0,
    }
}

/// The guard's element while the agent lives.
#[must_use]
pub fn alive() -> Guard {
    Guard { beat: config().test_clock, since: 0, looked: 0, port: Port(0), pad: 0 }
}

/// The guard's element once another proxy has taken over (L-07).
#[must_use]
pub fn handed_over(config: &Config) -> Guard {
    let now = config.test_clock;
    Guard { beat: now - Guard::AWAY, since: now - Guard::SETTLE, ..alive() }
}

/// The device's entry.
#[must_use]
pub fn device() -> Device {
    Device {
        masquerade_v4: addr(plan(false).masquerade),
        masquerade_v6: addr(plan(true).masquerade),
        mtu: 1500,
        flags: device_flags::SHORTCUT | device_flags::NEIGHBOUR,
        frames: frames(NODE_MAC, CLIENT_MAC),
    }
}

/// Frames with these addresses.
#[must_use]
pub fn frames(to: [u8; 6], from: [u8; 6]) -> [u32; 3] {
    let [a, b, c, d, e, f] = to;
    let [g, h, i, j, k, l] = from;
    [[a, b, c, d], [e, f, g, h], [i, j, k, l]].map(u32::from_ne_bytes)
}

/// The entry of [`PODS_IFINDEX`].
#[must_use]
pub fn pods_device() -> Device {
    Device { flags: device().flags | device_flags::POD | device_flags::PEER, ..device() }
}

/// What each address is to the node.
const fn classes(p: &Plan) -> [(IpAddr, u32); 10] {
    [
        (p.vip, AddressClass::SERVICE),
        (p.other_vip, AddressClass::SERVICE),
        (p.load_balancer, AddressClass::SERVICE),
        (p.bound, AddressClass::SERVICE | AddressClass::LOCAL),
        (p.external, AddressClass::SERVICE | AddressClass::SHARED),
        (p.node, AddressClass::LOCAL | AddressClass::NODE_PORT),
        (p.second, AddressClass::LOCAL | AddressClass::NODE_PORT),
        (p.plain, AddressClass::LOCAL),
        (p.masquerade, AddressClass::LOCAL),
        // Sockets that dial it are served; packets have no business there.
        (p.loopback, AddressClass::NODE_PORT),
    ]
}

/// Writes the node's state of one family. Indices of the two families do not overlap.
pub fn fill<const N: usize>(to: &mut impl Writer<N>) {
    let p = plan(N == 4);
    for (address, class) in classes(&p) {
        to.address(addr(address), class);
    }
    services(to);
    frontends(to, &p);
    to.device(IFINDEX, device());
    to.device(PODS_IFINDEX, pods_device());
    to.device(CATCH_ALL_IFINDEX, device());
}

/// Endpoints and the Services that lead to them.
fn services<const N: usize>(to: &mut impl Writer<N>) {
    let p = plan(N == 4);
    let base = base(N == 4);
    // Slot 0 stays empty: an empty run points there.
    let endpoints = [
        (p.backend, BACKEND_PORT),
        (p.plain, BACKEND_PORT),
        (p.backend, 5301),
        (p.backend, 5302),
        (p.backend, 9001),
        (p.backend, 9002),
        (p.backend, 9003),
    ];
    let mut slots = vec![Backend { address: Addr::UNSPECIFIED, port: Port(0), generation: 0, id: 0 }];
    for ((address, port), id) in endpoints.into_iter().zip(endpoint_id(N == 4)..) {
        let backend = Backend { address: addr(address), port: Port::new(port), generation: GENERATION, id };
        slots.push(backend);
        to.endpoint(id, GENERATION.into());
    }
    to.backends(&slots);
    let used = service_flags::IN_USE | service_flags::MASQUERADE_EXTERNAL;
    let served =
        |run| Service { external: run, internal: run, cluster: Run::EMPTY, flags: used, affinity_timeout: 0 };
    let empty = served(Run::EMPTY);
    let one = served(Run::new(1, 1));
    let local = service_flags::IN_USE | service_flags::LOCAL_EXTERNAL;
    let ranges = used | service_flags::SOURCE_RANGES;
    let sticky = Service { affinity_timeout: AFFINITY, ..served(Run::new(5, 3)) };
    let asking = [
        Service { flags: ranges | service_flags::NODE_IN_RANGES, ..one },
        Service { flags: ranges, ..one },
        sticky,
        sticky,
    ];
    let silent = used | service_flags::DROP_INTERNAL | service_flags::DROP_EXTERNAL;
    let services = [
        one,
        one,
        empty,
        Service { flags: silent, ..empty },
        Service { flags: used & !service_flags::IN_USE, ..one },
        served(Run::new(2, 1)),
        served(Run::new(3, 1)),
        served(Run::new(4, 1)),
        served(Run::new(5, 3)),
        Service { cluster: one.internal, flags: local, ..one },
        Service {
            external: Run::EMPTY,
            cluster: one.internal,
            flags: local | service_flags::DROP_EXTERNAL,
            ..one
        },
    ];
    for (service, index) in services.into_iter().chain(asking).zip(base + 1..) {
        to.service(index, service);
    }
    for service in [12, 13] {
        to.range(base + service, addr(p.outside), if N == 1 { 24 } else { 32 });
    }
}

/// What can be dialled. Numbers are those of [`services`].
fn frontends<const N: usize>(to: &mut impl Writer<N>, p: &Plan) {
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancer, NodePort};
    let any = Addr::UNSPECIFIED;
    let all = &PROTOCOLS[..];
    let frontends = [
        (addr(p.vip), PORT, all, 1, ClusterIp),
        (addr(p.other_vip), PORT, all, 2, ClusterIp),
        (addr(p.load_balancer), PORT, all, 1, LoadBalancer),
        (addr(p.bound), PORT, all, 1, LoadBalancer),
        (addr(p.external), PORT, all, 1, ExternalIp),
        (any, NODE_PORT, all, 1, NodePort),
        (addr(p.vip), EMPTY_PORT, all, 3, ClusterIp),
        (any, NODE_PORT + 1, all, 3, NodePort),
        (addr(p.vip), SILENT_PORT, all, 4, ClusterIp),
        (any, NODE_PORT + 2, all, 4, NodePort),
        (addr(p.vip), LEAVING_PORT, all, 5, ClusterIp),
        (addr(p.vip), HOST_PORT, all, 6, ClusterIp),
        (any, NODE_PORT + 4, all, 6, NodePort),
        (addr(p.vip), TCP_PORT, &[protocol::TCP], 1, ClusterIp),
        (addr(p.vip), BACKEND_PORT, all, 1, ClusterIp),
        (addr(p.vip), DNS_PORT, &[protocol::TCP], 7, ClusterIp),
        (addr(p.vip), DNS_PORT, &[protocol::UDP], 8, ClusterIp),
        (addr(p.vip), MANY_PORT, all, 9, ClusterIp),
        (any, LOCAL_NODE_PORT, all, 10, NodePort),
        (any, AWAY_NODE_PORT, all, 11, NodePort),
        (addr(p.load_balancer), CLOSED_PORT, all, 12, LoadBalancer),
        (addr(p.bound), CLOSED_PORT, all, 12, LoadBalancer),
        (addr(p.external), CLOSED_PORT, all, 12, ExternalIp),
        (addr(p.vip), CLOSED_PORT, all, 12, ClusterIp),
        (any, CLOSED_NODE_PORT, all, 12, NodePort),
        (addr(p.bound), FOREIGN_PORT, all, 13, LoadBalancer),
        (addr(p.vip), STICKY_PORT, all, 14, ClusterIp),
        (any, STICKY_NODE_PORT, all, 14, NodePort),
        (addr(p.vip), OTHER_STICKY_PORT, all, 15, ClusterIp),
    ];
    for (address, port, protocols, service, kind) in frontends {
        for &protocol in protocols {
            let key = FrontendKey { address, port: Port::new(port), protocol, pad: 0 };
            to.frontend(key, Frontend { service: base(N == 4) + service, kind: kind as u32 });
        }
    }
}
