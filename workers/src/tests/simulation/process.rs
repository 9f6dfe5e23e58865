//! One simulated process: a complete worker, and background services that run when the schedule says so.
//!
//! The tasks of a dead process are never resumed and never dropped: as after `kill -9`, no destructor runs.

use std::{collections::HashMap, sync::Arc, time::Duration};

use safelight_domain::{ErrorCode, Failure, ImageFacts, ImageFormat, JobKind, Rendition, WorkerId};
use safelight_store::{ClaimedJob, DynStore, Effect, Outcome};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    audit::fingerprint,
    scheduler::{Decision, Ending, WaitPoint},
    shared::Shared,
    text::short,
};
use crate::{
    WorkerOptions, WorkerParts,
    consumer::{self, worker::Worker},
    maintenance::{clock_watch::ClockWatch, outbox_relay::OutboxRelay},
    services::{clock_watch, expired_keys, lease_rescuer, message_rescuer, relay},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessState {
    Running,
    /// Stopped with SIGSTOP.
    Frozen,
    Dead,
}

/// A run of a background service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum MaintenanceStep {
    Relay,
    RescueLeases,
    RescueMessages,
    ExpireKeys,
    WatchClock,
}

pub(super) struct Process {
    pub state: ProcessState,
    pub parts: WorkerParts,
    pub worker: WorkerId,
    pub shutdown: CancellationToken,
    main: JoinHandle<()>,
    maintenance: HashMap<MaintenanceStep, JoinHandle<()>>,
    relay: Arc<tokio::sync::Mutex<OutboxRelay>>,
    clock_watch: Arc<tokio::sync::Mutex<ClockWatch>>,
}

impl Process {
    pub fn start(shared: &Arc<Shared>, number: usize, parts: WorkerParts) -> Self {
        let is_embedded = !parts.queue.survives_restart();
        let (relay, clock_watch) = (relay(&parts), clock_watch(&parts));
        let shutdown = CancellationToken::new();
        let handler = {
            let shared = shared.clone();
            move |permit, job| -> futures::future::BoxFuture<'static, _> {
                let shared = shared.clone();
                Box::pin(async move {
                    let result = run_job(&shared, number, &job).await;
                    drop(permit);
                    result
                })
            }
        };
        let worker = Worker::with_handler(&parts, WorkerOptions::all(1), Box::new(handler));
        let (worker, stop) = (Arc::new(worker), shutdown.clone());
        Self {
            state: ProcessState::Running,
            worker: worker.id,
            main: tokio::spawn(main(worker, parts.store.clone(), is_embedded, stop)),
            shutdown,
            parts,
            maintenance: HashMap::new(),
            relay: Arc::new(tokio::sync::Mutex::new(relay)),
            clock_watch: Arc::new(tokio::sync::Mutex::new(clock_watch)),
        }
    }

    pub fn has_ended(&self) -> bool {
        self.main.is_finished()
    }

    /// Starts a run of a service, unless the last one still runs.
    pub fn run_maintenance(&mut self, step: MaintenanceStep) {
        if self.maintenance.get(&step).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (parts, relay) = (self.parts.clone(), self.relay.clone());
        let clock_watch = self.clock_watch.clone();
        let task = tokio::spawn(async move {
            // The schedule also repeats failed runs.
            match step {
                MaintenanceStep::Relay => drop(relay.lock().await.step().await),
                MaintenanceStep::RescueLeases => drop(lease_rescuer(&parts).rescue().await),
                MaintenanceStep::RescueMessages => drop(message_rescuer(&parts).rescue().await),
                MaintenanceStep::ExpireKeys => drop(expired_keys(&parts).prune().await),
                MaintenanceStep::WatchClock => drop(clock_watch.lock().await.observe().await),
            }
        });
        self.maintenance.insert(step, task);
    }
}

async fn main(
    worker: Arc<Worker>,
    store: DynStore,
    is_embedded: bool,
    shutdown: CancellationToken,
) {
    while is_embedded && store.take_over().await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    consumer::consume(worker, shutdown).await;
}

/// Takes the place of a real job: the schedule decides how it ends.
async fn run_job(shared: &Shared, process: usize, job: &ClaimedJob) -> Result<Outcome, Failure> {
    let label = short(&format!("attempt {:?}", job.lease));
    match shared.scheduler.wait_for_turn(process, WaitPoint::EndAttempt, label).await {
        Decision::EndAttempt(Ending::Transient) => Err(unavailable()),
        Decision::EndAttempt(Ending::Permanent) => {
            Err(Failure::new(ErrorCode::CorruptImage, "damaged"))
        }
        Decision::EndAttempt(Ending::AsksForRetry) => {
            Ok(Outcome::Retry(unavailable(), Duration::from_secs(1)))
        }
        // Without the panic hook, which would print it.
        Decision::EndAttempt(Ending::Panic) => std::panic::resume_unwind(Box::new("a codec's bug")),
        _ => Ok(effect(job)),
    }
}

fn unavailable() -> Failure {
    // Not `StoreUnavailable`: the worker would probe the blob store.
    Failure::new(ErrorCode::BlobMissing, "unavailable")
}

/// A result that contains its fencing token, so that the audit knows its attempt.
fn effect(job: &ClaimedJob) -> Outcome {
    let (fence, format) = (job.lease.fence, ImageFormat::Png);
    match job.kind {
        JobKind::Write => Outcome::Succeeded(vec![Effect::StoredBlob(ImageFacts {
            format,
            width: fence,
            height: 1,
            orientation: 1,
            taken_at: None,
            gps: None,
        })]),
        JobKind::Thumbnail => Outcome::Succeeded(vec![Effect::UpsertRenditions(vec![Rendition {
            preset: "small".to_owned(),
            fingerprint: fingerprint(job.lease.job, fence),
            format,
            width: 1,
            height: 1,
            bytes: 1,
            sha256: job.image.sha256,
            made_at: None,
        }])]),
        JobKind::Verify => Outcome::Succeeded(Vec::new()),
        JobKind::Delete => Outcome::Succeeded(vec![Effect::ForgetImage { proxies: 0 }]),
    }
}
