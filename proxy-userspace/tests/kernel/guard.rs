//! The change of guard (L-07): kube-proxy's rules in the real nf_tables.

use std::io::Write;
use std::process::{Command, Stdio};

use proxy_userspace::node::Rules;

use crate::common::in_namespace;

/// kube-proxy's chains in both of its modes, as far as it matters here, and other people's beside them.
const RULES: &str = "
table ip kube-proxy {
  chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
  chain services { ip daddr 10.96.0.1 tcp dport 443 dnat to 10.244.1.2:6443; }
}
table ip6 kube-proxy {
  chain services { ip6 daddr fd10:96::1 drop; }
}
table ip nat {
  chain PREROUTING { type nat hook prerouting priority -100; jump KUBE-SERVICES; jump CNI-HOSTPORT; }
  chain KUBE-SERVICES { ip daddr 10.96.0.2 drop; }
  chain CNI-HOSTPORT { tcp dport 8080 dnat to 10.244.1.9; }
}
table ip filter {
  chain KUBE-FIREWALL { ip saddr 127.0.0.1 drop; }
}
table inet others {
  chain services { tcp dport 1 drop; }
}
";

/// nft in the calling thread's namespace; `None` where it is not installed.
fn nft(arguments: &[&str], input: &str) -> Option<String> {
    let mut nft = Command::new("nft");
    nft.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = nft.spawn().ok()?;
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn ruleset() -> String {
    nft(&["--stateless", "list", "ruleset"], "").unwrap()
}

#[test]
fn l07_kube_proxys_rules_go_silent_and_others_stay() {
    in_namespace(|| {
        if nft(&["-f", "-"], RULES).is_none() {
            eprintln!("skipped: needs nft");
            return;
        }
        let before = ruleset();
        let rules = Rules::look().unwrap();
        assert!(rules.may_have_connections());
        rules.silence().unwrap();
        let silent = ruleset();
        for gone in ["10.96.0.1", "fd10:96::1", "10.96.0.2"] {
            assert!(before.contains(gone) && !silent.contains(gone), "{gone} in {silent}");
        }
        for kept in ["jump KUBE-SERVICES", "tcp dport 8080", "127.0.0.1", "tcp dport 1 "] {
            assert!(silent.contains(kept), "{kept} not in {silent}");
        }
        // Both halves of what keeps the kernel's NAT at work.
        assert!(silent.contains("table inet sluice-keeps-nat") && silent.contains("chain keep"), "{silent}");

        let again = Rules::look().unwrap();
        again.silence().unwrap();
        assert_eq!(ruleset(), silent, "once more changes nothing");

        assert!(again.remove(false).unwrap(), "cleanup takes ours away");
        assert!(!ruleset().contains("sluice") && ruleset().contains("jump KUBE-SERVICES"));
        nft(&["-f", "-"], "table ip kube-proxy { chain services { tcp dport 2 drop; }; }\n").unwrap();
        assert!(Rules::look().unwrap().remove(true).unwrap());
        let clean = ruleset();
        assert!(!clean.contains("table ip kube-proxy") && clean.contains("CNI-HOSTPORT"), "{clean}");
    });
}

#[test]
fn l07_a_node_without_kube_proxy_is_left_as_it_is() {
    in_namespace(|| {
        let rules = Rules::look().unwrap();
        assert!(!rules.may_have_connections());
        rules.silence().unwrap();
        assert!(!rules.remove(true).unwrap());
        assert!(nft(&["list", "ruleset"], "").unwrap_or_default().is_empty());
    });
}
