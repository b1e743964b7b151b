use std::path::{Path, PathBuf};

/// Where the data plane is anchored, apart from the network namespace. `run` and `cleanup` decide alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// A mounted bpffs; `None`: maps are found by the attached programs.
    pub bpffs: Option<PathBuf>,
    /// A directory of cgroup v2; `None`: there is none, so sockets cannot be translated.
    pub cgroup: Option<PathBuf>,
}

impl Places {
    /// What was given, else what is mounted. Whether a given place is what it should be is found out in its use.
    #[must_use]
    pub fn choose(cgroup: Option<&Path>, bpffs: Option<&Path>) -> Self {
        // Without /proc nothing is found mounted, which the status then says.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self {
            bpffs: bpffs.map(Path::to_owned).or_else(|| mounted(&mounts, "bpf", "/sys/fs/bpf")),
            cgroup: cgroup.map(|given| version_2(&mounts, given)).or_else(|| {
                mounted(&mounts, "cgroup2", "/sys/fs/cgroup").or_else(|| first(&mounts, "cgroup2"))
            }),
        }
    }
}

/// Where hosts have version 1 at the usual place, systemd mounts version 2 below it: who names the one means the other.
fn version_2(mounts: &str, given: &Path) -> PathBuf {
    let unified = given.join("unified");
    let is_hybrid = table(mounts, "cgroup2").any(|at| Path::new(at) == unified);
    if is_hybrid { unified } else { given.to_owned() }
}

/// Lines of /proc/self/mounts as (mount point, type); spaces in names are octal there, and never in these places.
fn table<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next()?;
        (fields.next()? == kind).then_some(place)
    })
}

fn mounted(mounts: &str, kind: &str, place: &str) -> Option<PathBuf> {
    table(mounts, kind).find(|at| *at == place).map(PathBuf::from)
}

fn first(mounts: &str, kind: &str) -> Option<PathBuf> {
    table(mounts, kind).next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_among_the_mounts() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let both = format!("cgroup2 /run/other cgroup2 rw 0 0\n{unified}");
        let legacy = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n";
        let cases = [
            ("unified", unified, Some("/sys/fs/cgroup")),
            ("hybrid", hybrid, Some("/sys/fs/cgroup/unified")),
            ("the usual place first", &both, Some("/sys/fs/cgroup")),
            ("version 1 only", legacy, None),
            ("nothing", "", None),
            ("a torn line", "cgroup2", None),
        ];
        for (name, mounts, want) in cases {
            let found = mounted(mounts, "cgroup2", "/sys/fs/cgroup").or_else(|| first(mounts, "cgroup2"));
            assert_eq!(found.as_deref(), want.map(Path::new), "{name}");
        }
        let given = [
            (unified, "/sys/fs/cgroup", "/sys/fs/cgroup"),
            (unified, "/sys/fs/cgroup/sub", "/sys/fs/cgroup/sub"),
            (hybrid, "/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
            (legacy, "/sys/fs/cgroup", "/sys/fs/cgroup"),
        ];
        for (mounts, given, want) in given {
            assert_eq!(version_2(mounts, Path::new(given)), Path::new(want), "{mounts}");
        }
        let elsewhere = "bpf /run/sluice-bpf bpf rw 0 0\n";
        assert_eq!(mounted(elsewhere, "bpf", "/sys/fs/bpf"), None, "another's bpffs is not ours by default");
    }

    #[test]
    fn what_was_given_is_taken() {
        let places = Places::choose(Some(Path::new("/c")), Some(Path::new("/b")));
        assert_eq!(places, Places { bpffs: Some("/b".into()), cgroup: Some("/c".into()) });
    }
}
