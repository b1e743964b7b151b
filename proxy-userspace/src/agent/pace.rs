use std::time::Duration;

/// When to install what has changed: at once after a quiet time, in rounds while changes keep coming, later and
/// later while rounds fail. Times are on the agent's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest time between retries.
    longest: Duration,
    /// Something waits since then.
    waiting: Option<Duration>,
    running: bool,
    /// No round before this time.
    not_before: Duration,
    failures: u32,
}

/// From the end of one round to the start of the next: what comes meanwhile makes one round.
const GAP: Duration = Duration::from_millis(50);
/// First retry after a failure; doubled each time.
const RETRY: Duration = Duration::from_millis(500);

impl Pace {
    /// `longest` is the syncPeriod.
    #[must_use]
    pub const fn new(longest: Duration) -> Self {
        Self { longest, waiting: None, running: false, not_before: Duration::ZERO, failures: 0 }
    }

    /// Something is to be installed.
    pub fn wake(&mut self, now: Duration) {
        self.waiting.get_or_insert(now);
    }

    /// Since when something waits.
    #[must_use]
    pub const fn waiting(&self) -> Option<Duration> {
        self.waiting
    }

    /// When the next round is due; `None` while there is nothing to do or a round is running.
    #[must_use]
    pub fn due(&self) -> Option<Duration> {
        let waiting = self.waiting.filter(|_| !self.running)?;
        Some(waiting.max(self.not_before))
    }

    /// A round starts.
    pub const fn begin(&mut self) {
        self.waiting = None;
        self.running = true;
    }

    /// The round has ended. A failed one is to be repeated, which is the only thing that then waits for its time.
    pub fn end(&mut self, now: Duration, failed: bool) {
        self.running = false;
        if failed {
            let pause = RETRY.saturating_mul(1 << self.failures.min(10)).min(self.longest);
            self.failures += 1;
            self.not_before = now + pause;
            self.waiting.get_or_insert(now);
        } else {
            self.failures = 0;
            self.not_before = now + GAP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn i2_at_once_after_idle_then_in_rounds() {
        let mut pace = Pace::new(ms(30_000));
        assert_eq!(pace.due(), None, "nothing to do");
        pace.wake(ms(1_000));
        pace.wake(ms(1_010));
        assert_eq!(pace.due(), Some(ms(1_000)), "after a quiet time: at once");
        pace.begin();
        pace.wake(ms(1_020));
        assert_eq!(pace.due(), None, "one round at a time");
        pace.end(ms(1_030), false);
        assert_eq!(pace.waiting(), Some(ms(1_020)));
        assert_eq!(pace.due(), Some(ms(1_080)), "what came meanwhile: one round, a gap later");
        pace.begin();
        pace.end(ms(1_090), false);
        assert_eq!(pace.due(), None);
        pace.wake(ms(9_000));
        assert_eq!(pace.due(), Some(ms(9_000)));
    }

    #[test]
    fn failed_rounds_are_repeated_ever_later_up_to_the_sync_period() {
        let mut pace = Pace::new(ms(3_000));
        let mut now = ms(0);
        pace.wake(now);
        for pause in [500, 1_000, 2_000, 3_000, 3_000] {
            pace.begin();
            pace.end(now, true);
            assert_eq!(pace.due(), Some(now + ms(pause)));
            now += ms(pause);
        }
        pace.begin();
        pace.end(now, false);
        pace.wake(now + ms(1));
        assert_eq!(pace.due(), Some(now + ms(50)), "a success forgets the failures");
    }
}
