//! Indices of services and endpoints, reused only after a grace period. Pure; time is a value.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use super::store::EndpointId;

/// Free indices of an array.
#[derive(Clone, Debug)]
pub struct Ids {
    free: Vec<u32>,
    next: u32,
    max: u32,
    /// Elements that there were at first.
    there: u32,
    /// Ids that something may still refer to, in order of the time from which on they are free.
    limbo: VecDeque<(Duration, u32)>,
}

impl Ids {
    /// Of an array with `there` elements, of which `used` are taken: what is found in maps may name others (L-05). It may come to have
    /// `max`, or have had more in times of another limit.
    pub fn new(max: u32, there: u32, used: &HashSet<u32>) -> Self {
        let next = used.iter().filter(|id| **id < there).max().map_or(0, |last| last + 1);
        let free = (0..next.min(max)).rev().filter(|id| !used.contains(id)).collect();
        Self { free, next, max, there, limbo: VecDeque::new() }
    }

    /// How many can be taken now.
    pub fn available(&self) -> usize {
        self.free.len() + (self.max.saturating_sub(self.next)) as usize
    }

    pub fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.free.pop() {
            return Some(id);
        }
        if self.next >= self.max {
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }

    /// Whether the array has such an element.
    pub const fn has(&self, id: u32) -> bool {
        id < self.there || id < self.next
    }

    /// Gives back an id that may be referred to until `until`.
    pub fn retire(&mut self, id: u32, until: Duration) {
        if self.has(id) && id < self.max {
            self.limbo.push_back((until, id));
        }
    }

    /// Frees what was retired until `now`. Whether that was anything.
    pub fn reclaim(&mut self, now: Duration) -> bool {
        let before = self.free.len();
        while let Some((_, id)) = self.limbo.pop_front_if(|(until, _)| *until <= now) {
            self.free.push(id);
        }
        self.free.len() > before
    }
}

/// Generations of endpoint ids: a flow that remembers an id of an endpoint long gone must not take the id's new
/// holder for it (P-52).
#[derive(Clone, Debug)]
pub struct Generations {
    last: Vec<u16>,
    first: u16,
}

impl Generations {
    /// `first`: where ids start whose history is not known, not 0. A removed endpoint leaves no trace in the map, so
    /// agents should start at different places.
    pub fn new(first: u16) -> Self {
        Self { last: Vec::new(), first: first.max(1) }
    }

    /// Notes an id found in use.
    pub fn note(&mut self, found: EndpointId) {
        *self.entry(found.id) = found.generation;
    }

    /// The generation of the id's next holder: 1 to 65,535, never the one before.
    pub fn advance(&mut self, id: u32) -> u16 {
        let first = self.first;
        let last = self.entry(id);
        *last = match *last {
            0 => first,
            u16::MAX => 1,
            known => known + 1,
        };
        *last
    }

    fn entry(&mut self, id: u32) -> &mut u16 {
        let index = id as usize;
        if self.last.len() <= index {
            self.last.resize(index + 1, 0);
        }
        &mut self.last[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_back_only_after_the_grace_period() {
        let mut ids = Ids::new(4, 4, &HashSet::from([1]));
        assert_eq!(ids.available(), 3);
        assert_eq!([ids.take(), ids.take(), ids.take(), ids.take()], [Some(0), Some(2), Some(3), None]);
        ids.retire(2, Duration::from_secs(5));
        assert!(!ids.reclaim(Duration::from_secs(4)));
        assert_eq!(ids.take(), None);
        assert!(ids.reclaim(Duration::from_secs(5)));
        assert_eq!(ids.take(), Some(2));
    }

    #[test]
    fn ids_beyond_the_array_are_nobodys() {
        let mut ids = Ids::new(2, 2, &HashSet::from([0, u32::MAX]));
        assert_eq!([ids.take(), ids.take()], [Some(1), None]);
        assert!(ids.has(1) && !ids.has(2));
        ids.retire(u32::MAX, Duration::ZERO);
        assert!(!ids.reclaim(Duration::ZERO));
    }

    #[test]
    fn generations_go_up_at_each_reuse_and_skip_zero() {
        let mut generations = Generations::new(9);
        assert_eq!([generations.advance(3), generations.advance(3)], [9, 10]);
        generations.note(EndpointId { id: 3, generation: u16::MAX });
        assert_eq!(generations.advance(3), 1);
        assert_eq!(Generations::new(0).advance(0), 1);
    }

    /// The limit is lower than it was, or the array has not all its elements yet.
    #[test]
    fn a_limit_is_not_what_there_is() {
        let mut fewer = Ids::new(2, 8, &HashSet::from([1, 5]));
        assert!(fewer.has(5) && !fewer.has(8), "what is there is cleared and claimed");
        assert_eq!([fewer.take(), fewer.take()], [Some(0), None]);
        fewer.retire(5, Duration::ZERO);
        assert!(!fewer.reclaim(Duration::ZERO), "and not used again");
        let mut more = Ids::new(8, 2, &HashSet::from([1, 5]));
        assert!(!more.has(5), "a leftover leads nowhere");
        assert_eq!([more.take(), more.take(), more.take()], [Some(0), Some(2), Some(3)]);
        assert!(more.has(3) && !more.has(5));
    }

    /// 16-bit identifiers of another proxy overflowed here (C-32).
    #[test]
    fn seventy_thousand_ids_in_sequence() {
        let mut ids = Ids::new(100, 100, &HashSet::new());
        let mut generations = Generations::new(1);
        let mut last = None;
        for round in 0..70_000_u64 {
            let id = ids.take().unwrap();
            let holder = (id, generations.advance(id));
            assert_ne!(last.replace(holder), Some(holder));
            ids.retire(id, Duration::from_millis(round));
            ids.reclaim(Duration::from_millis(round));
        }
    }
}
