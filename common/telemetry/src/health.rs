//! A dependency that fails: few log lines, backoff between tries, and one try at a time where callers can do
//! without it.

use std::{
    error::Error,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use safelight_domain::retry::Reconnect;

/// Time between two warnings about the same dependency.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// The health of one dependency, as loops or requests see it.
///
/// A loop waits as long as [`failed`](Self::failed) says before its next try. A request that can do without the
/// dependency asks [`is_usable`](Self::is_usable) first. One that cannot only reports its failure.
pub struct DependencyHealth {
    /// What fails, as in "cannot …".
    what: &'static str,
    failing: Mutex<Option<Failing>>,
}

/// Since the first failure.
struct Failing {
    reconnect: Reconnect,
    /// When it is tried again.
    retry_at: Instant,
    warned_at: Instant,
}

/// A dependency did not answer in time.
#[derive(Debug, Clone, Copy)]
pub struct NoAnswer;

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer in time")
    }
}

impl Error for NoAnswer {}

impl DependencyHealth {
    /// Nothing has failed yet. `what` is a verb phrase, as in "cannot …".
    pub const fn new(what: &'static str) -> Self {
        Self { what, failing: Mutex::new(None) }
    }

    /// Notes a failure; returns how long to wait before the next try. Several failures at the same time count
    /// as one.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> Duration {
        let mut failing = self.lock();
        let now = Instant::now();
        if failing.as_ref().is_none_or(|since| now - since.warned_at >= WARNING_INTERVAL) {
            tracing::warn!(error, "cannot {}; further errors at debug level for 1 min", self.what);
            if let Some(since) = failing.as_mut() {
                since.warned_at = now;
            }
        } else {
            tracing::debug!(error, "cannot {}", self.what);
        }
        let since = failing.get_or_insert_with(|| Failing {
            reconnect: Reconnect::default(),
            retry_at: now,
            warned_at: now,
        });
        if since.retry_at <= now {
            since.retry_at = now + since.reconnect.next_delay();
        }
        since.retry_at - now
    }

    /// Whether to use the dependency now. While it fails, one caller at a time finds out whether it works again.
    pub fn is_usable(&self) -> bool {
        let now = Instant::now();
        match self.lock().as_mut() {
            None => true,
            Some(since) if since.retry_at > now => false,
            Some(since) => {
                since.retry_at = now + since.reconnect.next_delay();
                true
            }
        }
    }

    /// Notes a success.
    pub fn over(&self) {
        if self.lock().take().is_some() {
            tracing::info!("can {} again", self.what);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_at_a_time_tries_a_failing_dependency() {
        let health = DependencyHealth::new("use a dependency");
        assert!(health.is_usable());
        health.failed(&NoAnswer);
        assert!(!health.is_usable());
        let deadline = Instant::now() + Duration::from_secs(20);
        while !health.is_usable() {
            assert!(Instant::now() < deadline, "never tried again");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!health.is_usable(), "the next caller waits for what the first finds out");
        health.over();
        assert!(health.is_usable());
    }

    #[test]
    fn failures_at_the_same_time_count_as_one() {
        let health = DependencyHealth::new("use a dependency");
        let first = health.failed(&NoAnswer);
        assert!((0..100).all(|_| health.failed(&NoAnswer) <= first));
    }
}
