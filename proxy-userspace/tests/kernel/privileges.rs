//! What an agent can do with fewer capabilities than root has. The limited half runs in a child process.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use proxy_userspace::datapath::{Change, Datapath, DatapathError, Named, Options, cleanup};
use proxy_userspace::sync::{Settings, Syncer};

use crate::common::{Scratch, edge, in_namespace, options};
use crate::sync::{desired, expect};

/// Where the child finds the bpffs.
const BPFFS: &str = "SLUICE_TEST_BPFFS";

/// Runs the ignored test `name` of this binary with no capabilities but these.
fn limited(name: &str, capabilities: &str, bpffs: Option<PathBuf>) -> Output {
    let mut child = Command::new("setpriv");
    child.args([format!("--bounding-set=-all{capabilities}"), "--inh-caps=-all".into()]);
    child.arg(std::env::current_exe().unwrap()).args(["--ignored", "--exact", "--nocapture", name]);
    if let Some(bpffs) = bpffs {
        child.env(BPFFS, bpffs);
    }
    child.output().expect("setpriv is installed")
}

fn pinned() -> Option<Options> {
    let bpffs = std::env::var_os(BPFFS)?;
    Some(Options { bpffs: Some(bpffs.into()), ..options() })
}

/// An agent that installs something and goes.
fn founder(options: &Options) {
    let mut datapath = Datapath::load(options).unwrap();
    datapath.attach_edge(&edge("edge0")).unwrap();
    let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
    assert!(syncer.replace_all(&mut datapath, desired(10, 3), Duration::ZERO).is_clean());
}

fn inherit(options: &Options) {
    let output = limited("privileges::heir", ",+bpf,+net_admin,+perfmon", options.bpffs.clone());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    cleanup(options, Named::ALL).unwrap();
}

#[test]
fn with_a_bpffs_an_heir_needs_no_sys_admin() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        let options = Options { bpffs: Some(bpffs.path().into()), ..options() };
        founder(&options);
        inherit(&options);
    });
}

/// B6: what one without a bpffs has made is found by its programs, and pinned whole.
#[test]
fn an_agent_with_a_bpffs_adopts_what_one_without_has_left() {
    in_namespace(|| {
        let bpffs = Scratch::bpffs();
        founder(&options());
        let options = Options { bpffs: Some(bpffs.path().into()), ..options() };
        let mut datapath = Datapath::load(&options).unwrap();
        assert!(datapath.adopted());
        let syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
        assert_eq!(syncer.installed(&datapath).unwrap().len(), desired(10, 3).len());
        let attached = datapath.attach_edge(&edge("edge0")).unwrap();
        assert_eq!((attached.ingress.change, attached.egress.change), (Change::Replaced, Change::Replaced));
        drop((syncer, datapath));
        inherit(&options);
    });
}

#[test]
#[ignore = "the limited half of another test"]
fn heir() {
    let Some(options) = pinned() else { return };
    // Built otherwise: it replaces what it finds, for which it has to open it.
    let options = Options { test_mode: !options.test_mode, ..options };
    let mut datapath = Datapath::load(&options).unwrap();
    assert!(datapath.adopted());
    let attached = datapath.attach_edge(&edge("edge0")).unwrap();
    assert_eq!((attached.ingress.change, attached.egress.change), (Change::Replaced, Change::Replaced));
    let mut syncer = Syncer::adopt(&datapath, Settings::default()).unwrap();
    let more = desired(12, 4);
    assert!(syncer.replace_all(&mut datapath, more.clone(), Duration::ZERO).is_clean());
    expect(&syncer.installed(&datapath).unwrap(), &more);
    datapath.retire(&[edge("edge0").ifindex]).unwrap();
}

#[test]
fn without_permission_one_line_says_what_is_needed() {
    in_namespace(|| {
        let output = limited("privileges::nobody", "", None);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    });
}

#[test]
#[ignore = "the limited half of another test"]
fn nobody() {
    let error = Datapath::load(&options()).unwrap_err();
    assert!(matches!(error, DatapathError::NotPermitted { .. }), "{error}");
    let line = error.to_string();
    assert!(line.contains("CAP_BPF") && line.contains("--bpffs") && !line.contains('\n'), "{line}");
    let error = cleanup(&options(), Named::ALL).unwrap_err();
    assert!(
        matches!(error, DatapathError::NotPermitted { .. }),
        "cleaning nothing would look like success: {error}"
    );
}
