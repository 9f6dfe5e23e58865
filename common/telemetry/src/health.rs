//! A dependency that is away: one log line when it goes, one when it is back, backoff between.

use std::{error::Error, time::Duration};

use safelight_domain::retry::Reconnect;

/// Keeps count of one loop's failures.
pub struct DependencyHealth {
    /// What fails, as in "cannot …".
    what: &'static str,
    reconnect: Reconnect,
    failing: bool,
}

impl DependencyHealth {
    /// No trouble yet with `what` (a verb phrase).
    pub fn new(what: &'static str) -> Self {
        Self { what, reconnect: Reconnect::default(), failing: false }
    }

    /// Notes a failure; returns how long to wait before the next try.
    pub fn failed(&mut self, error: &(dyn Error + 'static)) -> Duration {
        if !self.failing {
            tracing::warn!(error, "cannot {}; trying again until it works", self.what);
        }
        self.failing = true;
        self.reconnect.next_delay()
    }

    /// Notes a success.
    pub fn over(&mut self) {
        if self.failing {
            tracing::info!("can {} again", self.what);
            self.failing = false;
            self.reconnect.reset();
        }
    }
}
