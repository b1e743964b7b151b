//! Connections that begin, go on and end.

use proxy_common::abi::Reason::{ChallengeAck, FlowCreated, NoFlow};
use proxy_common::abi::config_flags;
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, Party, SEEN, STRANGER, Spec, Tale, VIP, Who, ack, fin, renumbered,
    rst, syn, syn_ack, tale,
};
use sluice_tests::packet::world::PORT;

pub fn rows() -> Vec<Tale> {
    let rows = [beginnings(), strays(), ends(), resets()].concat();
    rows.into_iter().map(Tale::connected).collect()
}

/// A connection by the ClusterIP, established.
fn connection(title: &str) -> Tale {
    tale(title)
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .leaves(syn_ack(BACKEND, CLIENT))
        .becomes(VIP, CLIENT)
        .enters(ack(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
}

/// The client closes its direction.
fn client_closes(tale: Tale) -> Tale {
    tale.enters(fin(CLIENT, VIP)).becomes(CLIENT, BACKEND)
}

/// The endpoint closes its direction.
fn endpoint_closes(tale: Tale) -> Tale {
    tale.leaves(fin(BACKEND, CLIENT)).becomes(VIP, CLIENT)
}

fn beginnings() -> Vec<Tale> {
    vec![
        tale("a SYN sent again goes to the same endpoint P-40")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .after(3)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        tale("an unanswered SYN sent again is given another endpoint when its own has left P-40")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .endpoint_leaves()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        tale("a SYN moves away from an endpoint that has answered, left and fallen silent P-40")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .endpoint_leaves()
            .after(3)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1)
            .after(4)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        connection("SYNs move away from an endpoint that has left and does not even challenge them P-42")
            .endpoint_leaves()
            .after(600)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1)
            .after(1)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        connection("SYNs do not move an idle connection away from an endpoint that has left and answers them P-42 X-07")
            .endpoint_leaves()
            .after(600)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .after(1)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        connection("a connection goes on when its endpoint has left the Service P-46")
            .endpoint_leaves()
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        connection("a connection outlives its Service B5")
            .removed(Who::Vip)
            .endpoint_leaves()
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND),
        connection("the address of a Service that is gone serves nobody new B5")
            .removed(Who::Vip)
            .enters(syn((Who::Pod, 40_009), VIP))
            .untouched()
            .enters(ack((Who::Pod, 40_009), VIP))
            .untouched()
            .entries(2),
        connection("a SYN within a live connection changes nothing, also when the endpoint has left P-42")
            .endpoint_leaves()
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        tale("a SYN with data opens a connection P-48")
            .enters(syn(CLIENT, VIP).carrying(&[1; 500]))
            .becomes(CLIENT, BACKEND)
            .entries(2),
        tale("a bare ACK that answers a SYN belongs to a direct connection: the flow moves to another port P-60")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .dropped(ChallengeAck)
            .leaves(ack(BACKEND, CLIENT))
            .untouched()
            .enters(syn(CLIENT, VIP))
            .becomes((Who::Pod, 0), BACKEND)
            .entries(2),
        tale("a masqueraded flow, too, moves to a port that it has not had P-60")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(ack(BACKEND, SEEN))
            .dropped(ChallengeAck)
            .leaves(syn_ack(BACKEND, SEEN))
            .untouched()
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .leaves(syn_ack(BACKEND, SEEN))
            .becomes(NODEPORT, STRANGER)
            .entries(2),
        tale("and leaves nothing of the old one at the endpoint's edge P-60 P-67")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(ack(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .dropped(ChallengeAck)
            .entries(2),
        tale("a reset lost between the edges: the next connection from the port is answered by the NodePort P-42 P-67")
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(rst(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(STRANGER))
            .enters(syn(STRANGER, NODEPORT))
            .becomes_marked(renumbered(STRANGER), BACKEND)
            .goes_on()
            .becomes_unmarked(MASQUERADE, BACKEND)
            .enters(syn_ack(BACKEND, SEEN))
            .becomes(BACKEND, renumbered(STRANGER))
            .goes_on()
            .becomes(NODEPORT, STRANGER)
            .entries(4),
        tale("a FIN that answers a SYN belongs to a direct connection likewise P-60")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(fin(BACKEND, CLIENT))
            .dropped(ChallengeAck)
            .leaves(fin(BACKEND, CLIENT))
            .untouched()
            .enters(syn(CLIENT, VIP))
            .becomes((Who::Pod, 0), BACKEND),
        tale("a connection idle for two hours goes on P-45")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .after(7_400)
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT),
    ]
}

type Kind = fn(Party, Party) -> Spec;

/// Segments that belong to nothing.
fn strays() -> Vec<Tale> {
    let kinds: [(&str, Kind); 3] = [("an ACK", ack), ("a SYN-ACK", syn_ack), ("a FIN", fin)];
    let mut rows = Vec::new();
    for (name, kind) in kinds {
        rows.extend([
            tale(format!("{name} without connection to a ClusterIP is refused, never balanced P-41 P-45"))
                .enters(kind(CLIENT, VIP))
                .refused(NoFlow)
                .entries(0),
            tale(format!("{name} without connection is the stack's where kube-proxy has been L-07"))
                .configured(|config| config.flags |= config_flags::STRAYS_PASS)
                .enters(kind(CLIENT, VIP))
                .untouched()
                .entries(0),
            tale(format!("{name} without connection to a load balancer's address is refused P-45"))
                .enters(kind(STRANGER, (Who::LoadBalancer, PORT)))
                .refused(NoFlow)
                .entries(0),
            tale(format!("{name} without connection to a NodePort is the stack's to answer P-30 P-41"))
                .enters(kind(STRANGER, NODEPORT))
                .untouched()
                .entries(0),
            tale(format!("{name} without connection to an address that is bound here is the stack's P-28"))
                .enters(kind(STRANGER, (Who::Bound, PORT)))
                .untouched()
                .entries(0),
        ]);
    }
    rows.extend([
        tale("a RST without connection is dropped, never answered").enters(rst(CLIENT, VIP)).dropped(NoFlow),
        tale("a RST without connection to a NodePort is the stack's")
            .enters(rst(STRANGER, NODEPORT))
            .untouched(),
        tale("an answer without connection passes").leaves(ack(BACKEND, CLIENT)).untouched().entries(0),
    ]);
    rows
}

fn ends() -> Vec<Tale> {
    let closed = |title: &str| endpoint_closes(client_closes(connection(title)));
    vec![
        closed("the last ACK after both FINs is translated P-44")
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .entries(2),
        closed("a FIN sent again after both FINs is translated P-44")
            .after(20)
            .leaves(fin(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND),
        closed("a SYN after both FINs begins a new flow P-42")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        closed("a SYN-ACK that comes late does not open again what is closed P-42")
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        endpoint_closes(connection(
            "a port that is used again before the client has closed: the handshake begins anew P-42",
        ))
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .leaves(syn_ack(BACKEND, CLIENT))
        .becomes(VIP, CLIENT)
        .enters(ack(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .enters(fin(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .counted(FlowCreated, 1),
        endpoint_closes(connection("a SYN-ACK that comes late does not take back the endpoint's FIN P-42"))
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(fin(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2),
        closed("a SYN-ACK that comes late leaves a closed flow's port to direct connections P-61")
            .not_sctp()
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, BACKEND))
            .untouched()
            .entries(0),
        client_closes(connection("a half-closed connection goes on: the endpoint still sends P-44"))
            .after(60)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .after(600)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND),
        client_closes(connection("a SYN on a connection half closed by the client begins no new flow P-44"))
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        endpoint_closes(connection(
            "a SYN on a connection half closed by the endpoint begins no new flow P-44",
        ))
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .counted(FlowCreated, 1),
        closed("an ACK after both FINs begins no new flow")
            .endpoint_leaves()
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
    ]
}

fn resets() -> Vec<Tale> {
    let reset = |tale: Tale| tale.enters(rst(CLIENT, VIP)).becomes(CLIENT, BACKEND).entries(2);
    let reset_by_client = |title: &str| reset(connection(title));
    let reset_after_a_while =
        |title: &str| reset(connection(title).after(2).enters(ack(CLIENT, VIP)).becomes(CLIENT, BACKEND));
    let reset_by_endpoint =
        |title: &str| connection(title).leaves(rst(BACKEND, CLIENT)).becomes(VIP, CLIENT).entries(2);
    vec![
        reset_after_a_while("a forged RST and a SYN do not end a live connection P-43")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .entries(2),
        reset_by_client("a client that dials again right after its RST is served by a new flow P-42")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        reset_after_a_while(
            "a SYN right after the client's RST moves away from an endpoint that has left P-42",
        )
        .endpoint_leaves()
        .enters(syn(CLIENT, VIP))
        .becomes(CLIENT, BACKEND)
        .counted(FlowCreated, 2)
        .entries(2),
        reset_after_a_while("a SYN right after the client's RST is served by the same flow P-42 P-43")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        reset_by_client("a SYN after the client's RST begins a new flow P-42 P-43")
            .after(2)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        reset_by_endpoint("a SYN after the endpoint's RST begins a new flow P-42 P-43")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2)
            .entries(2),
        reset_by_client("data after the client's RST shows that nobody believed it P-43")
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        reset_by_endpoint("data after the endpoint's RST shows that nobody believed it P-43")
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 1),
        tale("a refused SYN, sent again, begins a new flow P-42")
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(rst(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2),
        reset_by_endpoint("a SYN-ACK that comes late after a RST opens nothing P-42 P-43")
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .enters(syn(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .counted(FlowCreated, 2),
        reset_by_client("a RST sent again is translated P-43")
            .enters(rst(CLIENT, VIP))
            .becomes(CLIENT, BACKEND),
    ]
}
