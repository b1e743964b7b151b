//! Packets that pass the node's stack by because the routes alone give leases: `--shortcuts always`.

use proxy_common::abi::Reason::Shortcut;
use proxy_common::abi::{Config, config_flags};
use proxy_common::path::LEASE;
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, SEEN, STRANGER, Tale, VIP, ack, fin, renumbered, syn, syn_ack,
    tale,
};
use sluice_tests::packet::world::{IFINDEX, PODS_IFINDEX};

use crate::shortcut::{OTHERS, answer_past_it, by_the_stack, on, past_it};

pub fn rows() -> Vec<Tale> {
    const THERE_AND_BACK: [u32; 2] = [PODS_IFINDEX, IFINDEX];
    let opened = |title: &str| {
        tale(title)
            .configured(always)
            .enters(syn(CLIENT, VIP).routed(&THERE_AND_BACK))
            .passes_into_the_pod(CLIENT, BACKEND)
            .enters(syn_ack(BACKEND, CLIENT).routed(&[IFINDEX]))
            .by_a_pods_device()
            .passes_by(VIP, CLIENT)
    };
    let refused = |title: &str, routes: &[u32]| {
        by_the_stack(
            tale(title).configured(always).enters(syn(CLIENT, VIP).routed(routes)).becomes(CLIENT, BACKEND),
        )
    };
    let rows = [
        answer_past_it(past_it(opened(
            "the first packets pass by already, and the routes are asked no more",
        )))
        .counted(Shortcut, 4),
        opened("the last packets pass by too")
            .tcp()
            .enters(fin(CLIENT, VIP))
            .passes_into_the_pod(CLIENT, BACKEND)
            .enters(fin(BACKEND, CLIENT))
            .by_a_pods_device()
            .passes_by(VIP, CLIENT)
            .enters(ack(CLIENT, VIP))
            .passes_into_the_pod(CLIENT, BACKEND),
        opened("with a new lease the routes are asked anew, which may lead elsewhere")
            .after(LEASE)
            .enters(ack(CLIENT, VIP).routed(&[0]))
            .becomes(CLIENT, BACKEND)
            .enters(ack(CLIENT, VIP).routed(&THERE_AND_BACK))
            .passes_into_the_pod(CLIENT, BACKEND),
        refused("a way that routes do not tell is the stack's", &[]),
        refused("a packet that routes would not lead back to is the stack's", &[PODS_IFINDEX, PODS_IFINDEX]),
        refused("an edge of somebody else's is the stack's", &[5, IFINDEX]),
        refused("what answers by routes answers what came by routes P-49", &[])
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(syn_ack(BACKEND, CLIENT).routed(&[IFINDEX]))
            .by_a_pods_device()
            .untouched(),
        tale("into a pod frames are addressed as the stack addresses them P-75")
            .configured(always)
            .on_pods_device(|device| device.frames = OTHERS)
            .enters(syn(CLIENT, VIP).routed(&THERE_AND_BACK))
            .passes_into_the_pod(CLIENT, BACKEND),
        tale("before the pod's hardware address is known the neighbours are asked P-75")
            .configured(always)
            .on_pods_device(|device| device.frames = [0; 3])
            .enters(syn(CLIENT, VIP).routed(&THERE_AND_BACK))
            .passes_by_the_pods_device(CLIENT, BACKEND)
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(ack(CLIENT, VIP))
            .passes_into_the_pod(CLIENT, BACKEND),
        tale("what is longer than the route's MTU is the stack's P-75")
            .configured(always)
            .enters(ack(CLIENT, VIP).carrying(&[7; 1480]).routed(&THERE_AND_BACK))
            .becomes(CLIENT, BACKEND)
            .udp(),
        opened("what leaves where it has come in is asked about there")
            .after(LEASE)
            .enters(ack(BACKEND, CLIENT).routed(&[PODS_IFINDEX]))
            .by_a_pods_device()
            .untouched(),
        opened("an answer that goes by the stack answers a flow that has been answered P-60")
            .after(LEASE)
            .enters(ack(BACKEND, CLIENT).routed(&[PODS_IFINDEX]))
            .by_a_pods_device()
            .untouched()
            .goes_on()
            .becomes(VIP, CLIENT),
        masqueraded(
            tale("a masqueraded flow passes by to the endpoint's edge, where it is masqueraded")
                .configured(always)
                .enters(syn(STRANGER, NODEPORT).routed(&THERE_AND_BACK)),
        )
        .enters(syn_ack(BACKEND, SEEN).routed(&[IFINDEX]))
        .by_a_pods_device()
        .passes_by(NODEPORT, STRANGER)
        .entries(4),
        masqueraded(
            masqueraded(
                tale("a SYN that comes again meets the pair at the endpoint's edge where it is P-42")
                    .tcp()
                    .configured(always)
                    .enters(syn(STRANGER, NODEPORT).routed(&THERE_AND_BACK)),
            )
            .enters(syn(STRANGER, NODEPORT)),
        )
        .enters(ack(STRANGER, NODEPORT))
        .passes_into_the_pod(MASQUERADE, BACKEND),
    ];
    rows.map(Tale::not_sctp).into()
}

/// A request by the NodePort leaves past the stack, and is masqueraded where it comes out.
fn masqueraded(tale: Tale) -> Tale {
    tale.passes_by_marked(renumbered(STRANGER), BACKEND, PODS_IFINDEX)
        .goes_on()
        .by_a_pods_device()
        .becomes_unmarked(MASQUERADE, BACKEND)
}

/// Routes give leases.
pub fn always(config: &mut Config) {
    on(config);
    config.flags |= config_flags::SHORTCUT_ALWAYS;
}
