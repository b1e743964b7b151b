//! Who is dialled, and who answers.

use proxy_common::abi::{Addr, Cidr, Reason};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, NODEPORT, OTHER_VIP, Party, SEEN, STRANGER, Spec, Tale, VIP, Who, ack, renumbered, syn,
    syn_ack, tale,
};
use sluice_tests::packet::world::{
    BACKEND_PORT, DNS_PORT, EMPTY_PORT, HOST_PORT, IFINDEX, LEAVING_PORT, LOCAL_NODE_PORT, NODE_PORT,
    PODS_IFINDEX, PORT, SILENT_PORT, TCP_PORT,
};

/// Bits of the packet's mark that are not ours, in a pattern that no shift or mask keeps by accident.
const FOREIGN: u32 = 0x8000_1337;

pub fn rows() -> Vec<Tale> {
    [served(), unserved(), strangers(), unassigned()].concat()
}

/// There and back again.
fn round_trip(title: &str, client: Party, front: Party, marked: bool) -> Tale {
    let there = tale(title).enters(syn(client, front));
    let there = if marked {
        there.becomes_marked(renumbered(client), BACKEND)
    } else {
        there.becomes(client, BACKEND)
    };
    let again = there.leaves(syn_ack(BACKEND, SEEN)).becomes(front, client).enters(ack(client, front));
    if marked { again.becomes_marked(renumbered(client), BACKEND) } else { again.becomes(client, BACKEND) }
}

/// B15: the VIPs' range is a ServiceCIDR.
fn unassigned() -> Vec<Tale> {
    let guarded = |title: &str| {
        tale(title).configured(|config| {
            config.services_v4[0] =
                Cidr { address: Addr::v4([8, 0, 96, 0]), mask: Addr::v4([255, 255, 255, 0]) };
            config.services_v6[0] = Cidr {
                address: Addr([u32::from_ne_bytes([0xfd, 0, 0, 0x96]), 0, 0, 0]),
                mask: Addr([u32::MAX, 0, 0, 0]),
            };
        })
    };
    vec![
        guarded("what a ServiceCIDR has and no Service does not leave the node B15")
            .removed(Who::Vip)
            .enters(syn(CLIENT, VIP))
            .untouched()
            .goes_on()
            .dropped(Reason::Unassigned)
            .leaves(ack((Who::Plain, 4_000), VIP))
            .dropped(Reason::Unassigned)
            .leaves(syn(CLIENT, (Who::Outside, PORT)))
            .untouched()
            .counted(Reason::Unassigned, 2),
        guarded("a ClusterIP of a guarded range is served B15")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .goes_on()
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT),
    ]
}

fn served() -> Vec<Tale> {
    vec![
        round_trip("a pod dials a ClusterIP and hears from it B1", CLIENT, VIP, false),
        round_trip(
            "a second Service with the same endpoint answers by its own address",
            CLIENT,
            OTHER_VIP,
            false,
        ),
        round_trip("frontend and endpoint with equal ports", CLIENT, (Who::Vip, BACKEND_PORT), false),
        round_trip("a host outside dials the NodePort of the node's address B10", STRANGER, NODEPORT, true),
        round_trip(
            "the NodePort of a second address answers by that address E1",
            STRANGER,
            (Who::Second, NODE_PORT),
            true,
        ),
        round_trip("a pod dials a NodePort B10", CLIENT, NODEPORT, true),
        round_trip("a host outside dials an external IP B8", STRANGER, (Who::External, PORT), true),
        round_trip("a pod dials an external IP B8", CLIENT, (Who::External, PORT), true),
        round_trip(
            "a host outside dials a load balancer's address B9",
            STRANGER,
            (Who::LoadBalancer, PORT),
            true,
        ),
        round_trip("a pod dials a load balancer's address B9", CLIENT, (Who::LoadBalancer, PORT), true),
        round_trip(
            "a load balancer's address that is bound here is served all the same P-28",
            STRANGER,
            (Who::Bound, PORT),
            true,
        ),
        round_trip(
            "under policy Local the endpoint sees the client C5",
            STRANGER,
            (Who::Node, LOCAL_NODE_PORT),
            false,
        ),
        tale("the endpoint may be on the host's network")
            .enters(syn(CLIENT, (Who::Vip, HOST_PORT)))
            .becomes(CLIENT, (Who::Plain, BACKEND_PORT))
            .leaves(syn_ack((Who::Plain, BACKEND_PORT), CLIENT))
            .becomes((Who::Vip, HOST_PORT), CLIENT),
        tale("a NodePort may lead to the host's network")
            .enters(syn(STRANGER, (Who::Node, NODE_PORT + 4)))
            .becomes_marked(STRANGER, (Who::Plain, BACKEND_PORT)),
        tale("TCP and UDP with one port number are two Services P-25, here TCP")
            .tcp()
            .enters(syn(CLIENT, (Who::Vip, DNS_PORT)))
            .becomes(CLIENT, (Who::Backend, 5301)),
        tale("TCP and UDP with one port number are two Services P-25, here UDP")
            .udp()
            .enters(syn(CLIENT, (Who::Vip, DNS_PORT)))
            .becomes(CLIENT, (Who::Backend, 5302)),
        tale("a payload of odd length")
            .enters(syn(CLIENT, VIP).carrying(b"13 bytes long"))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT).carrying(b"7 bytes"))
            .becomes(VIP, CLIENT),
        tale("port numbers at both ends of the range")
            .enters(syn((Who::Pod, 1), VIP))
            .becomes((Who::Pod, 1), BACKEND)
            .enters(syn((Who::Pod, 65_535), VIP))
            .becomes((Who::Pod, 65_535), BACKEND)
            .entries(4),
        tale("a flow is two entries, and its answers make none")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .entries(2)
            .counted(Reason::FlowCreated, 1),
    ]
}

fn refused(title: &str, packet: Spec, reason: Reason) -> Tale {
    tale(title).enters(packet).refused(reason).entries(0)
}

fn unserved() -> Vec<Tale> {
    use Reason::{NoEndpoint, NoLocalEndpoint, Unlisted};
    let silent =
        |title: &str, front| tale(title).enters(syn(STRANGER, front)).dropped(NoLocalEndpoint).entries(0);
    vec![
        refused(
            "a ClusterIP without endpoint refuses a pod at once P-23",
            syn(CLIENT, (Who::Vip, EMPTY_PORT)),
            NoEndpoint,
        ),
        refused(
            "a ClusterIP without endpoint refuses a host outside P-23",
            syn(STRANGER, (Who::Vip, EMPTY_PORT)),
            NoEndpoint,
        ),
        refused(
            "a NodePort without endpoint refuses P-23",
            syn(STRANGER, (Who::Node, NODE_PORT + 1)),
            NoEndpoint,
        ),
        refused(
            "a long packet is refused",
            syn(CLIENT, (Who::Vip, EMPTY_PORT)).carrying(&[7; 1300]),
            NoEndpoint,
        ),
        refused("an empty packet is refused", syn(CLIENT, (Who::Vip, EMPTY_PORT)).carrying(b""), NoEndpoint),
        silent("a ClusterIP with endpoints elsewhere and policy Local is silent C4", (Who::Vip, SILENT_PORT)),
        silent(
            "a NodePort with endpoints elsewhere and policy Local is silent C3",
            (Who::Node, NODE_PORT + 2),
        ),
        refused("an unlisted port of a ClusterIP refuses P-24", syn(CLIENT, (Who::Vip, 999)), Unlisted),
        refused(
            "an unlisted port of a load balancer's address refuses P-24",
            syn(STRANGER, (Who::LoadBalancer, 22)),
            Unlisted,
        ),
        refused(
            "an unlisted port of an external IP that another host may have refuses where it would circle P-24",
            syn(STRANGER, (Who::External, 22)).routed(&[IFINDEX]),
            Unlisted,
        ),
        tale("an unlisted port of an external IP that another host may have is that host's B9")
            .enters(syn(STRANGER, (Who::External, 22)).routed(&[PODS_IFINDEX]))
            .untouched()
            .enters(syn(STRANGER, (Who::External, 22)))
            .untouched()
            .enters(ack(CLIENT, (Who::External, 22)).routed(&[PODS_IFINDEX]))
            .untouched()
            .enters(ack((Who::External, 22), CLIENT))
            .untouched()
            .entries(0),
        refused("a NodePort's number on a ClusterIP refuses", syn(CLIENT, (Who::Vip, NODE_PORT)), Unlisted),
        refused(
            "a NodePort's number on a load balancer's address refuses",
            syn(STRANGER, (Who::LoadBalancer, NODE_PORT)),
            Unlisted,
        ),
        refused("a Service that is being removed refuses", syn(CLIENT, (Who::Vip, LEAVING_PORT)), Unlisted),
        refused(
            "a port that is listed for TCP only refuses UDP P-25",
            syn(CLIENT, (Who::Vip, TCP_PORT)),
            Unlisted,
        )
        .udp(),
        tale("a load balancer's address that is bound here leaves other ports to local sockets P-28")
            .enters(syn(STRANGER, (Who::Bound, 22)))
            .untouched()
            .entries(0),
        tale("other ports of the node's address are left to local sockets P-29")
            .enters(syn(STRANGER, (Who::Node, 22)))
            .untouched()
            .entries(0),
        tale("an address that is not selected serves no NodePorts E1")
            .enters(syn(STRANGER, (Who::Masquerade, NODE_PORT)))
            .untouched()
            .entries(0),
        tale("an address that is not selected and has an endpoint serves no NodePorts E1")
            .not_sctp()
            .enters(syn(STRANGER, (Who::Plain, NODE_PORT)))
            .untouched()
            .entries(0),
        tale("a refusal keeps the mark of the packet it was P-72")
            .enters(syn(CLIENT, (Who::Vip, EMPTY_PORT)).marked(FOREIGN))
            .refused(NoEndpoint),
        tale("at egress nobody is refused: the packet has passed the stack")
            .leaves(syn(CLIENT, (Who::Vip, EMPTY_PORT)))
            .untouched()
            .leaves(syn(CLIENT, VIP))
            .untouched()
            .entries(0),
    ]
}

fn strangers() -> Vec<Tale> {
    let both = |title: &str, from, to| {
        tale(title)
            .enters(syn(from, to).marked(FOREIGN))
            .untouched()
            .leaves(syn(from, to).marked(FOREIGN))
            .untouched()
            .entries(0)
    };
    vec![
        both("a pod's packet to the outside is not touched P-05", CLIENT, (Who::Outside, PORT)),
        both("a packet from outside to a pod is not touched P-05", STRANGER, (Who::Pod, PORT)),
        both("a packet straight to an endpoint is not touched", CLIENT, BACKEND).not_sctp(),
        tale("an answer to a direct connection is not touched")
            .leaves(syn_ack(BACKEND, CLIENT).marked(FOREIGN))
            .untouched(),
        tale("answers to the node's own connections from a NodePort's number are not requests P-30")
            .tcp()
            .enters(syn_ack((Who::Outside, 443), NODEPORT))
            .untouched()
            .enters(ack((Who::Outside, 443), NODEPORT))
            .untouched()
            .entries(0),
        tale("foreign mark bits are kept where a flow is translated P-72")
            .enters(syn(CLIENT, VIP).marked(FOREIGN))
            .becomes(CLIENT, BACKEND)
            .enters(ack(CLIENT, VIP).marked(FOREIGN))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT).marked(FOREIGN))
            .becomes(VIP, CLIENT),
    ]
}
