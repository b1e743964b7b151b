//! Another proxy has taken over, and these programs are still there (L-07).

use proxy_common::abi::Reason::{CatchAll, FlowCreated};
use sluice_tests::packet::tale::{
    BACKEND, CLIENT, MASQUERADE, NODEPORT, Party, STRANGER, Tale, VIP, Who, ack, syn, syn_ack, tale,
};

/// A socket of the node's own.
const OWN: Party = (Who::Plain, 40_003);

/// Told to devices with Ethernet headers only: the catch-all device is one.
pub fn rows() -> Vec<Tale> {
    let begun =
        |title: &str, from, to| tale(title).handed_over().enters(syn(from, to)).untouched().entries(0);
    let opened = |title: &str| tale(title).enters(syn(CLIENT, VIP)).becomes(CLIENT, BACKEND);
    let own = |title: &str| {
        tale(title).enters(syn(OWN, VIP)).by_the_catch_all().becomes_marked(MASQUERADE, BACKEND)
    };
    vec![
        begun("what is begun to a ClusterIP is the other proxy's L-07", CLIENT, VIP),
        begun("what is begun to a NodePort is the other proxy's L-07", STRANGER, NODEPORT),
        opened("a connection goes on to its end L-07")
            .connected()
            .leaves(syn_ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT)
            .handed_over()
            .enters(ack(CLIENT, VIP))
            .becomes(CLIENT, BACKEND)
            .leaves(ack(BACKEND, CLIENT))
            .becomes(VIP, CLIENT),
        opened("datagrams are the other proxy's, which alone knows who is still there L-07")
            .udp()
            .handed_over()
            .enters(syn(CLIENT, VIP))
            .untouched()
            .entries(0),
        // What the other proxy translates never comes here, and what is not translated here is lost.
        own("the node's own datagrams go on to where they went, at the catch-all device L-07")
            .udp()
            .handed_over()
            .enters(syn(OWN, VIP))
            .by_the_catch_all()
            .becomes_marked(MASQUERADE, BACKEND)
            .counted(FlowCreated, 1),
        own("and elsewhere, as everywhere, once their endpoint is known to have left L-07 P-52")
            .udp()
            .endpoint_leaves()
            .handed_over()
            .enters(syn(OWN, VIP))
            .by_the_catch_all()
            .dropped(CatchAll)
            .entries(0),
        tale("what begins at the catch-all device is nobody's L-07")
            .handed_over()
            .enters(syn(OWN, VIP))
            .by_the_catch_all()
            .dropped(CatchAll)
            .entries(0),
    ]
}
