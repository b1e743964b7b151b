//! What a client sees, in terms that two runs can be compared in.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::Cell;
use crate::lab::Bed;
use crate::lab::plan::{Family, Who, gateway, second_address};
use crate::traffic::{Dial, Outcome, probe};

/// What became of one attempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// A backend's name, and the name of the address that it saw.
    Answered {
        by: String,
        seen: String,
    },
    /// Always the same backend, whichever.
    Sticky,
    /// What the client was told, and whether that took as long as a second attempt of TCP's.
    Refused {
        how: String,
        slow: bool,
    },
    Silence,
}

impl Fate {
    /// Who answered.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        match self {
            Self::Answered { by, .. } => Some(by),
            _ => None,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { by, seen } => write!(f, "{by} sees {seen}"),
            Self::Sticky => f.write_str("one backend, always the same"),
            Self::Refused { how, slow } => write!(f, "{how}{}", if *slow { " after a second" } else { "" }),
            Self::Silence => f.write_str("silence"),
        }
    }
}

/// Everything that was seen in a number of attempts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation(pub BTreeSet<Fate>);

impl fmt::Display for Observation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fates: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&fates.join("; "))
    }
}

/// How hard to look.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub attempts: u32,
    /// How much silence is enough: it costs the most time.
    pub silences: u32,
    /// How long to wait for an answer. Longer than TCP's first retransmission after one second, at which some
    /// refusals come.
    pub patience: Duration,
}

/// The first look.
pub const GLANCE: Effort = Effort { attempts: 6, silences: 2, patience: Duration::from_millis(1_800) };
/// Further looks, at what seemed to differ.
pub const STARE: Effort = Effort { attempts: 12, silences: 3, patience: Duration::from_secs(3) };

/// Kernels answer at once or at TCP's second attempt, after a second.
const SLOW: Duration = Duration::from_millis(600);

/// Dials a cell's addresses in turn.
#[must_use]
pub fn observe(bed: &Bed, cell: &Cell<'_>, effort: Effort) -> Observation {
    let mut fates = Vec::new();
    let targets = cell.targets();
    let mut silences = 0;
    for (_, target) in (0..effort.attempts).zip(targets.iter().cycle()) {
        let fate = dial(bed, cell, *target, effort.patience);
        silences += u32::from(fate == Fate::Silence);
        fates.push(fate);
        if silences == effort.silences {
            break;
        }
    }
    settle(fates, cell.sticky)
}

/// What single attempts come to: a refusal is slow if most are, since a busy machine makes some so; clients that
/// stick to one backend may do so to any.
fn settle(mut fates: Vec<Fate>, sticky: bool) -> Observation {
    let slow = |fate: &&Fate| matches!(fate, Fate::Refused { slow: true, .. });
    let refusals = fates.iter().filter(|fate| matches!(fate, Fate::Refused { .. })).count();
    let mostly_slow = 2 * fates.iter().filter(slow).count() > refusals;
    for fate in &mut fates {
        if let Fate::Refused { slow, .. } = fate {
            *slow = mostly_slow;
        }
    }
    let backends: BTreeSet<_> = fates.iter().filter_map(Fate::backend).collect();
    if sticky && backends.len() == 1 {
        let others = fates.iter().filter(|fate| fate.backend().is_none()).cloned();
        return Observation(others.chain([Fate::Sticky]).collect());
    }
    Observation(fates.into_iter().collect())
}

fn dial(bed: &Bed, cell: &Cell<'_>, target: std::net::SocketAddr, patience: Duration) -> Fate {
    let start = Instant::now();
    let outcome = match cell.transport.of_sockets() {
        None => probe(bed.namespace(cell.client.namespace()), target, patience),
        Some(transport) => {
            let dial = Dial::new(bed.place(cell.client), target, transport).patience(patience);
            match cell.payload() {
                0 => dial.probe(),
                bytes => dial
                    .open()
                    .map_or_else(|outcome| outcome, |mut connection| connection.ask(&vec![b'x'; bytes])),
            }
        }
    };
    let slow = start.elapsed() > SLOW;
    match outcome {
        Outcome::Ok(answer) => {
            let by = answer.backend.split(':').next().unwrap_or_default().to_owned();
            Fate::Answered { by, seen: name(answer.seen.ip()) }
        }
        Outcome::Timeout => Fate::Silence,
        Outcome::Refused => Fate::Refused { how: "refused".into(), slow },
        Outcome::Reset => Fate::Refused { how: "reset".into(), slow },
        Outcome::Ended => Fate::Refused { how: "ended".into(), slow },
        // Mostly a packet whose time to live is over: when that comes through is chance.
        Outcome::Failed(how) => Fate::Refused { how, slow: false },
    }
}

/// An address in words, so that beds with different address plans for what does not matter read the same.
fn name(address: IpAddr) -> String {
    let family = Family::of(&address);
    if let Some(who) = Who::ALL.into_iter().find(|who| who.address(family) == address) {
        return who.name().into();
    }
    if address == gateway(family) {
        return "the gateway".into();
    }
    if address == second_address(family) {
        return "host's second address".into();
    }
    // Each node has another one on its device to the API server.
    if address.to_string().starts_with("198.18.0.") || address.to_string().starts_with("fd00:198:18:") {
        return "host's address towards the API server".into();
    }
    address.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(by: &str) -> Fate {
        Fate::Answered { by: by.into(), seen: "pa".into() }
    }

    fn refused(slow: bool) -> Fate {
        Fate::Refused { how: "refused".into(), slow }
    }

    #[test]
    fn attempts_come_to_an_observation() {
        let table = [
            (vec![answered("pb"), answered("pd"), answered("pb")], false, "pb sees pa; pd sees pa"),
            (vec![answered("pb"), answered("pb")], true, "one backend, always the same"),
            (vec![answered("pb"), answered("pd")], true, "pb sees pa; pd sees pa"),
            (vec![answered("pb"), Fate::Silence], true, "one backend, always the same; silence"),
            (vec![refused(false), refused(true), refused(false)], false, "refused"),
            (vec![refused(true), refused(true), refused(false)], false, "refused after a second"),
        ];
        for (fates, sticky, expected) in table {
            assert_eq!(settle(fates, sticky).to_string(), expected);
        }
    }
}
