//! The differences between kube-proxy and Sluice that are meant. Everything else that differs is a defect
//! ([`super::reconcile`]).
//!
//! The same table is the page `deploy/differences.md`.

use super::cell::{Cell, Transport, Way};
use super::observe::{Fate, Observation};
use super::{Mode, Variant};
use crate::lab::plan::{Family, Who, Wiring};

/// One difference.
pub struct Difference {
    /// Row of kube-proxy's behaviours, or entry of known failures, that it is about.
    pub row: &'static str,
    pub situation: &'static str,
    pub kube_proxy: &'static str,
    pub sluice: &'static str,
    pub reason: &'static str,
    /// How to get kube-proxy's behaviour, if at all.
    pub switch: &'static str,
    /// What kube-proxy's fate comes to with Sluice; `None` where the difference does not apply.
    pub(super) translate: fn(&Context<'_>, &Fate) -> Option<Vec<Fate>>,
}

/// What a difference may depend on.
pub struct Context<'a> {
    pub mode: Mode,
    pub wiring: Wiring,
    pub variant: Variant,
    pub cell: &'a Cell<'a>,
    /// What Sluice did: where several outcomes are as good the one that came counts.
    pub ours: &'a Observation,
}

impl Context<'_> {
    /// `fate`, where the difference `applies` and Sluice's is that.
    fn came(&self, applies: bool, fate: Fate) -> Option<Vec<Fate>> {
        (applies && self.ours.0.contains(&fate)).then(|| vec![fate])
    }
}

/// All of them.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        row: "1.0",
        situation: "TCP over IPv6 to a Service without usable endpoints",
        kube_proxy: "refused after a second, at the second attempt",
        sluice: "refused at once, as over IPv4",
        reason: "the kernel loses the first ICMPv6 error of a connection that is being opened; a reset is not lost",
        switch: "none",
        translate: |at, fate| {
            let slow =
                at.cell.family == Family::V6 && at.cell.transport == Transport::Tcp && *fate == refused(true);
            at.came(slow, refused(false))
        },
    },
    Difference {
        row: "B17",
        situation: "UDP or SCTP from the node itself to an address that is refused",
        kube_proxy: "the send fails with EPERM",
        sluice: "the send or the receive fails with ECONNREFUSED, as from anywhere else",
        reason: "ECONNREFUSED is what resolvers and QUIC stacks understand as \"try the next\"",
        switch: "none",
        translate: |at, fate| {
            let own = at.cell.client == Who::Host && at.cell.transport != Transport::Tcp;
            at.came(own && *fate == told(NOT_PERMITTED), refused(false))
        },
    },
    Difference {
        row: "B7",
        situation: "a pod of another node that reaches itself through this node",
        kube_proxy: "silence in nftables mode, answered in iptables mode",
        sluice: "answered",
        reason: "nobody wants the silence",
        switch: "none",
        translate: |at, fate| {
            let client = at.cell.client;
            let hairpin = at.mode == Mode::Nftables
                && client.node() == "n2"
                && at.cell.case.endpoints.iter().any(|endpoint| endpoint.who == client);
            // A client that sticks to itself is one of those that stick.
            let itself = |fate: &&Fate| fate.backend() == Some(client.name()) || **fate == Fate::Sticky;
            let answers: Vec<_> = at.ours.0.iter().filter(itself).cloned().collect();
            (hairpin && *fate == Fate::Silence && !answers.is_empty()).then_some(answers)
        },
    },
    Difference {
        row: "B7",
        situation: "a pod that reaches itself, on a bridge whose ports do not send back (hairpin mode off)",
        kube_proxy: "silence",
        sluice: "answered, as with hairpin mode on",
        reason: "the packet is turned round at the pod's own port; no setting of the bridge is needed",
        switch: "none",
        translate: |at, fate| {
            let here = at.wiring == Wiring::Bridged && at.cell.client == Who::Pc;
            (here && *fate == Fate::Silence).then(|| at.ours.0.iter().cloned().collect())
        },
    },
    Difference {
        row: "A17",
        situation: "an external IP and port that two Services claim",
        kube_proxy: "one of the two, in nftables mode not the same on each node and in each family",
        sluice: "the older Service on every node; the other is named in the log",
        reason: "nodes must agree, and whoever came later is to hear of it",
        switch: "none",
        translate: |at, fate| {
            let shared = at.cell.way == Way::SharedIp && fate.backend().is_some();
            shared.then(|| at.ours.0.iter().filter(|ours| ours.backend().is_some()).cloned().collect())
        },
    },
    Difference {
        row: "C4",
        situation: "TCP from the node itself to a Service whose policy allows no endpoint or source",
        kube_proxy: "silence, until the client gives up",
        sluice: "refused at once",
        reason: "the verdict is known when the socket connects; packets are dropped as with kube-proxy",
        switch: "`--sockets off` leaves it to the packets",
        translate: |at, fate| {
            let own = at.cell.client == Who::Host && at.cell.transport == Transport::Tcp;
            let there = own && at.cell.way != Way::Unassigned;
            at.came(there && *fate == Fate::Silence, refused(false))
        },
    },
    Difference {
        row: "C4",
        situation: "SCTP from the node itself to a Service whose policy allows no endpoint",
        kube_proxy: "the send fails with EPERM",
        sluice: "silence, as from anywhere else",
        reason: "no hook is called for sockets of SCTP; their packets are dropped on their way",
        switch: "none",
        translate: |at, fate| {
            let own = at.cell.client == Who::Host && at.cell.transport == Transport::Sctp;
            at.came(own && *fate == told(NOT_PERMITTED), Fate::Silence)
        },
    },
    Difference {
        row: "S-20",
        situation: "SCTP from the node itself to a NodePort on one of its own addresses",
        kube_proxy: "served like any other",
        sluice: "the node's own affair: nothing is translated",
        reason: "no hook is called for sockets of SCTP, and these packets pass no device that has programs",
        switch: "none",
        translate: |at, _| {
            let own = at.cell.client == Who::Host && at.cell.transport == Transport::Sctp;
            let there = matches!(at.cell.way, Way::NodePort | Way::NodePortSecond);
            let answered = at.ours.0.iter().any(|fate| fate.backend().is_some());
            (own && there && !answered).then(|| at.ours.0.iter().cloned().collect())
        },
    },
    Difference {
        row: "C8",
        situation: "the node itself to a NodePort at its own address on the pods' network, external policy Local",
        kube_proxy: "the backend sees that address: by its prefix the node counts as a pod",
        sluice: "the backend sees the address of the device that the packet leaves by, as for every NodePort",
        reason: "whose socket it is says more than what its address looks like",
        switch: "none",
        translate: |at, fate| {
            let there = at.cell.way == Way::NodePortGateway && at.cell.client == Who::Host;
            let seen = matches!(fate, Fate::Answered { seen, .. } if seen == "the gateway");
            (there && seen).then(|| at.ours.0.iter().cloned().collect())
        },
    },
    Difference {
        row: "J12",
        situation: "the node itself to a ClusterIP, where pods are not told from others (nothing is masqueraded)",
        kube_proxy: "the backend sees the node's address towards the Service's address",
        sluice: "the backend sees the node's address towards the backend",
        reason: "a socket is translated before it gets its source address, so that answers come back by the same device",
        switch: "`--sockets off`",
        translate: |at, fate| {
            let there = at.cell.way == Way::ClusterIp && at.cell.client == Who::Host;
            let from = |fate: &Fate| fate.backend().map(str::to_owned);
            let same: Vec<_> = at.ours.0.iter().filter(|ours| from(ours) == from(fate)).cloned().collect();
            (at.variant.lacks_detector(at.cell.family) && there && from(fate).is_some() && !same.is_empty())
                .then_some(same)
        },
    },
    Difference {
        row: "B14",
        situation: "a port or protocol that the Service does not have, at its external IP or LoadBalancer address",
        kube_proxy: "the packet is routed on, to wherever the address leads",
        sluice: "refused",
        reason: "where the address leads back to the node, as it mostly does, packets circle until they die; one on a link of the node's, or that is an endpoint's, may be another host's, and is only refused what would circle",
        switch: "none",
        translate: |at, fate| (is_unlisted(at.cell, false) && routed_on(fate)).then(|| vec![refused(false)]),
    },
    Difference {
        row: "B14",
        situation: "a port or protocol that the Service does not have, at its ClusterIP, in iptables mode",
        kube_proxy: "the packet is routed on; in nftables mode it is refused",
        sluice: "refused in both",
        reason: "a ClusterIP leads nowhere: a client that is told so need not wait",
        switch: "none",
        translate: |at, fate| {
            let there = at.mode == Mode::Iptables && is_unlisted(at.cell, true);
            (there && routed_on(fate)).then(|| vec![refused(false)])
        },
    },
    Difference {
        row: "B17",
        situation: "the node itself to an external IP or LoadBalancer address without usable endpoints, in iptables mode",
        kube_proxy: "the packet is routed on; in nftables mode it is refused",
        sluice: "refused in both",
        reason: "no rule of kube-proxy's refuses what the node sends there, which nobody asked for",
        switch: "none",
        translate: |at, fate| {
            let there = matches!(at.cell.way, Way::ExternalIp | Way::LoadBalancer);
            let corner = at.mode == Mode::Iptables && at.cell.client == Who::Host && there;
            at.came(corner && routed_on(fate), refused(false))
        },
    },
    Difference {
        row: "C16",
        situation: "the node itself to a LoadBalancer address whose source ranges hold one of its several addresses",
        kube_proxy: "silence or EPERM where the kernel sends from another one",
        sluice: "answered",
        reason: "a socket is translated before it gets its source address: the node as a whole is in the range or not",
        switch: "`--sockets off`",
        translate: |at, fate| {
            let there = at.cell.way == Way::LoadBalancer && at.cell.client == Who::Host;
            let one_of_several = there && at.cell.case.name == "ranges-node";
            let answers: Vec<_> = at.ours.0.iter().filter(|ours| ours.backend().is_some()).cloned().collect();
            let closed = *fate == Fate::Silence || *fate == told(NOT_PERMITTED);
            (one_of_several && closed && !answers.is_empty()).then_some(answers)
        },
    },
    Difference {
        row: "C16",
        situation: "a LoadBalancer address without usable endpoints, from outside its source ranges, in iptables mode",
        kube_proxy: "refused: ranges are looked at only where there are endpoints; silence in nftables mode",
        sluice: "silence in both",
        reason: "whoever may not come in is not told whether anybody is there",
        switch: "none",
        translate: |at, fate| {
            let case = at.cell.case;
            let ranged = !case.spec["loadBalancerSourceRanges"].is_null() && case.endpoints.is_empty();
            let there = ranged && at.mode == Mode::Iptables && at.cell.way == Way::LoadBalancer;
            let told = matches!(fate, Fate::Refused { how, .. } if how == "refused");
            at.came(there && told, Fate::Silence)
        },
    },
    Difference {
        row: "D8",
        situation: "the node itself to several addresses of a Service with session affinity",
        kube_proxy: "sticks by the source address, which the kernel may choose differently for each of them",
        sluice: "the node is one client, whichever of its addresses it uses",
        reason: "a socket is translated before it gets its source address",
        switch: "`--sockets off`",
        translate: |at, fate| {
            let there = at.cell.way == Way::Alternately && at.cell.client == Who::Host;
            at.came(there && fate.backend().is_some(), Fate::Sticky)
        },
    },
    Difference {
        row: "B15",
        situation: "UDP from the node itself to an address of the Services' range that no Service has, in nftables mode",
        kube_proxy: "the send fails with EPERM",
        sluice: "silence, as from anywhere else and as over TCP",
        reason: "what is sent there is dropped where it would leave the node",
        switch: "none",
        translate: |at, fate| {
            let own = at.cell.client == Who::Host && at.cell.transport == Transport::Udp;
            let there = own && at.mode == Mode::Nftables && *fate == told(NOT_PERMITTED);
            at.came(there, Fate::Silence)
        },
    },
    Difference {
        row: "E3",
        situation: "a NodePort at an address that `nodePortAddresses` leaves out, policy Local without local endpoints, iptables mode",
        kube_proxy: "silence: this one rule looks at the port only",
        sluice: "the node's own affair: here nobody listens, and the kernel refuses",
        reason: "an address that is left out is left alone",
        switch: "none",
        translate: |at, fate| {
            let there = matches!(at.cell.way, Way::NodePort | Way::NodePortSecond);
            let left_out = matches!(at.variant, Variant::NodePortPrefix | Variant::NodePortPrimary);
            (at.mode == Mode::Iptables && left_out && there && *fate == Fate::Silence)
                .then(|| vec![refused(false)])
        },
    },
    Difference {
        row: "E7",
        situation: "a NodePort at ::1, in iptables mode",
        kube_proxy: "refused, or silence; at 127.0.0.1 it is answered",
        sluice: "answered at both",
        reason: "sockets are translated before routing, so that both families can be served",
        switch: "iptables.localhostNodePorts: false refuses both",
        translate: |at, fate| {
            let there = at.cell.way == Way::NodePortLoopback && at.cell.family == Family::V6;
            let answers: Vec<_> = at.ours.0.iter().cloned().collect();
            let none = matches!(fate, Fate::Silence | Fate::Refused { .. });
            (at.mode == Mode::Iptables && there && none).then_some(answers)
        },
    },
];

pub(super) const NOT_PERMITTED: &str = "Operation not permitted (os error 1)";
const NO_ROUTE: &str = "No route to host (os error 113)";

pub(super) fn refused(slow: bool) -> Fate {
    Fate::Refused { how: "refused".into(), slow }
}

pub(super) fn told(how: &str) -> Fate {
    Fate::Refused { how: how.into(), slow: false }
}

/// Whether the cell dials a port or protocol that its Service does not have, at its ClusterIP or elsewhere.
fn is_unlisted(cell: &Cell<'_>, cluster_ip: bool) -> bool {
    let other = match cell.way {
        Way::ClusterIp | Way::ClusterIpOtherPort => cluster_ip,
        Way::ExternalIp | Way::ExternalIpOtherPort | Way::LoadBalancer | Way::LoadBalancerOtherPort => {
            !cluster_ip
        }
        _ => false,
    };
    let other_port =
        matches!(cell.way, Way::ClusterIpOtherPort | Way::ExternalIpOtherPort | Way::LoadBalancerOtherPort);
    other && (other_port || !cell.case.has(cell.transport))
}

/// In the laboratory the router sends it back: TCP learns that its time to live is over, UDP learns nothing.
fn routed_on(fate: &Fate) -> bool {
    *fate == Fate::Silence || matches!(fate, Fate::Refused { how, .. } if how == NO_ROUTE)
}

/// The table as a page.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Differences from kube-proxy\n\nEvery behaviour of kube-proxy v1.36 that `cargo xtask test oracle` compares and that Sluice does not \
         repeat, generated from\nthe table that the suite goes by (`tests/src/oracle/declared.rs`). What is not here is the same, or a defect.\n",
    );
    for difference in DIFFERENCES {
        let Difference { row, situation, kube_proxy, sluice, reason, switch, .. } = difference;
        page.push_str(&format!(
            "\n## {situation}\n\n- kube-proxy: {kube_proxy}\n- Sluice: {sluice}\n- Why: {reason}\n- Switch: {switch}\n- Row: {row}\n"
        ));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `SLUICE_BLESS=1` writes the page anew.
    #[test]
    fn the_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/differences.md");
        if std::env::var_os("SLUICE_BLESS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert_eq!(
            written,
            page(),
            "write deploy/differences.md anew: SLUICE_BLESS=1 cargo test -p sluice-tests --lib"
        );
    }
}
