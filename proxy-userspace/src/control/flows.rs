use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use proxy_common::abi::{Addr, Flow, FlowKey, Hook, Kind, Port, protocol, state};

use crate::status::FlowView;

/// A copy of both flow tables.
#[derive(Clone, Debug, Default)]
pub struct FlowTables {
    pub v4: HashMap<FlowKey<1>, Flow<1>>,
    pub v6: HashMap<FlowKey<4>, Flow<4>>,
}

/// A tick, the unit of `Flow::seen` and `Flow::created`, in nanoseconds.
const TICK: u64 = 1 << 30;

/// Joins entries to flows: one view for each entry at a client's edge, and with it the masquerade entry that its
/// translated packets meet at the backend's edge. Sorted.
///
/// `now` is the clock of the entries, in ticks; `service` names a Service port by its index.
pub fn flow_views(tables: &FlowTables, now: u32, service: &impl Fn(u32) -> Option<String>) -> Vec<FlowView> {
    let mut views = Vec::new();
    family(&tables.v4, |a: Addr<1>| IpAddr::from(a.octets()), now, service, &mut views);
    family(&tables.v6, |a: Addr<4>| IpAddr::from(a.octets()), now, service, &mut views);
    views.sort();
    views
}

fn family<const N: usize>(
    table: &HashMap<FlowKey<N>, Flow<N>>,
    ip: impl Fn(Addr<N>) -> IpAddr,
    now: u32,
    service: &impl Fn(u32) -> Option<String>,
    views: &mut Vec<FlowView>,
) {
    let at = |address, port: Port| SocketAddr::new(ip(address), port.number());
    for (key, flow) in table.iter().filter(|(_, flow)| flow.kind() == Some(Kind::Translate)) {
        let reply = table.get(&flow.partner(key));
        let leaving = FlowKey {
            src: flow.src,
            dst: flow.dst,
            sport: flow.sport,
            dport: flow.dport,
            protocol: key.protocol,
            hook: Hook::Egress as u8,
            pad: 0,
        };
        let far = table.get(&leaving).filter(|far| far.kind() == Some(Kind::Masquerade));
        let seen = reply.map_or(flow.seen, |reply| latest(now, flow.seen, reply.seen));
        views.push(FlowView {
            client: at(key.src, key.sport),
            frontend: at(key.dst, key.dport),
            backend: at(flow.dst, flow.dport),
            masquerade: far.map(|far| at(far.src, far.sport)),
            protocol: protocol_name(key.protocol),
            service: service(flow.service),
            state: life(flow.state, reply.map_or(0, |reply| reply.state)).to_owned(),
            age: seconds(now, flow.created),
            idle: seconds(now, seen),
            path: "stack".to_owned(),
        });
    }
}

/// The one nearer to `now`: ticks wrap around.
const fn latest(now: u32, one: u32, other: u32) -> u32 {
    if now.wrapping_sub(one) < now.wrapping_sub(other) { one } else { other }
}

/// An entry may have been used after `now` was read: its age is 0 then, not a century.
fn seconds(now: u32, then: u32) -> u64 {
    let ticks = now.wrapping_sub(then);
    if ticks > u32::MAX / 2 { 0 } else { u64::from(ticks) * TICK / 1_000_000_000 }
}

fn life(request: u8, reply: u8) -> &'static str {
    let either = request | reply;
    if either & state::RST != 0 {
        "reset"
    } else if either & state::FIN != 0 {
        "closing"
    } else if either & state::ESTABLISHED != 0 || reply & state::SEEN != 0 {
        "established"
    } else {
        "new"
    }
}

fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        protocol::SCTP => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Addr<1> = Addr::v4([10, 1, 0, 5]);
    const FRONTEND: Addr<1> = Addr::v4([192, 0, 2, 1]);
    const BACKEND: Addr<1> = Addr::v4([10, 2, 0, 7]);
    const NODE: Addr<1> = Addr::v4([10, 2, 0, 1]);

    fn key(src: Addr<1>, sport: u16, dst: Addr<1>, dport: u16, hook: Hook) -> FlowKey<1> {
        FlowKey {
            src,
            dst,
            sport: Port::new(sport),
            dport: Port::new(dport),
            protocol: protocol::TCP,
            hook: hook as u8,
            pad: 0,
        }
    }

    fn flow(kind: Kind, src: (Addr<1>, u16), dst: (Addr<1>, u16), state: u8, seen: u32) -> Flow<1> {
        Flow {
            src: src.0,
            dst: dst.0,
            sport: Port::new(src.1),
            dport: Port::new(dst.1),
            address_diff: 0,
            seen,
            created: 90,
            service: 3,
            endpoint: 0,
            ifindex: 2,
            generation: 0,
            kind: kind as u8,
            state,
            tag: 0,
        }
    }

    /// A client at port 40000, renumbered to 40001, masqueraded as port 2000.
    fn tables(request: u8, reply: u8) -> FlowTables {
        let v4 = HashMap::from([
            (
                key(CLIENT, 40000, FRONTEND, 30080, Hook::Ingress),
                flow(Kind::Translate, (CLIENT, 40001), (BACKEND, 8080), request, 95),
            ),
            (
                key(BACKEND, 8080, CLIENT, 40001, Hook::Egress),
                flow(Kind::Restore, (FRONTEND, 30080), (CLIENT, 40000), reply, 97),
            ),
            (
                key(CLIENT, 40001, BACKEND, 8080, Hook::Egress),
                flow(Kind::Masquerade, (NODE, 2000), (BACKEND, 8080), request, 95),
            ),
            (
                key(BACKEND, 8080, NODE, 2000, Hook::Ingress),
                flow(Kind::Unmasquerade, (BACKEND, 8080), (CLIENT, 40001), reply, 97),
            ),
        ]);
        FlowTables { v4, v6: HashMap::new() }
    }

    fn name(id: u32) -> Option<String> {
        (id == 3).then(|| "default/web:http".to_owned())
    }

    #[test]
    fn four_entries_are_one_flow() {
        let views = flow_views(&tables(state::SEEN, state::SEEN), 100, &name);
        let [view] = views.as_slice() else { panic!("{views:?}") };
        assert_eq!(view.client.to_string(), "10.1.0.5:40000");
        assert_eq!(view.frontend.to_string(), "192.0.2.1:30080");
        assert_eq!(view.backend.to_string(), "10.2.0.7:8080");
        assert_eq!(view.masquerade.map(|m| m.to_string()).as_deref(), Some("10.2.0.1:2000"));
        assert_eq!(view.service.as_deref(), Some("default/web:http"));
        assert_eq!((view.age, view.idle), (10, 3), "ticks are a little longer than seconds");
        let mut tables = tables(state::SEEN, 0);
        tables.v4.retain(|_, flow| flow.kind() == Some(Kind::Translate));
        let alone = &flow_views(&tables, 94, &|_| None)[0];
        assert_eq!((alone.idle, &alone.masquerade, &alone.service), (0, &None, &None), "used after now");
    }

    #[test]
    fn state_is_judged_by_both_directions() {
        let cases = [
            ("first packet", state::SEEN, 0, "new"),
            ("answered", state::SEEN, state::SEEN, "established"),
            ("handshake done", state::SEEN | state::ESTABLISHED, 0, "established"),
            ("one side has closed", state::SEEN | state::FIN, state::SEEN, "closing"),
            ("reset wins", state::FIN, state::RST | state::FIN, "reset"),
        ];
        for (name_, request, reply, want) in cases {
            assert_eq!(flow_views(&tables(request, reply), 100, &name)[0].state, want, "{name_}");
        }
    }
}
