//! Flows through the four rewrites.

use proxy_common::abi::{Reason, protocol};
use sluice_tests::packet::frame::{ACK, End, FIN, Flags, RST, SYN, SYN_ACK, packet, read};
use sluice_tests::packet::story::{Action, Both, Node, Outcome};
use sluice_tests::packet::world::{
    BACKEND_PORT, EMPTY_PORT, MARK, NODE_PORT, PORT, PROTOCOLS, Plan, SILENT_PORT, plan,
};

/// One family and protocol, and the node.
struct Bed {
    node: Both,
    v6: bool,
    protocol: u8,
    plan: Plan,
}

impl Bed {
    fn send(&mut self, ingress: bool, flags: Flags, src: End, dst: End) -> Outcome {
        self.node.run(ingress, &packet(self.protocol, flags, src, dst, b"sluice"), 0)
    }

    /// Client to frontend at the client's edge; what the stack then sees.
    fn translated(&mut self, flags: Flags, src: End, dst: End) -> (End, End, u32) {
        let out = self.send(true, flags, src, dst);
        assert_eq!(out.action, Action::Pass);
        let seen = read(&out.bytes);
        (seen.src, seen.dst, out.mark)
    }
}

/// Tells a story in both families and protocols.
fn tell(story: impl Fn(&mut Bed)) {
    for v6 in [false, true] {
        for protocol in PROTOCOLS {
            let node = Both::new().expect("a node to tell the story to");
            story(&mut Bed { node, v6, protocol, plan: plan(v6) });
        }
    }
}

#[test]
fn pod_to_cluster_ip_and_back_b1() {
    tell(|bed| {
        let (client, vip, backend) =
            ((bed.plan.pod, 40_001), (bed.plan.vip, PORT), (bed.plan.backend, BACKEND_PORT));
        assert_eq!(
            bed.translated(SYN, client, vip),
            (client, backend, 0),
            "no mark: a pod is not masqueraded"
        );
        let back = bed.send(false, SYN_ACK, backend, client);
        assert_eq!((read(&back.bytes).src, read(&back.bytes).dst), (vip, client));
        assert_eq!(bed.translated(ACK, client, vip), (client, backend, 0));
    });
}

#[test]
fn every_frontend_kind_leads_to_the_endpoint_b8_b9_b10() {
    tell(|bed| {
        let backend = (bed.plan.backend, BACKEND_PORT);
        let frontends =
            [(bed.plan.load_balancer, PORT), (bed.plan.node, NODE_PORT), (bed.plan.other_vip, PORT)];
        for (n, frontend) in frontends.into_iter().enumerate() {
            let client = (bed.plan.outside, 40_010 + n as u16);
            let (src, dst, mark) = bed.translated(SYN, client, frontend);
            assert_eq!(
                (src, dst, mark),
                (client, backend, MARK),
                "masqueraded: from outside the pods' range"
            );
        }
    });
}

#[test]
fn masqueraded_flow_through_all_four_rewrites_c5() {
    tell(|bed| {
        let (client, front) = ((bed.plan.outside, 40_020), (bed.plan.node, NODE_PORT));
        let backend = (bed.plan.backend, BACKEND_PORT);
        let first = bed.send(true, SYN, client, front);
        let sent = bed.node.run(false, &first.bytes, first.mark);
        let masqueraded = read(&sent.bytes);
        assert_eq!(
            (masqueraded.src.0, masqueraded.dst, sent.mark),
            (bed.plan.masquerade, backend, 0),
            "F1, F3"
        );
        assert!((1024..30_000).contains(&masqueraded.src.1), "outside the ephemeral range (P-64)");
        let answer = bed.send(true, SYN_ACK, backend, masqueraded.src);
        assert_eq!((read(&answer.bytes).src, read(&answer.bytes).dst), (backend, client), "unmasquerade");
        let back = bed.node.run(false, &answer.bytes, answer.mark);
        assert_eq!((read(&back.bytes).src, read(&back.bytes).dst), (front, client), "restore");
        let again = bed.send(true, ACK, client, front);
        let sent_again = bed.node.run(false, &again.bytes, again.mark);
        assert_eq!(read(&sent_again.bytes).src, masqueraded.src, "the same port for the whole flow");
    });
}

#[test]
fn hairpin_is_masqueraded_b7_p27() {
    tell(|bed| {
        let (own, vip) = ((bed.plan.backend, 40_030), (bed.plan.vip, PORT));
        let backend = (bed.plan.backend, BACKEND_PORT);
        let (src, dst, mark) = bed.translated(SYN, own, vip);
        assert_eq!((src, dst, mark), (own, backend, MARK));
    });
}

#[test]
fn no_endpoint_is_refused_at_once_p23() {
    tell(|bed| {
        let (client, front) = ((bed.plan.pod, 40_040), (bed.plan.vip, EMPTY_PORT));
        let out = bed.send(true, SYN, client, front);
        assert_eq!(out.action, Action::Reject);
        assert_eq!(bed.node.count(Reason::NoEndpoint), 1);
        let answer = read(&out.bytes);
        assert_eq!((answer.src.0, answer.dst.0), (front.0, client.0));
        if bed.protocol == protocol::TCP {
            assert_eq!((answer.src, answer.dst), (front, client));
            assert_eq!(answer.flags, Flags { rst: true, ack: true, ..Flags::default() });
        } else {
            let (kind, code, _) = answer.icmp.expect("port unreachable");
            assert_eq!((kind, code), if bed.v6 { (1, 4) } else { (3, 3) });
        }
    });
}

#[test]
fn endpoints_elsewhere_under_local_policy_are_silence_c3() {
    tell(|bed| {
        let out = bed.send(true, SYN, (bed.plan.pod, 40_050), (bed.plan.vip, SILENT_PORT));
        assert_eq!(out.action, Action::Drop);
        assert_eq!(bed.node.count(Reason::NoLocalEndpoint), 1);
    });
}

#[test]
fn unlisted_ports_are_consumed_p24_and_left_to_local_sockets_p28() {
    tell(|bed| {
        let client = (bed.plan.outside, 40_060);
        let unlisted = [(bed.plan.vip, 999), (bed.plan.load_balancer, 22)];
        for front in unlisted {
            assert_eq!(bed.send(true, SYN, client, front).action, Action::Reject, "{front:?}");
        }
        assert_eq!(bed.node.count(Reason::Unlisted), 2);
        let local = packet(bed.protocol, SYN, client, (bed.plan.node, 22), b"");
        assert_eq!(bed.node.run(true, &local, 0).bytes, local);
    });
}

#[test]
fn strangers_are_not_touched_p05() {
    tell(|bed| {
        for (src, dst) in [(bed.plan.pod, bed.plan.outside), (bed.plan.outside, bed.plan.pod)] {
            let frame = packet(bed.protocol, SYN, (src, 1234), (dst, PORT), b"x");
            for ingress in [true, false] {
                let out = bed.node.run(ingress, &frame, 0x1337);
                assert_eq!((out.action, out.mark), (Action::Pass, 0x1337), "foreign marks stay (P-72)");
                assert_eq!(out.bytes, frame);
            }
        }
    });
}

#[test]
fn segment_without_flow_is_refused_never_given_a_random_backend_p41_p45() {
    tell(|bed| {
        if bed.protocol != protocol::TCP {
            return;
        }
        let client = (bed.plan.pod, 40_070);
        for flags in [ACK, SYN_ACK, FIN] {
            assert_eq!(
                bed.send(true, flags, client, (bed.plan.vip, PORT)).action,
                Action::Reject,
                "{flags:?}"
            );
            let left = bed.send(true, flags, client, (bed.plan.node, NODE_PORT));
            assert_eq!(left.action, Action::Pass, "the node's own address: the stack answers");
        }
        assert_eq!(bed.send(true, RST, client, (bed.plan.vip, PORT)).action, Action::Drop, "never answered");
    });
}

#[test]
fn one_client_port_to_two_services_and_direct_p60() {
    tell(|bed| {
        let (client, backend) = ((bed.plan.pod, 40_080), (bed.plan.backend, BACKEND_PORT));
        let (src_one, ..) = bed.translated(SYN, client, (bed.plan.vip, PORT));
        let (src_two, ..) = bed.translated(SYN, client, (bed.plan.other_vip, PORT));
        let (src_direct, ..) = bed.translated(SYN, client, backend);
        assert_eq!(src_one, client);
        assert!(src_one != src_two && src_two != src_direct && src_one != src_direct, "three source ports");
        let fronts = [(bed.plan.vip, PORT), (bed.plan.other_vip, PORT), backend];
        for (seen, front) in [src_one, src_two, src_direct].into_iter().zip(fronts) {
            let back = bed.send(false, SYN_ACK, backend, seen);
            assert_eq!((read(&back.bytes).src, read(&back.bytes).dst), (front, client));
        }
    });
}

#[test]
fn closed_flow_makes_way_for_a_direct_connection_p61() {
    tell(|bed| {
        if bed.protocol != protocol::TCP {
            return;
        }
        let (client, backend) = ((bed.plan.pod, 40_090), (bed.plan.backend, BACKEND_PORT));
        let vip = (bed.plan.vip, PORT);
        bed.translated(SYN, client, vip);
        bed.send(false, SYN_ACK, backend, client);
        bed.translated(FIN, client, vip);
        bed.send(false, FIN, backend, client);
        let (src, dst, _) = bed.translated(SYN, client, backend);
        assert_eq!((src, dst), (client, backend), "untouched");
        let back = bed.send(false, SYN_ACK, backend, client);
        assert_eq!(read(&back.bytes).src, backend, "not the Service's address");
    });
}

#[test]
fn challenge_ack_moves_the_flow_to_another_port_p60() {
    tell(|bed| {
        if bed.protocol != protocol::TCP {
            return;
        }
        let (client, backend) = ((bed.plan.pod, 40_100), (bed.plan.backend, BACKEND_PORT));
        let vip = (bed.plan.vip, PORT);
        bed.translated(SYN, client, vip);
        assert_eq!(bed.send(false, ACK, backend, client).action, Action::Drop);
        assert_eq!(bed.node.count(Reason::ChallengeAck), 1);
        let (src, dst, _) = bed.translated(SYN, client, vip);
        assert_eq!(dst, backend);
        assert_ne!(src, client);
        let direct = bed.send(false, ACK, backend, client);
        assert_eq!(read(&direct.bytes).src, backend, "the direct connection lives");
    });
}

#[test]
fn departed_backend_moves_udp_and_unanswered_syns_not_connections_p40_p46_p52() {
    tell(|bed| {
        let (client, backend) = ((bed.plan.pod, 40_110), (bed.plan.backend, BACKEND_PORT));
        let vip = (bed.plan.vip, PORT);
        bed.translated(SYN, client, vip);
        bed.node.set_endpoint(bed.v6, 0);
        bed.translated(SYN, client, vip);
        let made = bed.node.count(Reason::FlowCreated);
        assert_eq!(made, 2, "chosen anew");
        bed.send(false, SYN_ACK, backend, client);
        bed.translated(SYN, client, vip);
        let again = bed.node.count(Reason::FlowCreated);
        assert_eq!(again, if bed.protocol == protocol::TCP { 2 } else { 3 }, "an answered connection stays");
    });
}

#[test]
fn ring_forgets_idle_flows_and_keeps_live_ones_e9() {
    tell(|bed| {
        let (vip, keep) = ((bed.plan.vip, PORT), (bed.plan.pod, 30_000));
        let backend = (bed.plan.backend, BACKEND_PORT);
        bed.translated(SYN, keep, vip);
        bed.send(false, SYN_ACK, backend, keep);
        for round in 0..6_u32 {
            bed.node.set_clock(1000 + 60 * round);
            bed.translated(ACK, keep, vip);
            for n in 0..40 {
                let client = (bed.plan.pod, 50_000 + 64 * round as u16 + n);
                bed.translated(SYN, client, vip);
            }
        }
        assert_eq!(bed.node.count(Reason::FlowTableFull), 0, "240 flows went through a ring of 64");
        bed.translated(ACK, keep, vip);
        assert_eq!(bed.node.count(Reason::FlowCreated), 241, "the live flow was never made again");
    });
}

#[test]
fn full_of_live_flows_new_ones_are_dropped_with_a_reason_j9() {
    tell(|bed| {
        let vip = (bed.plan.vip, PORT);
        for n in 0..64 {
            bed.translated(SYN, (bed.plan.pod, 50_000 + n), vip);
        }
        assert_eq!(bed.send(true, SYN, (bed.plan.pod, 51_000), vip).action, Action::Drop);
        assert_eq!(bed.node.count(Reason::FlowTableFull), 1);
        bed.translated(ACK, (bed.plan.pod, 50_000), vip);
    });
}
