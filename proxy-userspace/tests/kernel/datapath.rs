//! Programs and maps in a real kernel: adoption, replacement, cleaning.

use crate::common::{Scratch, edge, in_namespace, options};
use aya::Ebpf;
use aya::maps::{HashMap, MapData};
use aya::programs::{SchedClassifier, TcAttachType};
use proxy_common::abi::{Addr, Cidr, Config, LAYOUT, SERVICE_CIDRS};
use proxy_userspace::datapath::{Change, Cleaned, Datapath, Named, Options, cleanup, netns_cookie};

/// A config that can be told from another's.
fn marked(seed: u32) -> Config {
    Config {
        cluster_v4: Cidr { address: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED },
        cluster_v6: Cidr { address: Addr::UNSPECIFIED, mask: Addr::UNSPECIFIED },
        services_v4: [Cidr::NONE; SERVICE_CIDRS],
        services_v6: [Cidr::NONE; SERVICE_CIDRS],
        flags: 0,
        masquerade_mark: 0,
        seed,
        test_clock: 0,
        netns_cookie: 0,
    }
}

/// Starts five times; each later agent finds the maps of the first, and leaves one copy of each program (L-01). The last two are built
/// otherwise; to those of the same build `same` happens.
fn restarts(options: &Options, same: Change) {
    let edge = edge("edge0");
    let other = Options { test_mode: !options.test_mode, ..options.clone() };
    let starts = [
        (options, Change::Attached),
        (options, same),
        (options, same),
        (&other, Change::Replaced),
        (&other, same),
    ];
    for (round, (options, expected)) in starts.into_iter().enumerate() {
        let mut datapath = Datapath::load(options).unwrap();
        assert_eq!(datapath.adopted(), round > 0, "round {round}");
        if round == 0 {
            datapath.set_config(&marked(77)).unwrap();
        }
        assert_eq!(datapath.config().unwrap().seed, 77, "round {round}: maps of the first agent");
        let attached = datapath.attach_edge(&edge).unwrap();
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
        let options = Options { cgroup: cgroup.as_ref().map(|dir| dir.path().into()), ..options() };
        restarts(&options, Change::Replaced);
    });
}

#[test]
fn an_agent_with_bpffs_adopts_pins() {
    in_namespace(|| {
        let (bpffs, cgroup) = (Scratch::bpffs(), Scratch::cgroup());
        let options = Options {
            bpffs: Some(bpffs.path().into()),
            cgroup: cgroup.as_ref().map(|dir| dir.path().into()),
            ..options()
        };
        restarts(&options, Change::None);
    });
}

#[test]
fn cleanup_takes_everything_away_and_nothing_else() {
    in_namespace(|| {
        let (bpffs, cgroup) = (Scratch::bpffs(), Scratch::cgroup());
        let plain = Options { cgroup: cgroup.as_ref().map(|dir| dir.path().into()), ..options() };
        let pinned = Options { bpffs: Some(bpffs.path().into()), ..plain.clone() };
        std::fs::create_dir(bpffs.path().join("other")).unwrap();
        let foreign = foreign_program("pod0");
        for options in [&plain, &pinned] {
            let mut datapath = Datapath::load(options).unwrap();
            datapath.attach_edge(&edge("edge0")).unwrap();
            datapath.attach_edge(&edge("pod0")).unwrap();
            datapath.attach_sockets().unwrap();
            let cleaned = cleanup(options, Named::ALL).unwrap();
            assert_eq!(cleaned.devices.len(), 2);
            assert_eq!(cleaned.sockets, if cgroup.is_some() { 8 } else { 0 });
            assert_eq!(cleaned.pins > 0, options.bpffs.is_some());
            assert_eq!(cleanup(options, Named::ALL).unwrap(), Cleaned::default(), "a second time");
            let state = datapath.inspect_edge(&edge("pod0")).unwrap();
            assert_eq!((state[0].ours, state[0].before), (false, 1), "the other program is still there");
            drop(datapath);
            assert!(!Datapath::load(options).unwrap().adopted());
            cleanup(options, Named::ALL).unwrap();
        }
        assert!(bpffs.path().join("other").exists());
        std::fs::remove_dir(bpffs.path().join("other")).unwrap();
        drop(foreign);
    });
}

/// Two agents of this machine share the root of cgroup v2 and a bpffs, as far as nobody names others.
#[test]
fn cleanup_leaves_what_belongs_to_another_network_namespace() {
    let (Some(cgroup), true) = (Scratch::cgroup(), nix::unistd::geteuid().is_root()) else { return };
    let bpffs = Scratch::bpffs();
    let options =
        Options { cgroup: Some(cgroup.path().into()), bpffs: Some(bpffs.path().into()), ..options() };
    let unnamed = Named { cgroup: false, bpffs: false };
    let start = |options: &Options| {
        let datapath = Datapath::load(options).unwrap();
        datapath.set_config(&Config { netns_cookie: netns_cookie().unwrap(), ..marked(1) }).unwrap();
        datapath.attach_sockets().unwrap();
    };
    let theirs = options.clone();
    in_namespace(move || start(&theirs));
    in_namespace(move || {
        let cleaned = cleanup(&options, unnamed).unwrap();
        assert_eq!((cleaned.sockets, cleaned.pins, cleaned.left.len()), (0, 0, 2), "{cleaned:?}");
        let cleaned = cleanup(&options, Named::ALL).unwrap();
        assert!(cleaned.sockets == 8 && cleaned.pins > 0 && cleaned.left.is_empty(), "named: {cleaned:?}");
        start(&options);
        let cleaned = cleanup(&options, unnamed).unwrap();
        assert!(cleaned.sockets == 8 && cleaned.pins > 0 && cleaned.left.is_empty(), "its own: {cleaned:?}");
    });
}

/// A program under another name at the device's ingress, attached by a link: gone when dropped.
fn foreign_program(device: &str) -> Ebpf {
    let mut object = proxy_userspace::OBJECT.to_vec();
    // A name of the same length that is not ours.
    let name = b"sluice_ingress\0";
    let at: Vec<_> =
        object.windows(name.len()).enumerate().filter(|(_, w)| w == name).map(|(at, _)| at).collect();
    for at in at {
        object[at..at + 6].copy_from_slice(b"others");
    }
    let mut ebpf = aya::EbpfLoader::new().btf(None).load(&object).unwrap();
    let program: &mut SchedClassifier = ebpf.program_mut("others_ingress").unwrap().try_into().unwrap();
    program.load().unwrap();
    program.attach(device, TcAttachType::Ingress).unwrap();
    ebpf
}

/// L-10: ours is the first at ingress, and one that pushes itself in front later is told.
#[test]
fn foreign_programs_are_kept_and_told() {
    in_namespace(|| {
        let options = options();
        let foreign = foreign_program("edge0");
        let mut datapath = Datapath::load(&options).unwrap();
        let attached = datapath.attach_edge(&edge("edge0")).unwrap();
        assert_eq!((attached.ingress.before, attached.ingress.after), (0, 1));
        let mut again = Datapath::load(&options).unwrap();
        let attached = again.attach_edge(&edge("edge0")).unwrap();
        assert_eq!(attached.ingress.change, Change::Replaced);
        assert_eq!((attached.ingress.before, attached.ingress.after), (0, 1), "the place is kept");
        let [ingress, _] = datapath.inspect_edge(&edge("edge0")).unwrap();
        assert!(!ingress.ours, "the first agent notices that another took over (L-05)");
        drop(foreign);
        cleanup(&options, Named::ALL).unwrap();
    });
}

/// L-23: reported, put aside and made anew; what others hold goes on being adopted.
#[test]
fn l23_pins_that_do_not_fit_are_put_aside() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..options() };
        let first = Datapath::load(&options).unwrap();
        first.set_config(&marked(5)).unwrap();
        drop(first);
        let dir = bpffs.path().join("sluice").join(LAYOUT.to_string());
        let [larger, directory, link, missing] =
            ["FRONTENDS_V4", "DEVICES", "RANGES_V6", "SIEVE"].map(|name| dir.join(name));
        for path in [&larger, &directory, &link, &missing] {
            std::fs::remove_file(path).unwrap();
        }
        // Larger values than the programs expect: aya would use it, and crash.
        HashMap::<MapData, u64, [u8; 512]>::create(8, 0).unwrap().pin(&larger).unwrap();
        std::fs::create_dir(&directory).unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        let second = Datapath::load(&options).unwrap();
        assert_eq!(second.config().unwrap().seed, 5);
        for name in ["FRONTENDS_V4", "DEVICES", "RANGES_V6"] {
            let aside = dir.join(format!("damaged-{name}-0"));
            assert!(std::fs::symlink_metadata(&aside).is_ok() && dir.join(name).is_file(), "{name}");
            let told = |line: &String| line.contains(&aside.display().to_string());
            assert!(second.notices().iter().any(told), "{name}: {:?}", second.notices());
        }
        drop(second);
        cleanup(&options, Named::ALL).unwrap();
        assert!(!dir.exists());
    });
}

/// Programs that are loaded later are over the very maps of the others: aya would make anew what has gone.
#[test]
fn l23_nothing_is_loaded_over_maps_made_anew() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..options() };
        let mut datapath = Datapath::load(&options).unwrap();
        let pin = bpffs.path().join("sluice").join(LAYOUT.to_string()).join("DEVICES");
        let aside = pin.with_file_name("aside");
        let mut told =
            || datapath.trace("10.0.0.1".parse().unwrap(), &[]).err().map(|error| error.to_string());
        assert_eq!(told(), None);
        std::fs::rename(&pin, &aside).unwrap();
        let gone = told().unwrap();
        assert!(gone.contains("DEVICES") && gone.contains("restart the agent"), "{gone}");
        assert!(!pin.exists());
        HashMap::<MapData, u32, [u8; 40]>::create(8, 1).unwrap().pin(&pin).unwrap();
        assert!(told().unwrap().contains("other maps are pinned"));
        std::fs::rename(&aside, &pin).unwrap();
        assert_eq!(told(), None);
        drop(datapath);
        cleanup(&options, Named::ALL).unwrap();
    });
}

/// L-22: what is there is kept, and said.
#[test]
fn another_size_at_restart_keeps_the_content() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let small = Options { bpffs: Some(bpffs.path().into()), ..options() };
        let first = Datapath::load(&small).unwrap();
        first.set_config(&marked(5)).unwrap();
        let mut large = small.clone();
        large.sizes.flows *= 2;
        let second = Datapath::load(&large).unwrap();
        assert_eq!(second.config().unwrap().seed, 5);
        assert!(second.notices().iter().any(|line| line.contains("FLOWS_V4")), "{:?}", second.notices());
    });
}

#[test]
fn wrong_places_are_named() {
    in_namespace(|| {
        let tmp = std::env::temp_dir();
        let cases = [
            (Options { bpffs: Some(tmp.clone()), ..options() }, ": not a BPF file system"),
            (Options { cgroup: Some(tmp.clone()), ..options() }, ": not in a cgroup v2 hierarchy"),
            (Options { bpffs: Some(tmp.join("no-such-dir")), ..options() }, "cannot look at"),
        ];
        for (options, want) in cases {
            let error = Datapath::load(&options).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    });
}

#[test]
fn a_device_that_went_is_no_alarm() {
    in_namespace(|| {
        let mut datapath = Datapath::load(&options()).unwrap();
        let gone = edge("edge0");
        crate::common::ip("link del edge0");
        assert!(datapath.attach_edge(&gone).unwrap_err().is_gone());
    });
}
