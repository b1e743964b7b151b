//! One node in one process: clients, servers, the packet path over plain maps, the agent's plan and writes. Chance decides
//! what happens next, from a seed: packets are reordered, lost and doubled, Services and endpoints come and go, map writes
//! fall between packets, agents are killed, time passes. After each step the invariants are asked:
//!
//! * an answer reaches a client from the address it has dialled, never from an endpoint's;
//! * no connection sees another's bytes, nor another's sequence numbers, and no port is given twice;
//! * a flow keeps its endpoint as long as that one may be used, and never gets one that its Service does not have;
//! * an established connection is never refused or dropped by us; who is served is not refused either;
//! * nothing goes to a Service address untranslated where the Service is served;
//! * the two halves of a flow live and die together, and a ring knows every pair;
//! * a live flow is never forgotten, however little room there is;
//! * once the writes are done the maps are what the plan says; once everything is deleted they are empty.
//!
//! ```text
//! cluster.rs  objects, agent, what may be reached    traffic.rs  clients, servers, the way between
//! kernel.rs   maps, clock, dice, planted faults      conn.rs     a connection as its ends know it
//! store.rs    the maps as the agent sees them        dice.rs     chance that can be repeated
//! events.rs   what has happened
//! ```

mod cluster;
mod conn;
mod dice;
mod events;
mod kernel;
mod store;
#[cfg(test)]
mod tests;
mod traffic;

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use proxy_common::abi::{Addr, Cidr, Config, config_flags, protocol};
use proxy_common::path::Tables;

use cluster::{Cluster, Plan};
pub use dice::Dice;
pub use events::{Event, Events};
use kernel::Kernel;
pub(crate) use kernel::check_table;
pub(crate) use store::Shadow;
use traffic::Traffic;

use crate::packet::frame::{SYN, packet};
use crate::packet::host::Frame;
use crate::packet::world::IFINDEX;

pub use kernel::Fault;

/// Pairs of flow entries there is room for: so many that nothing is forgotten before its time.
const PAIRS: u32 = 4096;
/// So few that there is no room for all: in one history of four, of either family.
const FEW_PAIRS: u32 = 48;
/// Steps between looks at the whole flow table.
const LOOK: u64 = 1000;

/// Something that must never happen, and how to see it again.
#[derive(Debug, thiserror::Error)]
#[error("{what}\nseed {seed}, step {step}; again: cargo xtask test host --seed {seed} --steps {step}")]
pub struct Violation {
    pub seed: u64,
    pub step: u64,
    pub what: String,
}

/// Runs `steps` steps of the history that `seed` stands for, and tells what has happened. Odd seeds are IPv6.
///
/// # Errors
/// The first violation.
pub fn run(seed: u64, steps: u64, fault: Fault) -> Result<Events, Violation> {
    let mut done = 0;
    let history = AssertUnwindSafe(|| {
        if seed % 2 == 1 {
            history::<4>(seed, steps, fault, &mut done)
        } else {
            history::<1>(seed, steps, fault, &mut done)
        }
    });
    let what = match catch_unwind(history) {
        Ok(Ok(events)) => return Ok(events),
        Ok(Err(what)) => what,
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a panic".into()),
    };
    Err(Violation { seed, step: done, what })
}

fn history<const N: usize>(seed: u64, steps: u64, fault: Fault, done: &mut u64) -> Result<Events, String> {
    let mut dice = Dice::new(seed);
    let plan = Plan::new(N == 4);
    let config = config(&plan, dice.next() as u32);
    let pairs = if seed % 8 > 5 { FEW_PAIRS } else { PAIRS };
    let kernel = Kernel::<N>::new(pairs, config, kernel::device(plan.node), fault);
    let mut traffic = Traffic::new(Cluster::new(plan, kernel, fault)?, dice);
    traffic.wait(0);
    for step in 1..=steps {
        *done = step;
        traffic.step = step;
        event(&mut traffic).map_err(|what| format!("at tick {}: {what}", traffic.now))?;
        if step.is_multiple_of(LOOK) {
            check_table(&traffic.cluster.kernel.maps)?;
        }
    }
    the_end(&mut traffic)?;
    let mut events = traffic.events;
    events.add(&traffic.cluster.events);
    if traffic.cluster.kernel.old_values.get() > 0 {
        events.note(Event::OldValue);
    }
    Ok(events)
}

/// What happens next.
fn event<const N: usize>(traffic: &mut Traffic<N>) -> Result<(), String> {
    let (step, now) = (traffic.step, traffic.now);
    match traffic.dice.below(1000) {
        0..600 => traffic.deliver(),
        600..820 => traffic.act(),
        820..880 => traffic.open(),
        880..950 => traffic.cluster.write(step, now),
        950..965 => traffic.cluster.sync(step, now),
        965..975 => traffic.cluster.change(&mut traffic.dice),
        975 if traffic.dice.chance(200) => traffic.cluster.restart(&mut traffic.dice, step, now),
        976..1000 if traffic.cluster.is_idle() => {
            let ticks = match traffic.dice.below(400) {
                0 => 90_000,
                1..10 => 150,
                _ => 1,
            };
            traffic.wait(ticks);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Everything is deleted, and after a while nothing is left.
fn the_end<const N: usize>(traffic: &mut Traffic<N>) -> Result<(), String> {
    traffic.cluster.clear()?;
    for _ in 0..20 {
        while !traffic.cluster.is_idle() {
            traffic.cluster.write(traffic.step, traffic.now)?;
        }
        traffic.cluster.sync(traffic.step, traffic.now)?;
        if traffic.cluster.is_idle() {
            traffic.wait(1);
        }
    }
    traffic.wait(100_000);
    // Strangers that are masqueraded make the ring turn.
    let [from, to, _] = traffic.cluster.plan.outside;
    for port in 0..4 * traffic.cluster.kernel.maps.pairs as u16 {
        let frame = packet(protocol::UDP, SYN, (from, 1 + port), (to, 9), b"");
        let mark = traffic.cluster.kernel.maps.masquerade_mark();
        traffic.cluster.kernel.run(false, Frame::new(frame, mark, IFINDEX));
        traffic.wait(100);
    }
    check_table(&traffic.cluster.kernel.maps)?;
    traffic.cluster.check_empty()
}

/// Pods are local traffic; draws follow the seed.
fn config(plan: &Plan, seed: u32) -> Config {
    let mut config = crate::packet::world::config();
    (config.seed, config.test_clock) = (seed, 1000);
    config.flags = config_flags::DETECT_V4 | config_flags::DETECT_V6;
    // Half of all histories know shortcuts.
    if seed.is_multiple_of(2) {
        config.flags |= config_flags::SHORTCUT_TCP | config_flags::SHORTCUT_UDP;
    }
    match plan.pods[0] {
        IpAddr::V4(pod) => {
            let [a, b, ..] = pod.octets();
            config.cluster_v4 = Cidr { address: Addr::v4([a, b, 0, 0]), mask: Addr::v4([255, 255, 0, 0]) };
        }
        IpAddr::V6(pod) => {
            let word =
                u32::from_ne_bytes([pod.octets()[0], pod.octets()[1], pod.octets()[2], pod.octets()[3]]);
            config.cluster_v6 = Cidr { address: Addr([word, 0, 0, 0]), mask: Addr([u32::MAX, 0, 0, 0]) };
        }
    }
    config
}
