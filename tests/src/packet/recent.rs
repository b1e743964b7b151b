//! What has just been done with a flow's packets, on the host: the next ones are shown tables without any flow, so what becomes of
//! them shows whether a record held.

use proxy_common::abi::{Config, Kind, Port, Recent, config_flags, protocol};
use proxy_common::wire::Headers;

use super::frame::{ACK, End, FIN, Flags, RST, SYN, SYN_ACK, packet};
use super::host::Host;
use super::maps::Maps;
use super::story::{Action, At, Node, Outcome, PassedBy};
use super::world::{
    BACKEND_PORT, IFINDEX, MARK, NODE_PORT, PODS_IFINDEX, PORT, Plan, addr, config, device, plan,
};

const CLIENT_PORT: u16 = 40_000;
const DATA: &[u8] = b"twenty-one bytes long";

/// Where requests enter: routes lead to the endpoint, and back.
const THERE: At = At { routes: [PODS_IFINDEX, IFINDEX], ..At::INGRESS };
/// Where answers do.
const BACK: At = At { ifindex: PODS_IFINDEX, routes: [IFINDEX, 0], ..At::INGRESS };

/// A client and what it has dialled.
struct Talk {
    host: Host,
    plan: Plan,
    protocol: u8,
    client: End,
    frontend: End,
}

impl Talk {
    /// A flow past the stack, both ways of which have been taken at least twice since it began.
    fn new(v6: bool, protocol: u8, masqueraded: bool) -> Self {
        let plan = plan(v6);
        let mut host = Host::default();
        let flags = config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP | config_flags::SHORTCUT_ALWAYS;
        host.set_config(Config { flags: config().flags | flags, ..config() });
        let frontend = if masqueraded { (plan.node, NODE_PORT) } else { (plan.vip, PORT) };
        let client = if masqueraded { plan.outside } else { plan.pod };
        let mut talk = Self { host, plan, protocol, client: (client, CLIENT_PORT), frontend };
        let opened = talk.asks(&THERE, SYN, b"");
        if masqueraded {
            // The other edge makes its pair.
            talk.host.run(&At { ifindex: PODS_IFINDEX, ..At::EGRESS }, &opened.bytes, opened.mark);
        }
        talk.answers(&BACK, SYN_ACK, b"");
        for _ in 0..3 {
            talk.asks(&THERE, ACK, DATA);
            talk.answers(&BACK, ACK, DATA);
        }
        talk
    }

    fn request(&self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        packet(self.protocol, flags, self.client, self.frontend, payload)
    }

    fn answer(&self, flags: Flags, payload: &[u8]) -> Vec<u8> {
        let masqueraded = self.frontend.0 == self.plan.node;
        let to = if masqueraded { self.masqueraded() } else { self.client };
        packet(self.protocol, flags, (self.plan.backend, BACKEND_PORT), to, payload)
    }

    /// The client as its endpoint sees it.
    fn masqueraded(&self) -> End {
        fn port<const N: usize>(maps: &Maps<N>) -> Option<u16> {
            let flows = maps.flows.borrow();
            flows
                .values()
                .map(|flow| flow.get())
                .find(|flow| flow.kind() == Some(Kind::Masquerade))
                .map(|flow| flow.sport.number())
        }
        let port = port(&self.host.v4).or_else(|| port(&self.host.v6));
        (self.plan.masquerade, port.expect("a masqueraded flow"))
    }

    fn asks(&mut self, at: &At, flags: Flags, payload: &[u8]) -> Outcome {
        let request = self.request(flags, payload);
        self.host.run(at, &request, 0)
    }

    fn answers(&mut self, at: &At, flags: Flags, payload: &[u8]) -> Outcome {
        let answer = self.answer(flags, payload);
        self.host.run(at, &answer, 0)
    }

    /// From now on there are no flows.
    fn forget(&mut self) {
        self.host.v4.flows.borrow_mut().clear();
        self.host.v6.flows.borrow_mut().clear();
    }
}

const INTO_THE_POD: Action = Action::Shortcut(PassedBy { device: PODS_IFINDEX, peer: true });
const TO_THE_CLIENT: Action = Action::Shortcut(PassedBy { device: IFINDEX, peer: false });

#[test]
fn the_same_comes_of_the_next_packet() {
    for v6 in [false, true] {
        for (protocol, what) in [(protocol::TCP, "TCP"), (protocol::UDP, "UDP")] {
            for masqueraded in [false, true] {
                let story = format!("{what}, v6: {v6}, masqueraded: {masqueraded}");
                let mut talk = Talk::new(v6, protocol, masqueraded);
                let answer = talk.answer(ACK, DATA);
                talk.host.tell_news();
                let usual = (talk.asks(&THERE, ACK, DATA), talk.host.run(&BACK, &answer, 0));
                assert_eq!((usual.0.action, usual.1.action), (INTO_THE_POD, TO_THE_CLIENT), "{story}");
                talk.forget();
                let again = (talk.asks(&THERE, ACK, DATA), talk.host.run(&BACK, &answer, 0));
                assert_eq!(again, usual, "{story}");
            }
        }
    }
}

/// What happens between two packets, and whether the second goes as the first did, there and back.
#[test]
fn a_record_holds_until_there_is_news() {
    type Event = fn(&mut Talk);
    let cases: [(&str, Event, bool); 14] = [
        ("nothing", |_| {}, true),
        ("a moment goes by", |talk| talk.host.v4.moments.set(1), false),
        ("an endpoint leaves (P-52)", |talk| talk.host.set_endpoint(false, 0), false),
        ("a device changes", |talk| talk.host.set_device(PODS_IFINDEX, Some(device())), false),
        ("a device goes", |talk| talk.host.set_device(PODS_IFINDEX, None), false),
        ("settings change", |talk| talk.host.set_config(config()), false),
        ("a Service goes", |talk| talk.host.remove(talk.plan.other_vip), true),
        ("the client closes", |talk| _ = talk.asks(&THERE, FIN, b""), false),
        ("the client resets", |talk| _ = talk.asks(&THERE, RST, b""), false),
        ("the client begins anew", |talk| _ = talk.asks(&THERE, SYN, b""), false),
        ("the endpoint closes", |talk| _ = talk.answers(&BACK, FIN, b""), false),
        ("the endpoint resets", |talk| _ = talk.answers(&BACK, RST, b""), false),
        ("more data", |talk| _ = talk.asks(&THERE, ACK, DATA), true),
        (
            "another client closes",
            |talk| {
                talk.client.1 += 1;
                talk.asks(&THERE, SYN, b"");
                talk.asks(&THERE, FIN, b"");
                talk.client.1 -= 1;
            },
            true,
        ),
    ];
    for (what, event, holds) in cases {
        let mut talk = Talk::new(false, protocol::TCP, false);
        event(&mut talk);
        talk.forget();
        let there = talk.asks(&THERE, ACK, DATA).action == INTO_THE_POD;
        let back = talk.answers(&BACK, ACK, DATA).action == TO_THE_CLIENT;
        assert_eq!((there, back), (holds, holds), "{what}");
    }
}

/// A record is of one flow, and of packets that change nothing of it.
#[test]
fn what_is_not_like_the_last_packet_goes_the_usual_way() {
    let longer = [0; 22];
    let with_hops = |talk: &Talk, hops: u8| {
        let mut request = talk.request(ACK, DATA);
        let field = &mut request[22];
        *field = hops;
        request
    };
    type Made<'a> = &'a dyn Fn(&Talk) -> (Vec<u8>, At, u32);
    let cases: [(&str, Made<'_>, bool); 11] = [
        ("as long", &|talk| (talk.request(ACK, DATA), THERE, 0), true),
        ("shorter", &|talk| (talk.request(ACK, &DATA[1..]), THERE, 0), true),
        ("longer", &|talk| (talk.request(ACK, &longer), THERE, 0), false),
        ("two hops left", &|talk| (with_hops(talk, 2), THERE, 0), true),
        ("no hop left", &|talk| (with_hops(talk, 1), THERE, 0), false),
        ("marked", &|talk| (talk.request(ACK, DATA), THERE, MARK), false),
        ("otherwise marked", &|talk| (talk.request(ACK, DATA), THERE, MARK << 1), true),
        ("a FIN", &|talk| (talk.request(FIN, DATA), THERE, 0), false),
        ("a SYN", &|talk| (talk.request(SYN, DATA), THERE, 0), false),
        (
            "by another device",
            &|talk| (talk.request(ACK, DATA), At { ifindex: PODS_IFINDEX, ..THERE }, 0),
            false,
        ),
        (
            "by another port",
            &|talk| {
                let client = (talk.client.0, talk.client.1 + 1);
                (packet(talk.protocol, ACK, client, talk.frontend, DATA), THERE, 0)
            },
            false,
        ),
    ];
    for (what, made, holds) in cases {
        let mut talk = Talk::new(false, protocol::TCP, false);
        talk.forget();
        let (frame, at, mark) = made(&talk);
        let at = At { routes: [0; 2], ..at };
        assert_eq!(talk.host.run(&at, &frame, mark).action == INTO_THE_POD, holds, "{what}");
    }
}

#[test]
fn an_answer_goes_where_routes_lead_now() {
    for (what, device, goes) in
        [("to the client", IFINDEX, true), ("elsewhere", 9, false), ("nowhere", 0, false)]
    {
        let mut talk = Talk::new(false, protocol::TCP, false);
        talk.forget();
        let at = At { routes: [device, 0], ..BACK };
        assert_eq!(talk.answers(&at, ACK, DATA).action == TO_THE_CLIENT, goes, "{what}");
    }
}

/// Two flows with one place: who has it keeps it for a moment.
#[test]
fn a_place_is_one_flows_for_a_moment() {
    let place = |port: u16| {
        let mut key = Headers::<1>::EMPTY.key;
        let plan = plan(false);
        (key.src, key.dst) = (addr(plan.pod), addr(plan.vip));
        (key.sport, key.dport) = (Port::new(port), Port::new(PORT));
        key.protocol = protocol::UDP;
        Recent::place(&key)
    };
    let rival = (CLIENT_PORT + 1..).find(|&port| place(port) == place(CLIENT_PORT)).expect("one of 25,000");
    let mut talk = Talk::new(false, protocol::UDP, false);
    let sent = |talk: &mut Talk, at, port| {
        talk.client.1 = port;
        talk.asks(&at, ACK, DATA).action == INTO_THE_POD
    };
    for _ in 0..2 {
        assert!(sent(&mut talk, THERE, rival), "the usual way");
    }
    let holds = |talk: &mut Talk, port| {
        let flows = talk.host.v4.flows.take();
        let held = sent(talk, At::INGRESS, port);
        talk.host.v4.flows.replace(flows);
        held
    };
    assert_eq!((holds(&mut talk, CLIENT_PORT), holds(&mut talk, rival)), (true, false));
    talk.host.v4.moments.set(1);
    assert!(
        sent(&mut talk, THERE, rival) && sent(&mut talk, THERE, CLIENT_PORT),
        "the usual way, in the next moment"
    );
    assert_eq!((holds(&mut talk, CLIENT_PORT), holds(&mut talk, rival)), (false, true));
}
