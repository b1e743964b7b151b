//! The bed itself, without any proxy: if these fail, nothing else means anything.

use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::lab::plan::cluster_ip;
use sluice_tests::lab::{Bed, BedConfig, Family, Who, Wiring};
use sluice_tests::traffic::{Dial, Outcome};
use sluice_tests::wire::Transport;

use crate::harness::{Group, Story, both_transports};

/// One bed a wiring, traffic by address only.
pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let mut stories = Vec::new();
    for family in Family::BOTH {
        stories.extend(both_transports(
            family,
            &[
                ("everybody_reaches_every_pod", everybody_reaches_every_pod),
                ("a_closed_port_refuses", a_closed_port_refuses),
            ],
        ));
    }
    stories.push(Story::new("bulk_moves_both_ways", bulk_moves_both_ways));
    stories.push(Story::new("the_oracle_sees_every_hop", the_oracle_sees_every_hop));
    stories.push(Story::new("the_oracle_reports_a_leak", the_oracle_reports_a_leak));
    stories
        .push(Story::new("the_oracle_reports_an_answer_under_another_name", the_oracle_reports_a_wrong_name));
    Group {
        name: format!("bed::{wiring}"),
        config: BedConfig { invalid_drop: true, ..BedConfig::new(wiring) },
        setup: Box::new(|bed| {
            for who in Who::ALL {
                bed.serve(who, 8_080)?;
            }
            Ok(())
        }),
        stories,
    }
}

fn everybody_reaches_every_pod(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for from in Who::ALL {
        for to in Who::ALL {
            let dial = Dial::new(bed.place(from), (to.address(family), 8_080).into(), transport);
            let answer = dial.probe().ok()?;
            ensure!(answer.backend == format!("{}:8080", to.name()), "{from:?} to {to:?}: {answer:?}");
            // A node has several addresses to write from; pods and clients have one.
            let own = answer.seen.ip() == from.address(family) || matches!(from, Who::Host | Who::OtherHost);
            ensure!(own, "{from:?} to {to:?}: seen as {}", answer.seen);
        }
    }
    Ok(())
}

fn a_closed_port_refuses(bed: &mut Bed, family: Family, transport: Transport) -> Result<()> {
    for from in [Who::Pa, Who::Host, Who::Client] {
        let outcome = Dial::new(bed.place(from), (Who::Pb.address(family), 9).into(), transport).probe();
        ensure!(outcome == Outcome::Refused, "{from:?}: {outcome}");
    }
    Ok(())
}

fn bulk_moves_both_ways(bed: &mut Bed) -> Result<()> {
    for family in Family::BOTH {
        let dial = Dial::new(bed.place(Who::Client), (Who::Pd.address(family), 8_080).into(), Transport::Tcp);
        let mut connection = dial.open().map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
        connection.bulk(1 << 20).map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
    }
    Ok(())
}

/// A datagram from client to pod and back passes at least six namespace ends.
fn the_oracle_sees_every_hop(bed: &mut Bed) -> Result<()> {
    let before = bed.capture.take();
    ensure!(before.count == 0, "violations before: {:?}", before.violations);
    let to = (Who::Pa.address(Family::V6), 8_080).into();
    Dial::new(bed.place(Who::Client), to, Transport::Udp).probe().ok()?;
    let seen = bed.capture.take();
    ensure!(seen.packets >= 12, "only {} packets seen", seen.packets);
    ensure!(seen.count == 0, "violations: {:?}", seen.violations);
    Ok(())
}

/// Nothing translates here, so a packet to a Service address goes out by the default route (P-24).
fn the_oracle_reports_a_leak(bed: &mut Bed) -> Result<()> {
    let service = cluster_ip(Family::V6, 9);
    let patience = Duration::from_millis(100);
    let outcome =
        Dial::new(bed.place(Who::Pa), (service, 80).into(), Transport::Udp).patience(patience).probe();
    ensure!(outcome != Outcome::Refused, "the Service address should lead into a loop of routers: {outcome}");
    reported(bed, "leaves the node")
}

/// A translation that forgets to restore: the backend answers under its own name.
fn the_oracle_reports_a_wrong_name(bed: &mut Bed) -> Result<()> {
    let (node, pod) = (Who::Host.address(Family::V4), Who::Pa.address(Family::V4));
    bed.nft(&format!(
        "table ip careless {{ chain pre {{ type filter hook prerouting priority -300;
           ip daddr {node} udp dport 8080 ip daddr set {pod} notrack; }}\n}}"
    ))?;
    let dial = Dial::new(bed.place(Who::Client), (node, 8_080).into(), Transport::Udp);
    let outcome = dial.patience(Duration::from_millis(100)).probe();
    bed.nft("delete table ip careless")?;
    // A connected socket does not take the answer and says so.
    ensure!(matches!(outcome, Outcome::Timeout | Outcome::Refused), "{outcome}");
    reported(bed, "never wrote")
}

fn reported(bed: &Bed, rule: &str) -> Result<()> {
    let seen = bed.capture.take();
    ensure!(seen.count > 0, "the oracle reported nothing");
    let first = seen.violations.first().map(ToString::to_string).unwrap_or_default();
    ensure!(first.contains(rule), "the oracle reported something else: {first}");
    Ok(())
}
