//! Whose address the endpoint sees.

use proxy_common::abi::{Addr, Reason, config_flags};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, Party, SEEN, STRANGER, Tale, VIP, Who, ack, fin, renumbered, rst,
    syn, syn_ack, tale,
};
use sluice_tests::packet::world::{BACKEND_PORT, LOCAL_NODE_PORT, MARK, PORT};

/// Every bit but ours.
const OTHERS: u32 = !MARK;
/// What the stack's own masquerade has made of a client.
const BY_STACK: Party = (Who::Masquerade, 55_555);
const OWN: Party = (Who::Backend, 40_030);

pub fn rows() -> Vec<Tale> {
    [who(), hairpin(), rewrites(), marks()].concat()
}

/// kube-proxy's masquerade matrix.
fn who() -> Vec<Tale> {
    vec![
        tale("a pod to a ClusterIP is not masqueraded F5").enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND),
        tale("a host outside the pods' range to a ClusterIP is masqueraded F5")
            .enters(syn(STRANGER, VIP))
            .becomes_marked(renumbered(STRANGER), BACKEND),
        tale("the node itself to a ClusterIP is masqueraded F5")
            .enters(syn((Who::Node, 777), VIP))
            .becomes_marked(renumbered((Who::Node, 777)), BACKEND),
        tale("without a detector nobody to a ClusterIP is masqueraded F8")
            .configured(|config| config.flags = 0)
            .enters(syn(STRANGER, VIP))
            .becomes(STRANGER, BACKEND),
        tale("without a detector external traffic is masqueraded still F8")
            .configured(|config| config.flags = 0)
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND),
        tale("with masqueradeAll pods to a ClusterIP are masqueraded too F4")
            .configured(|config| config.flags |= config_flags::MASQUERADE_ALL)
            .enters(syn(CLIENT, VIP))
            .becomes_marked(renumbered(CLIENT), BACKEND),
        tale("with masqueradeAll and without a detector everybody is masqueraded F4")
            .configured(|config| config.flags = config_flags::MASQUERADE_ALL)
            .enters(syn(STRANGER, VIP))
            .becomes_marked(renumbered(STRANGER), BACKEND),
        tale("masqueradeAll does not touch policy Local F4")
            .configured(|config| config.flags |= config_flags::MASQUERADE_ALL)
            .enters(syn(STRANGER, (Who::Node, LOCAL_NODE_PORT)))
            .becomes(STRANGER, BACKEND),
        tale("what has been decided for a flow holds when the configuration changes")
            .enters(syn(STRANGER, VIP))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .configured(|config| config.flags = 0)
            .enters(ack(STRANGER, VIP))
            .becomes_marked(renumbered(STRANGER), BACKEND),
    ]
}

fn hairpin() -> Vec<Tale> {
    let through =
        |title: &str, front| tale(title).enters(syn(OWN, front)).becomes_marked(renumbered(OWN), BACKEND);
    vec![
        through("a pod that reaches itself by its ClusterIP is masqueraded B7 P-27", VIP),
        through("a pod that reaches itself by a NodePort is masqueraded B7 P-27", NODEPORT),
        through(
            "a pod that reaches itself under policy Local is masqueraded B7",
            (Who::Node, LOCAL_NODE_PORT),
        ),
        through(
            "a pod that reaches itself by a load balancer's address is masqueraded B7",
            (Who::LoadBalancer, PORT),
        ),
        through("a pod that reaches itself without a detector is masqueraded B7", VIP)
            .configured(|config| config.flags = 0)
            .enters(syn((Who::Backend, 40_031), VIP))
            .becomes_marked(renumbered((Who::Backend, 40_031)), BACKEND),
        tale("hairpin on one device: all four rewrites at the same edge P-27")
            .enters(syn(OWN, VIP))
            .becomes_marked(renumbered(OWN), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(OWN))
            .goes_on()
            .becomes(VIP, OWN)
            .entries(4),
    ]
}

/// C's edge, B's edge, and back.
fn through_all(title: &str, client: Party, front: Party) -> Tale {
    tale(title)
        .enters(syn(client, front))
        .becomes_marked(renumbered(client), BACKEND)
        .goes_on()
        .becomes_unmarked(MASQUERADE, BACKEND)
        .enters(syn_ack(BACKEND, SEEN))
        .becomes(BACKEND, renumbered(client))
        .goes_on()
        .becomes(front, client)
        .enters(ack(client, front))
        .becomes_marked(renumbered(client), BACKEND)
        .goes_on()
        .becomes_unmarked(MASQUERADE, BACKEND)
        .entries(4)
        .counted(Reason::FlowCreated, 2)
}

fn rewrites() -> Vec<Tale> {
    vec![
        through_all("a NodePort's flow through all four rewrites C5", STRANGER, NODEPORT),
        through_all("an external IP's flow through all four rewrites C5", STRANGER, (Who::External, PORT)),
        through_all(
            "a load balancer's flow through all four rewrites C5",
            STRANGER,
            (Who::LoadBalancer, PORT),
        ),
        through_all("a ClusterIP's flow from outside through all four rewrites F5", STRANGER, VIP),
        through_all("equal ports through all four rewrites", STRANGER, (Who::Vip, BACKEND_PORT)),
        tale("the endpoint's edge masquerades what it sees, not what the client's edge saw")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(syn((Who::Outside, 777), BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, (Who::Outside, 777)),
        tale("somebody else's mark is honoured: the packet is masqueraded F3")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .entries(2),
        tale("marked packets to strangers are masqueraded too F3")
            .leaves(syn(CLIENT, (Who::Outside, 443)).marked(MARK))
            .becomes_unmarked(MASQUERADE, (Who::Outside, 443))
            .enters(syn_ack((Who::Outside, 443), SEEN))
            .becomes((Who::Outside, 443), CLIENT),
        tale("what kube-proxy's rules have masqueraded, and taken the mark off first, goes on as it is L-07")
            .leaves(syn(BY_STACK, BACKEND))
            .untouched()
            .enters(syn_ack(BACKEND, BY_STACK))
            .untouched()
            .leaves(ack(BY_STACK, BACKEND).marked(MARK))
            .becomes_unmarked(BY_STACK, BACKEND)
            .enters(ack(BACKEND, BY_STACK))
            .becomes(BACKEND, BY_STACK),
        tale("what somebody else has masqueraded is written down as it is, whichever packet of it comes first L-07")
            .leaves(ack(BY_STACK, BACKEND).forwarded())
            .untouched()
            .entries(2)
            .enters(ack(BACKEND, BY_STACK))
            .becomes(BACKEND, BY_STACK)
            .leaves(ack(BY_STACK, BACKEND).forwarded())
            .becomes(BY_STACK, BACKEND)
            .entries(2),
        tale("what is forwarded from another address, or to what is no endpoint, is nothing to us L-07")
            .leaves(ack((Who::Plain, 55_555), BACKEND).forwarded())
            .untouched()
            .leaves(ack(BY_STACK, (Who::Outside, 443)).forwarded())
            .untouched()
            .entries(0),
        tale("a device without address masquerades nothing: the packet is dropped")
            .on_device(|device| (device.masquerade_v4, device.masquerade_v6) = (Addr([0]), Addr([0; 4])))
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .dropped(Reason::NoMasqueradeAddress)
            .entries(0),
        tale("the masquerade address may change: old flows keep theirs, new ones take the new one F1")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .on_device(|device| {
                (device.masquerade_v4, device.masquerade_v6) = (Addr::v4([8, 0, 4, 13]), second_v6());
            })
            .leaves(ack(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(syn((Who::Outside, 50_000), BACKEND).marked(MARK))
            .becomes_unmarked((Who::Plain, 0), BACKEND),
        tale("the node's own flow from a taken reply address is masqueraded like any other P-64")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(syn(SEEN, BACKEND))
            .becomes(MASQUERADE, BACKEND)
            .entries(4),
        tale("once the masqueraded flow is over its port is the node's again P-64")
            .tcp()
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(rst(BACKEND, SEEN))
            .becomes(BACKEND, STRANGER)
            .leaves(fin(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(syn(SEEN, BACKEND))
            .untouched()
            .entries(0),
        tale("the node's own flow from a free port is not touched P-64")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(syn((Who::Masquerade, 55_555), BACKEND))
            .untouched()
            .entries(2),
    ]
}

/// [`Who::Plain`]'s IPv6 address.
const fn second_v6() -> Addr<4> {
    Addr::v6([0xfd, 0, 0, 4, 0x86, 0xdd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x13])
}

fn marks() -> Vec<Tale> {
    vec![
        tale("other bits of the mark are kept where ours is set and cleared P-72 F3")
            .enters(syn(STRANGER, NODEPORT).marked(OTHERS))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN).marked(OTHERS))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER),
        tale("an unmarked packet of a masqueraded flow is masqueraded all the same P-72")
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .becomes_unmarked(MASQUERADE, BACKEND)
            .leaves(ack(STRANGER, BACKEND).marked(OTHERS))
            .becomes(MASQUERADE, BACKEND),
        tale("other bits alone mean nothing at egress P-72")
            .leaves(syn(STRANGER, BACKEND).marked(OTHERS))
            .untouched()
            .entries(0),
        tale("the mark's bit can be chosen F3")
            .configured(|config| config.masquerade_mark = 0x0200_0000)
            .enters(syn(STRANGER, NODEPORT).marked(MARK))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND),
        tale("kube-proxy's default bit means nothing where another was chosen F3")
            .configured(|config| config.masquerade_mark = 0x0200_0000)
            .leaves(syn(STRANGER, BACKEND).marked(MARK))
            .untouched(),
    ]
}
