//! Which endpoints serve whom: traffic policies, and by what pods are told from other clients.

use proxy_common::abi::{Config, Device, Reason, config_flags, device_flags};
use sluice_tests::packet::tale::{BACKEND, CLIENT, Party, STRANGER, Tale, VIP, Who, renumbered, syn, tale};
use sluice_tests::packet::world::AWAY_NODE_PORT;

/// Under policy Local, with its endpoint on another node.
const AWAY: Party = (Who::Node, AWAY_NODE_PORT);
const NODE: Party = (Who::Second, 40_003);

pub fn rows() -> Vec<Tale> {
    [local(), detectors()].concat()
}

fn none(config: &mut Config) {
    config.flags = 0;
}

fn by_device(config: &mut Config) {
    config.flags = config_flags::DETECT_DEVICE;
}

fn pods(device: &mut Device) {
    device.flags = device_flags::DETECTED;
}

/// External policy Local: only clients outside are bound by it.
fn local() -> Vec<Tale> {
    let silent = |row: Tale| row.dropped(Reason::NoLocalEndpoint).entries(0);
    vec![
        silent(tale("policy Local has nothing for a client outside C6").enters(syn(STRANGER, AWAY))),
        tale("policy Local does not bind a pod C7").enters(syn(CLIENT, AWAY)).becomes(CLIENT, BACKEND),
        tale("policy Local does not bind the node itself C8")
            .enters(syn(NODE, AWAY))
            .becomes_marked(renumbered(NODE), BACKEND),
        tale("policy Local and a pod that reaches itself B7 C7")
            .enters(syn((Who::Backend, 40_004), AWAY))
            .becomes_marked(renumbered((Who::Backend, 40_004)), BACKEND),
        silent(
            tale("without a detector pods are bound by policy Local C10")
                .configured(none)
                .enters(syn(CLIENT, AWAY)),
        ),
        tale("without a detector the node itself is not bound by policy Local C10")
            .configured(none)
            .enters(syn(NODE, AWAY))
            .becomes_marked(renumbered(NODE), BACKEND),
        tale("what comes in by a device of pods is not bound by policy Local C7 F7")
            .configured(by_device)
            .on_device(pods)
            .enters(syn(STRANGER, AWAY))
            .becomes(STRANGER, BACKEND),
        silent(
            tale("by another device even a pod's address is bound by policy Local C9 F7")
                .configured(by_device)
                .enters(syn(CLIENT, AWAY)),
        ),
        tale("by another device the node itself is not bound by policy Local C8 F7")
            .configured(by_device)
            .enters(syn(NODE, AWAY))
            .becomes_marked(renumbered(NODE), BACKEND),
    ]
}

/// The local-traffic detector by device; the one by address is in `masquerade`.
fn detectors() -> Vec<Tale> {
    vec![
        tale("what comes in by a device of pods is not masqueraded F7")
            .configured(by_device)
            .on_device(pods)
            .enters(syn(STRANGER, VIP))
            .becomes(STRANGER, BACKEND),
        tale("what comes in by another device is masqueraded F7")
            .configured(by_device)
            .enters(syn(CLIENT, VIP))
            .becomes_marked(renumbered(CLIENT), BACKEND),
        tale("with masqueradeAll what comes in by a device of pods is masqueraded too F4 F7")
            .configured(|config| config.flags = config_flags::DETECT_DEVICE | config_flags::MASQUERADE_ALL)
            .on_device(pods)
            .enters(syn(CLIENT, VIP))
            .becomes_marked(renumbered(CLIENT), BACKEND),
    ]
}
