//! What each kind of job does. A handler may run any number of times, at once or again, for the
//! same job: blobs are named by content, and the store takes one result per attempt.

mod source;
mod thumbnail;
mod write;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    thread,
};

use safelight_common::{
    domain::{ErrorCode, Failure, JobKind},
    services::Services,
    store::{ClaimedJob, Outcome},
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

/// How far CPU work steps back, in nice levels: about a tenth of a busy processor's time is left to
/// it while requests want the rest.
const NICENESS: i32 = 10;

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
    /// Runs CPU work on a thread of low priority. `work` is given a question to ask between its steps:
    /// whether to stop early. A panic in it goes on here.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let (slot, stop) = (self.slot.clone(), self.stop.clone());
        let (result, done) = oneshot::channel();
        let run = move || {
            // Receipts go before pictures: in one process, decoding must not hold uploads up. A
            // system that refuses leaves it as it was.
            let _ = rustix::process::nice(NICENESS);
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&|| stop.is_cancelled())));
            drop(slot);
            // Nobody waits for the result of an attempt that was given up.
            let _ = result.send(outcome);
        };
        // A thread of its own, since one that has become nice stays so.
        if let Err(error) = thread::Builder::new().name("imaging".to_owned()).spawn(run) {
            tracing::error!(%error, "cannot start a thread");
            return Err(Failure::new(ErrorCode::WorkerPanicked, "the worker is out of threads"));
        }
        match done.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(Failure::new(ErrorCode::LeaseLost, "the worker is shutting down")),
        }
    }
}

/// Does one attempt of a job.
pub(crate) async fn run(context: &Context, job: &ClaimedJob) -> Result<Outcome, Failure> {
    match job.kind {
        JobKind::Write => write::run(context, &job.image).await,
        JobKind::Thumbnail => thumbnail::run(context, &job.image).await,
    }
}
