//! What the registry knows of a worker, from its start to its end.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use safelight_domain::{ErrorCode, Failure, Status};
use safelight_store::{Heartbeat, RegisteredWorker, WorkerStatus};
use tokio::sync::Notify;

use super::lab::{Lab, options, picture, within};
use crate::worker::{self, Worker, heartbeat};

const OFTEN: &[(&str, &str)] = &[("SAFELIGHT_HEARTBEAT_MS", "50")];

async fn registered(lab: &Lab) -> Vec<RegisteredWorker> {
    lab.store.inner.list_workers(9).await.expect("list")
}

/// The only worker, once `wanted` holds for it.
async fn worker_when(lab: &Lab, wanted: impl Fn(&RegisteredWorker) -> bool) -> RegisteredWorker {
    within("the registry shows it", async {
        loop {
            let workers = registered(lab).await;
            assert!(workers.len() <= 1, "{workers:?}");
            if let Some(worker) = workers.into_iter().next().filter(&wanted) {
                return worker;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
}

fn ended(beat: &Heartbeat) -> u64 {
    beat.slots.iter().map(|one| one.ended).sum()
}

#[tokio::test]
async fn a_worker_is_registered_with_what_it_did_until_it_has_drained() {
    let lab = Lab::new(OFTEN).await;
    let (worker, _relay) = (lab.worker(), lab.relay());
    let upload = lab.upload(&picture()).await;
    assert_eq!(lab.ended(upload.task).await.status, Status::Succeeded);
    let shown = worker_when(&lab, |worker| ended(&worker.beat) == 2).await;
    assert_eq!(shown.status(), WorkerStatus::Running);
    let beat = &shown.beat;
    assert_eq!((beat.pid, beat.concurrency), (std::process::id(), 2));
    assert_eq!((beat.kinds.len(), beat.lanes.len(), beat.slots.len()), (4, 2, 8));
    assert!(!beat.host.is_empty() && !beat.version.is_empty());
    assert!(beat.slots.iter().all(|one| one.busy == 0 && one.slots > 0), "{beat:?}");
    lab.shutdown.cancel();
    within("the worker ends", worker).await.expect("no panic");
    assert_eq!(registered(&lab).await, []);
}

#[tokio::test]
async fn a_worker_that_drains_says_so_and_what_it_still_runs() {
    let lab = Lab::new(OFTEN).await;
    let _relay = lab.relay();
    let release = Arc::new(Notify::new());
    let (gate, options, shutdown) = (release.clone(), options(), lab.shutdown.clone());
    let handler = move |_, _| -> futures::future::BoxFuture<'static, _> {
        let gate = gate.clone();
        Box::pin(async move {
            gate.notified().await;
            Err(Failure::new(ErrorCode::CorruptImage, "damaged"))
        })
    };
    let services = lab.services.clone();
    let worker = Arc::new(Worker::with_handler(services, &options, Box::new(handler)));
    let draining = tokio::spawn(async move {
        let work = worker::work(worker.clone(), options.clone(), shutdown.clone());
        heartbeat::during(&worker, &options, &shutdown, work).await;
    });
    // Of one upload the write job runs, and the thumbnail job.
    lab.upload(&picture()).await;
    let busy =
        |worker: &RegisteredWorker| worker.beat.slots.iter().map(|one| one.busy).sum::<u32>();
    worker_when(&lab, |worker| busy(worker) == 2).await;
    lab.shutdown.cancel();
    let shown = worker_when(&lab, |worker| worker.status() == WorkerStatus::Draining).await;
    assert_eq!(busy(&shown), 2);
    release.notify_waiters();
    within("the worker ends", draining).await.expect("no panic");
    assert_eq!(registered(&lab).await, []);
}

#[tokio::test]
async fn a_worker_outlives_beats_that_the_database_does_not_take() {
    let lab = Lab::new(OFTEN).await;
    let worker = lab.worker();
    let before = worker_when(&lab, |_| true).await;
    lab.store.gate.away.store(true, Ordering::SeqCst);
    worker_when(&lab, |worker| worker.status() == WorkerStatus::Lost).await;
    assert!(lab.store.gate.refused.load(Ordering::SeqCst) >= 2 && !worker.is_finished());
    lab.store.gate.away.store(false, Ordering::SeqCst);
    let after = worker_when(&lab, |worker| worker.status() == WorkerStatus::Running).await;
    assert_eq!((after.beat.id, after.started_at), (before.beat.id, before.started_at));
}
