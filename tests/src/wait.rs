//! Waiting for a condition instead of sleeping.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything the agent is asked for may take before a test gives up. Far above what it needs, since
/// machines that run tests are busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at: those of other processes have no file descriptor to wait on.
const STEP: Duration = Duration::from_millis(10);

/// Calls `look` until it gives a value or `limit` is over; `None` then.
pub fn poll<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(STEP);
    }
}

/// Waits until `look` gives `Ok`; its last error is told when `limit` is over.
///
/// # Errors
/// If `look` fails to the end.
pub fn until<T, E: fmt::Display>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<T, E>,
) -> Result<T> {
    let mut last = None;
    let found = poll(limit, || look().map_err(|error| last = Some(error)).ok());
    match (found, last) {
        (Some(found), _) => Ok(found),
        (None, Some(error)) => bail!("waited {limit:?} in vain: {what}: {error:#}"),
        (None, None) => bail!("waited {limit:?} in vain: {what}"),
    }
}
