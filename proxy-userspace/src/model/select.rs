//! Which endpoints serve which traffic: kube-proxy's rules C1 … C6 as one pure function. Topology hints (C11 … C14)
//! narrow the ready endpoints of the cluster list and belong here as well.

use std::net::SocketAddr;

use proxy_common::abi::service_flags;

/// One endpoint of a Service port in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub address: SocketAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this node (A9).
    pub local: bool,
}

/// The Service's traffic policies; `false` is `Cluster`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub external_local: bool,
    pub internal_local: bool,
}

/// The lists and what an empty one means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub external: Vec<SocketAddr>,
    pub internal: Vec<SocketAddr>,
    /// Bits of [`service_flags`].
    pub flags: u32,
}

/// One candidate for each address, sorted. Of duplicates a ready one counts, then one that is not terminating
/// (A7, C-16, C-18).
#[must_use]
pub fn merge(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    let rank = |c: &Candidate| (c.ready, !c.terminating, c.serving, c.local);
    candidates.sort_unstable_by(|a, b| (a.address, rank(b)).cmp(&(b.address, rank(a))));
    candidates.dedup_by_key(|c| c.address);
    candidates
}

/// The endpoints for external and internal traffic out of [`merge`]d candidates.
#[must_use]
pub fn select(candidates: &[Candidate], policy: Policy) -> Selection {
    let cluster = usable(candidates.iter().copied());
    let local = usable(candidates.iter().copied().filter(|c| c.local));
    // C3: endpoints exist, but none that the policy allows: silence. None at all: refusal.
    let silent = !cluster.is_empty() && local.is_empty();
    let mut flags = 0;
    for (on, flag) in [
        (!policy.external_local, service_flags::MASQUERADE_EXTERNAL),
        (policy.external_local && silent, service_flags::DROP_EXTERNAL),
        (policy.internal_local && silent, service_flags::DROP_INTERNAL),
    ] {
        flags |= if on { flag } else { 0 };
    }
    let list = |only_local| if only_local { local.clone() } else { cluster.clone() };
    Selection { external: list(policy.external_local), internal: list(policy.internal_local), flags }
}

/// C1, C2: the ready ones; if there are none, those that still serve while they terminate.
fn usable(candidates: impl Iterator<Item = Candidate> + Clone) -> Vec<SocketAddr> {
    let ready: Vec<_> = candidates.clone().filter(|c| c.ready).map(|c| c.address).collect();
    if !ready.is_empty() {
        return ready;
    }
    candidates.filter(|c| c.serving && c.terminating).map(|c| c.address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const R: u8 = 1;
    const S: u8 = 2;
    const T: u8 = 4;
    const L: u8 = 8;

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 80))
    }

    fn candidates(list: &[(u8, u8)]) -> Vec<Candidate> {
        list.iter()
            .map(|(n, bits)| Candidate {
                address: address(*n),
                ready: bits & R != 0,
                serving: bits & S != 0,
                terminating: bits & T != 0,
                local: bits & L != 0,
            })
            .collect()
    }

    type Case<'a> = (&'a str, &'a [(u8, u8)], bool, &'a [u8], u32);

    #[test]
    fn usable_endpoints_by_policy() {
        let masquerade = service_flags::MASQUERADE_EXTERNAL;
        let drop = service_flags::DROP_EXTERNAL | service_flags::DROP_INTERNAL;
        let cases: [Case<'_>; 11] = [
            ("C1 ready ones only", &[(1, R | S), (2, S), (3, R | S)], false, &[1, 3], masquerade),
            ("C1 ready wins over terminating", &[(1, R | S), (2, S | T)], false, &[1], masquerade),
            (
                "C1 none ready: serving and terminating",
                &[(1, S | T), (2, T), (3, S)],
                false,
                &[1],
                masquerade,
            ),
            ("C1 not serving is never used", &[(1, T)], false, &[], masquerade),
            ("C1 ready counts even if terminating", &[(1, R | T)], false, &[1], masquerade),
            ("C6 local only", &[(1, R | L), (2, R)], true, &[1], 0),
            ("C2 local terminating before remote ready", &[(1, S | T | L), (2, R)], true, &[1], 0),
            ("C3 remote only: drop", &[(2, R)], true, &[], drop),
            ("C3 remote terminating and serving: drop", &[(2, S | T)], true, &[], drop),
            ("C3 remote terminating, not serving: reject", &[(2, T)], true, &[], 0),
            ("no endpoint: reject", &[], true, &[], 0),
        ];
        for (name, list, local, want, flags) in cases {
            let policy = Policy { external_local: local, internal_local: local };
            let selection = select(&merge(candidates(list)), policy);
            let want: Vec<_> = want.iter().map(|n| address(*n)).collect();
            assert_eq!(selection, Selection { external: want.clone(), internal: want, flags }, "{name}");
        }
    }

    #[test]
    fn c4_internal_policy_leaves_external_traffic_alone() {
        let policy = Policy { external_local: false, internal_local: true };
        let selection = select(&candidates(&[(2, R)]), policy);
        assert_eq!((selection.external.len(), selection.internal.len()), (1, 0));
        assert_eq!(selection.flags, service_flags::MASQUERADE_EXTERNAL | service_flags::DROP_INTERNAL);
    }

    #[test]
    fn c16_c18_duplicates_count_once_whatever_their_order() {
        let pairs = [
            ("ready and not ready", (R | S, S), R | S),
            ("A7 a terminating one never overrides", (R | S, S | T), R | S),
            ("A7 one that is not terminating overrides", (S | T, S), S),
            ("ready behind a terminating twin", (R | S | T, S), R | S | T),
            ("local decides between equals", (R | S, R | S | L), R | S | L),
        ];
        for (name, (a, b), want) in pairs {
            for list in [[(1, a), (1, b)], [(1, b), (1, a)]] {
                assert_eq!(merge(candidates(&list)), candidates(&[(1, want)]), "{name}");
            }
        }
    }
}
