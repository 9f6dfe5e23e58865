//! The worker: takes deliveries, claims their jobs, runs them, settles them.
//!
//! ```text
//! slot ─ delivery ─ claim ─┬─ nothing to do ───────────────────────────▶ ack
//!                          ├─ of a newer release ─ ring again ───────▶ ack
//!                          ├─ database away ─────▶ requeue, pause
//!                          └─ run ─┬─ lease lost ──── discard ─────────▶ ack
//!                                  └─ settle ─┬─ committed, or stale ──▶ ack
//!                                             └─ database away too long ▶ requeue
//! ```

pub(crate) mod heartbeat;
mod keeper;
mod lanes;
mod outage;
mod run_one;
mod tally;

use std::{sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use safelight_config::Config;
use safelight_decoder::{Attempt, Decoder, DecoderOptions};
use safelight_domain::{Failure, JobKind, Lane, WorkerId};
use safelight_imaging::Limits;
use safelight_services::Services;
use safelight_store::{ClaimedJob, Outcome};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{keeper::Held, lanes::Lanes, outage::Outage, tally::Tally};
use crate::handlers::{self, Context};

/// Time for handing jobs back after the drain timeout.
const HAND_BACK: Duration = Duration::from_secs(5);

/// Write and delete jobs wait for disks and networks, so a processor serves several.
const WRITE_SLOTS_PER_THUMBNAIL_SLOT: usize = 4;

/// What a worker works on.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// The kinds of jobs that it takes.
    pub kinds: Vec<JobKind>,
    /// The lanes that it takes them from.
    pub lanes: Vec<Lane>,
    /// Thumbnail jobs at once, at least 1; write and delete jobs get four times as many slots of their own.
    pub concurrency: usize,
}

/// What does one attempt of a job.
pub(crate) type Handler =
    dyn Fn(Attempt, ClaimedJob) -> BoxFuture<'static, Result<Outcome, Failure>> + Send + Sync;

/// What all parts of one worker share.
pub(crate) struct Worker {
    services: Services,
    pub id: WorkerId,
    lease: Duration,
    handler: Box<Handler>,
    held: Held,
    tally: Tally,
    database: Outage,
    blobs: Outage,
    /// Cancelled when running jobs must be given up to others.
    hand_back: CancellationToken,
}

impl Worker {
    fn new(services: Services, options: &WorkerOptions) -> Self {
        let decoder =
            Arc::new(Decoder::new(decoder_options(&services.config), options.concurrency.max(1)));
        let parts = services.clone();
        let handler = move |attempt, job| -> BoxFuture<'static, _> {
            let context = Context { services: parts.clone(), decoder: decoder.clone(), attempt };
            Box::pin(async move { handlers::run(&context, &job).await })
        };
        Self::with_handler(services, options, Box::new(handler))
    }

    /// A worker whose jobs `handler` does.
    pub fn with_handler(
        services: Services,
        options: &WorkerOptions,
        handler: Box<Handler>,
    ) -> Self {
        Self {
            id: WorkerId::new(),
            lease: Duration::from_millis(services.config.lease_ms),
            held: Held::default(),
            tally: Tally::new(options, services.config.interactive_reserve),
            database: Outage::of("database"),
            blobs: Outage::of("blob store"),
            hand_back: CancellationToken::new(),
            handler,
            services,
        }
    }
}

/// Runs jobs until `shutdown` is cancelled. Then takes no more, puts unclaimed deliveries back,
/// waits up to `drain_timeout_ms` for running jobs, hands back those that are left (their attempt
/// does not count), and returns. All the while it is in the registry of workers.
pub async fn run(services: Services, options: WorkerOptions, shutdown: CancellationToken) {
    let worker = Arc::new(Worker::new(services, &options));
    let work = work(worker.clone(), options.clone(), shutdown.clone());
    heartbeat::during(&worker, &options, &shutdown, work).await;
}

/// [`run`] with jobs that `job` does instead: for measuring the queue without its pictures.
pub async fn run_with(
    services: Services,
    options: WorkerOptions,
    job: impl Fn(ClaimedJob) -> BoxFuture<'static, Result<Outcome, Failure>> + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let handler = move |attempt: Attempt, claimed| -> BoxFuture<'static, _> {
        let work = job(claimed);
        Box::pin(async move {
            // With it goes the slot.
            let _attempt = attempt;
            work.await
        })
    };
    let worker = Arc::new(Worker::with_handler(services, &options, Box::new(handler)));
    let work = work(worker.clone(), options.clone(), shutdown.clone());
    heartbeat::during(&worker, &options, &shutdown, work).await;
}

/// See [`run`]; without the registry.
pub(crate) async fn work(worker: Arc<Worker>, options: WorkerOptions, shutdown: CancellationToken) {
    tracing::info!(worker = %worker.id, concurrency = options.concurrency, "the worker begins");
    // There from the start, so that the first one that is lost shows as a step.
    metrics::counter!("safelight_leases_lost_total").increment(0);
    let attempts = TaskTracker::new();
    let take = join_all(options.kinds.iter().map(|&kind| {
        let slots = slots(kind, options.concurrency);
        take(worker.clone(), kind, &options.lanes, slots, attempts.clone(), shutdown.clone())
    }));
    let work = async {
        take.await;
        drain(&worker, &attempts).await;
    };
    // Leases are kept, and outages are watched, until the last attempt has ended.
    tokio::select! {
        biased;
        () = work => {}
        () = worker.held.keep(&worker) => {}
        () = worker.database.watch(|| database_answers(&worker.services)) => {}
        () = worker.blobs.watch(|| blobs_are_writable(&worker.services)) => {}
    }
    tracing::info!(worker = %worker.id, "the worker has ended");
}

fn database_answers(services: &Services) -> BoxFuture<'static, bool> {
    let store = services.store.clone();
    Box::pin(async move { store.ping().await.is_ok() })
}

fn blobs_are_writable(services: &Services) -> BoxFuture<'static, bool> {
    let blobs = services.blobs.clone();
    Box::pin(async move { blobs.check_writable().await.is_ok() })
}

fn slots(kind: JobKind, concurrency: usize) -> usize {
    match kind {
        JobKind::Write | JobKind::Delete => concurrency.max(1) * WRITE_SLOTS_PER_THUMBNAIL_SLOT,
        JobKind::Thumbnail | JobKind::Verify => concurrency.max(1),
    }
}

/// Takes deliveries of one kind as slots come free, until `shutdown` or the broker's end.
async fn take(
    worker: Arc<Worker>,
    kind: JobKind,
    lanes: &[Lane],
    slots: usize,
    attempts: TaskTracker,
    shutdown: CancellationToken,
) {
    let taking = async {
        let mut lanes = Lanes::subscribe(&worker.services, kind, lanes, slots).await;
        loop {
            // Everything held here goes back by being dropped when `shutdown` ends the loop.
            let Some((delivery, slot)) = lanes.next().await else { break };
            worker.database.over().await;
            worker.blobs.over().await;
            attempts.spawn(run_one::run_one(worker.clone(), delivery, Arc::new(slot)));
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
    let grace = Duration::from_millis(worker.services.config.drain_timeout_ms);
    if tokio::time::timeout(grace, attempts.wait()).await.is_ok() {
        return;
    }
    tracing::info!(jobs = attempts.len(), "the drain timeout is over: handing jobs back");
    worker.hand_back.cancel();
    if tokio::time::timeout(HAND_BACK, attempts.wait()).await.is_err() {
        tracing::warn!(jobs = attempts.len(), "leaving jobs to their leases");
    }
}

/// How the configuration wants pictures to be decoded.
pub fn decoder_options(config: &Config) -> DecoderOptions {
    DecoderOptions {
        limits: Limits {
            max_pixels: config.max_pixels,
            max_side: config.max_side,
            max_frames: config.max_frames,
            max_animation_pixels: config.max_animation_pixels,
            max_memory: config.decode_memory_bytes,
        },
        cpu_seconds: config.decode_cpu_seconds,
        isolate: config.isolate_decoding,
        sandbox: config.sandbox_decoding,
    }
}
