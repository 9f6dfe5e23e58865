//! What a taker of the outbox learns of what is left there, on either backend.

use std::time::Duration;

use super::{OutboxBatch, QueueCapacity};
use safelight_domain::JobNotice;

/// The batch of rows `due` that were taken for `hold`, where `next` is how long until another comes due.
pub fn taken_with(
    room: &QueueCapacity,
    due: Vec<JobNotice>,
    next: Option<Duration>,
    hold: Duration,
) -> OutboxBatch {
    let is_full = |&(kind, lane, places): &_| {
        let taken = due.iter().filter(|bell| (bell.kind, bell.lane) == (kind, lane)).count();
        places > 0 && taken >= places as usize
    };
    let next_in = if room.0.iter().any(is_full) {
        Some(Duration::ZERO)
    } else if due.is_empty() {
        next
    } else {
        // Those just taken show again, if nobody marks them.
        Some(next.map_or(hold, |next| next.min(hold)))
    };
    OutboxBatch { due, next_in }
}
