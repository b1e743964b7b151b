//! Datagrams.

use proxy_common::abi::Reason::FlowCreated;
use sluice_tests::packet::frame::{self, SYN};
use sluice_tests::packet::shape::Shape;
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, SEEN, STRANGER, Tale, VIP, Who, renumbered, syn, tale,
};
use sluice_tests::packet::world::{BACKEND_PORT, NODE_PORT, PORT, plan};

pub fn rows() -> Vec<Tale> {
    let rows = [flows(), checksums(), own()].concat();
    rows.into_iter().map(Tale::udp).collect()
}

fn flows() -> Vec<Tale> {
    let mut sender =
        tale("a sender that never hears anything keeps its endpoint for as long as it sends P-53")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND);
    for _ in 0..100 {
        sender = sender.after(27).enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND);
    }
    vec![
        sender.counted(FlowCreated, 1),
        tale("an unanswered flow whose endpoint has left is balanced anew P-52")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .endpoint_leaves()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        tale("an answered flow whose endpoint has left is balanced anew P-52")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .endpoint_leaves()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        tale(
            "of a masqueraded flow that is balanced anew nothing stays at the old endpoint's edge P-52 P-67",
        )
        .enters(syn(STRANGER, NODEPORT))
        .becomes_marked(renumbered(STRANGER), BACKEND)
        .goes_on()
        .becomes_unmarked(MASQUERADE, BACKEND)
        .endpoint_leaves()
        .enters(syn(STRANGER, NODEPORT))
        .becomes_marked(renumbered(STRANGER), BACKEND)
        .counted(FlowCreated, 3)
        .entries(2),
        tale("a late answer of an endpoint that has left still comes from the Service P-52")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .endpoint_leaves()
            .leaves(syn(BACKEND, CLIENT))
            .becomes(VIP, CLIENT),
        silent("an unanswered flow goes on within its time P-53", false, 27).counted(FlowCreated, 1),
        silent("beyond it is balanced anew, though nobody needed its room P-53", false, 28)
            .counted(FlowCreated, 2)
            .entries(2),
        silent("an answered flow has four times that P-53", true, 111).counted(FlowCreated, 1),
        silent("and no more P-53", true, 112).counted(FlowCreated, 2).entries(2),
        tale("a flow whose client is silent has the time of its answers P-53")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .after(100)
            .leaves(syn(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .after(100)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        tale("a masqueraded flow begins anew at both edges P-53")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .after(28)
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .counted(FlowCreated, 4)
            .entries(4),
        tale("several answers to one datagram")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn(BACKEND, CLIENT).carrying(b"one"))
            .becomes(VIP, CLIENT)
            .leaves(syn(BACKEND, CLIENT).carrying(b"two"))
            .becomes(VIP, CLIENT)
            .entries(2),
    ]
}

/// A flow whose client sends after so many ticks.
fn silent(what: &str, answered: bool, ticks: u32) -> Tale {
    let opened = tale(what).enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND);
    let opened = if answered { opened.leaves(syn(BACKEND, CLIENT)).becomes(VIP, CLIENT) } else { opened };
    opened.after(ticks).enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND)
}

/// The node's own flows from ports that are also NodePorts.
fn own() -> Vec<Tale> {
    let far = (Who::Outside, 53);
    let nothing = |title: &str, own| {
        tale(title).leaves(syn(own, far)).untouched().enters(syn(far, own)).untouched().entries(0)
    };
    vec![
        tale("answers to the node's own datagrams from a NodePort's number are no requests B11 P-30")
            .leaves(syn(NODEPORT, far))
            .becomes(NODEPORT, far)
            .entries(2)
            .enters(syn(far, NODEPORT))
            .becomes(far, NODEPORT)
            .leaves(syn(NODEPORT, far))
            .becomes(NODEPORT, far)
            .counted(FlowCreated, 1),
        tale("everybody else's datagrams to that NodePort are requests B10")
            .leaves(syn(NODEPORT, far))
            .becomes(NODEPORT, far)
            .enters(syn((Who::Outside, 54), NODEPORT))
            .becomes_marked((Who::Outside, 0), BACKEND),
        tale("the same at the address and port of a Service that is bound on the node P-28")
            .leaves(syn((Who::Bound, PORT), far))
            .becomes((Who::Bound, PORT), far)
            .enters(syn(far, (Who::Bound, PORT)))
            .becomes(far, (Who::Bound, PORT)),
        nothing("the node's own datagrams from another port need no entry", (Who::Node, 30_099)),
        nothing("nor from an address that serves no NodePorts", (Who::Plain, NODE_PORT)),
        tale("a NodePort's client at the far end of the node's own flow: the later one takes another port P-30")
            .enters(syn(far, NODEPORT))
            .becomes_marked((Who::Outside, 0), BACKEND)
            .leaves(syn(NODEPORT, far))
            .becomes((Who::Node, 0), far)
            .enters(syn(far, SEEN))
            .becomes(far, NODEPORT)
            .enters(syn(far, NODEPORT))
            .becomes_marked((Who::Outside, 0), BACKEND),
    ]
}

/// Two bytes of payload with which a datagram from the client to the endpoint sums up to zero, which is sent as all ones.
fn zero_sum(v6: bool) -> Vec<u8> {
    let p = plan(v6);
    let summed = |payload: &[u8]| {
        let datagram = frame::packet(17, SYN, (p.pod, CLIENT.1), (p.backend, BACKEND_PORT), payload);
        datagram.ends_with(&[&[0xff, 0xff], payload].concat())
    };
    (0..=u16::MAX).map(|word| word.to_be_bytes().to_vec()).find(|payload| summed(payload)).unwrap_or_default()
}

fn checksums() -> Vec<Tale> {
    let absent = |spec: sluice_tests::packet::tale::Spec| spec.with(&[Shape::NoChecksum]);
    let becomes_zero = |v6| {
        tale("a checksum that becomes zero is sent as all ones P-58")
            .enters(syn(CLIENT, VIP).carrying(&zero_sum(v6)))
            .becomes(CLIENT, BACKEND)
    };
    let was_zero = |v6| {
        tale("a checksum that was zero and sent as all ones changes like any other P-58")
            .leaves(syn(BACKEND, CLIENT).carrying(&zero_sum(v6)))
            .untouched()
            .enters(syn(CLIENT, VIP).carrying(&zero_sum(v6)))
            .becomes(CLIENT, BACKEND)
            .leaves(syn(BACKEND, CLIENT).carrying(&zero_sum(v6)))
            .becomes(VIP, CLIENT)
    };
    vec![
        becomes_zero(false).v4(),
        becomes_zero(true).v6(),
        was_zero(false).v4(),
        was_zero(true).v6(),
        tale("an absent checksum stays absent in all four rewrites P-58")
            .v4()
            .enters(absent(syn(STRANGER, NODEPORT)))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(absent(syn(BACKEND, SEEN)))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER),
    ]
}
