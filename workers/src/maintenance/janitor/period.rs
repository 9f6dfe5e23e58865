//! How often the janitor lists objects.

use std::time::Duration;

/// A sweep lists all staged bytes, so it runs rarely; unless the grace time is so short that it must
/// run more often.
const LONGEST: Duration = Duration::from_mins(5);

/// The minimum time between two sweeps.
const SHORTEST: Duration = Duration::from_millis(250);

/// Half the grace time, within bounds.
pub(super) fn sweep_period(grace: Duration) -> Duration {
    (grace / 2).clamp(SHORTEST, LONGEST)
}
