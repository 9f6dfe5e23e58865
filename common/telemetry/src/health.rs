//! The health of a dependency: one log line when it fails, one when it works again, backoff between.
//!
//! A loop of its own asks [`DependencyHealth::failed`] how long to wait. Where many tasks share a
//! dependency, one of them probes it ([`DependencyHealth::probe`]) and the others wait
//! ([`DependencyHealth::available`]).

use std::{
    error::Error,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use safelight_domain::retry::Reconnect;
use tokio::sync::watch;

/// Whether a dependency works, as far as its users know.
pub struct DependencyHealth {
    /// What fails, as in "cannot …".
    action: &'static str,
    /// What follows from it.
    consequence: &'static str,
    available: watch::Sender<bool>,
    reconnect: Mutex<Reconnect>,
}

impl DependencyHealth {
    /// Healthy until an error is reported. `action` is a verb phrase, as in "cannot `action`".
    pub fn new(action: &'static str) -> Self {
        Self::with_consequence(action, "trying again until it works")
    }

    /// [`DependencyHealth::new`] for a failure that does more than delay its own loop.
    pub fn with_consequence(action: &'static str, consequence: &'static str) -> Self {
        Self {
            action,
            consequence,
            available: watch::Sender::new(true),
            reconnect: Mutex::default(),
        }
    }

    /// Marks the dependency as unavailable, and logs the first of the errors in a row.
    pub fn report(&self, error: &(dyn Error + 'static)) {
        if self.available.send_replace(false) {
            tracing::warn!(error, "cannot {}; {}", self.action, self.consequence);
        }
    }

    /// [`DependencyHealth::report`]; returns how long to wait before the next try.
    pub fn failed(&self, error: &(dyn Error + 'static)) -> Duration {
        self.report(error);
        self.next_delay()
    }

    /// Marks the dependency as available again.
    pub fn recovered(&self) {
        if !self.available.send_replace(true) {
            tracing::info!("can {} again", self.action);
            *self.reconnect.lock().unwrap_or_else(PoisonError::into_inner) = Reconnect::default();
        }
    }

    /// Waits until the dependency is available; returns at once if it is.
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
        self.reconnect.lock().unwrap_or_else(PoisonError::into_inner).next_delay()
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
            () = health.probe(third) => unreachable!("a probe never ends"),
        }
        assert_eq!(tries.get(), 3);
    }
}
