//! One process: a whole worker, and a relay and a rescuer that take steps when the schedule says.
//! A dead process is one whose tasks are no longer let through: like one killed with `kill -9`,
//! it runs no destructors.

use std::{collections::HashMap, sync::Arc, time::Duration};

use safelight_domain::{ErrorCode, Failure, ImageFacts, ImageFormat, JobKind, Rendition, WorkerId};
use safelight_store::{ClaimedJob, DynStore, Effect, Outcome};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{
    audit::fingerprint,
    shared::Shared,
    text::short,
    turnstile::{Ending, Spot, Verdict},
};
use crate::{
    WorkerOptions, WorkerParts,
    consumer::{self, worker::Worker},
    maintenance::{
        outbox_relay::OutboxRelay,
        pruning::ExpiredKeys,
        rescuer::{LeaseRescuer, MessageRescuer},
    },
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Running,
    /// Stopped with SIGSTOP.
    Frozen,
    Dead,
}

/// What a process does from time to time beside its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Chore {
    Relay,
    Leases,
    Messages,
    Keys,
}

pub(super) struct Process {
    pub life: Life,
    pub parts: WorkerParts,
    pub worker: WorkerId,
    pub shutdown: CancellationToken,
    main: JoinHandle<()>,
    chores: HashMap<Chore, JoinHandle<()>>,
    relay: Arc<tokio::sync::Mutex<OutboxRelay>>,
}

impl Process {
    pub fn start(shared: &Arc<Shared>, number: usize, parts: WorkerParts) -> Self {
        let alone = !parts.queue.survives_restart();
        let relay = relay(&parts);
        let shutdown = CancellationToken::new();
        let handler = {
            let shared = shared.clone();
            move |held, job| -> futures::future::BoxFuture<'static, _> {
                let shared = shared.clone();
                Box::pin(async move {
                    let result = attempt(&shared, number, &job).await;
                    drop(held);
                    result
                })
            }
        };
        let worker = Worker::with_handler(&parts, WorkerOptions::all(1), Box::new(handler));
        let (worker, stop) = (Arc::new(worker), shutdown.clone());
        Self {
            life: Life::Running,
            worker: worker.id,
            main: tokio::spawn(main(worker, parts.store.clone(), alone, stop)),
            shutdown,
            parts,
            chores: HashMap::new(),
            relay: Arc::new(tokio::sync::Mutex::new(relay)),
        }
    }

    pub fn is_over(&self) -> bool {
        self.main.is_finished()
    }

    /// Begins a chore, unless it is still busy with it.
    pub fn chore(&mut self, chore: Chore) {
        if self.chores.get(&chore).is_some_and(|task| !task.is_finished()) {
            return;
        }
        let (parts, relay) = (self.parts.clone(), self.relay.clone());
        let task = tokio::spawn(async move {
            let WorkerParts { config, store, queue, outbox_signal, .. } = parts;
            // A failed step is tried again when the schedule says so.
            match chore {
                Chore::Relay => drop(relay.lock().await.step().await),
                Chore::Leases => {
                    drop(LeaseRescuer::new(store, outbox_signal, &config).rescue().await);
                }
                Chore::Messages => {
                    drop(MessageRescuer::new(store, queue, outbox_signal, &config).rescue().await);
                }
                Chore::Keys => drop(ExpiredKeys::new(store, &config).prune().await),
            }
        });
        self.chores.insert(chore, task);
    }
}

async fn main(worker: Arc<Worker>, store: DynStore, alone: bool, shutdown: CancellationToken) {
    while alone && store.take_over().await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    consumer::consume(worker, shutdown).await;
}

fn relay(parts: &WorkerParts) -> OutboxRelay {
    let (store, queue) = (parts.store.clone(), parts.queue.clone());
    OutboxRelay::new(store, queue, parts.outbox_signal.clone(), &parts.config)
}

/// What stands for the picture work.
async fn attempt(shared: &Shared, process: usize, job: &ClaimedJob) -> Result<Outcome, Failure> {
    let label = short(&format!("attempt {:?}", job.lease));
    match shared.turnstile.pass(process, Spot::End, label).await {
        Verdict::End(Ending::Transient) => Err(unavailable()),
        Verdict::End(Ending::Permanent) => Err(Failure::new(ErrorCode::CorruptImage, "damaged")),
        Verdict::End(Ending::AsksForRetry) => {
            Ok(Outcome::Retry(unavailable(), Duration::from_secs(1)))
        }
        // Past the hook that would print it.
        Verdict::End(Ending::Panic) => std::panic::resume_unwind(Box::new("a codec's bug")),
        _ => Ok(effect(job)),
    }
}

fn unavailable() -> Failure {
    // Not of the blob store: the worker would probe whether that is available.
    Failure::new(ErrorCode::BlobMissing, "unavailable")
}

/// A result that tells which attempt it is of.
fn effect(job: &ClaimedJob) -> Outcome {
    let (mark, format) = (job.lease.fence, ImageFormat::Png);
    match job.kind {
        JobKind::Write => Outcome::Succeeded(vec![Effect::StoredBlob(ImageFacts {
            format,
            width: mark,
            height: 1,
            orientation: 1,
            taken_at: None,
            gps: None,
        })]),
        JobKind::Thumbnail => Outcome::Succeeded(vec![Effect::UpsertRenditions(vec![Rendition {
            preset: "small".to_owned(),
            fingerprint: fingerprint(job.lease.job, mark),
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
