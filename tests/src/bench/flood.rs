//! Scenario `flood`: live flows, and short connections afterwards, when strangers open more flows than the table holds while no
//! agent runs (P-65).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;

use super::Effort;
use super::control::nanoseconds;
use super::report::{Aim, Row, Table, Unit};
use super::stats::{is_noisy, ratios, spread};
use crate::lab::app::{App, Backend, Via};
use crate::lab::{Bed, BedConfig, Family, Who, Wiring};
use crate::packet::frame::{SYN, numbered};
use crate::simulation::Dice;
use crate::traffic::{Answer, Connection, Dial, send};
use crate::wire::Transport;

/// Entries of the flow table.
const FLOWS: &str = "16384";
/// Live flows of each transport.
const LIVE: usize = 500;
/// Packets a second that each transport's flood is to have.
const RATE: u64 = 100_000;
/// Connections are counted in windows of this length.
const WINDOW: Duration = Duration::from_millis(250);
/// Windows before the flood.
const BEFORE: usize = 12;
/// The time after the flood in which connections must be as fast as before.
const RECOVERY: Duration = Duration::from_secs(2);
/// And how fast that is.
const RECOVERED: f64 = 0.95;
/// A/A of windows this short is noisy beyond this.
const NOISE: f64 = 0.15;
/// The row below each that has connections to the Service.
const STRAIGHT: &str = "the same, straight to an endpoint";
/// The programs count a datagram flow as live once it has gone both ways for two of their ticks, 2^30 ns each.
const LIVELY: Duration = Duration::from_nanos(3 << 30);
/// The strangers' network, 198.18.0.0/15 (RFC 2544).
const STRANGERS: u32 = 0xc612_0000;
const STRANGER_BITS: u32 = 17;

/// Measures.
///
/// # Errors
/// The bed cannot be made, or a flow cannot be opened before the flood.
pub fn run(effort: Effort) -> Result<Table> {
    let length = Duration::from_secs(effort.rounds(5, 60));
    let mut bed = bed()?;
    let mut live = open(&bed)?;
    let mut before = Rates::default();
    for _ in 0..BEFORE {
        before.window(&bed)?;
    }
    let (_, dropped_before) = told(&bed)?;
    bed.agent.take().context("no agent runs")?.kill()?;
    let started = Instant::now();
    let sent = floods(&bed, length)?;
    let lasted = started.elapsed();
    let after = recovery(&bed, &before)?;
    let lost = live.iter_mut().filter_map(Live::lost).collect::<Vec<_>>();
    bed.start_agent()?;
    let (used, dropped) = told(&bed)?;
    let mut notes: Vec<String> = lost.iter().take(3).map(|why| format!("lost: {why}")).collect();
    notes.push(format!("{used} of {FLOWS} entries in use when the agent is back; dropped meanwhile:"));
    notes.extend(difference(&dropped_before, &dropped));
    table(&before, &after, sent.map(|sent| sent as f64 / lasted.as_secs_f64()), lost.len(), lasted, notes)
}

fn table(
    before: &Rates,
    after: &Recovery,
    rates: [f64; 2],
    lost: usize,
    lasted: Duration,
    notes: Vec<String>,
) -> Result<Table> {
    let windows = before.service.chunks_exact(2);
    let (odd, even): (Vec<_>, Vec<_>) = windows.map(|pair| (pair[0], pair[1])).unzip();
    let same = spread(&ratios(&odd, &even));
    let relative = |after: &[f64], before: &[f64]| -> Result<Vec<f64>> {
        let base = median(before)?;
        Ok(after.iter().map(|rate| rate / base).collect())
    };
    Ok(Table {
        scenario: "flood",
        method: format!(
            "NodePort of two pods, table of {FLOWS} entries, {} live flows, half of them UDP; SYNs and datagrams from random \
             sources for {:.0} s, {RATE} of each a second or as many as this machine can send; no agent runs; connections one after \
             the other, to the Service and straight to an endpoint by turns, median [quartiles] of windows of {} ms, {BEFORE} of \
             them before and those of the first {} s after",
            2 * LIVE,
            lasted.as_secs_f64(),
            WINDOW.as_millis(),
            RECOVERY.as_secs()
        ),
        columns: vec!["figure"],
        rows: vec![
            Row::new("live flows lost", Unit::Count, &[lost as f64], &[Aim::AtMost(0.0)])?,
            Row::new("SYNs sent", Unit::PerSecond, &rates[..1], &[])?,
            Row::new("datagrams sent", Unit::PerSecond, &rates[1..], &[])?,
            Row::new("connections before", Unit::PerSecond, &before.service, &[])?,
            Row::new(STRAIGHT, Unit::PerSecond, &before.straight, &[])?,
            Row::new(
                "connections after, to those before",
                Unit::Ratio,
                &relative(&after.rates.service, &before.service)?,
                &[],
            )?,
            Row::new(STRAIGHT, Unit::Ratio, &relative(&after.rates.straight, &before.straight)?, &[])?,
            Row::new(
                "end of the flood to the first window as fast as before",
                Unit::Nanoseconds,
                &[nanoseconds(after.service)],
                &[Aim::AtMost(nanoseconds(RECOVERY))],
            )?,
            Row::new(STRAIGHT, Unit::Nanoseconds, &[nanoseconds(after.straight)], &[])?,
        ],
        noisy: same.is_some_and(|same| is_noisy(&same, NOISE)),
        same,
        notes,
    })
}

fn app() -> App {
    App::new("flood", 1, [Who::Pb, Who::Pc].map(|who| Backend::new(who, 8_080)))
}

fn service() -> SocketAddr {
    app().address(Via::NodePort, Family::V4)
}

/// A bed with the Service, in which answers to strangers reach the client's namespace, which drops them.
fn bed() -> Result<Bed> {
    // A socket for each end of each live flow.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")?;
    let mut bed = Bed::build(BedConfig { watched: false, ..BedConfig::new(Wiring::Routed) })?;
    bed.home().flags.extend(["--flows", FLOWS].map(String::from));
    for who in [Who::Pb, Who::Pc] {
        bed.serve(who, 8_080)?;
    }
    let strangers = format!("{}/{}", Ipv4Addr::from(STRANGERS), 32 - STRANGER_BITS);
    bed.ip("rt", &format!("route add {strangers} via {}", Who::Client.address(Family::V4)))?;
    bed.ip("cl", &format!("route add blackhole {strangers}"))?;
    // Windows are full of connections that the client ends.
    bed.namespace("cl")
        .sysctls(&[("net/ipv4/ip_local_port_range", "10000 65535"), ("net/ipv4/tcp_tw_reuse", "1")])?;
    bed.start_agent()?;
    bed.apply(&app())?;
    Ok(bed)
}

/// A flow that must outlive the flood.
struct Live {
    connection: Connection,
    transport: Transport,
    opened: Answer,
}

impl Live {
    /// What became of it, unless it goes on: with the same endpoint, which sees the same peer.
    fn lost(&mut self) -> Option<String> {
        // A datagram may be lost without its flow: servers drop what the flood has left no room for.
        let tries = if self.transport == Transport::Udp { 3 } else { 1 };
        let mut last = String::new();
        for _ in 0..tries {
            match self.connection.ask(b"alive").ok() {
                Ok(answer) if answer == self.opened => return None,
                Ok(answer) => {
                    let Answer { backend, seen } = answer;
                    return Some(format!(
                        "{}: {backend} sees {seen}, before it was {} and {}",
                        self.transport, self.opened.backend, self.opened.seen
                    ));
                }
                Err(why) => last = format!("{}: {why:#}", self.transport),
            }
        }
        Some(last)
    }
}

fn open(bed: &Bed) -> Result<Vec<Live>> {
    let mut live = Vec::new();
    for transport in Transport::BOTH {
        for number in 0..LIVE {
            let opened = Dial::new(bed.place(Who::Client), service(), transport).open();
            let connection = opened.or_else(|why| bail!("{transport} flow {number}: {why}"))?;
            live.push(Live { opened: connection.answer.clone(), transport, connection });
        }
    }
    let since = Instant::now();
    while since.elapsed() < LIVELY {
        if let Some(why) = live.iter_mut().find_map(Live::lost) {
            bail!("a flow was lost before the flood: {why}");
        }
    }
    Ok(live)
}

/// Connections a second, in windows: to the Service, and straight to one of its endpoints, which the flood has reached as well.
#[derive(Default)]
struct Rates {
    service: Vec<f64>,
    straight: Vec<f64>,
}

impl Rates {
    /// One window of each.
    fn window(&mut self, bed: &Bed) -> Result<[f64; 2]> {
        let endpoint = SocketAddr::new(Who::Pb.address(Family::V4), 8_080);
        let rates = [window(bed, service())?, window(bed, endpoint)?];
        self.service.push(rates[0]);
        self.straight.push(rates[1]);
        Ok(rates)
    }
}

/// Connections a second, for one window.
fn window(bed: &Bed, to: SocketAddr) -> Result<f64> {
    let started = Instant::now();
    let mut connections = 0_u32;
    while started.elapsed() < WINDOW {
        Dial::new(bed.place(Who::Client), to, Transport::Tcp).probe().ok()?;
        connections += 1;
    }
    Ok(f64::from(connections) / started.elapsed().as_secs_f64())
}

struct Recovery {
    /// Until the end of the first window that was as fast as those before.
    service: Duration,
    straight: Duration,
    /// Of [`RECOVERY`], at least.
    rates: Rates,
}

fn recovery(bed: &Bed, before: &Rates) -> Result<Recovery> {
    let bases = [median(&before.service)?, median(&before.straight)?];
    let ended = Instant::now();
    let (mut rates, mut took) = (Rates::default(), [None; 2]);
    while ended.elapsed() < RECOVERY || took.contains(&None) && ended.elapsed() < 10 * RECOVERY {
        let window = rates.window(bed).context("a connection after the flood")?;
        for ((took, rate), base) in took.iter_mut().zip(window).zip(bases) {
            if rate >= RECOVERED * base {
                took.get_or_insert_with(|| ended.elapsed());
            }
        }
    }
    let [service, straight] = took.map(|took| took.unwrap_or_else(|| ended.elapsed()));
    Ok(Recovery { service, straight, rates })
}

/// Both floods at once; the packets that each has sent.
fn floods(bed: &Bed, length: Duration) -> Result<[u64; 2]> {
    std::thread::scope(|scope| {
        let floods = Transport::BOTH.map(|transport| scope.spawn(move || storm(bed, transport, length)));
        let [tcp, udp] = floods.map(|flood| flood.join().map_err(|_| anyhow::anyhow!("a flood panicked"))?);
        Ok([tcp?, udp?])
    })
}

/// Sends at the wanted rate, or as fast as it goes; how much that was.
fn storm(bed: &Bed, transport: Transport, length: Duration) -> Result<u64> {
    let protocol = transport.number();
    let to = service();
    let (started, mut sent) = (Instant::now(), 0_u64);
    let mut dice = Dice::new(protocol.into());
    let frames = std::iter::from_fn(|| {
        while started.elapsed() < length {
            if u128::from(sent) * 1_000_000_000 <= u128::from(RATE) * started.elapsed().as_nanos() {
                sent += 1;
                let (address, port) = stranger(&mut dice);
                let (own, numbers) = ((address, port), (dice.next() as u32, 0));
                return Some(numbered(protocol, SYN, numbers, own, (to.ip(), to.port()), b"flood"));
            }
            // Ahead of its time: the servers need the CPU more.
            std::thread::yield_now();
        }
        None
    });
    send(bed.namespace("cl"), to.ip(), frames)?;
    Ok(sent)
}

/// Anybody's address and port.
fn stranger(dice: &mut Dice) -> (IpAddr, u16) {
    let draw = dice.next();
    let host = (draw >> 32) as u32 & ((1 << STRANGER_BITS) - 1);
    (Ipv4Addr::from(STRANGERS | host).into(), draw as u16 | 0x400)
}

/// Entries in use, and what was dropped, as the agent tells.
fn told(bed: &Bed) -> Result<(u64, Value)> {
    let status = bed.agent()?.home.json(&["status"])?;
    let used = status["flows"]["used"].as_u64().with_context(|| format!("no flows in {status}"))?;
    Ok((used, status["drops"].clone()))
}

/// A line for each reason that has been counted in between.
fn difference(before: &Value, after: &Value) -> Vec<String> {
    let count = |drops: &Value, reason: &str| drops[reason].as_u64().unwrap_or(0);
    let reasons = after.as_object().into_iter().flatten();
    let more =
        reasons.map(|(reason, _)| (reason, count(after, reason).saturating_sub(count(before, reason))));
    let lines: Vec<_> =
        more.filter(|(_, more)| *more > 0).map(|(reason, more)| format!("  {reason}: {more}")).collect();
    if lines.is_empty() { vec!["  nothing".into()] } else { lines }
}

fn median(samples: &[f64]) -> Result<f64> {
    Ok(spread(samples).context("no samples")?.median)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn drops_are_told_by_reason() {
        let before = json!({"no_flow": 2, "flow_table_full": 0});
        let after = json!({"no_flow": 2, "flow_table_full": 7, "challenge_ack": 1});
        assert_eq!(difference(&before, &after), ["  challenge_ack: 1", "  flow_table_full: 7"]);
        assert_eq!(difference(&before, &before), ["  nothing"]);
    }

    #[test]
    fn strangers_are_many_and_of_their_network() {
        let mut dice = Dice::new(17);
        let all: std::collections::BTreeSet<_> = (0..1_000).map(|_| stranger(&mut dice)).collect();
        assert!(all.len() > 990, "{} of 1000 differ", all.len());
        for (address, port) in all {
            let IpAddr::V4(address) = address else { panic!("{address}") };
            assert_eq!(address.to_bits() >> STRANGER_BITS, STRANGERS >> STRANGER_BITS, "{address}");
            assert!(port >= 1_024, "{port}");
        }
    }
}
