//! One attempt of a job: a message, from claim to acknowledgement.

use std::{sync::Arc, time::Duration};

use metrics::{counter, histogram};
use safelight_decoder::Attempt;
use safelight_domain::{ErrorCode, Failure, JobId, JobKind, JobNotice, retry::Reconnect};
use safelight_queue::{Message, Queue};
use safelight_store::{Claim, ClaimedJob, Outcome, Settled, StoreError};
use safelight_telemetry::traces;
use tokio::{task::JoinError, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{Instrument, Span, field::Empty};

use super::{leases::HeldLease, slots::Slot, worker::Worker};
use crate::{jobs, retry_policy};

/// An attempt that takes longer counts as hanging: its lease would be renewed forever. Far below the half
/// hour after which a broker takes a message back.
const ATTEMPT_LIMIT: Duration = Duration::from_mins(10);

/// Before a job that needs a newer worker is published again.
const NEWER_DELAY: Duration = Duration::from_secs(1);

/// What happens to the message.
enum Disposition {
    Ack,
    Requeue,
}

/// Claims the message's job, runs and settles it, and acknowledges or requeues the message.
pub(super) async fn attempt(worker: Arc<Worker>, message: Message, slot: Arc<Slot>) {
    let traced = process_span(&worker, &message.notice);
    let disposition = process(&worker, &message, slot, &traced).instrument(traced.clone()).await;
    drop(traced);
    safelight_fail_points::hit("worker.settled").await;
    match disposition {
        Disposition::Ack => message.ack().await,
        Disposition::Requeue => message.requeue().await,
    }
}

/// An attempt in the trace of the request that made its job. Every attempt is a child of that request.
fn process_span(worker: &Worker, notice: &JobNotice) -> Span {
    if !traces::are_on() {
        return Span::none();
    }
    let queue = Queue::of(notice);
    let span = tracing::info_span!(
        target: traces::TARGET,
        "process",
        otel.name = format!("process {}", notice.kind),
        otel.kind = "consumer",
        otel.status_code = Empty,
        "error.type" = Empty,
        messaging.system = worker.settings.messaging_system,
        messaging.operation.name = "process",
        messaging.destination.name = %queue,
        messaging.message.id = %notice.job,
        safelight.task = Empty,
        safelight.job = %notice.job,
        safelight.kind = notice.kind.as_str(),
        safelight.lane = notice.lane.as_str(),
        safelight.attempt = Empty,
        safelight.outcome = Empty,
    );
    traces::continue_from(&span, notice.trace);
    span
}

/// Records in the trace how an attempt ended. Call it once: an attribute that is recorded twice appears
/// twice.
fn note_end(traced: &Span, outcome: &'static str, error: Option<&'static str>) {
    traced.record("safelight.outcome", outcome);
    if let Some(error) = error {
        traced.record("error.type", error);
        traced.record("otel.status_code", "error");
    }
}

/// [`note_end`] of an attempt whose end is recorded.
fn note_outcome(traced: &Span, outcome: &Outcome) {
    let (name, failure) = retry_policy::describe(outcome);
    note_end(traced, name, failure.map(|failure| failure.code.as_str()));
}

async fn process(
    worker: &Worker,
    message: &Message,
    slot: Arc<Slot>,
    traced: &Span,
) -> Disposition {
    let notice = message.notice;
    let version = jobs::newest_version(notice.kind);
    let began = Instant::now();
    let claim = worker
        .store
        .claim(&notice, message.redelivered, worker.id, worker.settings.lease, version)
        .instrument(tracing::info_span!(target: traces::TARGET, "claim"))
        .await;
    stage(notice.kind, "claim", began);
    let claim = match claim {
        Ok(Claim::Newer) => leave_to_newer(worker, notice.job).await,
        other => other,
    };
    match claim {
        Ok(Claim::Run(job)) => {
            traced.record("safelight.task", tracing::field::display(job.task));
            traced.record("safelight.attempt", job.attempt);
            let span = tracing::info_span!(
                "job", task = %job.task, job = %job.lease.job, attempt = job.attempt,
                kind = %job.kind, trace_id = traces::current_id(),
            );
            run_claimed(worker, *job, slot, traced).instrument(span).await
        }
        Ok(Claim::Nothing | Claim::Newer) => {
            note_end(traced, "nothing to do", None);
            Disposition::Ack
        }
        Err(error) if error.is_unavailable() => {
            worker.breaker.database_failed(&error);
            note_end(traced, "requeued", Some("database_unavailable"));
            Disposition::Requeue
        }
        Err(error) => {
            // If requeued, the message would fail the same way immediately, in a loop. The rescuer publishes
            // the job again after a while.
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, job = %notice.job, "cannot claim a job");
            note_end(traced, "not claimed", Some("database_failed"));
            Disposition::Ack
        }
    }
}

/// Publishes a job that needs a newer worker again after a while; this worker has nothing to do for it.
/// Requeuing its message instead would bring it back immediately, and after some rounds to the dead letters.
async fn leave_to_newer(worker: &Worker, job: JobId) -> Result<Claim, StoreError> {
    tracing::debug!(%job, "a job needs a newer worker");
    worker.store.requeue_one(job, NEWER_DELAY).await?;
    Ok(Claim::Nothing)
}

async fn run_claimed(
    worker: &Worker,
    job: ClaimedJob,
    slot: Arc<Slot>,
    traced: &Span,
) -> Disposition {
    let _running = worker.stats.begin(job.kind, job.lane);
    let held = worker.leases.hold(job.lease);
    safelight_fail_points::hit("worker.claimed").await;
    let began = Instant::now();
    let run = tracing::info_span!(target: traces::TARGET, "run");
    let outcome = execute(worker, &job, &held, slot).instrument(run).await;
    stage(job.kind, "run", began);
    let Some(outcome) = outcome else {
        note_lost(traced);
        return Disposition::Ack;
    };
    safelight_fail_points::hit("worker.worked").await;
    held.settling();
    let began = Instant::now();
    let settling = tracing::info_span!(target: traces::TARGET, "settle");
    let disposition = settle(worker, &job, &outcome, traced).instrument(settling).await;
    stage(job.kind, "settle", began);
    disposition
}

/// Runs the job's handler. `None` if the lease was lost: the result no longer counts.
async fn execute(
    worker: &Worker,
    job: &ClaimedJob,
    held: &HeldLease<'_>,
    slot: Arc<Slot>,
) -> Option<Outcome> {
    let stop = held.lost.child_token();
    // Stops blocking work, which cannot be aborted.
    let _stop_at_end = stop.clone().drop_guard();
    let attempt = Attempt { slot, lane: job.lane, owner: job.image.owner.clone(), stop };
    let handler = (worker.handler)(attempt, job.clone());
    let failure = match supervise(worker, &held.lost, handler).await? {
        Ok(outcome) => return Some(outcome),
        Err(failure) => failure,
    };
    worker.breaker.pause_in_outage(&failure).await;
    Some(worker.settings.retries.after_failure(job, failure))
}

/// Runs `handler` in a separate task, which contains its panics. `None` once `lost` is cancelled: then the
/// result no longer counts.
async fn supervise(
    worker: &Worker,
    lost: &CancellationToken,
    handler: impl Future<Output = Result<Outcome, Failure>> + Send + 'static,
) -> Option<Result<Outcome, Failure>> {
    let mut handler = AbortOnDropHandle::new(tokio::spawn(handler.in_current_span()));
    tokio::select! {
        biased;
        () = lost.cancelled() => None,
        result = &mut handler => Some(result.unwrap_or_else(|error| Err(panicked(&error)))),
        () = worker.release.cancelled() => Some(Ok(Outcome::Released)),
        () = tokio::time::sleep(ATTEMPT_LIMIT) => Some(Err(Failure::new(
            ErrorCode::LeaseLost,
            format!("the attempt took longer than {} s", ATTEMPT_LIMIT.as_secs()),
        ))),
    }
}

/// Records the outcome. While the database is unavailable, retries for the duration of a lease.
async fn settle(
    worker: &Worker,
    job: &ClaimedJob,
    outcome: &Outcome,
    traced: &Span,
) -> Disposition {
    let give_up_at = Instant::now() + worker.settings.lease;
    let mut reconnect = Reconnect::default();
    let mut tried = false;
    loop {
        match worker.store.settle(&job.lease, outcome).await {
            Ok(Settled::Applied) => {
                retry_policy::record_settled(job, outcome);
                note_outcome(traced, outcome);
                if matches!(
                    outcome,
                    Outcome::Retry(..) | Outcome::Postponed(..) | Outcome::Released
                ) {
                    worker.outbox_signal.notify();
                } else {
                    worker.stats.ended(job.kind, job.lane);
                }
                return Disposition::Ack;
            }
            Ok(Settled::Stale) => {
                // After a retry, it may be stale because an earlier try succeeded and its answer was lost.
                if tried {
                    note_outcome(traced, outcome);
                } else {
                    note_lost(traced);
                }
                return Disposition::Ack;
            }
            Err(error) if error.is_unavailable() => {
                worker.breaker.database_failed(&error);
                if Instant::now() >= give_up_at {
                    note_end(traced, "requeued", Some("database_unavailable"));
                    return Disposition::Requeue;
                }
                tried = true;
                tokio::time::sleep(reconnect.next_delay()).await;
            }
            Err(error) => {
                // Left to the rescuer: it fails the attempt when the lease runs out.
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "cannot record the end of an attempt");
                note_end(traced, "not recorded", Some("database_failed"));
                return Disposition::Ack;
            }
        }
    }
}

fn panicked(error: &JoinError) -> Failure {
    tracing::error!(%error, "a job's handler panicked");
    Failure::new(ErrorCode::WorkerPanicked, "the worker's code failed on this picture")
}

fn note_lost(traced: &Span) {
    note_end(traced, "lost", Some(ErrorCode::LeaseLost.as_str()));
    tracing::warn!("the lease was lost or the job cancelled; its result is discarded");
    counter!("safelight_leases_lost_total").increment(1);
}

fn stage(kind: JobKind, stage: &'static str, began: Instant) {
    histogram!("safelight_job_seconds", "kind" => kind.as_str(), "stage" => stage)
        .record(began.elapsed());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::test_worker::{TestWorker, options, within};

    #[tokio::test]
    async fn panic_becomes_retryable_failure() {
        let worker = Worker::new(&TestWorker::new(&[]).await.parts, options());
        let handler = async { panic!("a codec's bug") };
        let result = supervise(&worker, &CancellationToken::new(), handler).await;
        let failure = result.expect("not lost").expect_err("panicked");
        assert_eq!(failure.code, ErrorCode::WorkerPanicked);
        assert!(failure.code.is_retryable());
    }

    #[tokio::test]
    async fn end_of_drain_releases_running_job() {
        let worker = Worker::new(&TestWorker::new(&[]).await.parts, options());
        worker.release.cancel();
        let result = supervise(&worker, &CancellationToken::new(), std::future::pending()).await;
        assert_eq!(result, Some(Ok(Outcome::Released)));
    }

    #[tokio::test]
    async fn unrenewed_lease_stops_its_job() {
        let test = TestWorker::new(&[("SAFELIGHT_LEASE_MS", "100")]).await;
        let worker = Worker::new(&test.parts, options());
        let lease = safelight_store::Lease { job: safelight_domain::JobId::new(), fence: 1 };
        let held = worker.leases.hold(lease);
        let job = supervise(&worker, &held.lost, std::future::pending());
        let renewal = worker.leases.keep(&*worker.store, worker.settings.lease, &worker.breaker);
        let result = within("the job is stopped", async {
            tokio::select! {
                result = job => result,
                () = renewal => None,
            }
        });
        assert_eq!(result.await, None);
        assert!(held.lost.is_cancelled());
    }
}
