//! What each kind of job does. A handler may run any number of times, at once or again, for the
//! same job: blobs are named by content, and the store takes one result per attempt.

mod source;
mod thumbnail;
mod write;

use std::sync::Arc;

use safelight_common::{
    domain::{ErrorCode, Failure, JobKind},
    services::Services,
    store::{ClaimedJob, Outcome},
};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

/// What a handler works with.
pub(crate) struct Context {
    /// The parts.
    pub services: Services,
    /// The right to use one processor. Blocking work holds a share of it, so that work which
    /// outlives its (aborted) handler still counts.
    pub slot: Arc<OwnedSemaphorePermit>,
    /// Cancelled once nobody wants the result any more.
    pub stop: CancellationToken,
}

impl Context {
    /// Runs CPU work on a blocking thread. `work` is given a question to ask between its steps:
    /// whether to stop early. A panic in it goes on here.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (slot, stop) = (self.slot.clone(), self.stop.clone());
        let thread = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            work(&|| stop.is_cancelled())
        });
        thread.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Failure::new(ErrorCode::LeaseLost, "the worker is shutting down")),
        })
    }
}

/// Does one attempt of a job.
pub(crate) async fn run(context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
    match job.kind {
        JobKind::Write => write::run(context, &job.image).await,
        JobKind::Thumbnail => thumbnail::run(context, &job.image).await,
    }
}
