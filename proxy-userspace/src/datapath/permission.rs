//! Why the kernel says EPERM to bpf(2): it never tells by itself.

use std::fs::read_to_string;

const CAP_SYS_ADMIN: u32 = 21;

/// What to do about it.
pub fn remedy() -> &'static str {
    let read = |name| read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    judge(&read("status"), &read("uid_map"))
}

/// From the texts of /proc/self/status and /proc/self/uid_map.
fn judge(status: &str, uid_map: &str) -> &'static str {
    let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let effective = u64::from_str_radix(field("CapEff:"), 16).unwrap_or_default();
    if effective >> CAP_SYS_ADMIN & 1 == 0 {
        return "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON and a bpffs (--bpffs); without a bpffs \
                CAP_SYS_ADMIN is needed";
    }
    let whole: Vec<_> = uid_map.split_whitespace().collect();
    if !uid_map.is_empty() && whole != ["0", "0", "4294967295"] {
        return "capabilities of a user namespace do not count: run in the host's (in a pod: hostUsers: true)";
    }
    if !["", "0"].contains(&field("Seccomp:")) {
        return "the capabilities are there, so a seccomp filter refuses it: let it allow bpf (in a pod: \
                securityContext.seccompProfile)";
    }
    "the capabilities are there, so kernel lockdown or a security module refuses it: see the kernel log"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_remedy() {
        const ROOT: &str = "0 0 4294967295";
        let cases = [
            ("no capabilities", "0", "0", ROOT, "run as root"),
            ("CAP_BPF and the like, in a container", "c000001000", "2", ROOT, "run as root"),
            ("seccomp", "1ffffffffff", "2", ROOT, "seccompProfile"),
            ("user namespace", "1ffffffffff", "0", "0 1000 1", "hostUsers"),
            ("user namespace with seccomp", "1ffffffffff", "2", "0 100000 65536", "hostUsers"),
            ("nothing to be seen", "1ffffffffff", "0", ROOT, "lockdown"),
            ("a kernel without seccomp", "1ffffffffff", "", "", "lockdown"),
        ];
        for (name, effective, seccomp, uid_map, want) in cases {
            let status =
                format!("Name:\tsluice\nCapEff:\t{effective}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n");
            let told = judge(&status, uid_map);
            assert!(told.contains(want), "{name}: {told}");
        }
    }
}
