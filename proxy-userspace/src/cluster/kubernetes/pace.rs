//! When a failed request may be repeated: exponential for each kind of object, and over all of them together at
//! most one request a second (C-09, C-10).

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

const FIRST: Duration = Duration::from_secs(1);
/// With the spread and its turn among the others, an agent comes back within 30 s of the server.
const LAST: Duration = Duration::from_secs(20);
/// A server that asks for a longer pause gets this one.
const LONGEST: Duration = Duration::from_secs(60);

/// The delay of one kind of object: 1 s, doubled with each failure in a row up to 20 s.
#[derive(Debug)]
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Backoff {
    pub fn reset(&mut self) {
        self.0 = FIRST;
    }

    /// The next delay: at least what the server asked for, and spread by up to a quarter (`draw` is 0 to 1), so
    /// that a thousand agents do not come back in step.
    pub fn next(&mut self, asked: Duration, draw: f64) -> Duration {
        let delay = self.0.max(asked.min(LONGEST));
        self.0 = (2 * self.0).min(LAST);
        delay.mul_f64(1.0 + draw.clamp(0.0, 1.0) / 4.0)
    }
}

/// Shared by all kinds: repeats are at least a second apart.
#[derive(Debug, Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Sleeps for `delay`, and then until it is this caller's turn.
    pub async fn wait(&self, delay: Duration) {
        tokio::time::sleep(delay).await;
        let turn = {
            let mut last = self.0.lock().await;
            let turn = turn(*last, Instant::now());
            *last.insert(turn)
        };
        tokio::time::sleep_until(turn).await;
    }
}

fn turn(last: Option<Instant>, now: Instant) -> Instant {
    last.map_or(now, |last| now.max(last + FIRST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c09_delays_double_and_obey_the_server() {
        let mut backoff = Backoff::default();
        let mut seconds = |asked| backoff.next(Duration::from_secs(asked), 0.0).as_secs();
        assert_eq!([0, 0, 0, 0, 0, 0, 0].map(&mut seconds), [1, 2, 4, 8, 16, 20, 20]);
        assert_eq!([45, 9_999].map(&mut seconds), [45, 60]);
        backoff.reset();
        assert_eq!(backoff.next(Duration::ZERO, 1.0), Duration::from_millis(1_250));
    }

    #[test]
    fn c_10_repeats_of_all_kinds_are_a_second_apart() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        assert_eq!(turn(None, now), now);
        assert_eq!(turn(Some(now), now), now + seconds(1));
        assert_eq!(turn(Some(now + seconds(3)), now), now + seconds(4), "others wait as well");
        assert_eq!(turn(Some(now), now + seconds(5)), now + seconds(5));
    }
}
