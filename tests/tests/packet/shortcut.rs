//! Packets of known flows that pass the node's stack by: who gets a lease, who uses it, and what ends it.

use proxy_common::abi::Reason::{FlowCreated, Shortcut, Spoofed};
use proxy_common::abi::{Config, Device, config_flags, device_flags};
use proxy_common::path::LEASE;
use sluice_tests::packet::shape::Shape;
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, SEEN, STRANGER, Tale, VIP, Who, ack, fin, renumbered, rst, syn,
    syn_ack, tale,
};
use sluice_tests::packet::world::PODS_IFINDEX;

pub fn rows() -> Vec<Tale> {
    let rows = [granted(), used(), ended(), devices(), masqueraded()].concat();
    let on = |tale: Tale| switched(tale.not_sctp());
    let mut rows: Vec<_> = rows.into_iter().map(on).collect();
    rows.extend(off());
    rows
}

/// Hardware addresses that no frame has had yet.
pub const OTHERS: [u32; 3] = [0x1111_1102, 0x2202_1111, 0x2222_2222];

pub fn on(config: &mut Config) {
    config.flags |= config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP;
}

/// Shortcuts are on from the first packet.
fn switched(mut tale: Tale) -> Tale {
    let steps = std::mem::take(&mut tale.steps);
    let mut tale = tale.configured(on);
    tale.steps.extend(steps);
    tale
}

/// A client beyond a NIC and a pod's endpoint: both directions have gone by the stack once, and have got their leases.
fn leased(title: &str) -> Tale {
    tale(title)
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .goes_on()
        .by_a_pods_device()
        .untouched()
        .enters(syn_ack(BACKEND, CLIENT))
        .by_a_pods_device()
        .untouched()
        .goes_on()
        .becomes(VIP, CLIENT)
}

pub fn by_the_stack(tale: Tale) -> Tale {
    tale.enters(ack(CLIENT, VIP)).becomes(CLIENT, BACKEND)
}

pub fn past_it(tale: Tale) -> Tale {
    tale.enters(ack(CLIENT, VIP)).passes_into_the_pod(CLIENT, BACKEND)
}

/// A segment with so many bytes goes by the stack.
fn longer(tale: Tale, bytes: usize) -> Tale {
    tale.enters(ack(CLIENT, VIP).carrying(&vec![7; bytes])).becomes(CLIENT, BACKEND)
}

fn answer_by_the_stack(tale: Tale) -> Tale {
    tale.enters(ack(BACKEND, CLIENT)).by_a_pods_device().untouched()
}

pub fn answer_past_it(tale: Tale) -> Tale {
    tale.enters(ack(BACKEND, CLIENT)).by_a_pods_device().passes_by(VIP, CLIENT)
}

fn granted() -> Vec<Tale> {
    vec![
        answer_past_it(past_it(leased(
            "a flow whose packets have come out of the stack passes it by in both directions",
        )))
        .counted(Shortcut, 2)
        .counted(FlowCreated, 1)
        .entries(2),
        by_the_stack(
            tale("a request that has not come out of the stack gives no lease")
                .enters(syn(CLIENT, VIP))
                .becomes(CLIENT, BACKEND),
        ),
        answer_by_the_stack(
            tale("no answer passes by before a request has come out: nobody knows by where requests leave")
                .enters(syn(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .enters(syn_ack(BACKEND, CLIENT))
                .by_a_pods_device()
                .untouched()
                .goes_on()
                .becomes(VIP, CLIENT),
        ),
        by_the_stack(
            tale("what the CNI has masqueraded in between is another tuple, and gives no lease")
                .enters(syn(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .leaves(syn((Who::Masquerade, 40_001), BACKEND))
                .by_a_pods_device()
                .untouched(),
        ),
        by_the_stack(
            tale("a packet without a note gives no lease: it came in by another device")
                .enters(syn(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .leaves(syn(CLIENT, BACKEND))
                .by_a_pods_device()
                .untouched(),
        ),
    ]
}

fn used() -> Vec<Tale> {
    let mut rows = vec![
        leased("a packet by another device goes by the stack, which may have something against it")
            .enters(ack(BACKEND, CLIENT))
            .becomes(BACKEND, CLIENT)
            .untouched(),
        leased("by another pod's device it is dropped X-07")
            .enters(ack(CLIENT, VIP))
            .by_a_pods_device()
            .dropped(Spoofed),
        leased(
            "a packet that the routes lead elsewhere by now goes by the stack, until it has come out there",
        )
        .enters(ack(BACKEND, CLIENT).routed(&[PODS_IFINDEX]))
        .by_a_pods_device()
        .untouched()
        .enters(ack(BACKEND, CLIENT))
        .by_a_pods_device()
        .passes_by(VIP, CLIENT),
        past_it(
            leased("the last hop is used up by the stack, which says so")
                .enters(ack(CLIENT, VIP).with(&[Shape::Hops(1)]))
                .becomes(CLIENT, BACKEND),
        ),
        leased("two hops are enough")
            .enters(ack(CLIENT, VIP).with(&[Shape::Hops(2)]))
            .passes_into_the_pod(CLIENT, BACKEND),
        past_it(
            longer(
                leased(
                    "what is longer than all that has come out goes by the stack, which may not let it P-75",
                ),
                500,
            )
            .enters(ack(CLIENT, VIP).carrying(&[7; 500]))
            .becomes(CLIENT, BACKEND),
        ),
        longer(leased("until it has come out too P-75"), 500)
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(ack(CLIENT, VIP).carrying(&[7; 500]))
            .passes_into_the_pod(CLIENT, BACKEND)
            .enters(ack(CLIENT, VIP).carrying(&[7; 501]))
            .becomes(CLIENT, BACKEND),
        longer(
            by_the_stack(
                longer(leased("and anew with the next lease P-75"), 500)
                    .goes_on()
                    .by_a_pods_device()
                    .untouched()
                    .after(LEASE),
            )
            .goes_on()
            .by_a_pods_device()
            .untouched(),
            500,
        ),
        leased("a super-packet is judged by its segments P-81")
            .enters(ack(CLIENT, VIP).carrying(&[7; 1000]))
            .becomes(CLIENT, BACKEND)
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(ack(CLIENT, VIP).of_segments(3))
            .passes_into_the_pod(CLIENT, BACKEND),
        leased("also when it shows the way P-81")
            .enters(ack(CLIENT, VIP).of_segments(3))
            .becomes(CLIENT, BACKEND)
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(ack(CLIENT, VIP).carrying(&[7; 1000]))
            .passes_into_the_pod(CLIENT, BACKEND)
            .enters(ack(CLIENT, VIP).carrying(&[7; 1001]))
            .becomes(CLIENT, BACKEND),
    ];
    let segments = [("SYN", syn as fn(_, _) -> _), ("FIN", fin), ("RST", rst)];
    rows.extend(segments.map(|(name, kind)| {
        leased(&format!("a {name} goes by the stack"))
            .tcp()
            .enters(kind(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
    }));
    rows
}

fn ended() -> Vec<Tale> {
    let renewed = |tale: Tale| tale.goes_on().by_a_pods_device().untouched();
    vec![
        past_it(past_it(leased("a lease lasts").after(LEASE - 1))),
        past_it(renewed(by_the_stack(
            leased("and is over, until a packet has come out of the stack again").after(LEASE),
        ))),
        by_the_stack(by_the_stack(
            leased("where none comes out any more, all stay in the stack").after(LEASE),
        )),
        answer_past_it(
            answer_by_the_stack(leased("each direction has its own").after(LEASE))
                .goes_on()
                .becomes(VIP, CLIENT),
        )
        .enters(ack(CLIENT, VIP))
        .becomes(CLIENT, BACKEND),
        answer_by_the_stack(by_the_stack(
            leased("a FIN ends both leases: the stack sees how it ends")
                .tcp()
                .enters(fin(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .goes_on()
                .by_a_pods_device()
                .untouched(),
        )),
        answer_by_the_stack(by_the_stack(
            leased("the endpoint's FIN does too")
                .tcp()
                .enters(fin(BACKEND, CLIENT))
                .by_a_pods_device()
                .untouched()
                .goes_on()
                .becomes(VIP, CLIENT),
        )),
        by_the_stack(by_the_stack(
            leased("a reset ends them for good, believed or not")
                .tcp()
                .enters(rst(CLIENT, VIP))
                .becomes(CLIENT, BACKEND)
                .goes_on()
                .by_a_pods_device()
                .untouched(),
        ))
        .goes_on()
        .by_a_pods_device()
        .untouched()
        .enters(ack(CLIENT, VIP))
        .becomes(CLIENT, BACKEND),
        by_the_stack(
            leased(
                "a program or a queueing discipline of somebody else's that comes meanwhile counts at once",
            )
            .on_pods_device(|device| device.flags &= !device_flags::SHORTCUT),
        ),
        past_it(
            longer(leased("an MTU that has become smaller too P-75"), 100)
                .goes_on()
                .by_a_pods_device()
                .untouched()
                .on_pods_device(|device| device.mtu = 100)
                .enters(ack(CLIENT, VIP).carrying(&[7; 100]))
                .becomes(CLIENT, BACKEND),
        ),
        answer_by_the_stack(by_the_stack(leased("switched off, none counts").configured(|config| {
            config.flags &= !(config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP)
        }))),
    ]
}

fn devices() -> Vec<Tale> {
    type Change = fn(&mut Device);
    let none: Change = |device| device.flags &= !device_flags::SHORTCUT;
    let opened = |tale: Tale| {
        tale.enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .goes_on()
            .by_a_pods_device()
            .untouched()
            .enters(syn_ack(BACKEND, CLIENT))
            .by_a_pods_device()
            .untouched()
            .goes_on()
            .becomes(VIP, CLIENT)
    };
    let port: Change = |device| device.flags = device.flags & !device_flags::NEIGHBOUR | device_flags::PORT;
    vec![
        answer_by_the_stack(by_the_stack(opened(
            tale("no shortcut to a device with a queueing discipline or a program of somebody else's")
                .on_pods_device(none),
        ))),
        answer_by_the_stack(by_the_stack(opened(tale("nor from there").on_device(none)))),
        opened(
            tale(
                "a device that has no other end elsewhere is left by its egress, where nothing is to be done",
            )
            .on_pods_device(|device| device.flags &= !device_flags::PEER),
        )
        .enters(ack(CLIENT, VIP))
        .passes_by_the_pods_device(CLIENT, BACKEND)
        .goes_on()
        .by_a_pods_device()
        .untouched(),
        past_it(answer_past_it(opened(
            tale("the pod's hardware address is learnt from what the stack sends it P-75")
                .on_pods_device(|device| device.frames = [0; 3]),
        ))),
        opened(
            tale("where several hardware addresses are behind a device the stack knows which is whose P-75")
                .on_pods_device(|device| device.frames = OTHERS),
        )
        .enters(ack(CLIENT, VIP))
        .passes_by_the_pods_device(CLIENT, BACKEND),
        past_it(
            answer_past_it(by_the_stack(opened(
                tale("a port of a bridge is learnt by an answer, as bridges flood").on_pods_device(port),
            )))
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .goes_on()
            .by_a_pods_device()
            .untouched(),
        ),
    ]
}

/// A client outside, by the NodePort, to an endpoint behind the pod's device: all four rewrites.
fn masqueraded() -> Vec<Tale> {
    let opened = |title: &str| {
        tale(title)
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .by_a_pods_device()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .by_a_pods_device()
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER)
    };
    vec![
        opened(
            "a masqueraded flow passes by into the pod: what is done at the endpoint's edge is done at once",
        )
        .enters(ack(STRANGER, NODEPORT))
        .passes_into_the_pod(MASQUERADE, BACKEND)
        .enters(ack(BACKEND, SEEN))
        .by_a_pods_device()
        .passes_by(NODEPORT, STRANGER)
        .goes_on()
        .untouched()
        .counted(Shortcut, 2)
        .entries(4),
        opened("where nothing of ours runs behind a port of a bridge, it does not")
            .on_pods_device(|device| device.flags &= !device_flags::NEIGHBOUR)
            .after(LEASE)
            .enters(ack(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .by_a_pods_device()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(ack(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND),
        tale("in and out by one NIC")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER)
            .enters(ack(STRANGER, NODEPORT))
            .passes_by(MASQUERADE, BACKEND)
            .goes_on()
            .untouched()
            .enters(ack(BACKEND, SEEN))
            .passes_by(NODEPORT, STRANGER),
    ]
}

/// What has no shortcuts.
fn off() -> Vec<Tale> {
    vec![
        answer_by_the_stack(by_the_stack(leased("off, there are no shortcuts"))).counted(Shortcut, 0),
        by_the_stack(switched(leased("SCTP has none"))).sctp(),
        by_the_stack(leased("TCP has none where only UDP may").tcp().configured(|config| {
            config.flags |= config_flags::SHORTCUT_UDP;
        })),
    ]
}
