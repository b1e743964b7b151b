//! The lines of iproute2 that wire a bed. Pure: names in, text out; [`Script::run`] hands it over.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::Result;

use super::command::ip_batch;
use super::plan::{Family, Who, Wiring, gateway, second_address};

/// Names of the namespaces of one bed.
#[derive(Clone, Debug)]
pub struct Names {
    prefix: String,
}

/// All namespaces of a bed, by their short names.
pub const NAMESPACES: [&str; 8] = ["n1", "n2", "rt", "cl", "pa", "pb", "pc", "pd"];

impl Names {
    #[must_use]
    pub const fn new(prefix: String) -> Self {
        Self { prefix }
    }

    /// Full name of the namespace with this short name.
    #[must_use]
    pub fn full(&self, short: &str) -> String {
        format!("{}-{short}", self.prefix)
    }
}

/// Lines for iproute2: first the links, made from outside, then what each namespace does for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    links: Vec<String>,
    inside: BTreeMap<String, Vec<String>>,
}

impl Script {
    fn link(&mut self, (device, netns): (&str, &str), (peer, peer_netns): (&str, &str)) {
        self.links
            .push(format!("link add {device} netns {netns} type veth peer name {peer} netns {peer_netns}"));
        self.at(netns, format!("link set {device} up"));
        self.at(peer_netns, format!("link set {peer} up"));
    }

    fn at(&mut self, netns: &str, line: String) {
        self.inside.entry(netns.into()).or_default().push(line);
    }

    /// Hands the lines to iproute2, one process a namespace.
    ///
    /// # Errors
    /// The first line that fails, with what iproute2 says.
    pub fn run(&self) -> Result<()> {
        ip_batch(None, &self.links)?;
        self.inside.iter().try_for_each(|(netns, lines)| ip_batch(Some(netns), lines))
    }
}

/// Host side of a pod's veth.
#[must_use]
pub fn host_device(wiring: Wiring, pod: &str) -> String {
    match wiring {
        Wiring::Routed => format!("cali{pod}"),
        Wiring::Bridged => format!("veth{pod}"),
    }
}

/// Everything of a bed, in an order that works.
#[must_use]
pub fn script(names: &Names, wiring: Wiring) -> Script {
    let mut script = Script::default();
    for (node, number) in [("n1", 2), ("n2", 3)] {
        uplink(names, node, number, &mut script);
    }
    client(names, &mut script);
    for family in Family::BOTH {
        let second = second_address(family);
        let length = if family == Family::V4 { 24 } else { 64 };
        script.at(&names.full("n1"), format!("addr add {second}/{length} dev eth0"));
    }
    if wiring == Wiring::Bridged {
        bridge(&names.full("n1"), &mut script);
    }
    for who in Who::LOCAL_PODS {
        pod(names, wiring, who, &mut script);
    }
    pod(names, Wiring::Routed, Who::Pd, &mut script);
    script
}

/// veth between a namespace's `eth0` and the router.
fn link(names: &Names, short: &str, script: &mut Script) {
    let (inside, router) = (names.full(short), names.full("rt"));
    script.link(("eth0", &inside), (short, &router));
}

/// A node's NIC: subnets 192.0.`number`.0/24 and fd00:`number`::/64, the router is the default route and sends the
/// pods' prefixes here; n1 also gets the Services'.
fn uplink(names: &Names, node: &str, number: u8, script: &mut Script) {
    link(names, node, script);
    let (inside, router) = (names.full(node), names.full("rt"));
    let last = if node == "n1" { 11 } else { 12 };
    script.at(&inside, format!("addr add 192.0.{number}.{last}/24 dev eth0"));
    script.at(&inside, format!("addr add fd00:{number}::{last}/64 dev eth0 nodad"));
    script.at(&router, format!("addr add 192.0.{number}.1/24 dev {node}"));
    script.at(&router, format!("addr add fd00:{number}::1/64 dev {node} nodad"));
    script.at(&inside, format!("route add default via 192.0.{number}.1"));
    script.at(&inside, format!("route add default via fd00:{number}::1"));
    let pods = number - 1;
    let mut prefixes = vec![format!("10.244.{pods}.0/24"), format!("fd00:10:{pods}::/64")];
    if node == "n1" {
        prefixes
            .extend(["10.96.0.0/16", "203.0.113.0/24", "fd00:96::/112", "fd00:203::/64"].map(String::from));
    }
    for prefix in prefixes {
        let via = if prefix.contains(':') {
            format!("fd00:{number}::{last}")
        } else {
            format!("192.0.{number}.{last}")
        };
        script.at(&router, format!("route add {prefix} via {via}"));
    }
}

fn client(names: &Names, script: &mut Script) {
    link(names, "cl", script);
    let (inside, router) = (names.full("cl"), names.full("rt"));
    script.at(&inside, "addr add 198.51.100.9/24 dev eth0".into());
    script.at(&inside, "addr add fd00:c::9/64 dev eth0 nodad".into());
    script.at(&router, "addr add 198.51.100.1/24 dev cl".into());
    script.at(&router, "addr add fd00:c::1/64 dev cl nodad".into());
    script.at(&inside, "route add default via 198.51.100.1".into());
    script.at(&inside, "route add default via fd00:c::1".into());
}

fn bridge(node: &str, script: &mut Script) {
    // An address of its own: a bridge without takes its lowest port's, which changes as pods come and go.
    script.at(
        node,
        "link add cni0 address 02:00:0a:f4:01:01 type bridge forward_delay 0 mcast_snooping 0".into(),
    );
    script.at(node, "link set cni0 up".into());
    script.at(node, format!("addr add {}/24 dev cni0", gateway(Family::V4)));
    script.at(node, format!("addr add {}/64 dev cni0 nodad", gateway(Family::V6)));
}

/// One pod's veth with addresses and routes on both sides.
#[must_use]
pub fn pod_script(names: &Names, wiring: Wiring, who: Who) -> Script {
    let mut script = Script::default();
    pod(names, wiring, who, &mut script);
    script
}

fn pod(names: &Names, wiring: Wiring, pod: Who, script: &mut Script) {
    let (node, inside) = (names.full(pod.node()), names.full(pod.namespace()));
    let device = host_device(wiring, pod.name());
    // A device that is made anew keeps its address, as if the CNI had announced it: neighbours need not find out.
    script.at(&inside, format!("link set eth0 address {}", mac(pod)));
    script.link(("eth0", &inside), (&device, &node));
    if wiring == Wiring::Bridged {
        script.at(&node, format!("link set {device} master cni0"));
    }
    for family in Family::BOTH {
        let (address, via) = (pod.address(family), pod_gateway(pod, family));
        let (full, subnet, nodad) = if family == Family::V4 { (32, 24, "") } else { (128, 64, " nodad") };
        match wiring {
            Wiring::Routed => {
                script.at(&node, format!("addr add {via}/{full} dev {device}{nodad}"));
                script.at(&node, format!("route add {address}/{full} dev {device}"));
                script.at(&inside, format!("addr add {address}/{full} dev eth0{nodad}"));
                script.at(&inside, format!("route add {via}/{full} dev eth0"));
            }
            Wiring::Bridged => {
                script.at(&inside, format!("addr add {address}/{subnet} dev eth0{nodad}"));
            }
        }
        script.at(&inside, format!("route add default via {via}"));
    }
}

/// A pod's own hardware address, from its IPv4 address.
fn mac(pod: Who) -> String {
    let IpAddr::V4(address) = pod.address(Family::V4) else { return String::new() };
    let [a, b, c, d] = address.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

fn pod_gateway(pod: Who, family: Family) -> IpAddr {
    match (pod, gateway(family)) {
        (Who::Pd, IpAddr::V4(_)) => [10, 244, 2, 1].into(),
        (Who::Pd, IpAddr::V6(_)) => [0xfd00, 0x10, 2, 0, 0, 0, 0, 1].into(),
        (_, gateway) => gateway,
    }
}
