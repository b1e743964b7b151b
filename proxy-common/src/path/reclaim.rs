//! Second chance: every pair has a turn in one ring, in order of insertion. Each insert looks at the oldest turns: what is
//! over goes, in pairs, what lives gets another turn. So the table lives without the agent.
//!
//! The ring is shared by all CPUs, since the table is: one that takes all the traffic has the whole table, and what
//! another CPU has left behind is found. It has as many turns as the table has room for pairs, so the table is never
//! full before the ring is.

use super::pair;
use super::scratch::Scratch;
use super::time::{age, since, tick};
use super::traits::{Entry, Tables};
use crate::abi::{FlowKey, Kind, Turn, protocol, state};
use crate::wire::Headers;

/// Turns looked at per insert at most.
const MOST_LOOKS: u32 = 8;
/// While half of the room is free one insert in so many looks at a turn: a look at old entries, which are in no cache, costs
/// almost half of what a new flow costs without it.
const EASE: u32 = 8;
/// Ticks in which data would show that a reset was not believed (P-43), or that datagrams go on.
pub(super) const DOUBT: u32 = 2;

/// Moments within which a TCP connection that its endpoint still holds half of must be forgotten to be a sign of a storm: less than
/// the second for which a client waits that has met what a storm left, so that it does not meet that again.
const STORM: u32 = 8;

/// What would be lost with a pair, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Worth {
    /// Idle for longer than its kind may be.
    Expired = 0,
    /// Both sides have sent FIN, or a reset has stood. Kept for what is sent again: a FIN whose last ACK was lost (P-44).
    Closed = 1,
    /// Nobody has shown that somebody is there: a handshake that is not complete, datagrams without an answer or for less
    /// than two seconds, a reset that may be forged. A flood is made of these (P-65).
    Embryonic = 2,
    /// Never forgotten.
    Live = 3,
}

/// Ticks for which every pair is kept.
pub(super) const SHORTEST: u32 = 28;

/// Judges a pair by the states of its directions; `idle` and `lasted` are ticks (about 1.07 s) since the last packet, and
/// from the first to the last. Limits are never shorter than what kube-proxy and the kernel's defaults give (J10, P-45).
#[must_use]
pub const fn worth(protocol: u8, forth: u8, back: u8, idle: u32, lasted: u32) -> Worth {
    let answered = forth & back & state::SEEN != 0;
    let (limit, worth) = if protocol != protocol::UDP {
        let reset = (forth | back) & state::RST != 0;
        if pair::closed(forth, back) {
            (112, if reset && idle < DOUBT { Worth::Embryonic } else { Worth::Closed })
        } else if answered && forth & state::ESTABLISHED != 0 {
            // An association shows itself by heartbeats: conntrack gives it 210 s, a TCP connection a day.
            (if protocol == protocol::TCP { 80_466 } else { 196 }, Worth::Live)
        } else {
            (56, Worth::Embryonic)
        }
    } else {
        let worth = if answered && lasted >= DOUBT { Worth::Live } else { Worth::Embryonic };
        (if answered { 112 } else { SHORTEST }, worth)
    };
    if idle >= limit { Worth::Expired } else { worth }
}

/// How hard an insert works for room.
struct Effort {
    /// Turns looked at, at most.
    looks: u32,
    /// Pairs forgotten, at most.
    enough: u32,
    /// Worth up to which pairs are forgotten.
    forgets: Worth,
}

/// The effort, by how full the ring is.
///
/// While half of the room is free nothing is forgotten before its time, and few inserts look for it. Below that closed pairs go, below an eighth
/// embryonic ones too. Each band is so wide that the hand goes once round the ring before the band is used up: embryonic
/// pairs go when there was no closed one left, and a new flow is refused only when a whole round met nothing but live ones.
const fn effort(size: u32, used: u32) -> Effort {
    let spare = size.saturating_sub(used);
    let (edge, looks, forgets) = if spare > size / 2 {
        // An insert that has made room leaves the number as it was, so the next one looks as well.
        let looks = if used.is_multiple_of(EASE) { 1 } else { 0 };
        return Effort { looks, enough: 1, forgets: Worth::Expired };
    } else if spare > size / 8 {
        (size / 2, 3, Worth::Closed)
    } else {
        (size / 8, MOST_LOOKS, Worth::Embryonic)
    };
    // One to stay at the edge, two to come back to it.
    Effort { looks, enough: if spare < edge { 2 } else { 1 }, forgets }
}

/// A turn that is being looked at.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Looked<const N: usize> {
    /// The turn.
    pub turn: Turn<N>,
    /// Key of the pair's other entry.
    pub partner: FlowKey<N>,
    /// [`FlowKey::mirrored`] of the turn's key.
    pub mirrored: FlowKey<N>,
    /// Pairs that must go for there to be room.
    pub needed: u32,
    /// Kind of the turn's entry.
    pub kind: u8,
    /// What both entries have shown.
    pub state: u8,
    /// Zero.
    pub pad: u16,
}

impl<const N: usize> Looked<N> {
    /// Holds nothing yet.
    pub const EMPTY: Self = {
        let key = Headers::<N>::EMPTY.key;
        let turn = Turn { key, serial: 0 };
        Self { turn, partner: key, mirrored: key, needed: 0, kind: 0, state: 0, pad: 0 }
    };
}

/// What becomes of a turn that has been looked at. Plain numbers: they cross a call.
pub mod fate {
    /// It is queued again.
    pub const STAYS: u32 = 0;
    /// Its pair has gone already.
    pub const IS_OVER: u32 = 1;
    /// Its pair is to be forgotten.
    pub const GOES: u32 = 2;
}

/// Whether there is room for another pair, and no turn to be looked at: [`make_room`] need not be called.
#[inline(always)]
pub(super) fn is_at_ease<const N: usize, T: Tables<N>>(tables: &T) -> bool {
    effort(tables.ring_size(), held(tables.ring_used())).looks == 0
}

/// Looks at the oldest turns. False: nothing can be forgotten, and there is no room for another pair.
///
/// `room` is where a turn is looked at; what it holds before does not matter.
#[inline(always)]
pub fn make_room<const N: usize, T: Tables<N>>(tables: &T, room: &mut Looked<N>) -> bool {
    let (size, used) = (tables.ring_size(), held(tables.ring_used()));
    let effort = effort(size, used);
    room.needed = (used + 1).saturating_sub(size);
    let (time, mut gone) = (tables.time(), 0);
    for look in 0..MOST_LOOKS {
        if look >= effort.looks || gone >= effort.enough || !tables.ring_pop(&mut room.turn) {
            break;
        }
        match tables.look(room, time, effort.forgets as u32) {
            // A failure to queue it again loses the turn, not the flow. It does not happen: the ring has slack.
            fate::STAYS if tables.ring_push(&room.turn) => continue,
            fate::GOES => tables.forget(room),
            _ => {}
        }
        gone += 1;
    }
    if gone > 0 {
        tables.ring_add(gone.wrapping_neg());
    }
    gone >= room.needed
}

/// Turns that the ring holds at least, of a number that seems to be less than none where this CPU has taken turns out that
/// others have not added yet.
const fn held(used: u32) -> u32 {
    if used > u32::MAX / 2 { 0 } else { used }
}

/// Gives a pair that has just been inserted its turn. Not before: a turn without a pair is over.
#[inline(always)]
pub(super) fn queue<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    scratch: &mut Scratch<N>,
) -> bool {
    scratch.turn.key = *key;
    scratch.turn.serial = scratch.flow.serial & !Turn::<N>::MISSED;
    let queued = tables.ring_push(&scratch.turn);
    if queued {
        tables.ring_add(1);
    }
    queued
}

/// What the half at `partner` has shown of a pair whose other half was met at tick `seen`, and how many ticks ago either was met last.
/// A half that is lost counts as reset.
#[inline(always)]
fn other_half<const N: usize, T: Tables<N>>(
    tables: &T,
    partner: &FlowKey<N>,
    seen: u32,
    now: u32,
) -> (u8, u32) {
    let (answered, back) = tables.flow(partner).map_or((seen, state::RST), |e| (e.seen(), e.state()));
    (back, since(seen, now).min(since(answered, now)))
}

/// The [`fate`] of a turn at this [`Tables::time`], if pairs go that are worth no more than `forgets`, a [`Worth`].
#[inline(always)]
pub fn look<const N: usize, T: Tables<N>>(tables: &T, room: &mut Looked<N>, time: u64, forgets: u32) -> u32 {
    let (now, moment) = (tick(time), time as u32);
    let (turn, partner) = (&mut room.turn, &mut room.partner);
    let Some(entry) = tables.flow(&turn.key) else {
        // Another CPU may have removed it just now, to put one in its place that has the same turn.
        let missed_before = turn.serial & Turn::<N>::MISSED != 0;
        turn.serial |= Turn::<N>::MISSED;
        return if missed_before { fate::IS_OVER } else { fate::STAYS };
    };
    if !turn.is_of(entry.serial()) {
        return fate::IS_OVER;
    }
    turn.serial &= !Turn::<N>::MISSED;
    let (seen, forth, created) = (entry.seen(), entry.state(), entry.created());
    room.kind = entry.kind();
    entry.write_partner(&turn.key, partner);
    let (back, idle) = other_half(tables, partner, seen, now);
    room.state = forth | back;
    let lasted = age(created, now).saturating_sub(idle);
    let worth = worth(turn.key.protocol, forth, back, idle, lasted);
    if worth as u32 > forgets {
        return fate::STAYS;
    }
    // The turn of a pair before it may be the oldest of all, while its first packet waits for an answer: it has one round, as every pair.
    if worth == Worth::Embryonic && forth & state::INHERITS != 0 {
        entry.set_state(entry.state() & !state::INHERITS);
        return fate::STAYS;
    }
    // A masqueraded flow goes at both edges when its turn at the client's edge comes: each for itself would part them.
    if room.kind == Kind::Masquerade as u8 {
        room.mirrored = turn.key.mirrored();
        let restore = tables.flow(&room.mirrored);
        if restore.is_some_and(|entry| pair::is_of(&entry, &room.mirrored, Kind::Restore as u32)) {
            return fate::STAYS;
        }
    }
    // An endpoint that has reset it holds no half; a client's reset may not have been believed there.
    let is_half = worth == Worth::Embryonic && back & state::RST == 0;
    let is_sign = turn.key.protocol == protocol::TCP && is_half && since(created, moment) < STORM;
    if is_sign && tables.storm() != moment {
        tables.set_storm(moment);
    }
    fate::GOES
}

/// Whether there is a storm: strangers open TCP connections faster than the table can hold them for so long as [`STORM`]. Their backends
/// still hold halves of those that are forgotten (P-65).
#[inline(always)]
pub(super) fn is_storm<const N: usize, T: Tables<N>>(tables: &T) -> bool {
    let last = tables.storm();
    last != 0 && goes_on(last, tables.time() as u32)
}

/// Whether a storm whose last sign was at moment `last` goes on: while it rages there is one in each. Another CPU's may be of the next
/// one.
const fn goes_on(last: u32, moment: u32) -> bool {
    moment.wrapping_sub(last).wrapping_add(1) <= 2
}

/// Whether the time of the pair of `entry`, which is at `key`, and of the one at `partner` is over, though its turn has not come yet.
#[inline(always)]
pub(super) fn is_expired<const N: usize, T: Tables<N>>(
    tables: &T,
    key: &FlowKey<N>,
    entry: &T::Entry,
    partner: &FlowKey<N>,
) -> bool {
    let (back, idle) = other_half(tables, partner, entry.seen(), tables.now());
    worth(key.protocol, entry.state(), back, idle, 0) == Worth::Expired
}

/// Forgets the pair whose turn [`look`] has looked at.
#[inline(always)]
pub fn forget<const N: usize, T: Tables<N>>(tables: &T, room: &Looked<N>) {
    pair::remove(tables, &room.turn.key, &room.partner, room.kind, room.state, false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::protocol::{SCTP, TCP, UDP};
    use state::{ESTABLISHED, FIN, RST, SEEN};

    const GOES_ON: u8 = SEEN | ESTABLISHED;

    #[test]
    fn a_pair_is_worth_what_it_has_shown() {
        use Worth::{Closed, Embryonic, Expired, Live};
        let cases = [
            ("TCP: a SYN", TCP, SEEN, 0, 0, 0, Embryonic),
            ("TCP: a SYN that was answered, by a flood's victim too", TCP, SEEN, SEEN, 3, 0, Embryonic),
            ("TCP: a SYN, for a minute", TCP, SEEN, SEEN, 56, 0, Expired),
            ("TCP: a client that goes on unanswered", TCP, GOES_ON, 0, 0, 9, Embryonic),
            ("TCP: shaken hands", TCP, GOES_ON, SEEN, 0, 0, Live),
            ("TCP: silent for 23 hours (P-45)", TCP, GOES_ON, GOES_ON, 80_465, 1, Live),
            ("TCP: silent for 24 hours (J10)", TCP, GOES_ON, GOES_ON, 80_466, 1, Expired),
            ("TCP: half closed (P-44)", TCP, GOES_ON | FIN, GOES_ON, 900, 1, Live),
            ("TCP: closed", TCP, GOES_ON | FIN, GOES_ON | FIN, 0, 1, Closed),
            ("TCP: closed, for two minutes", TCP, GOES_ON | FIN, GOES_ON | FIN, 112, 1, Expired),
            ("TCP: a reset that data may contradict (P-43)", TCP, GOES_ON, GOES_ON | RST, 1, 9, Embryonic),
            ("TCP: a reset that stands", TCP, GOES_ON | RST, GOES_ON, 2, 9, Closed),
            ("TCP: a refused SYN", TCP, SEEN, SEEN | RST, 2, 0, Closed),
            ("SCTP: an INIT P-90", SCTP, SEEN, SEEN, 55, 0, Embryonic),
            ("SCTP: an association, between heartbeats P-90", SCTP, GOES_ON, GOES_ON, 195, 1, Live),
            (
                "SCTP: silent for longer than heartbeats may fail P-90",
                SCTP,
                GOES_ON,
                GOES_ON,
                196,
                1,
                Expired,
            ),
            ("SCTP: half shut down P-90", SCTP, GOES_ON | FIN, GOES_ON, 60, 1, Live),
            ("SCTP: shut down P-90", SCTP, GOES_ON | FIN, GOES_ON | FIN, 0, 1, Closed),
            ("SCTP: aborted P-90", SCTP, GOES_ON | RST, GOES_ON, 2, 9, Closed),
            ("UDP: unanswered", UDP, SEEN, 0, 0, 500, Embryonic),
            ("UDP: unanswered and silent", UDP, SEEN, 0, 28, 500, Expired),
            ("UDP: one question and its answer", UDP, SEEN, SEEN, 5, 0, Embryonic),
            ("UDP: both ways for longer", UDP, SEEN, SEEN, 111, 2, Live),
            ("UDP: both ways, then silent", UDP, SEEN, SEEN, 112, 2, Expired),
        ];
        for (what, protocol, forth, back, idle, lasted, want) in cases {
            assert_eq!(worth(protocol, forth, back, idle, lasted), want, "{what}");
        }
    }

    /// What [`effort`] promises, for a hand that moves `looks` a pair that is inserted: it goes once round within each band.
    #[test]
    fn each_band_lets_the_hand_go_once_round() {
        for size in [64, 2_048, 65_536, 1 << 20] {
            for worst in [Worth::Closed, Worth::Embryonic] {
                let band = (0..=size).map(|used| effort(size, used)).filter(|effort| effort.forgets == worst);
                let looks: u64 = band.map(|effort| u64::from(effort.looks)).sum();
                assert!(looks >= u64::from(size), "{worst:?}: {looks} looks in a ring of {size}");
            }
        }
    }

    /// A removal may be counted before the insertion that another CPU holds back.
    #[test]
    fn less_than_none_is_none() {
        for (used, want) in [(0, 0), (7, 7), (0_u32.wrapping_sub(1), 0), (0_u32.wrapping_sub(16 * 512), 0)] {
            assert_eq!(held(used), want, "{used:#x}");
        }
        assert_eq!(effort(64, held(0_u32.wrapping_sub(3))).forgets, Worth::Expired);
    }

    #[test]
    fn a_storm_is_over_when_its_signs_are() {
        for (last, moment, want) in [
            (5, 5, true),
            (5, 6, true),
            (5, 7, false),
            (6, 5, true),
            (u32::MAX, 0, true),
            (u32::MAX, 1, false),
        ] {
            assert_eq!(goes_on(last, moment), want, "at {moment}, after {last}");
        }
    }
}
