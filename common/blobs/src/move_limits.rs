//! How long moves may take in a store without renames.

use std::time::Duration;

use chrono::TimeDelta;

/// How long moves may take in a store without renames.
#[derive(Debug, Clone, Copy)]
pub(super) struct MoveLimits {
    /// How long after the start of its copy a mover may begin to delete the first object.
    pub begin_to_delete: Duration,
    /// After so long, a move has ended or never will: a deletion takes a minute, and is repeated twice.
    pub over_after: TimeDelta,
}

impl Default for MoveLimits {
    fn default() -> Self {
        Self { begin_to_delete: Duration::from_mins(2), over_after: TimeDelta::minutes(5) }
    }
}

impl MoveLimits {
    /// The usual ones, or less if abandoned objects are decided about after `grace`.
    pub fn within(grace: Duration) -> Self {
        let usual = Self::default();
        let over_after = TimeDelta::from_std(grace).map(|grace| grace.min(usual.over_after));
        Self {
            begin_to_delete: (grace / 2).min(usual.begin_to_delete),
            over_after: over_after.unwrap_or(usual.over_after),
        }
    }
}
