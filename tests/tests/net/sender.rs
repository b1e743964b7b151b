//! Senders that never pause and keep their port follow their Service's endpoints (P-52, P-55, S-08). Time is counted in their own
//! datagrams: seconds are the bench's.

use anyhow::{Context, Result, ensure};
use sluice_tests::lab::app::Backend;
use sluice_tests::lab::{Bed, BedConfig, Family, Wiring};
use sluice_tests::traffic::Outcome;
use sluice_tests::traffic::sender::{BACKENDS, BEFORE, Came, Kind, Sender, answers, app, changes};

use crate::departure::may_end_sockets;
use crate::harness::{Group, Story};

/// Ten seconds' worth, where an idle machine needs some milliseconds: the agent may have to wait for its turn, and the senders do not.
/// Much less than the half minute after which conntrack forgets a flow that rests.
const PROMPTLY: usize = 10_000;
/// After the first right answer as many more must be right.
const STEADY: usize = 50;

pub fn groups() -> Vec<Group> {
    Wiring::BOTH.into_iter().map(group).collect()
}

fn group(wiring: Wiring) -> Group {
    let story = |family: Family| {
        let name = format!("P52_P55_S08_senders_that_never_pause_follow_twenty_changes::{family}");
        Story::new(name, move |bed| follow(bed, family))
    };
    Group {
        name: format!("sender::{wiring}"),
        // Not watched: an answer that is on its way when its flow moves has lost it, as with conntrack; sockets do not take it.
        config: BedConfig { watched: false, ..BedConfig::new(wiring) },
        setup: Box::new(setup),
        stories: Family::BOTH.into_iter().map(story).collect(),
    }
}

fn setup(bed: &mut Bed) -> Result<()> {
    for backend in BACKENDS {
        bed.serve(backend.who, backend.port)?;
    }
    bed.start_agent()
}

fn follow(bed: &mut Bed, family: Family) -> Result<()> {
    let mut before = BEFORE;
    bed.apply(&app(before))?;
    // Who waits to be told is told by nobody where sockets cannot be ended.
    let is_told = |sender: &Sender| sender.kind != Kind::DialsAgain || may_end_sockets().is_ok();
    let (senders, others): (Vec<_>, Vec<_>) = Sender::everywhere(bed, family).into_iter().partition(is_told);
    others.into_iter().try_for_each(Sender::finish)?;
    for sender in &senders {
        follows(sender, before, before)?;
    }
    for (round, after) in changes().enumerate() {
        bed.apply(&app(after))?;
        for sender in &senders {
            let moved = follows(sender, before, after);
            moved.with_context(|| format!("{}, change {round}, to {after:?}", sender.name))?;
        }
        before = after;
    }
    senders.into_iter().try_for_each(Sender::finish)
}

/// Waits until an endpoint of `after` answers, or, without any, until the sender is told that nobody is there. Until then only those of
/// `before` may answer, and afterwards nobody else may.
fn follows(sender: &Sender, before: &[Backend], after: &[Backend]) -> Result<()> {
    let changed = sender.sent();
    let first = sender.first(changed, after)?.number;
    ensure!(first - changed <= PROMPTLY, "right only with datagram {} after the change", first - changed);
    sender.more(first, STEADY)?;
    for Came { number, outcome, .. } in sender.take() {
        let meanwhile = match outcome {
            Outcome::Ended => sender.kind == Kind::DialsAgain,
            // On its way when the socket was led elsewhere, or between the new one's bind and connect: nobody knows any
            // more whom it answers for.
            Outcome::Failed(_) => sender.kind != Kind::Connected,
            _ => answers(before, &outcome),
        };
        let early = number <= first && meanwhile;
        ensure!(
            early || answers(after, &outcome),
            "datagram {number}, {first} was the first right one: {outcome}"
        );
    }
    Ok(())
}
