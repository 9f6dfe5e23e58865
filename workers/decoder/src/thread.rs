//! Decoding inside this process: for platforms that cannot start a decoder, and for tests.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use bytes::Bytes;
use safelight_domain::{ErrorCode, Failure};
use safelight_imaging::Renderer;
use tokio::sync::oneshot;

use super::{
    Attempt, niceness,
    request::{Answer, Request},
};

/// Answers on a thread of low priority. A panic there goes on here.
pub(super) async fn run(
    request: Request,
    bytes: Bytes,
    attempt: &Attempt,
) -> Result<Answer, Failure> {
    let (slot, stop, lane) = (attempt.slot.clone(), attempt.stop.clone(), attempt.lane);
    let (result, done) = oneshot::channel();
    let run = move || {
        // A system that refuses leaves it as it was.
        let _ = rustix::process::nice(niceness(lane));
        let work = || request.run(&mut Renderer::new()?, &bytes, &|| stop.is_cancelled());
        let outcome = catch_unwind(AssertUnwindSafe(work));
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
