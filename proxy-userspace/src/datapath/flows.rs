//! Live flows and counters, read back for people and metrics.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use proxy_common::abi::{Addr, Flow, FlowKey, Hook, Kind, MOMENTS, Port, Reason, state};
use proxy_common::path::{LEASE, since};

use super::Datapath;
use super::error::DatapathError;
use super::store::{Net, Wire};

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowState {
    /// Nothing has come back yet.
    New,
    Established,
    /// One side has sent FIN.
    Closing,
    /// Both have, or a reset was seen.
    Closed,
}

impl FlowState {
    /// The word used in `flows`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    /// From the bits of both directions.
    const fn of(forth: u8, back: u8) -> Self {
        if (forth | back) & state::RST != 0 || forth & back & state::FIN != 0 {
            Self::Closed
        } else if (forth | back) & state::FIN != 0 {
            Self::Closing
        } else if back & state::SEEN != 0 {
            Self::Established
        } else {
            Self::New
        }
    }
}

/// One translated connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    pub backend: SocketAddr,
    /// What the backend sees in place of the client, where that differs.
    pub masquerade: Option<SocketAddr>,
    /// IP protocol number.
    pub protocol: u8,
    pub state: FlowState,
    /// Since the first packet, to about a second.
    pub age: Duration,
    /// Since the last packet of either direction, to about a second.
    pub idle: Duration,
    /// Whether packets of a direction of it may pass the stack by.
    pub shortcut: bool,
    /// Index of the service; see [`crate::sync::Syncer::names`].
    pub service: u32,
}

/// How full the flow tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowUsage {
    /// Entries of both families in use.
    pub used: u64,
    /// Entries that both tables can hold.
    pub max: u64,
}

/// One tick of the programs' clock: 2^30 ns.
const TICK: Duration = Duration::from_nanos(1 << 30);

/// What the programs' clock says, in ticks and in moments. The truncations are the programs' own.
#[derive(Clone, Copy, Debug)]
struct Now {
    tick: u32,
    moment: u32,
}

impl Now {
    fn read() -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        let ticks = |length: Duration| (now.as_nanos() / length.as_nanos()) as u32;
        Self { tick: ticks(TICK), moment: ticks(TICK / MOMENTS) }
    }
}

/// The programs' clock now, in ticks.
pub fn ticks() -> u32 {
    Now::read().tick
}

/// Whether this entry's direction has a lease.
fn is_leased<const N: usize>(entry: &Flow<N>, now: u32) -> bool {
    ![0, Flow::<N>::NO_LEASE].contains(&entry.lease) && now.saturating_sub(entry.lease) < LEASE
}

/// Connections in a dump of one family's entries, each once.
fn connections<const N: usize>(entries: &[(FlowKey<N>, Flow<N>)], now: Now, into: &mut Vec<FlowInfo>)
where
    Net: Wire<N>,
{
    let table: HashMap<FlowKey<N>, &Flow<N>> = entries.iter().map(|(key, flow)| (*key, flow)).collect();
    let socket = |address: Addr<N>, port: Port| SocketAddr::new(Net::ip(address), port.number());
    for (key, flow) in entries {
        if flow.kind() != Some(Kind::Translate) || flow.service == Flow::<N>::NO_SERVICE {
            continue;
        }
        let restore = table.get(&flow.partner(key));
        let seen = restore.map_or(flow.seen, |restore| restore.seen.max(flow.seen));
        let leaving = FlowKey {
            src: flow.src,
            dst: flow.dst,
            sport: flow.sport,
            dport: flow.dport,
            protocol: key.protocol,
            hook: Hook::Egress as u8,
            pad: 0,
        };
        let masquerade = table
            .get(&leaving)
            .filter(|entry| entry.kind() == Some(Kind::Masquerade))
            .map(|entry| socket(entry.src, entry.sport));
        let client = socket(key.src, key.sport);
        let shown = masquerade.unwrap_or(socket(flow.src, flow.sport));
        into.push(FlowInfo {
            client,
            frontend: socket(key.dst, key.dport),
            backend: socket(flow.dst, flow.dport),
            masquerade: (shown != client).then_some(shown),
            protocol: key.protocol,
            state: FlowState::of(flow.state, restore.map_or(0, |restore| restore.state)),
            age: TICK / MOMENTS * since(flow.created, now.moment),
            idle: TICK * since(seen, now.tick),
            shortcut: [Some(flow), restore.copied()]
                .into_iter()
                .flatten()
                .any(|entry| is_leased(entry, now.tick)),
            service: flow.service,
        });
    }
}

impl Datapath {
    /// Live connections, by client and frontend.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn flows(&self) -> Result<Vec<FlowInfo>, DatapathError> {
        let failed = |map| move |source| DatapathError::Map { operation: "read", map, source };
        let now = Now::read();
        let mut flows = Vec::new();
        connections(&self.tables.v4.flows.dump().map_err(failed("FLOWS_V4"))?, now, &mut flows);
        connections(&self.tables.v6.flows.dump().map_err(failed("FLOWS_V6"))?, now, &mut flows);
        flows.sort_by_key(|flow| (flow.client, flow.frontend, flow.protocol));
        Ok(flows)
    }

    /// How full the flow tables are. Looks at every entry: not to be asked often.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn flow_usage(&self) -> Result<FlowUsage, DatapathError> {
        let failed = |map| move |source| DatapathError::Map { operation: "read", map, source };
        let (v4, v6) = (&self.tables.v4.flows, &self.tables.v6.flows);
        let used = v4.count().map_err(failed("FLOWS_V4"))? + v6.count().map_err(failed("FLOWS_V6"))?;
        Ok(FlowUsage { used, max: u64::from(v4.max_entries()) + u64::from(v6.max_entries()) })
    }

    /// What has happened to packets since the maps were made, over all CPUs.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Reason, u64)>, DatapathError> {
        let failed = |source| DatapathError::Map { operation: "read", map: "COUNTERS", source };
        let count = |reason: Reason| {
            let cpus = self.tables.counters.get_per_cpu(&(reason as u32)).map_err(failed)?;
            Ok((reason, cpus.iter().sum()))
        };
        Reason::ALL.into_iter().map(count).collect()
    }
}

#[cfg(test)]
mod tests {
    use proxy_common::abi::{MORE, protocol};

    use super::*;

    fn key(src: [u8; 4], sport: u16, dst: [u8; 4], dport: u16, hook: Hook) -> FlowKey<1> {
        FlowKey {
            src: Addr::v4(src),
            dst: Addr::v4(dst),
            sport: Port::new(sport),
            dport: Port::new(dport),
            protocol: protocol::TCP,
            hook: hook as u8,
            pad: 0,
        }
    }

    /// An entry for `key` that makes the packet look like `to`.
    fn entry(key: FlowKey<1>, to: FlowKey<1>, kind: Kind, service: u32) -> (FlowKey<1>, Flow<1>) {
        let flow = Flow {
            src: to.src,
            dst: to.dst,
            sport: to.sport,
            dport: to.dport,
            address_diff: 0,
            seen: 95,
            created: 90 * MOMENTS,
            service,
            endpoint: 0,
            ifindex: 2,
            serial: 0,
            generation: 1,
            kind: kind as u8,
            state: state::SEEN,
            tag: key.tag(),
            proof: 0,
            lease: 0,
            far: 0,
            size: 0,
            more: [0; MORE],
        };
        (key, flow)
    }

    #[test]
    fn a_masqueraded_connection_is_one_flow_of_four_entries() {
        let (c, f, b, m) = ([192, 0, 2, 9], [10, 0, 0, 1], [10, 1, 0, 5], [10, 1, 0, 1]);
        let out = key(c, 4000, b, 8080, Hook::Egress);
        let none = Flow::<1>::NO_SERVICE;
        let mut entries = vec![
            entry(key(c, 4000, f, 80, Hook::Ingress), out, Kind::Translate, 7),
            entry(key(b, 8080, c, 4000, Hook::Egress), key(f, 80, c, 4000, Hook::Egress), Kind::Restore, 7),
            entry(out, key(m, 1024, b, 8080, Hook::Egress), Kind::Masquerade, none),
            entry(
                key(b, 8080, m, 1024, Hook::Ingress),
                key(b, 8080, c, 4000, Hook::Ingress),
                Kind::Unmasquerade,
                none,
            ),
        ];
        entries[1].1.seen = 98;
        let mut flows = Vec::new();
        let now = Now { tick: 100, moment: 100 * MOMENTS + 8 };
        connections(&entries, now, &mut flows);
        let [flow] = flows.as_slice() else { panic!("{flows:?}") };
        assert_eq!(flow.client, "192.0.2.9:4000".parse().unwrap());
        assert_eq!(flow.frontend, "10.0.0.1:80".parse().unwrap());
        assert_eq!(flow.backend, "10.1.0.5:8080".parse().unwrap());
        assert_eq!(flow.masquerade, Some("10.1.0.1:1024".parse().unwrap()));
        assert_eq!((flow.state, flow.service), (FlowState::Established, 7));
        assert_eq!((flow.age, flow.idle), (TICK * 21 / 2, TICK * 2), "idle counts either direction");
        assert!(!flow.shortcut);
        let mut plain = Vec::new();
        connections(&entries[..2], now, &mut plain);
        assert_eq!(plain[0].masquerade, None);
        for (lease, shortcut) in [(98, true), (100 - LEASE, false), (Flow::<1>::NO_LEASE, false)] {
            entries[1].1.lease = lease;
            let mut leased = Vec::new();
            connections(&entries[..2], now, &mut leased);
            assert_eq!(leased[0].shortcut, shortcut, "granted at {lease}");
        }
    }

    #[test]
    fn states_follow_from_both_directions() {
        use state::{FIN, RST, SEEN};
        for (what, forth, back, want) in [
            ("SYN", SEEN, 0, FlowState::New),
            ("handshake done", SEEN, SEEN, FlowState::Established),
            ("UDP answered", SEEN, SEEN, FlowState::Established),
            ("UDP unanswered", SEEN, 0, FlowState::New),
            ("half closed", SEEN | FIN, SEEN, FlowState::Closing),
            ("closed", FIN, FIN, FlowState::Closed),
            ("reset", SEEN, RST, FlowState::Closed),
        ] {
            assert_eq!(FlowState::of(forth, back), want, "{what}");
        }
    }
}
