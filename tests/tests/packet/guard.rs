//! Packets that pretend: loopback addresses on the wire, ends of somebody else's flow.

use proxy_common::abi::Reason::{ChallengeAck, FlowCreated, Loopback, Spoofed};
use proxy_common::abi::device_flags;
use sluice_tests::packet::shape::Shape;
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, Party, SEEN, STRANGER, Spec, Tale, VIP, Who, ack, fin, renumbered,
    rst, syn, syn_ack, tale,
};
use sluice_tests::packet::world::{EMPTY_PORT, MARK, NODE_PORT};

/// Told to devices with Ethernet headers only: see [`sluice_tests::packet::world::Plan::loopback`].
pub fn rows() -> Vec<Tale> {
    [martians(), flooded(), clients(), answers(), endpoints()].concat()
}

type Kind = fn(Party, Party) -> Spec;

fn martians() -> Vec<Tale> {
    let lo = |port| -> Party { (Who::Loopback, port) };
    let dropped = |title: &str, from, to| tale(title).enters(syn(from, to)).dropped(Loopback).entries(0);
    vec![
        dropped(
            "a neighbour does not reach a NodePort that sockets may dial at loopback X-01",
            STRANGER,
            lo(NODE_PORT),
        ),
        dropped("a pod does not reach a NodePort at loopback X-01", CLIENT, lo(NODE_PORT)),
        dropped("nobody reaches the node's own loopback sockets X-01", STRANGER, lo(10_249)),
        dropped("a loopback source does not dial a ClusterIP X-01", lo(40_001), VIP),
        dropped("a loopback source does not dial a NodePort X-01", lo(40_001), NODEPORT),
        dropped("a loopback source does not dial the node X-01", lo(40_001), (Who::Node, 22)),
        dropped("both ends loopback X-01", lo(40_001), lo(NODE_PORT)),
        tale("answers from a loopback address X-01").enters(syn_ack(lo(443), STRANGER)).dropped(Loopback),
        tale("a fragment to a loopback address X-01")
            .enters(syn(STRANGER, lo(NODE_PORT)).with(&[Shape::Fragment(64, true)]))
            .dropped(Loopback),
        tale("another protocol to a loopback address X-01 P-91")
            .enters(syn(STRANGER, lo(NODE_PORT)).with(&[Shape::Protocol(132)]))
            .dropped(Loopback),
    ]
}

/// Frames for other hosts, which a switch shows to every host while it has not learnt where those are.
fn flooded() -> Vec<Tale> {
    let left_alone = |title: &str, packet: Spec| tale(title).enters(packet.flooded()).untouched().entries(0);
    vec![
        left_alone("what is flooded opens no flow", syn(STRANGER, NODEPORT)),
        left_alone("nor is it refused for want of an endpoint", syn(STRANGER, (Who::Vip, EMPTY_PORT))),
        left_alone("nor for want of a flow", ack(STRANGER, VIP)),
        tale("what is flooded is not translated by a flow of its ends")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .enters(ack(CLIENT, VIP).flooded())
            .untouched(),
        tale("the first answer shows which port of a bridge the endpoint is behind, as bridges flood X-07")
            .on_device(|device| device.flags |= device_flags::PORT)
            .on_pods_device(|device| device.flags |= device_flags::PORT)
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .by_a_pods_device()
            .becomes(BACKEND, renumbered(STRANGER)),
        tale("what answers first by a device that is no port is not believed X-07")
            .on_device(|device| device.flags |= device_flags::PORT)
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .by_a_pods_device()
            .dropped(Spoofed),
        tale("by a port of a bridge comes what is for the bridge, or for another port")
            .on_device(|device| device.flags |= device_flags::PORT)
            .enters(syn(CLIENT, VIP).flooded())
            .becomes(CLIENT, BACKEND),
    ]
}

/// Opened by a pod, at its own device, and answered there.
fn pods(title: &str) -> Tale {
    opened(tale(title))
}

fn opened(tale: Tale) -> Tale {
    tale.enters(syn(CLIENT, VIP))
        .by_a_pods_device()
        .becomes(CLIENT, BACKEND)
        .leaves(syn_ack(BACKEND, CLIENT))
        .by_a_pods_device()
        .becomes(VIP, CLIENT)
}

/// Goes on as before, whatever has happened.
fn lives(tale: Tale) -> Tale {
    tale.enters(ack(CLIENT, VIP))
        .by_a_pods_device()
        .becomes(CLIENT, BACKEND)
        .leaves(ack(BACKEND, CLIENT))
        .by_a_pods_device()
        .becomes(VIP, CLIENT)
        .entries(2)
}

fn clients() -> Vec<Tale> {
    let mut rows = Vec::new();
    let kinds: [(&str, Kind); 4] = [("a SYN", syn), ("data", ack), ("a RST", rst), ("a FIN", fin)];
    for (name, kind) in kinds {
        let spoofed = pods(&format!("{name} with a pod's ends by another device leaves its flow alone X-07"))
            .enters(kind(CLIENT, VIP))
            .dropped(Spoofed);
        rows.push(lives(spoofed));
    }
    rows.extend([
        pods("a forged RST by another device does not make the flow's port free X-07")
            .tcp()
            .enters(rst(CLIENT, VIP))
            .dropped(Spoofed)
            .enters(syn(CLIENT, BACKEND))
            .by_a_pods_device()
            .becomes(renumbered(CLIENT), BACKEND),
        opened(
            tale("a flow that was forged by another device gets no answer, and makes way for the pod's own X-07")
                .enters(syn(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .leaves(syn_ack(BACKEND, CLIENT))
                .by_a_pods_device()
                .dropped(Spoofed),
        )
        .entries(2),
        tale("an outside client's flow is its own, whatever a pod sends in its name X-07")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(NODEPORT, STRANGER)
            .enters(rst(STRANGER, NODEPORT))
            .by_a_pods_device()
            .dropped(Spoofed)
            .enters(ack(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .entries(2),
        tale("what is forged in a pod's name does not cut off its connection straight to the endpoint X-07 P-60")
            .tcp()
            .enters(syn(CLIENT, BACKEND))
            .by_a_pods_device()
            .untouched()
            .leaves(syn_ack(BACKEND, CLIENT))
            .by_a_pods_device()
            .untouched()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .by_a_pods_device()
            .untouched()
            .entries(0),
        tale("a flow whose device is gone belongs to whoever has the address now")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .device_gone()
            .enters(ack(CLIENT, VIP))
            .by_a_pods_device()
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .by_a_pods_device()
            .becomes(VIP, CLIENT),
    ]);
    rows
}

fn answers() -> Vec<Tale> {
    vec![
        tale("an answer that leaves for a pod does not carry the name of what an outsider has dialled for it X-07")
            .enters(syn(CLIENT, NODEPORT))
            .becomes_marked(renumbered(CLIENT), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .by_a_pods_device()
            .dropped(Spoofed)
            .entries(2),
        tale("a renumbered flow keeps its device X-07 P-60")
            .tcp()
            .enters(syn(CLIENT, VIP))
            .by_a_pods_device()
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .by_a_pods_device()
            .dropped(ChallengeAck)
            .enters(rst(CLIENT, VIP))
            .dropped(Spoofed)
            .enters(syn(CLIENT, VIP))
            .by_a_pods_device()
            .becomes(renumbered(CLIENT), BACKEND),
    ]
}

/// At the backend's edge.
fn endpoints() -> Vec<Tale> {
    let masqueraded = |title: &str| {
        tale(title).leaves(syn(STRANGER, BACKEND).marked(MARK)).becomes_unmarked(MASQUERADE, BACKEND)
    };
    vec![
        masqueraded("a pod does not answer in the endpoint's name X-07")
            .enters(syn_ack(BACKEND, SEEN))
            .by_a_pods_device()
            .dropped(Spoofed)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, STRANGER),
        masqueraded("a pod's RST does not end what another endpoint serves X-07 X-08")
            .tcp()
            .enters(rst(BACKEND, SEEN))
            .by_a_pods_device()
            .dropped(Spoofed)
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(SEEN, BACKEND)
            .counted(FlowCreated, 1),
        tale("the stack may send an endpoint's packets another way: only what comes is asked for its device")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(ack(STRANGER, BACKEND).marked(MARK))
            .by_a_pods_device()
            .becomes_unmarked(MASQUERADE, BACKEND),
    ]
}
