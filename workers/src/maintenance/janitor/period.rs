//! How often the janitor lists objects, and which are old.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use safelight_blobs::{BlobError, Blobs};

/// A sweep lists all staged bytes, so it runs rarely; unless the grace time is so short that it must
/// run more often.
const LONGEST: Duration = Duration::from_mins(5);

/// The minimum time between two sweeps.
const SHORTEST: Duration = Duration::from_millis(250);

/// Half the grace time, within bounds.
pub(super) fn sweep_period(grace: Duration) -> Duration {
    (grace / 2).clamp(SHORTEST, LONGEST)
}

/// The time before which objects are older than `grace`, by the clock of the store: if this machine's were ahead, new
/// objects would seem old. `None` if nothing can be that old. Fails if the store is not this installation's.
pub(super) async fn old_before(
    blobs: &Blobs,
    grace: Duration,
) -> Result<Option<DateTime<Utc>>, BlobError> {
    blobs.confirm().await?;
    let now = blobs.clock().await?;
    Ok(TimeDelta::from_std(grace).ok().and_then(|grace| now.checked_sub_signed(grace)))
}
