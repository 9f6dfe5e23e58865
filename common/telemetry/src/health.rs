//! The health of a dependency: few log lines while it fails, one when it works again, backoff between tries.

use std::{
    error::Error,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use safelight_domain::retry::Reconnect;
use tokio::{sync::watch, time::Instant};

/// Time between two warnings about the same dependency.
const WARNING_INTERVAL: Duration = Duration::from_mins(1);

/// Whether a dependency works, as far as its users know.
///
/// - A loop waits as long as [`failed`](Self::failed) says before its next try.
/// - A request that can do without the dependency asks [`is_usable`](Self::is_usable) first. One that cannot
///   only reports its failure.
/// - Where many tasks share a dependency, one of them probes it ([`probe`](Self::probe)) and the others wait
///   ([`available`](Self::available)).
pub struct DependencyHealth {
    /// What fails, as in "cannot …".
    action: &'static str,
    /// What follows from it.
    consequence: &'static str,
    available: watch::Sender<bool>,
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
    /// Healthy until an error is reported. `action` is a verb phrase, as in "cannot `action`".
    pub fn new(action: &'static str) -> Self {
        Self::with_consequence(action, "trying again until it works")
    }

    /// [`DependencyHealth::new`] for a failure that does more than delay its own loop.
    pub fn with_consequence(action: &'static str, consequence: &'static str) -> Self {
        Self { action, consequence, available: watch::Sender::new(true), failing: Mutex::new(None) }
    }

    /// Marks the dependency as unavailable. Warns once a minute.
    pub fn report(&self, error: &(dyn Error + 'static)) {
        self.failed(error);
    }

    /// [`DependencyHealth::report`]; returns how long to wait before the next try. Several failures at the
    /// same time count as one.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> Duration {
        self.available.send_replace(false);
        let mut failing = self.lock();
        let now = Instant::now();
        if failing.as_ref().is_none_or(|since| now - since.warned_at >= WARNING_INTERVAL) {
            tracing::warn!(
                error,
                "cannot {}; {}; further errors at debug level for 1 min",
                self.action,
                self.consequence
            );
            if let Some(since) = failing.as_mut() {
                since.warned_at = now;
            }
        } else {
            tracing::debug!(error, "cannot {}", self.action);
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

    /// Whether to use the dependency now. While it fails, one caller at a time tries whether it works again.
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

    /// Marks the dependency as available again.
    pub fn recovered(&self) {
        if self.lock().take().is_some() {
            tracing::info!("can {} again", self.action);
        }
        self.available.send_replace(true);
    }

    /// Waits until the dependency is available.
    pub async fn available(&self) {
        // The sender lives as long as `self`.
        let _ = self.available.subscribe().wait_for(|available| *available).await;
    }

    /// Asks `works`, with backoff, whenever the dependency is unavailable. Never returns.
    pub async fn probe<Works: Future<Output = bool>>(&self, works: impl Fn() -> Works) {
        let mut states = self.available.subscribe();
        loop {
            let _ = states.wait_for(|available| !*available).await;
            tokio::time::sleep(self.next_delay()).await;
            if works().await {
                self.recovered();
            }
        }
    }

    fn next_delay(&self) -> Duration {
        self.lock().as_mut().map_or(Duration::ZERO, |since| since.reconnect.next_delay())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_tasks_continue_when_a_probe_succeeds() {
        let health = DependencyHealth::new("reach the database");
        health.available().await;
        let first = health.failed(&std::io::Error::other("refused"));
        assert!(first <= Duration::from_millis(150), "{first:?}");
        let tries = std::cell::Cell::new(0);
        let third = || async {
            tries.set(tries.get() + 1);
            tries.get() == 3
        };
        tokio::select! {
            () = health.available() => {}
            () = health.probe(third) => unreachable!("a probe never returns"),
        }
        assert_eq!(tries.get(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn one_caller_at_a_time_tries_a_failing_dependency() {
        let health = DependencyHealth::new("use a dependency");
        assert!(health.is_usable());
        let delay = health.failed(&NoAnswer);
        assert!(!health.is_usable());
        tokio::time::advance(delay).await;
        assert!(health.is_usable());
        assert!(!health.is_usable(), "the next caller waits for the result of the first");
        health.recovered();
        assert!(health.is_usable());
    }

    #[test]
    fn failures_at_the_same_time_count_as_one() {
        let health = DependencyHealth::new("use a dependency");
        let first = health.failed(&NoAnswer);
        assert!((0..100).all(|_| health.failed(&NoAnswer) <= first));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_grow_while_failures_continue() {
        let health = DependencyHealth::new("use a dependency");
        let mut waits = Vec::new();
        for _ in 0..10 {
            let wait = health.failed(&NoAnswer);
            waits.push(wait);
            tokio::time::sleep(wait).await;
        }
        assert!(waits[9] > 4 * waits[0], "{waits:?}");
    }
}
