//! The health of a dependency: one log line when it becomes unavailable, one when it is available again, and
//! backoff between retries.

use std::{error::Error, time::Duration};

use safelight_domain::retry::Reconnect;

/// Tracks the failures of a loop that uses a dependency.
pub struct DependencyHealth {
    /// A verb phrase, to follow "cannot".
    what: &'static str,
    reconnect: Reconnect,
    failing: bool,
}

impl DependencyHealth {
    /// A healthy dependency. `what` is a verb phrase.
    pub fn new(what: &'static str) -> Self {
        Self { what, reconnect: Reconnect::default(), failing: false }
    }

    /// Records a failure, and returns the delay before the next attempt.
    pub fn failed(&mut self, error: &(dyn Error + 'static)) -> Duration {
        if !self.failing {
            tracing::warn!(error, "cannot {}; retrying", self.what);
        }
        self.failing = true;
        self.reconnect.next_delay()
    }

    /// Records a success.
    pub fn over(&mut self) {
        if self.failing {
            tracing::info!("can {} again", self.what);
            self.failing = false;
            self.reconnect.reset();
        }
    }
}
