//! Which endpoints serve which traffic: kube-proxy's rules C1 … C14 and C18 as one pure function.

use std::net::SocketAddr;
use std::sync::Arc;

use proxy_common::abi::{flags, service_flags};

/// One endpoint of a Service port in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub address: SocketAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// On this node (A9).
    pub local: bool,
    /// What `hints.forZones` says of this node's zone (C11).
    pub zone: Hint,
    /// What `hints.forNodes` says of this node (C12).
    pub node: Hint,
}

/// Whom an endpoint should serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hint {
    #[default]
    Missing,
    Others,
    Us,
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
    pub external: Arc<[SocketAddr]>,
    pub internal: Arc<[SocketAddr]>,
    /// For pods and the node itself under external policy Local (C7, C8, C18); empty otherwise.
    pub cluster: Arc<[SocketAddr]>,
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
    let cluster = usable(candidates, near);
    let on_node: Vec<_> = candidates.iter().filter(|c| c.local).copied().collect();
    // C14: hints do not matter to it.
    let local = usable(&on_node, |ready| ready);
    // C3: endpoints exist, but none that the policy allows: silence. None at all: refusal.
    let silent = !cluster.is_empty() && local.is_empty();
    let flags = flags([
        (!policy.external_local, service_flags::MASQUERADE_EXTERNAL),
        (policy.external_local && silent, service_flags::DROP_EXTERNAL),
        (policy.internal_local && silent, service_flags::DROP_INTERNAL),
        (policy.external_local, service_flags::LOCAL_EXTERNAL),
    ]);
    let list = |only_local| if only_local { local.clone() } else { cluster.clone() };
    let (external, internal) = (list(policy.external_local), list(policy.internal_local));
    Selection {
        external,
        internal,
        cluster: if policy.external_local { cluster } else { Arc::default() },
        flags,
    }
}

/// G2: those that serve and that `selection` passes over, by policy, hints, or since they terminate while others are ready.
#[must_use]
pub fn unlisted(candidates: &[Candidate], selection: &Selection) -> Vec<SocketAddr> {
    let lists = [&selection.external, &selection.internal, &selection.cluster];
    // All are sorted.
    let is_listed = |address: &SocketAddr| lists.iter().any(|list| list.binary_search(address).is_ok());
    let serving = candidates.iter().filter(|c| c.serving).map(|c| c.address);
    serving.filter(|address| !is_listed(address)).collect()
}

/// C1, C2: the ready ones as far as `choose` takes them; if none is ready, those that still serve while they terminate.
fn usable(candidates: &[Candidate], choose: impl Fn(Vec<Candidate>) -> Vec<Candidate>) -> Arc<[SocketAddr]> {
    let ready: Vec<_> = candidates.iter().filter(|c| c.ready).copied().collect();
    if !ready.is_empty() {
        return choose(ready).iter().map(|c| c.address).collect();
    }
    candidates.iter().filter(|c| c.serving && c.terminating).map(|c| c.address).collect()
}

/// C11, C12: hints count if every ready endpoint has one and one of them names us; node hints are asked first.
fn near(mut ready: Vec<Candidate>) -> Vec<Candidate> {
    for hint in [|c: &Candidate| c.node, |c: &Candidate| c.zone] {
        let complete = ready.iter().all(|c| hint(c) != Hint::Missing);
        if complete && ready.iter().any(|c| hint(c) == Hint::Us) {
            ready.retain(|c| hint(c) == Hint::Us);
            break;
        }
    }
    ready
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
                zone: Hint::default(),
                node: Hint::default(),
            })
            .collect()
    }

    type Case<'a> = (&'a str, &'a [(u8, u8)], bool, &'a [u8], u32);

    #[test]
    fn usable_endpoints_by_policy() {
        let masquerade = service_flags::MASQUERADE_EXTERNAL;
        let drop = service_flags::DROP_EXTERNAL | service_flags::DROP_INTERNAL;
        let own = service_flags::LOCAL_EXTERNAL;
        let cases: [Case<'_>; 12] = [
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
            ("C6 local only", &[(1, R | L), (2, R)], true, &[1], own),
            ("C2 local terminating before remote ready", &[(1, S | T | L), (2, R)], true, &[1], own),
            ("C2 local ready before local terminating", &[(1, S | T | L), (2, R | L)], true, &[2], own),
            ("C3 remote only: drop", &[(2, R)], true, &[], own | drop),
            ("C3 remote terminating and serving: drop", &[(2, S | T)], true, &[], own | drop),
            ("C3 remote terminating, not serving: reject", &[(2, T)], true, &[], own),
            ("no endpoint: reject", &[], true, &[], own),
        ];
        for (name, list, local, want, flags) in cases {
            let policy = Policy { external_local: local, internal_local: local };
            let selection = select(&merge(candidates(list)), policy);
            let want: Arc<[_]> = want.iter().map(|n| address(*n)).collect();
            assert_eq!((&selection.external, &selection.internal), (&want, &want), "{name}");
            assert_eq!(selection.flags, flags, "{name}");
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

    #[test]
    fn c7_c8_c18_pods_and_node_are_not_bound_by_the_external_policy() {
        let (local, everywhere) = (&[1][..], &[1, 2][..]);
        let cases = [
            ("C18 both policies Cluster: no list of its own", false, false, everywhere, everywhere, &[][..]),
            ("C7 C8 external Local", true, false, local, everywhere, everywhere),
            ("C18 both Local", true, true, local, local, everywhere),
            ("C4 internal Local", false, true, everywhere, local, &[]),
        ];
        for (name, external_local, internal_local, external, internal, cluster) in cases {
            let selection =
                select(&candidates(&[(1, R | L), (2, R)]), Policy { external_local, internal_local });
            let lists = [external, internal, cluster]
                .map(|list| list.iter().map(|n| address(*n)).collect::<Arc<[_]>>());
            assert_eq!([selection.external, selection.internal, selection.cluster], lists, "{name}");
        }
    }

    #[test]
    fn g2_endpoints_that_serve_and_are_not_chosen() {
        let own = Policy { external_local: true, internal_local: true };
        type Passed<'a> = (&'a str, &'a [(u8, u8)], Policy, &'a [u8]);
        let cases: [Passed<'_>; 6] = [
            ("all are chosen", &[(1, R | S), (2, R | S)], Policy::default(), &[]),
            ("terminating beside a ready one", &[(1, R | S), (2, S | T)], Policy::default(), &[2]),
            ("not serving", &[(1, R | S), (2, T), (3, 0)], Policy::default(), &[]),
            ("serving, not ready yet", &[(1, R | S), (2, S)], Policy::default(), &[2]),
            ("another node's under policy Local, for nobody else", &[(1, R | S | L), (2, R | S)], own, &[]),
            (
                "internal Local",
                &[(1, S | T | L), (2, R | S | L), (3, R | S)],
                Policy { internal_local: true, ..Policy::default() },
                &[1],
            ),
        ];
        for (name, list, policy, want) in cases {
            let merged = merge(candidates(list));
            let want: Vec<_> = want.iter().map(|n| address(*n)).collect();
            assert_eq!(unlisted(&merged, &select(&merged, policy)), want, "{name}");
        }
        let mut hinted = candidates(&[(1, R | S), (2, R | S)]);
        (hinted[0].zone, hinted[1].zone) = (Hint::Us, Hint::Others);
        let selection = select(&hinted, Policy::default());
        assert_eq!(unlisted(&hinted, &selection), [address(2)], "another zone's");
    }

    #[test]
    fn c11_c12_c14_hints() {
        use Hint::{Missing, Others, Us};
        /// Zone hint, node hint, ready.
        type Hinted = (Hint, Hint, bool);
        let cases: [(&str, &[Hinted], &[u8]); 10] = [
            ("C11 our zone", &[(Us, Missing, true), (Others, Missing, true)], &[1]),
            ("C11 one hint is missing", &[(Us, Missing, true), (Missing, Missing, true)], &[1, 2]),
            ("C11 nobody is for us", &[(Others, Missing, true), (Others, Missing, true)], &[1, 2]),
            ("C11 only ready ones are asked", &[(Us, Missing, true), (Missing, Missing, false)], &[1]),
            ("C12 our node", &[(Us, Us, true), (Us, Others, true)], &[1]),
            ("C12 node before zone", &[(Us, Others, true), (Others, Us, true)], &[2]),
            ("C12 one node hint is missing: zone", &[(Us, Us, true), (Us, Missing, true)], &[1, 2]),
            ("C12 no node is for us: zone", &[(Us, Others, true), (Others, Others, true)], &[1]),
            ("C12 neither: all", &[(Others, Others, true), (Others, Others, true)], &[1, 2]),
            ("C1 terminating ones have no topology", &[(Us, Us, false), (Others, Others, false)], &[1, 2]),
        ];
        for (name, hinted, want) in cases {
            let mut list = candidates(&[(1, S | T | L), (2, S | T | L)]);
            for (candidate, (zone, node, ready)) in list.iter_mut().zip(hinted) {
                (candidate.zone, candidate.node, candidate.ready) = (*zone, *node, *ready);
            }
            let want: Arc<[_]> = want.iter().map(|n| address(*n)).collect();
            assert_eq!(select(&list, Policy::default()).internal, want, "{name}");
            if hinted.iter().all(|(.., ready)| *ready) {
                let policy = Policy { external_local: true, internal_local: true };
                assert_eq!(select(&list, policy).internal.len(), 2, "C14 Local does not ask: {name}");
            }
        }
    }
}
