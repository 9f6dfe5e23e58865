//! The consumer of the queues: takes messages, claims their jobs, runs them, settles them.
//!
//! ```text
//! slot ─ message ─ claim ─┬─ nothing to do ─────────────────────────────▶ ack
//!                         ├─ needs a newer worker ─ publish later ──────▶ ack
//!                         ├─ database unavailable ──────────────────────▶ requeue, pause
//!                         └─ run ─┬─ lease lost ─ discard ──────────────▶ ack
//!                                 └─ settle ─┬─ committed, or stale ────▶ ack
//!                                            └─ database unavailable ───▶ requeue
//! ```

mod attempt;
mod breaker;
mod heartbeat;
mod leases;
mod options;
mod slots;
mod stats;
pub(crate) mod worker;

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use safelight_decoder::Attempt;
use safelight_domain::{Failure, JobKind, Lane};
use safelight_store::{ClaimedJob, Outcome};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::options::WorkerOptions;
use self::{slots::Lanes, worker::Worker};
use crate::{jobs, maintenance::status::ServiceStatuses, parts::WorkerParts};

/// Time for releasing jobs after the drain timeout.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs jobs until `shutdown` is cancelled. Then takes no more, returns unclaimed messages to the queue,
/// waits up to `drain_timeout_ms` for running jobs, releases those that are left (their attempt does not
/// count), and returns. Meanwhile it is in the registry of workers.
///
/// `statuses` are those of the services in the same process.
pub async fn run(
    parts: &WorkerParts,
    options: WorkerOptions,
    statuses: ServiceStatuses,
    shutdown: CancellationToken,
) {
    Box::pin(run_registered(Worker::new(parts, options), &statuses, shutdown)).await;
}

/// [`run`] with `job` instead of the real jobs, to measure the queue without pictures.
pub async fn run_with(
    parts: &WorkerParts,
    options: WorkerOptions,
    job: impl Fn(ClaimedJob) -> BoxFuture<'static, Result<Outcome, Failure>> + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let handler = move |attempt: Attempt, claimed| -> BoxFuture<'static, _> {
        let work = job(claimed);
        Box::pin(async move {
            // The attempt holds the slot.
            let _attempt = attempt;
            work.await
        })
    };
    let worker = Worker::with_handler(parts, options, Box::new(handler));
    Box::pin(run_registered(worker, &ServiceStatuses::default(), shutdown)).await;
}

/// Runs a worker that sends heartbeats.
pub(crate) async fn run_registered(
    worker: Worker,
    statuses: &ServiceStatuses,
    shutdown: CancellationToken,
) {
    let worker = Arc::new(worker);
    let consumption = consume(worker.clone(), shutdown.clone());
    Box::pin(heartbeat::during(&worker, statuses, &shutdown, consumption)).await;
}

/// See [`run`]; without the registry.
pub(crate) async fn consume(worker: Arc<Worker>, shutdown: CancellationToken) {
    let concurrency = worker.options.concurrency;
    tracing::info!(worker = %worker.id, concurrency, "worker started");
    // Exported from the start, so that the first lost lease shows as a step.
    metrics::counter!("safelight_leases_lost_total").increment(0);
    let attempts = TaskTracker::new();
    let take = join_all(
        worker
            .options
            .kinds
            .iter()
            .map(|&kind| take(worker.clone(), kind, attempts.clone(), shutdown.clone())),
    );
    let work = async {
        take.await;
        drain(&worker, &attempts).await;
    };
    // Leases are kept, and dependencies are probed, until the last attempt has ended.
    tokio::select! {
        biased;
        () = work => {}
        () = worker.leases.keep(&*worker.store, worker.settings.lease, &worker.breaker) => {}
        () = worker.breaker.probe() => {}
    }
    tracing::info!(worker = %worker.id, "worker stopped");
}

/// Takes messages of one kind as slots come free, until `shutdown` or the queue's end.
async fn take(
    worker: Arc<Worker>,
    kind: JobKind,
    attempts: TaskTracker,
    shutdown: CancellationToken,
) {
    let taking = async {
        let options = &worker.options;
        let queues = jobs::queues(&[kind], &options.lanes);
        let served: Vec<Lane> = queues.into_iter().map(|queue| queue.lane).collect();
        let slots = jobs::slots(kind, options.concurrency);
        let reserve = worker.settings.reserve;
        let mut lanes = Lanes::subscribe(&worker.queue, kind, &served, slots, reserve).await;
        loop {
            // When `shutdown` ends the loop, dropping returns the messages held here.
            let Some((message, slot)) = lanes.next().await else { break };
            worker.breaker.closed_for(kind).await;
            attempts.spawn(attempt::attempt(worker.clone(), message, Arc::new(slot)));
        }
    };
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        () = taking => {}
    }
}

async fn drain(worker: &Worker, attempts: &TaskTracker) {
    attempts.close();
    if tokio::time::timeout(worker.settings.drain_timeout, attempts.wait()).await.is_ok() {
        return;
    }
    tracing::info!(jobs = attempts.len(), "the drain timeout is over: releasing jobs");
    worker.release.cancel();
    if tokio::time::timeout(RELEASE_TIMEOUT, attempts.wait()).await.is_err() {
        tracing::warn!(jobs = attempts.len(), "leaving jobs to their leases");
    }
}
