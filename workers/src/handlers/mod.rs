//! What each kind of job does. A handler may run any number of times, at once or again, for the
//! same job: blobs are named by content, and the store takes one result per attempt.

mod delete;
mod source;
mod thumbnail;
mod verify;
mod write;

use std::sync::Arc;

use safelight_decoder::{Attempt, Decoder};
use safelight_domain::{ErrorCode, Failure, JobKind};
use safelight_services::Services;
use safelight_store::{ClaimedJob, Outcome, StoreError};

pub(crate) use self::thumbnail::missing_presets;

/// What a handler works with.
pub(crate) struct Context {
    /// The parts.
    pub services: Services,
    /// Where pictures are decoded.
    pub decoder: Arc<Decoder>,
    /// What this attempt may decode with, and for how long.
    pub attempt: Attempt,
}

/// Does one attempt of a job.
pub(crate) async fn run(context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
    if job.image.discarded && job.kind != JobKind::Delete {
        // Handed out or tried again by hand while its image was being discarded: the bytes are going, and
        // what was made now would be left over.
        let why = Failure::new(ErrorCode::BlobMissing, "the image was deleted or cancelled");
        return Ok(Outcome::Failed(why));
    }
    match job.kind {
        JobKind::Write => write::run(context, &job.image).await,
        JobKind::Thumbnail => thumbnail::run(context, job).await,
        JobKind::Verify => verify::run(context, &job.image).await,
        JobKind::Delete => delete::run(context, job).await,
    }
}

/// A look-up that failed, as a job's failure.
fn database_away(error: &StoreError) -> Failure {
    tracing::warn!(error = error as &dyn std::error::Error, "a job cannot ask the database");
    Failure::new(ErrorCode::DatabaseUnavailable, "the database did not answer")
}
