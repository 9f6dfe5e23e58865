//! Decodes inside this process, for platforms without child processes and for tests.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure};
use safelight_imaging::Renderer;
use tokio::sync::oneshot;

use crate::{
    attempt::Attempt,
    limits::niceness,
    request::{Request, Response},
};

/// Runs a request on a thread of low priority. A panic there continues here.
pub(super) async fn run(
    request: Request,
    bytes: Bytes,
    attempt: &Attempt,
) -> Result<Response, Failure> {
    let (slot, stop, lane) = (attempt.slot.clone(), attempt.stop.clone(), attempt.lane);
    let (result, done) = oneshot::channel();
    let run = move || {
        // Failure means normal priority.
        let _ = rustix::process::nice(niceness(lane));
        let work = || request.run(&mut Renderer::new()?, &bytes, &|| stop.is_cancelled());
        let outcome = catch_unwind(AssertUnwindSafe(work));
        drop(slot);
        // Fails if the attempt was cancelled.
        let _ = result.send(outcome);
    };
    // A separate thread, because a thread cannot raise its priority again.
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
