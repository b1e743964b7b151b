//! Which slots are free: contiguous runs that never cross a chunk. Pure; time is a value.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proxy_common::abi::{CHUNK, Run};

/// Free slots of one family.
#[derive(Clone, Debug)]
pub struct Runs {
    /// Offset → length. Neighbours are merged, but not across chunks.
    free: BTreeMap<u32, u32>,
    chunks: u32,
    /// Slots from this one on are not used.
    max: u32,
    /// Runs that a program may still be reading, in order of the time from which on they are free.
    limbo: VecDeque<(Duration, Run)>,
}

/// A run to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    pub run: Run,
    /// A chunk that must be added before.
    pub chunk: Option<u32>,
}

impl Runs {
    /// With room for `max` slots, `chunks` chunks there already and `used` runs in them, which may be listed twice but do not
    /// overlap otherwise. Runs found beyond `max` stay until they are given back.
    pub fn new(chunks: u32, max: u32, used: impl IntoIterator<Item = Run>) -> Self {
        let mut runs = Self { free: BTreeMap::new(), chunks, max, limbo: VecDeque::new() };
        let mut used: Vec<Run> = used.into_iter().filter(|run| run.count() > 0).collect();
        used.sort_by_key(|run| run.offset());
        let mut next = 0;
        for run in used {
            runs.release_span(next, run.offset());
            next = next.max(run.offset().saturating_add(run.count()));
        }
        runs.release_span(next, chunks.saturating_mul(CHUNK));
        runs
    }

    /// First fit; a new chunk if there is no room. `None`: too long for a chunk, or no chunk is left.
    pub fn allocate(&mut self, count: u32) -> Option<Granted> {
        if count == 0 {
            return Some(Granted { run: Run::EMPTY, chunk: None });
        }
        if count > CHUNK {
            return None;
        }
        let fit =
            self.free.iter().find(|(_, length)| **length >= count).map(|(&offset, &length)| (offset, length));
        let (offset, length, chunk) = match fit {
            Some((offset, length)) => {
                self.free.remove(&offset);
                (offset, length, None)
            }
            None => {
                let chunk = self.chunks;
                let length = self.max.saturating_sub(chunk.saturating_mul(CHUNK)).min(CHUNK);
                if length < count {
                    return None;
                }
                self.chunks += 1;
                (chunk * CHUNK, length, Some(chunk))
            }
        };
        if length > count {
            self.free.insert(offset + count, length - count);
        }
        Some(Granted { run: Run::new(offset, count), chunk })
    }

    /// The first of these lists that there would be no room for, were they all taken. Nothing is.
    pub fn lacks(&self, lists: &[u32]) -> Option<u32> {
        // Each takes a chunk at most.
        let chunks = (self.max / CHUNK).saturating_sub(self.chunks) as usize;
        if lists.len() <= chunks {
            return lists.iter().copied().find(|count| *count > CHUNK);
        }
        let mut trial = self.clone();
        lists.iter().copied().find(|count| trial.allocate(*count).is_none())
    }

    /// Gives back a run that was never published.
    pub fn cancel(&mut self, run: Run) {
        self.release_span(run.offset(), run.offset() + run.count());
    }

    /// Gives back a run that programs may read until `until`.
    pub fn retire(&mut self, run: Run, until: Duration) {
        if run.count() > 0 {
            self.limbo.push_back((until, run));
        }
    }

    /// Frees what was retired until `now`. Whether that was anything.
    pub fn reclaim(&mut self, now: Duration) -> bool {
        let mut any = false;
        while let Some((_, run)) = self.limbo.pop_front_if(|(until, _)| *until <= now) {
            self.cancel(run);
            any = true;
        }
        any
    }

    /// Frees `from..to`, cut at the chunks' borders and merged with its neighbours.
    fn release_span(&mut self, mut from: u32, to: u32) {
        let to = to.min(self.max);
        while from < to {
            let border = (from / CHUNK + 1) * CHUNK;
            let end = to.min(border);
            let (mut offset, mut length) = (from, end - from);
            if let Some((&before, &size)) = self.free.range(..offset).next_back()
                && before + size == offset
                && !offset.is_multiple_of(CHUNK)
            {
                self.free.remove(&before);
                (offset, length) = (before, size + length);
            }
            if !end.is_multiple_of(CHUNK)
                && let Some(size) = self.free.remove(&end)
            {
                length += size;
            }
            self.free.insert(offset, length);
            from = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn granted(offset: u32, count: u32, chunk: Option<u32>) -> Option<Granted> {
        Some(Granted { run: Run::new(offset, count), chunk })
    }

    #[test]
    fn runs_are_contiguous_never_cross_a_chunk_and_come_back_after_the_grace_period() {
        let mut runs = Runs::new(0, 2 * CHUNK, []);
        assert_eq!(runs.allocate(0), granted(0, 0, None), "an empty list takes nothing");
        assert_eq!(runs.allocate(10), granted(0, 10, Some(0)), "the first adds a chunk");
        assert_eq!(runs.allocate(5), granted(10, 5, None), "the next follows");
        assert_eq!(
            runs.allocate(CHUNK - 10),
            granted(CHUNK, CHUNK - 10, Some(1)),
            "no room without crossing"
        );
        assert_eq!(
            runs.allocate(CHUNK - 15),
            granted(15, CHUNK - 15, None),
            "first fit: the rest of chunk 0"
        );
        assert_eq!(runs.allocate(11), None, "full (C-32)");
        assert_eq!(runs.allocate(CHUNK + 1), None, "longer than a chunk");

        runs.retire(Run::new(0, 10), 3 * SECOND);
        runs.retire(Run::new(10, 5), 4 * SECOND);
        assert!(!runs.reclaim(2 * SECOND), "may still be read");
        assert_eq!(runs.allocate(11), None);
        assert!(runs.reclaim(3 * SECOND));
        assert_eq!(runs.allocate(11), None, "only the first is free");
        assert!(runs.reclaim(5 * SECOND));
        assert_eq!(runs.allocate(15), granted(0, 15, None), "neighbours were merged");
    }

    #[test]
    fn adoption_finds_the_gaps() {
        let used = [Run::new(4, 4), Run::new(CHUNK - 2, 2), Run::new(4, 4), Run::EMPTY, Run::new(20, 1)];
        let mut runs = Runs::new(2, 2 * CHUNK, used);
        assert_eq!(runs.allocate(5), granted(8, 5, None), "0..4 is too short");
        assert_eq!(runs.allocate(4), granted(0, 4, None));
        assert_eq!(
            runs.allocate(CHUNK),
            granted(CHUNK, CHUNK, None),
            "free chunks are not merged with others"
        );
        assert_eq!(runs.allocate(7), granted(13, 7, None));
        assert_eq!(runs.allocate(CHUNK - 2 - 21), granted(21, CHUNK - 2 - 21, None));
        assert_eq!(runs.allocate(1), None);
    }

    /// C-32: a limit within a chunk.
    #[test]
    fn no_slot_beyond_the_limit_is_given() {
        let mut runs = Runs::new(0, CHUNK + 10, []);
        assert_eq!(runs.lacks(&[CHUNK, 10]), None);
        assert_eq!(runs.lacks(&[CHUNK, 4, 7]), Some(7), "all of them together");
        assert_eq!(runs.lacks(&[CHUNK + 1]), Some(CHUNK + 1), "longer than a chunk");
        assert_eq!(runs.allocate(CHUNK), granted(0, CHUNK, Some(0)));
        assert_eq!(runs.allocate(11), None);
        assert_eq!(runs.allocate(10), granted(CHUNK, 10, Some(1)));
        assert_eq!(runs.allocate(1), None);
        runs.retire(Run::new(CHUNK, 10), SECOND);
        assert!(runs.reclaim(SECOND));
        assert_eq!(runs.lacks(&[10]), None);

        let mut lowered = Runs::new(1, 8, [Run::new(0, 4), Run::new(6, 20)]);
        assert_eq!(lowered.allocate(3), None, "what is found beyond the limit is not taken from");
        assert_eq!(lowered.allocate(2), granted(4, 2, None));
        lowered.retire(Run::new(6, 20), SECOND);
        assert!(lowered.reclaim(SECOND));
        assert_eq!(lowered.allocate(3), None, "nor given again");
        assert_eq!(lowered.allocate(2), granted(6, 2, None));
    }

    proptest::proptest! {
        /// Whatever is taken and given back: no two live runs overlap, none crosses a chunk, nothing is lost.
        #[test]
        fn live_runs_never_overlap(steps in proptest::collection::vec((0_u32..400, proptest::bool::ANY), 1..200)) {
            let mut runs = Runs::new(0, 2 * CHUNK, []);
            let mut live: Vec<Run> = Vec::new();
            for (number, (count, give_back)) in steps.into_iter().enumerate() {
                if give_back && !live.is_empty() {
                    let run = live.swap_remove(number % live.len());
                    runs.retire(run, Duration::ZERO);
                    runs.reclaim(SECOND);
                } else if let Some(granted) = runs.allocate(count * 17) && granted.run.count() > 0 {
                    live.push(granted.run);
                }
                let mut sorted = live.clone();
                sorted.sort_by_key(|run| run.offset());
                for pair in sorted.windows(2) {
                    proptest::prop_assert!(pair[0].offset() + pair[0].count() <= pair[1].offset());
                }
                for run in &sorted {
                    let last = run.offset() + run.count() - 1;
                    proptest::prop_assert_eq!(run.offset() / CHUNK, last / CHUNK);
                }
                let used: u32 = live.iter().map(|run| run.count()).sum();
                proptest::prop_assert_eq!(used + runs.free.values().sum::<u32>(), runs.chunks * CHUNK);
            }
        }
    }
}
