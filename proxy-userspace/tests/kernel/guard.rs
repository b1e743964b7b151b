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
fn l07_p76_kube_proxys_rules_go_silent_and_others_stay() {
    in_namespace(|| {
        if nft(&["-f", "-"], RULES).is_none() {
            eprintln!("skipped: needs nft");
            return;
        }
        let before = ruleset();
        let rules = Rules::look().unwrap();
        assert!(rules.may_have_connections());
        assert!(rules.silence().unwrap(), "there were rules");
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
        assert!(again.may_have_connections() && !again.silence().unwrap(), "only our own table is left");
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
        assert!(!rules.silence().unwrap());
        assert!(!rules.remove(true).unwrap());
        assert!(nft(&["list", "ruleset"], "").unwrap_or_default().is_empty());
    });
}

/// Chains for each port and each endpoint, so thousands in a cluster of some hundred Services: more than a socket takes at once, and
/// more than fit as answers.
#[test]
fn l07_any_number_of_kube_proxys_chains_goes_silent() {
    in_namespace(|| {
        let chains: String = (0..5_000).map(|at| format!("chain KUBE-SEP-{at:016} {{ drop; }}\n")).collect();
        let many = format!("table ip nat {{\n{chains}}}\n");
        if nft(&["-f", "-"], &many).is_none() {
            eprintln!("skipped: needs nft");
            return;
        }
        let rules = Rules::look().unwrap();
        assert!(rules.silence().unwrap());
        let silent = ruleset();
        assert!(!silent.contains("drop") && silent.matches("chain KUBE-SEP-").count() == 5_000);
        assert!(!Rules::look().unwrap().silence().unwrap(), "only our own table is left");

        nft(&["-f", "-"], &many).unwrap();
        assert!(Rules::look().unwrap().remove(true).unwrap());
        let clean = ruleset();
        assert!(!clean.contains("drop") && !clean.contains("sluice"));
    });
}

/// Whether the command could be run.
fn run(command: &str) -> bool {
    let words: Vec<_> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    output.is_ok_and(|output| output.status.success())
}

#[test]
fn l07_what_kube_proxy_has_outside_nf_tables_is_named_and_kept() {
    in_namespace(|| {
        let told = || -> Vec<String> {
            let rules = Rules::look().unwrap();
            assert_eq!(rules.may_have_connections(), !rules.left().is_empty());
            assert!(
                !rules.silence().unwrap() && !rules.remove(true).unwrap(),
                "nothing of it is ours to remove"
            );
            rules.left().iter().map(|left| left.trouble().what).collect()
        };
        assert_eq!(told(), [""; 0]);
        let mut want = Vec::new();
        for command in ["iptables-legacy", "ip6tables-legacy"] {
            if !run(&format!("{command} -t nat -N KUBE-FIREWALL")) {
                eprintln!("skipped: needs {command} and a kernel that has its tables");
                continue;
            }
            assert_eq!(told(), want, "the kubelet's chains are none of kube-proxy's");
            assert!(run(&format!("{command} -t nat -N KUBE-SERVICES")));
            assert!(run(&format!("{command} -N KUBE-FORWARD")));
            want.push(format!("kube-proxy's rules in {command} (filter, nat)"));
            assert_eq!(told(), want);
        }
        assert!(run("ip link add kube-ipvs0 type bridge"));
        want.push("kube-proxy's IPVS services and device kube-ipvs0".to_owned());
        assert_eq!(told(), want);
    });
}
