//! Tiers that reads can do without: one that fails is left out until it works again.

use std::error::Error;

use safelight_telemetry::DependencyHealth;

use super::counters::TierCounters;

/// A tier that reads can do without.
pub struct OptionalTier<T> {
    /// The tier itself.
    pub tier: T,
    /// Whether it works.
    pub health: DependencyHealth,
    /// How often it had what was asked for.
    pub counters: TierCounters,
}

impl<T> OptionalTier<T> {
    /// The tier called `name` in metrics; `what` it does as in "cannot …".
    pub fn new(tier: T, what: &'static str, name: &'static str) -> Self {
        Self { tier, health: DependencyHealth::new(what), counters: TierCounters::new(name) }
    }

    /// The tier, unless it is failing.
    pub fn usable(&self) -> Option<&T> {
        if self.health.is_usable() {
            return Some(&self.tier);
        }
        self.counters.skipped.increment(1);
        None
    }

    /// Records the result of a call; returns what it found, or nothing if it failed.
    pub fn noted<R, E: Error + 'static>(&self, answer: Result<R, E>) -> Option<R> {
        match answer {
            Ok(answer) => {
                self.health.recovered();
                Some(answer)
            }
            Err(error) => {
                self.failed(&error);
                None
            }
        }
    }

    /// Notes a failure.
    pub fn failed(&self, error: &(dyn Error + 'static)) {
        self.counters.errors.increment(1);
        self.health.failed(error);
    }
}
