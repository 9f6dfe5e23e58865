//! What each kind of job does. A handler may run any number of times, at once or again, for the
//! same job: blobs are named by content, and the store takes one result per attempt.

mod source;
mod thumbnail;
mod verify;
mod write;

use std::sync::Arc;

use safelight_common::{
    domain::{Failure, JobKind},
    services::Services,
    store::{ClaimedJob, Outcome},
};

pub(crate) use self::thumbnail::missing_presets;
use crate::decoder::{Attempt, Decoder};

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
    match job.kind {
        JobKind::Write => write::run(context, &job.image).await,
        JobKind::Thumbnail => thumbnail::run(context, job).await,
        JobKind::Verify => verify::run(context, &job.image).await,
    }
}
