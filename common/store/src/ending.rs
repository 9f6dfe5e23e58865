//! What an outcome means for its job's row, on either backend.

use std::time::Duration;

use safelight_domain::{Failure, Status};

use super::Outcome;

/// The changes that a settled attempt asks for.
pub struct Ending<'a> {
    /// The state to go to. The store makes `queued` into `failed` when no attempt is left:
    /// otherwise the job would wait for ever.
    pub status: Status,
    /// How long until it may run again, if it is queued.
    pub delay: Duration,
    /// Hand-backs to count: 1 or 0.
    pub released: i32,
    /// What a success has to say beside.
    pub note: Option<&'a str>,
    /// The error to keep. A hand-back leaves the one before, a success clears it.
    pub failure: Option<&'a Failure>,
}

impl<'a> Ending<'a> {
    /// The changes that `outcome` asks for.
    pub fn of(outcome: &'a Outcome) -> Self {
        let (status, delay, released, failure) = match outcome {
            Outcome::Written(_)
            | Outcome::Rendered { .. }
            | Outcome::Verified { .. }
            | Outcome::Deleted { .. } => (Status::Succeeded, Duration::ZERO, 0, None),
            Outcome::Retry(failure, delay) => (Status::Queued, *delay, 0, Some(failure)),
            Outcome::Failed(failure) => (Status::Failed, Duration::ZERO, 0, Some(failure)),
            Outcome::Released => (Status::Queued, Duration::ZERO, 1, None),
        };
        let note = match outcome {
            Outcome::Verified { note, .. } => note.as_deref(),
            _ => None,
        };
        Self { status, delay, released, note, failure }
    }
}
