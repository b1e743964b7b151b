//! Frames, one after the other, on the node that the packet stories play on (P-01).
//!
//! Input: for each frame a byte that says at which hook, another whether it carries kube-proxy's mark, its length in two
//! bytes, little endian, and the frame.

use arbitrary::Unstructured;
use proxy_common::abi::protocol;

use crate::packet::frame::{ACK, ETHERNET, End, FIN, Flags, Icmp, SYN, SYN_ACK, icmp, packet};
use crate::packet::host::Host;
use crate::packet::shape::{Shape, shaped};
use crate::packet::story::{Action, At, Node};
use crate::packet::world::{self, MARK};
use crate::wire::check;

const EGRESS: u8 = 1;
const WITHOUT_ETHERNET: u8 = 2;

/// What passes is right wherever it was right before, is as long as before, and the flow table stays whole.
pub fn run(data: &[u8]) {
    let mut host = Host::default();
    let mut input = Unstructured::new(data);
    while !input.is_empty() {
        let Ok((hook, marked, length)) = input.arbitrary::<(u8, bool, u16)>() else { return };
        let length = usize::from(length).min(input.len());
        let Ok(bytes) = input.bytes(length) else { return };
        // Shorter ones have no EtherType: the entry points never see them.
        if bytes.len() <= ETHERNET {
            continue;
        }
        let base = if hook & EGRESS == 0 { At::INGRESS } else { At::EGRESS };
        let at = At { ethernet: hook & WITHOUT_ETHERNET == 0, ..base };
        let outcome = host.run(&at, bytes, if marked { MARK } else { 0 });
        if outcome.action == Action::Pass && at.ethernet {
            assert_eq!(outcome.bytes.len(), bytes.len(), "{bytes:02x?} became {:02x?}", outcome.bytes);
            if outcome.bytes != bytes && check::frame(bytes, check::Offload::default()).is_empty() {
                let faults = check::frame(&outcome.bytes, check::Offload::default());
                assert!(faults.is_empty(), "{bytes:02x?} became {:02x?}: {faults:?}", outcome.bytes);
            }
        }
        let table = host.check();
        assert!(table.is_ok(), "after {bytes:02x?}: {table:?}");
    }
}

/// Connections to a VIP and a NodePort, with answers, errors and the peculiarities that packets have.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for v6 in [false, true] {
        let plan = world::plan(v6);
        let (client, backend) = ((plan.pod, 40_000), (plan.backend, world::BACKEND_PORT));
        for service in [(plan.vip, world::PORT), (plan.node, world::NODE_PORT)] {
            for number in world::PROTOCOLS {
                let one = |flags: Flags, src: End, dst: End| packet(number, flags, src, dst, b"payload");
                let request = one(SYN, client, service);
                let mut seed = frame(0, false, &request);
                seed.extend(frame(EGRESS, true, &one(SYN, client, backend)));
                seed.extend(frame(0, false, &one(SYN_ACK, backend, client)));
                seed.extend(frame(EGRESS, false, &one(SYN_ACK, backend, client)));
                seed.extend(frame(0, false, &one(ACK, client, service)));
                seed.extend(frame(EGRESS, false, &one(FIN, backend, client)));
                let forwarded = one(SYN, client, backend);
                let error = icmp(Icmp::TooBig, plan.router, client.0, &forwarded[ETHERNET..], 48);
                seed.extend(frame(0, false, &error));
                seeds.push(seed);
                let shapes: [&[Shape]; 4] = if v6 {
                    [
                        &[Shape::HopByHop(1), Shape::Destination(2)],
                        &[Shape::Routing(0), Shape::Authentication],
                        &[Shape::Fragment(0, true)],
                        &[Shape::Fragment(8, false)],
                    ]
                } else {
                    [
                        &[Shape::Options(3)],
                        &[Shape::Fragment(0, true)],
                        &[Shape::Fragment(8, false)],
                        &[Shape::Protocol(protocol::SCTP)],
                    ]
                };
                seeds.push(
                    shapes
                        .iter()
                        .flat_map(|shapes| frame(0, false, &shaped(request.clone(), shapes)))
                        .collect(),
                );
            }
        }
    }
    seeds
}

fn frame(hook: u8, marked: bool, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
    [&[hook, u8::from(marked)], &length[..], bytes].concat()
}
