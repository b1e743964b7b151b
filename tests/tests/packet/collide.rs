//! One client port, several ways to one endpoint (P-60, P-61).

use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, OTHER_VIP, SEEN, STRANGER, Tale, VIP, Who, ack, fin, renumbered,
    rst, syn, syn_ack, tale,
};
use sluice_tests::packet::world::{BACKEND_PORT, HOST_PORT};

/// The client with another port than its own.
const RENUMBERED: (Who, u16) = (Who::Pod, 0);

pub fn rows() -> Vec<Tale> {
    [ways(), over()].concat()
}

fn by_service(title: &str) -> Tale {
    tale(title).enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND)
}

fn ways() -> Vec<Tale> {
    vec![
        by_service("a second Service takes another source port and is answered by its own address P-60")
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(RENUMBERED, BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(OTHER_VIP, CLIENT)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .entries(4),
        by_service("a renumbered flow keeps its port P-60")
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(RENUMBERED, BACKEND)
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(SEEN, BACKEND)
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(SEEN, BACKEND)
            .entries(4),
        by_service("straight to the endpoint beside a live flow takes another source port P-60 P-61")
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, CLIENT)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .entries(4),
        by_service("two Services and straight to the endpoint: three source ports P-60")
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(RENUMBERED, BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(OTHER_VIP, CLIENT)
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, CLIENT)
            .entries(6),
        by_service("a renumbered direct connection goes on when its end is no endpoint any more B5 P-60")
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .endpoint_leaves()
            .enters(ack(CLIENT, BACKEND))
            .becomes(SEEN, BACKEND),
        by_service("straight to what was the endpoint, beside a flow that outlives it, takes another source port B5 P-60")
            .endpoint_leaves()
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND),
        tale("straight to the endpoint first makes no entry P-60")
            .not_sctp()
            .enters(syn(CLIENT, BACKEND))
            .untouched()
            .entries(0)
            .leaves(syn_ack(BACKEND, CLIENT))
            .untouched(),
        tale("straight to the endpoint first: masqueraded flows leave it the client's port P-60")
            .not_sctp()
            .enters(syn(STRANGER, BACKEND))
            .untouched()
            .leaves(syn_ack(BACKEND, STRANGER))
            .untouched()
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(NODEPORT, STRANGER)
            .enters(syn(STRANGER, VIP))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(VIP, STRANGER)
            .enters(ack(STRANGER, BACKEND))
            .untouched()
            .leaves(ack(BACKEND, STRANGER))
            .untouched()
            .entries(4),
        by_service("another port of the endpoint's address is another connection P-60")
            .not_sctp()
            .enters(syn(CLIENT, (Who::Backend, 22)))
            .untouched()
            .entries(2),
        by_service("another client port straight to the endpoint is not touched P-60")
            .not_sctp()
            .enters(syn((Who::Pod, 40_002), BACKEND))
            .untouched()
            .entries(2),
        by_service("an ACK straight to the endpoint belongs to a direct connection: not touched P-60")
            .tcp()
            .enters(ack(CLIENT, BACKEND))
            .untouched()
            .entries(2),
        by_service("one client port to two ports of one ClusterIP with one endpoint P-60")
            .enters(syn(CLIENT, (Who::Vip, BACKEND_PORT)))
            .becomes(RENUMBERED, BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes((Who::Vip, BACKEND_PORT), CLIENT),
        tale("an endpoint that dials itself by its own port is not its own answer B7")
            .enters(syn((Who::Plain, BACKEND_PORT), (Who::Vip, HOST_PORT)))
            .becomes_marked((Who::Plain, 0), (Who::Plain, BACKEND_PORT))
            .goes_on()
            .becomes_unmarked(MASQUERADE, (Who::Plain, BACKEND_PORT))
            .enters(syn_ack((Who::Plain, BACKEND_PORT), SEEN))
            .becomes((Who::Plain, BACKEND_PORT), (Who::Plain, 0))
            .goes_on()
            .becomes((Who::Vip, HOST_PORT), (Who::Plain, BACKEND_PORT)),
        by_service("two clients with one port number do not meet")
            .enters(syn((Who::Outside, CLIENT.1), OTHER_VIP))
            .becomes_marked((Who::Outside, 0), BACKEND)
            .entries(4),
    ]
}

/// What is over makes way.
fn over() -> Vec<Tale> {
    let closed = |title: &str| {
        by_service(title)
            .tcp()
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(fin(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
    };
    vec![
        closed("a closed flow makes way for a direct connection, whose answers are the endpoint's own P-61")
            .enters(syn(CLIENT, BACKEND))
            .untouched()
            .entries(0)
            .leaves(syn_ack(BACKEND, CLIENT))
            .untouched(),
        closed("a closed flow makes way for a second Service with the same source port P-61")
            .enters(syn(CLIENT, OTHER_VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(OTHER_VIP, CLIENT)
            .entries(2),
        by_service("a reset flow makes way for a direct connection P-61")
            .tcp()
            .leaves(rst(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, BACKEND))
            .untouched()
            .entries(0),
        by_service("a half-closed flow does not make way P-61")
            .tcp()
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .entries(4),
        by_service("a renumbered direct connection that is over makes way for the Service P-61")
            .tcp()
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .leaves(rst(BACKEND, SEEN))
            .becomes(BACKEND, CLIENT)
            .enters(syn(CLIENT, BACKEND))
            .becomes(RENUMBERED, BACKEND)
            .entries(4),
    ]
}
