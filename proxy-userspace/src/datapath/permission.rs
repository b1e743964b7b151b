//! Why the kernel says EPERM to bpf(2): it never tells by itself.

use std::fs::read_to_string;

const CAP_SYS_ADMIN: u32 = 21;

/// What to do about it.
pub fn remedy() -> &'static str {
    let read = |path| read_to_string(path).unwrap_or_default();
    judge(&read("/proc/self/status"), &read("/proc/self/uid_map"), &read("/sys/kernel/security/lockdown"))
}

/// From the texts of these files.
fn judge(status: &str, uid_map: &str, lockdown: &str) -> &'static str {
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
    if lockdown.contains("[confidentiality]") {
        return "the capabilities are there, but kernel lockdown is set to confidentiality, which keeps programs from reading \
                kernel memory: start the kernel with lockdown=integrity or without it";
    }
    "the capabilities are there, so a security module (SELinux, AppArmor, ...) refuses it: find its line in the kernel's or \
     the audit log, and let its policy allow bpf"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_remedy() {
        const ROOT: &str = "0 0 4294967295";
        const NONE: &str = "[none] integrity confidentiality\n";
        let cases = [
            ("no capabilities", "0", "0", ROOT, NONE, "run as root"),
            ("CAP_BPF and the like, in a container", "c000001000", "2", ROOT, NONE, "run as root"),
            ("seccomp", "1ffffffffff", "2", ROOT, NONE, "seccompProfile"),
            ("user namespace", "1ffffffffff", "0", "0 1000 1", NONE, "hostUsers"),
            ("user namespace with seccomp", "1ffffffffff", "2", "0 100000 65536", NONE, "hostUsers"),
            (
                "lockdown",
                "1ffffffffff",
                "0",
                ROOT,
                "none integrity [confidentiality]\n",
                "lockdown=integrity",
            ),
            (
                "lockdown that allows BPF",
                "1ffffffffff",
                "0",
                ROOT,
                "none [integrity] confidentiality\n",
                "SELinux",
            ),
            ("nothing to be seen", "1ffffffffff", "0", ROOT, "", "SELinux"),
            ("a kernel without seccomp", "1ffffffffff", "", "", "", "SELinux"),
        ];
        for (name, effective, seccomp, uid_map, lockdown, want) in cases {
            let status =
                format!("Name:\tsluice\nCapEff:\t{effective}\nSeccomp:\t{seccomp}\nSeccomp_filters:\t1\n");
            let told = judge(&status, uid_map, lockdown);
            assert!(told.contains(want), "{name}: {told}");
        }
    }
}
