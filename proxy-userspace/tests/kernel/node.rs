//! Netlink followed live, and pods attached as they come.

use std::time::{Duration, Instant};

use proxy_userspace::config::{DetectLocal, EdgePattern, Edges};
use proxy_userspace::datapath::{Change, Datapath, Named, cleanup};
use proxy_userspace::node::{Node, NodeEvent};

use crate::common::{in_namespace, ip, options};

/// Runs `test` on a runtime of the calling thread, and so in its network namespace.
fn block_on<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test)
}

/// Waits for the first event that `want` takes, at most a minute: each attachment may wait long on a busy machine.
async fn until<T>(node: &mut Node, want: impl Fn(&NodeEvent) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = node.next().await.unwrap().iter().find_map(&want) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), found).await.expect("the event, within a minute")
}

#[test]
fn edges_and_addresses_are_followed() {
    in_namespace(|| {
        ip("link set lo up");
        ip("address add 192.0.2.1/24 dev edge0");
        block_on(async {
            let mut node = Node::open(Edges::Auto, DetectLocal::NodeCidr).await.unwrap();
            let names: Vec<_> = node.facts().edges.iter().map(|edge| edge.name.as_str()).collect();
            assert_eq!(names, ["pod0", "edge0"], "lo is none; in order of ifindex");
            assert!(node.facts().edges.iter().all(|edge| edge.ethernet && edge.mtu == 1500));
            let masquerade = node.facts().edges[0].masquerade_v4;
            assert_eq!(masquerade, Some([192, 0, 2, 1].into()), "another device's, as the kernel does");

            ip("link add br0 type bridge");
            ip("address add 10.9.0.1/24 dev br0");
            ip("link set edge0 master br0");
            let edge = until(&mut node, |event| match event {
                NodeEvent::Edge(edge) if edge.masquerade_v4 == Some([10, 9, 0, 1].into()) => {
                    Some(edge.clone())
                }
                _ => None,
            });
            assert_eq!(edge.await.name, "edge0", "a bridge's port masquerades with the bridge's address");
            assert!(node.facts().edges.iter().all(|edge| edge.name != "br0"));

            ip("link set edge0 nomaster");
            ip("link set edge0 down");
            let gone = until(&mut node, |event| match event {
                NodeEvent::EdgeGone { name, device_gone, .. } => Some((name.clone(), *device_gone)),
                _ => None,
            });
            assert_eq!(gone.await, ("edge0".into(), false), "leaving a bridge is not going away");
            ip("link del pod0");
            until(&mut node, |event| match event {
                NodeEvent::EdgeGone { name, device_gone: true, .. } => (name == "pod0").then_some(()),
                _ => None,
            })
            .await;
        });
    });
}

#[test]
fn named_edges_only() {
    in_namespace(|| {
        block_on(async {
            let edges = Edges::Names(vec![EdgePattern::Prefix("edge".into())]);
            let node = Node::open(edges, DetectLocal::NodeCidr).await.unwrap();
            let names: Vec<_> = node.facts().edges.iter().map(|edge| edge.name.as_str()).collect();
            assert_eq!(names, ["edge0"]);
        });
    });
}

/// L-08: pods that come and go are attached as they come, and leave nothing behind.
#[test]
fn pods_that_come_and_go_are_attached() {
    in_namespace(|| {
        let mut datapath = Datapath::load(&options()).unwrap();
        block_on(async {
            let mut node =
                Node::open(Edges::Names(vec![EdgePattern::Prefix("pod".into())]), DetectLocal::NodeCidr)
                    .await
                    .unwrap();
            let mut slowest = Duration::ZERO;
            for round in 0..20 {
                ip(&format!("link add pod-{round} type veth peer name eth-{round}"));
                let started = Instant::now();
                ip(&format!("link set pod-{round} up"));
                let name = format!("pod-{round}");
                let edge = until(&mut node, |event| match event {
                    NodeEvent::Edge(edge) if edge.name == name => Some(edge.clone()),
                    _ => None,
                })
                .await;
                let attached = datapath.attach_edge(&edge).unwrap();
                slowest = slowest.max(started.elapsed());
                assert_eq!(
                    (attached.ingress.change, attached.egress.change),
                    (Change::Attached, Change::Attached)
                );
                ip(&format!("link del pod-{round}"));
                let ifindex = until(&mut node, |event| match event {
                    NodeEvent::EdgeGone { ifindex, device_gone: true, .. } => Some(*ifindex),
                    _ => None,
                })
                .await;
                datapath.forget_edge(ifindex).unwrap();
            }
            eprintln!("from `ip link set up` to both programs attached: {slowest:?} at most");
        });
        let retired = datapath.retire(&[]).unwrap();
        assert_eq!((retired.devices.len(), retired.entries), (0, 0), "no entry outlives its device");
        cleanup(&options(), Named::ALL).unwrap();
    });
}
