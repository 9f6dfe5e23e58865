//! What an outcome changes in its job's row, on either backend.

use std::time::Duration;

use safelight_domain::{Failure, Status};

use crate::{Effect, Outcome};

/// The changes of a job's row when an attempt is settled.
pub struct Ending<'a> {
    /// The new status. The store turns `queued` into `failed` when no attempt is left: otherwise the job would
    /// wait forever.
    pub status: Status,
    /// How long until it may run again, if it is queued.
    pub delay: Duration,
    /// Released attempts to count: 1 or 0.
    pub released: u32,
    /// The note of a success.
    pub note: Option<&'a str>,
    /// The error to keep. A released attempt without one keeps the error before it, a success clears it.
    pub failure: Option<&'a Failure>,
    /// What else a success records.
    pub effects: &'a [Effect],
}

impl<'a> Ending<'a> {
    /// The changes that `outcome` asks for.
    pub fn of(outcome: &'a Outcome) -> Self {
        let (status, delay, released, failure) = match outcome {
            Outcome::Succeeded(_) => (Status::Succeeded, Duration::ZERO, 0, None),
            Outcome::Retry(failure, delay) => (Status::Queued, *delay, 0, Some(failure)),
            Outcome::Failed(failure) => (Status::Failed, Duration::ZERO, 0, Some(failure)),
            Outcome::Postponed(failure, delay) => (Status::Queued, *delay, 1, Some(failure)),
            Outcome::Released => (Status::Queued, Duration::ZERO, 1, None),
        };
        let effects: &[Effect] = match outcome {
            Outcome::Succeeded(effects) => effects,
            _ => &[],
        };
        let note = effects.iter().find_map(|effect| match effect {
            Effect::Note(note) => Some(note.as_str()),
            _ => None,
        });
        Self { status, delay, released, note, failure, effects }
    }

    /// Whether renditions were recorded, so that the image may show those of its blob. A successful thumbnail
    /// job has the same effect, also if nothing was missing. The statements decide that by the job's kind, in
    /// one update of the image; an effect of its own would have to be returned by every path of two jobs, and
    /// forgetting it once would hide an image's renditions for good.
    pub fn has_renditions(&self) -> bool {
        self.effects
            .iter()
            .any(|effect| matches!(effect, Effect::UpsertRenditions(made) if !made.is_empty()))
    }
}
