//! The path on the host.

use std::net::IpAddr;

use proxy_common::abi::{Config, Device, Flow, FlowKey, Guard, Reason, news};
use proxy_common::path::{self, Out, Packet, TEST_MTU, Tables, Verdict};
use proxy_common::wire::{Diff, Headers, apply};

use super::maps::Maps;
use super::story::{Action, At, Flows, Node, Outcome, PassedBy};
use super::world::{self, CATCH_ALL_IFINDEX, Writer};
use crate::simulation::check_table;

/// Pairs the flow table has room for.
pub const PAIRS: u32 = 64;
/// Bytes of payload in each segment of a super-packet.
pub const SEGMENT: u32 = 1000;

/// A frame in a vector.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub mark: u32,
    pub ifindex: u32,
    pub note: u16,
    /// Bytes of payload in each segment; 0: no super-packet.
    pub segment: u32,
    /// Its frame is for somebody else.
    pub flooded: bool,
    pub forwarded: bool,
    /// See [`Packet::is_unfinished`].
    pub unfinished: Option<bool>,
    /// Where routes lead, in the order in which they are asked; 0: nowhere.
    pub routes: [u32; 2],
    /// Where it has been sent, past the stack.
    pub sent: Option<(u32, bool)>,
}

impl Frame {
    /// One that carries no note.
    #[must_use]
    pub const fn new(bytes: Vec<u8>, mark: u32, ifindex: u32) -> Self {
        Self {
            bytes,
            mark,
            ifindex,
            note: 0,
            segment: 0,
            flooded: false,
            forwarded: false,
            unfinished: None,
            routes: [0; 2],
            sent: None,
        }
    }
}

impl Packet for Frame {
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    fn window<const K: usize>(&self, at: u32) -> Option<&[u8; K]> {
        let at = at as usize;
        self.bytes.get(at..at + K)?.try_into().ok()
    }

    fn window_mut<const K: usize>(&mut self, at: u32) -> Option<&mut [u8; K]> {
        let at = at as usize;
        self.bytes.get_mut(at..at + K)?.try_into().ok()
    }

    fn l4_checksum(&mut self, at: u32, addresses: Diff, ports: Diff, udp: bool, _v6: bool) -> Option<()> {
        let old = u16::from_ne_bytes(self.load(at)?);
        if udp && old == 0 {
            return Some(());
        }
        let new = match apply(old, addresses.and(ports)) {
            0 if udp => 0xffff,
            new => new,
        };
        self.store(at, new.to_ne_bytes())
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.bytes.resize(len as usize, 0);
        Some(())
    }

    fn make_room(&mut self, l3: u32, bytes: u32) -> Option<()> {
        let at = l3 as usize;
        self.bytes.splice(at..at, std::iter::repeat_n(0, bytes as usize));
        Some(())
    }

    fn mark(&self) -> u32 {
        self.mark
    }

    fn set_mark(&mut self, mark: u32) {
        self.mark = mark;
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn is_for_host(&self) -> bool {
        !self.flooded
    }

    fn note(&self) -> u16 {
        self.note
    }

    fn set_note(&mut self, note: u16) {
        self.note = note;
    }

    fn segment(&self) -> u32 {
        self.segment
    }

    fn route<const N: usize>(&mut self, _ends: &FlowKey<N>, _length: u32) -> Option<(u32, u32)> {
        let [first, second] = self.routes;
        self.routes = [second, 0];
        (first != 0).then_some((first, TEST_MTU))
    }

    fn send(&mut self, device: u32, out: Out) {
        let peer = out == Out::Peer;
        self.sent = Some((device, peer));
    }

    fn is_unfinished(&self) -> Option<bool> {
        self.unfinished
    }

    fn is_own(&self) -> bool {
        !self.forwarded
    }

    fn is_caught(&self) -> bool {
        self.ifindex == CATCH_ALL_IFINDEX
    }
}

/// What the kernel would be told of a packet that has been `sent` past the stack, or has not.
fn action(verdict: Verdict, sent: Option<(u32, bool)>) -> Action {
    match (verdict, sent) {
        (Verdict::Pass, None) => Action::Pass,
        (Verdict::Drop(_), None) => Action::Drop,
        (Verdict::Reject(_), None) => Action::Reject,
        (Verdict::Shortcut, Some((device, peer))) => Action::Shortcut(PassedBy { device, peer }),
        (verdict, sent) => unreachable!("{verdict:?}, and it was sent to {sent:?}"),
    }
}

/// A node on the host.
pub struct Host {
    pub(super) v4: Maps<1>,
    pub(super) v6: Maps<4>,
}

impl Default for Host {
    fn default() -> Self {
        fn filled<const N: usize>() -> Maps<N> {
            let mut maps = Maps::empty(PAIRS, world::config());
            world::fill(&mut maps);
            maps
        }
        Self { v4: filled(), v6: filled() }
    }
}

impl Host {
    /// Whether the flow tables are whole.
    ///
    /// # Errors
    /// What is not.
    pub fn check(&self) -> Result<(), String> {
        check_table(&self.v4)?;
        check_table(&self.v6)
    }

    /// As the agent does after it has changed what established flows depend on.
    pub(super) fn tell_news(&self) {
        self.v4.tell_news(news::OF_AGENT);
        self.v6.tell_news(news::OF_AGENT);
    }

    /// Whether what has ended is counted, once and under its reason, and nothing else is.
    fn counted_once(&mut self, before: &[u64], verdict: Verdict) {
        let ended = match verdict {
            Verdict::Drop(reason) | Verdict::Reject(reason) => Some(reason),
            Verdict::Pass | Verdict::Shortcut => None,
        };
        for (reason, (before, after)) in Reason::ALL.into_iter().zip(before.iter().zip(self.counts())) {
            let want = u64::from(ended == Some(reason));
            assert!(
                !reason.is_end() || after - before == want,
                "{verdict:?}: {reason:?} {before} -> {after}"
            );
        }
    }
}

impl Node for Host {
    fn run(&mut self, hook: &At, bytes: &[u8], mark: u32) -> Outcome {
        let segment = if hook.segments > 0 { SEGMENT } else { 0 };
        let mut frame = Frame {
            note: hook.note,
            segment,
            flooded: hook.flooded,
            forwarded: hook.forwarded,
            routes: hook.routes,
            ..Frame::new(bytes.to_vec(), mark, hook.ifindex)
        };
        let l3 = if hook.ethernet { 14 } else { 0 };
        let before = self.counts();
        let verdict = match (hook.ingress, &bytes[12..14]) {
            (true, [0x08, 0x00]) => path::ingress(&mut frame, &self.v4, &mut Headers::EMPTY.clone(), l3),
            (false, [0x08, 0x00]) => path::egress(&mut frame, &self.v4, &mut Headers::EMPTY.clone(), l3),
            (true, [0x86, 0xdd]) => path::ingress(&mut frame, &self.v6, &mut Headers::EMPTY.clone(), l3),
            (false, [0x86, 0xdd]) => path::egress(&mut frame, &self.v6, &mut Headers::EMPTY.clone(), l3),
            _ => Verdict::Pass,
        };
        self.counted_once(&before, verdict);
        let action = action(verdict, frame.sent);
        Outcome { action, bytes: frame.bytes, mark: frame.mark, note: frame.note }
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn set_config(&mut self, config: Config) {
        self.v4.config.set(config);
        self.v6.config.set(config);
        self.tell_news();
    }

    fn set_guard(&mut self, guard: Guard) {
        self.v4.guard.set(guard);
        self.v6.guard.set(guard);
    }

    fn set_device(&mut self, ifindex: u32, device: Option<Device>) {
        for devices in [&mut self.v4.devices, &mut self.v6.devices].map(std::cell::RefCell::get_mut) {
            match device {
                Some(device) => _ = devices.insert(ifindex, device),
                None => _ = devices.remove(&ifindex),
            }
        }
        self.tell_news();
    }

    fn set_endpoint(&mut self, v6: bool, generation: u32) {
        if v6 {
            self.v6.endpoint(world::endpoint_id(true), generation);
        } else {
            self.v4.endpoint(world::endpoint_id(false), generation);
        }
        self.tell_news();
    }

    fn remove(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(_) => self.v4.take(world::addr(address)),
            IpAddr::V6(_) => self.v6.take(world::addr(address)),
        }
    }

    fn counts(&mut self) -> Vec<u64> {
        let (v4, v6) = (self.v4.counters.borrow(), self.v6.counters.borrow());
        let of = |reason| v4.get(reason).unwrap_or(&0) + v6.get(reason).unwrap_or(&0);
        Reason::ALL.iter().map(of).collect()
    }

    fn flows(&mut self) -> Flows {
        fn entries<const N: usize>(maps: &Maps<N>) -> Vec<(FlowKey<N>, Flow<N>)> {
            maps.flows.borrow().iter().map(|(key, flow)| (*key, flow.get())).collect()
        }
        Flows::new(entries(&self.v4), entries(&self.v6))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proxy_common::abi::{Config, Port, Reason, protocol};
    use proxy_common::path::Tables;

    use super::super::frame::{End, RST, SYN, packet, read};
    use super::super::maps::Meanwhile;
    use super::super::story::Action;
    use super::super::world::{BACKEND_PORT, MARK, NODE_PORT, PORT, plan};
    use super::*;

    fn enters(maps: &Maps<1>, from: End, to: End) -> (Action, End, End) {
        sees(maps, from, to, path::ingress)
    }

    type Way = fn(&mut Frame, &Maps<1>, &mut Headers<1>, u32) -> Verdict;

    fn sees(maps: &Maps<1>, from: End, to: End, hook: Way) -> (Action, End, End) {
        let bytes = packet(protocol::UDP, SYN, from, to, b"x");
        let mut frame = Frame::new(bytes, 0, world::IFINDEX);
        let verdict = hook(&mut frame, maps, &mut Headers::EMPTY.clone(), 14);
        let made = read(&frame.bytes);
        (action(verdict, None), made.src, made.dst)
    }

    /// Two datagrams of one new flow at two CPUs, as a resolver sends them: they have one pair, and go to one endpoint from one
    /// port. `at` is the insertion that one of them waits before while the other goes all the way.
    #[test]
    fn two_cpus_that_open_one_flow_at_once_make_one_pair_p57() {
        let p = plan(false);
        let dialled = [
            ("a ClusterIP", (p.pod, 40_001), (p.vip, PORT)),
            ("a NodePort", (p.outside, 40_002), (p.node, NODE_PORT)),
        ];
        for (what, from, to) in dialled {
            for at in 0..2 {
                let host = Host::default();
                let other = std::rc::Rc::new(std::cell::Cell::new(None));
                let seen = other.clone();
                let meanwhile: Meanwhile<1> = Box::new(move |maps| seen.set(Some(enters(maps, from, to))));
                let none = (0..at).map(|_| None);
                *host.v4.meanwhile.borrow_mut() = [Some(meanwhile)].into_iter().chain(none).collect();
                let this = enters(&host.v4, from, to);
                assert_eq!(Some(this), other.get(), "{what}, before insertion {at}");
                assert_eq!(this.0, Action::Pass, "{what}, before insertion {at}");
                assert_eq!(host.v4.flows.borrow().len(), 2, "{what}, before insertion {at}");
                host.check().unwrap_or_else(|error| panic!("{what}, before insertion {at}: {error}"));
                assert_eq!(enters(&host.v4, from, to), this, "{what}, before insertion {at}: the next one");
            }
        }
    }

    /// Two clients' flows to one NodePort that would take the same port between the edges, at two CPUs: each gets a port of its
    /// own, and each answer reaches the client that asked. `at` as above.
    #[test]
    fn two_cpus_that_draw_one_port_make_two_flows_p63() {
        let p = plan(false);
        let (node, backend) = ((p.node, NODE_PORT), (p.backend, BACKEND_PORT));
        let mut drawn = HashMap::new();
        let rivals = (1_024..u16::MAX).find_map(|port| {
            let (_, between, _) = enters(&Host::default().v4, (p.outside, port), node);
            Some(((p.outside, drawn.insert(between.1, port)?), (p.outside, port)))
        });
        let (one, other) = rivals.expect("two of 64,512 clients draw one of 14,488 ports");
        for at in 0..2 {
            let host = Host::default();
            let theirs = std::rc::Rc::new(std::cell::Cell::new(None));
            let seen = theirs.clone();
            let meanwhile: Meanwhile<1> = Box::new(move |maps| seen.set(Some(enters(maps, other, node))));
            let none = (0..at).map(|_| None);
            *host.v4.meanwhile.borrow_mut() = [Some(meanwhile)].into_iter().chain(none).collect();
            let ours = enters(&host.v4, one, node);
            let theirs = theirs.get().expect("the other CPU had its turn");
            assert_ne!(ours.1, theirs.1, "before insertion {at}");
            for (client, between) in [(one, ours), (other, theirs)] {
                assert_eq!((between.0, between.2), (Action::Pass, backend), "before insertion {at}");
                let answered = sees(&host.v4, backend, between.1, path::egress);
                assert_eq!(answered, (Action::Pass, node, client), "before insertion {at}");
            }
            host.check().unwrap_or_else(|error| panic!("before insertion {at}: {error}"));
        }
    }

    /// A client comes back by the port of its connection that has closed: the new pair has the turn of the old one, though another CPU
    /// looks at that turn in between, while there is no pair. `at` as above.
    #[test]
    fn a_pair_inherits_the_turn_of_the_closed_one_before_it_p42() {
        let p = plan(false);
        let comes = |host: &Host, port, flags| {
            let bytes = packet(protocol::TCP, flags, (p.pod, port), (p.vip, PORT), b"");
            let mut frame = Frame::new(bytes, 0, world::IFINDEX);
            path::ingress(&mut frame, &host.v4, &mut Headers::EMPTY.clone(), 14)
        };
        // So many that the next look is due, and is at the first one's.
        let ports = 40_000..40_008;
        for at in 0..2 {
            let host = Host::default();
            for port in ports.clone() {
                assert_eq!(comes(&host, port, SYN), Verdict::Pass);
            }
            assert_eq!(comes(&host, ports.start, RST), Verdict::Pass);
            host.v4.config.update(|config| Config { test_clock: config.test_clock + 3, ..config });
            let first = host.v4.ring.borrow()[0];
            let looks: Meanwhile<1> = Box::new(|maps| assert!(maps.make_room(), "there is room"));
            let none = (0..at).map(|_| None);
            *host.v4.meanwhile.borrow_mut() = [Some(looks)].into_iter().chain(none).collect();
            assert_eq!(comes(&host, ports.start, SYN), Verdict::Pass);
            let last = *host.v4.ring.borrow().back().expect("there are turns");
            assert!(last.key == first.key && last.is_of(first.serial), "before insertion {at}: {last:?}");
            assert_eq!(host.v4.ring.borrow().len(), ports.len(), "before insertion {at}");
            host.check().unwrap_or_else(|error| panic!("before insertion {at}: {error}"));
        }
    }

    /// In a table that has little room left a client comes back by the port of a flow that is over, whose turn is the next: the new
    /// flow is there when its answer comes (P-65).
    #[test]
    fn a_pair_with_an_old_turn_is_there_for_its_answer() {
        let p = plan(false);
        let host = Host::default();
        for port in 0..(PAIRS - PAIRS / 8) as u16 {
            enters(&host.v4, (p.pod, 40_000 + port), (p.vip, PORT));
        }
        host.v4.config.update(|config| Config { test_clock: config.test_clock + 30, ..config });
        let oldest = host.v4.ring.borrow()[0];
        let client = (p.pod, oldest.key.sport.number());
        let (action, _, backend) = enters(&host.v4, client, (p.vip, PORT));
        assert_eq!((action, backend), (Action::Pass, (p.backend, BACKEND_PORT)));
        assert_eq!(host.v4.ring.borrow()[0], oldest, "its turn");
        enters(&host.v4, (p.pod, 50_000), (p.vip, PORT));
        let answered = sees(&host.v4, backend, client, path::egress);
        assert_eq!(answered, (Action::Pass, (p.vip, PORT), client));
        // That was its round: as old as any other, it goes when its turn comes again.
        for port in 0..2 * PAIRS as u16 {
            enters(&host.v4, (p.pod, 51_000 + port), (p.vip, PORT));
        }
        assert_ne!(sees(&host.v4, backend, client, path::egress).1, (p.vip, PORT));
        host.check().unwrap();
    }

    /// A turn whose pair has gone for good is kept once, and no longer.
    #[test]
    fn a_turn_without_a_pair_is_let_go_at_the_second_look() {
        let p = plan(false);
        let host = Host::default();
        let mut looks = Vec::new();
        for port in 40_000..40_008 {
            enters(&host.v4, (p.pod, port), (p.vip, PORT));
        }
        host.v4.flows.borrow_mut().clear();
        for _ in 0..16 {
            assert!(host.v4.make_room(), "there is room");
            looks.push(host.v4.ring.borrow().len());
        }
        assert_eq!((looks[7], looks[8]), (8, 7), "one look at a time while there is room, when it is due");
        assert_eq!(looks[15], 7);
    }

    /// A flood's connections are signs of a storm while they are younger than half a tick (P-65).
    #[test]
    fn a_storm_is_over_half_a_tick_after_its_flood() {
        let p = plan(false);
        for (moments, storms) in [(0, true), (7, true), (8, false), (16, false)] {
            let mut host = Host::default();
            let opened = |host: &mut Host, client| {
                let frame = packet(protocol::TCP, SYN, (p.outside, client), (p.backend, BACKEND_PORT), b"");
                read(&host.run(&At::EGRESS, &frame, MARK).bytes).src.1
            };
            (0..3 * PAIRS as u16).for_each(|n| _ = opened(&mut host, 20_000 + n));
            host.v4.moments.set(moments);
            let port = opened(&mut host, 40_000);
            assert_eq!(port >= 30_000, storms, "{port}, {moments} moments later");
        }
    }

    /// The node's own sockets hold every port of the masquerade address: a new flow is dropped after a few tries and counted, what
    /// lives goes on, and the client's next datagram is served once a port is free.
    #[test]
    fn masquerade_ports_run_out_p62() {
        let p = plan(false);
        let mut host = Host::default();
        let opened = |host: &mut Host, port| {
            let request = packet(protocol::UDP, SYN, (p.outside, port), (p.node, NODE_PORT), b"x");
            let first = host.run(&At::INGRESS, &request, 0);
            host.run(&At::EGRESS, &first.bytes, first.mark)
        };
        let exhausted = |host: &mut Host| host.counts()[Reason::PortsExhausted as usize];
        let before = opened(&mut host, 40_001);
        let seen = read(&before.bytes).src;
        assert_eq!((before.action, seen.0), (Action::Pass, p.masquerade));
        let every = (1..=u16::MAX).map(|port| (protocol::UDP, world::addr(p.masquerade), Port::new(port)));
        host.v4.sockets.borrow_mut().extend(every);
        assert_eq!(opened(&mut host, 40_002).action, Action::Drop);
        assert_eq!(exhausted(&mut host), 1);
        assert_eq!(read(&opened(&mut host, 40_001).bytes).src, seen, "the flow that lives has lost its port");
        host.v4.sockets.borrow_mut().clear();
        let after = opened(&mut host, 40_002);
        assert_eq!((after.action, read(&after.bytes).src.0), (Action::Pass, p.masquerade));
        assert_ne!(read(&after.bytes).src, seen);
        assert_eq!(exhausted(&mut host), 1);
        host.check().unwrap();
    }
}
