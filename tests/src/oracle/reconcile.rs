//! Whether what two proxies did is the same, but for what is declared.

use super::cell::Cell;
use super::declared::{Context, DIFFERENCES};
use super::observe::Observation;
use super::{Mode, Variant};
use crate::lab::plan::Wiring;

/// The numbers of the declared differences by which the two observations agree; `None` if they do not.
#[must_use]
pub fn reconcile(
    (mode, wiring, variant): (Mode, Wiring, Variant),
    cell: &Cell<'_>,
    ours: &Observation,
    theirs: &Observation,
) -> Option<Vec<usize>> {
    let at = Context { mode, wiring, variant, cell, ours };
    let (mut used, mut expected) = (Vec::new(), Observation::default());
    for fate in &theirs.0 {
        let declared = DIFFERENCES.iter().enumerate();
        let found = declared
            .filter(|_| !ours.0.contains(fate))
            .find_map(|(number, difference)| Some((number, (difference.translate)(&at, fate)?)));
        match found {
            Some((number, fates)) => {
                used.push(number);
                expected.0.extend(fates);
            }
            None => _ = expected.0.insert(fate.clone()),
        }
    }
    (expected == *ours).then_some(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan::{Family, Who};
    use crate::oracle::Fate;
    use crate::oracle::case::{Case, Endpoint, State};
    use crate::oracle::cell::Transport;
    use crate::oracle::cell::Way;
    use crate::oracle::declared::{NOT_PERMITTED, refused, told};

    /// Name, mode, question, what kube-proxy and Sluice did, and the row by which that is meant.
    type Row<'a> = (&'static str, Mode, Cell<'a>, Vec<Fate>, Vec<Fate>, Option<&'static str>);

    fn at(way: Way, client: Who, family: Family, transport: Transport, case: &Case) -> Cell<'_> {
        Cell { case, way, client, family, transport, sticky: false }
    }

    fn seen(fates: &[Fate]) -> Observation {
        Observation(fates.iter().cloned().collect())
    }

    fn answered(by: &str, seen: &str) -> Fate {
        Fate::Answered { by: by.into(), seen: seen.into() }
    }

    /// What kube-proxy did, what Sluice did, and whether that is meant.
    #[test]
    fn only_declared_differences_are_passed_over() {
        use Transport::{Tcp, Udp};
        let case = Case::new("both", [Who::Pb, Who::Pd].map(|who| Endpoint::new(who, State::Ready)));
        let cell = |way, client, family, transport| at(way, client, family, transport, &case);
        let pod = |family, transport| cell(Way::ClusterIp, Who::Pa, family, transport);
        let (pb, pd) = (answered("pb", "pa"), answered("pd", "pa"));
        let eperm = told(NOT_PERMITTED);
        let nft = Mode::Nftables;
        let ipt = Mode::Iptables;
        let table: [Row<'_>; 15] = [
            (
                "the same",
                nft,
                pod(Family::V4, Tcp),
                vec![pb.clone(), pd.clone()],
                vec![pb.clone(), pd.clone()],
                Some(""),
            ),
            (
                "a backend less",
                nft,
                pod(Family::V4, Tcp),
                vec![pb.clone(), pd.clone()],
                vec![pb.clone()],
                None,
            ),
            (
                "a backend more",
                nft,
                pod(Family::V4, Tcp),
                vec![pb.clone()],
                vec![pb.clone(), pd.clone()],
                None,
            ),
            (
                "another source",
                nft,
                pod(Family::V4, Tcp),
                vec![pb.clone()],
                vec![answered("pb", "host")],
                None,
            ),
            ("silence for an answer", nft, pod(Family::V4, Tcp), vec![pb.clone()], vec![Fate::Silence], None),
            (
                "refused sooner",
                nft,
                pod(Family::V6, Tcp),
                vec![refused(true)],
                vec![refused(false)],
                Some("1.0"),
            ),
            ("refused later", nft, pod(Family::V6, Tcp), vec![refused(false)], vec![refused(true)], None),
            (
                "refused sooner over IPv4",
                nft,
                pod(Family::V4, Tcp),
                vec![refused(true)],
                vec![refused(false)],
                None,
            ),
            ("EPERM at a pod", nft, pod(Family::V4, Udp), vec![eperm.clone()], vec![refused(false)], None),
            (
                "EPERM at the node",
                nft,
                cell(Way::ClusterIp, Who::Host, Family::V4, Udp),
                vec![eperm],
                vec![refused(false)],
                Some("B17"),
            ),
            (
                "hairpin elsewhere",
                nft,
                cell(Way::ClusterIp, Who::Pd, Family::V4, Tcp),
                vec![answered("pb", "pd"), Fate::Silence],
                vec![answered("pb", "pd"), answered("pd", "host")],
                Some("B7"),
            ),
            (
                "hairpin elsewhere, iptables",
                ipt,
                cell(Way::ClusterIp, Who::Pd, Family::V4, Tcp),
                vec![Fate::Silence],
                vec![answered("pd", "host")],
                None,
            ),
            (
                "another port of a ClusterIP",
                ipt,
                cell(Way::ClusterIpOtherPort, Who::Pa, Family::V4, Udp),
                vec![Fate::Silence],
                vec![refused(false)],
                Some("B14"),
            ),
            (
                "the same in nftables mode",
                nft,
                cell(Way::ClusterIpOtherPort, Who::Pa, Family::V4, Udp),
                vec![Fate::Silence],
                vec![refused(false)],
                None,
            ),
            ("nothing seen", nft, pod(Family::V4, Tcp), vec![pb], vec![], None),
        ];
        for (name, mode, cell, theirs, ours, expected) in table {
            let round = (mode, Wiring::Routed, Variant::Plain);
            let used = reconcile(round, &cell, &seen(&ours), &seen(&theirs));
            let rows = used
                .map(|used| used.iter().map(|number| DIFFERENCES[*number].row).collect::<Vec<_>>().join(" "));
            assert_eq!(rows.as_deref(), expected, "{name}");
        }
    }
}
