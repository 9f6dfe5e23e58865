//! What all parts of one worker share.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use safelight_config::Config;
use safelight_decoder::Attempt;
use safelight_domain::{Failure, WorkerId};
use safelight_queue::{DynJobQueue, OutboxSignal};
use safelight_store::{ClaimedJob, DynStore, Outcome};
use tokio_util::sync::CancellationToken;

use super::{
    breaker::Breaker, leases::HeldLeases, options::WorkerOptions, slots::Reserve, stats::Stats,
};
use crate::{
    jobs::{self, JobParts, job::Context},
    parts::WorkerParts,
    retry_policy::RetryPolicy,
};

/// Runs one attempt of a job.
pub(crate) type Handler =
    dyn Fn(Attempt, ClaimedJob) -> BoxFuture<'static, Result<Outcome, Failure>> + Send + Sync;

pub(crate) struct Worker {
    pub id: WorkerId,
    pub(super) store: DynStore,
    pub(super) queue: DynJobQueue,
    pub(super) outbox_signal: OutboxSignal,
    pub(super) options: WorkerOptions,
    pub(super) settings: Settings,
    pub(super) handler: Box<Handler>,
    pub(super) leases: HeldLeases,
    pub(super) stats: Stats,
    pub(super) breaker: Breaker,
    /// Cancelled when running jobs must be released.
    pub(super) release: CancellationToken,
}

/// What a worker takes from the configuration.
pub(super) struct Settings {
    pub lease: Duration,
    pub drain_timeout: Duration,
    pub heartbeat_period: Duration,
    pub reserve: Reserve,
    pub retries: RetryPolicy,
    /// The queue's name in traces.
    pub messaging_system: &'static str,
}

impl Settings {
    fn new(config: &Config) -> Self {
        Self {
            lease: Duration::from_millis(config.lease_ms),
            drain_timeout: Duration::from_millis(config.drain_timeout_ms),
            heartbeat_period: Duration::from_millis(config.heartbeat_ms),
            reserve: Reserve { percent: config.interactive_reserve },
            retries: RetryPolicy::from_ms(config.backoff_base_ms, config.backoff_cap_ms),
            messaging_system: config.queue_url.system(),
        }
    }
}

impl Worker {
    pub fn new(parts: &WorkerParts, options: WorkerOptions) -> Self {
        let job_parts = Arc::new(JobParts::new(
            parts.store.clone(),
            parts.blobs.clone(),
            parts.remover(),
            parts.shared_cache.clone(),
            &parts.config,
            options.concurrency,
        ));
        let handler = move |attempt, job| -> BoxFuture<'static, _> {
            let context = Context { parts: job_parts.clone(), attempt };
            Box::pin(async move { jobs::run(&context, &job).await })
        };
        Self::with_handler(parts, options, Box::new(handler))
    }

    /// A worker whose jobs `handler` runs.
    pub fn with_handler(
        parts: &WorkerParts,
        options: WorkerOptions,
        handler: Box<Handler>,
    ) -> Self {
        let settings = Settings::new(&parts.config);
        Self {
            id: WorkerId::new(),
            store: parts.store.clone(),
            queue: parts.queue.clone(),
            outbox_signal: parts.outbox_signal.clone(),
            leases: HeldLeases::default(),
            stats: Stats::new(&options, settings.reserve),
            breaker: Breaker::new(parts.store.clone(), parts.blobs.clone()),
            release: CancellationToken::new(),
            options,
            settings,
            handler,
        }
    }
}
