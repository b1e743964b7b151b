//! Programs and maps in a real kernel: adoption, replacement, cleaning. Needs root.

mod common;

use common::{Scratch, edge, in_namespace, options};
use proxy_common::abi::Config;
use proxy_userspace::datapath::{Change, Datapath, Options};

/// A config that can be told from another's.
fn marked(seed: u32) -> Config {
    let datapath_default = bytemuck_zeroed();
    Config { seed, ..datapath_default }
}

fn bytemuck_zeroed() -> Config {
    use proxy_common::abi::{Addr, Cidr};
    Config {
        cluster_v4: Cidr { address: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED },
        cluster_v6: Cidr { address: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED },
        flags: 0,
        masquerade_mark: 0,
        seed: 0,
        test_clock: 0,
        netns_cookie: 0,
    }
}

/// Starts three times; each later agent finds the maps of the first, and leaves one copy of each program (L-01).
fn restarts(options: &Options) {
    let edge = edge("edge0");
    for round in 0..3 {
        let datapath = Datapath::load(options).unwrap();
        assert_eq!(datapath.adopted(), round > 0, "round {round}");
        if round == 0 {
            datapath.set_config(&marked(77)).unwrap();
        }
        assert_eq!(datapath.config().unwrap().seed, 77, "round {round}: maps of the first agent");
        let attached = datapath.attach_edge(&edge).unwrap();
        let expected = if round == 0 { Change::Attached } else { Change::Replaced };
        assert_eq!((attached.ingress.change, attached.egress.change), (expected, expected), "round {round}");
        let again = datapath.attach_edge(&edge).unwrap();
        assert_eq!((again.ingress.change, again.egress.change), (Change::None, Change::None));
        datapath.attach_sockets().unwrap();
        datapath.retire(&[edge.ifindex]).unwrap();
        let state = datapath.inspect_edge(&edge).unwrap();
        assert!(state.iter().all(|hook| hook.ours && hook.before == 0 && hook.after == 0), "{state:?}");
    }
}

#[test]
fn an_agent_without_bpffs_adopts_by_the_attached_programs() {
    in_namespace(|| {
        let cgroup = Scratch::cgroup();
        restarts(&Options { cgroup: cgroup.as_ref().map(|dir| dir.path().into()), ..options() });
    });
}

#[test]
fn an_agent_with_bpffs_adopts_pins() {
    in_namespace(|| {
        let (bpffs, cgroup) = (Scratch::bpffs(), Scratch::cgroup());
        restarts(&Options {
            bpffs: Some(bpffs.path().into()),
            cgroup: cgroup.as_ref().map(|dir| dir.path().into()),
            ..options()
        });
    });
}
