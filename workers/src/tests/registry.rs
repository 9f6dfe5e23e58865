//! What the registry shows of a worker, from its start to its end.

use std::sync::{Arc, atomic::Ordering};

use safelight_domain::{ErrorCode, Failure, JobKind, Lane, Status};
use safelight_store::{Heartbeat, RegisteredWorker, WorkerStatus};
use tokio::sync::Notify;

use super::test_worker::{TestWorker, eventually_some, options, picture, within};
use crate::consumer::{self, worker::Worker};

const FREQUENT_HEARTBEATS: &[(&str, &str)] = &[("SAFELIGHT_HEARTBEAT_MS", "50")];

async fn registered_workers(test: &TestWorker) -> Vec<RegisteredWorker> {
    test.store.inner.list_workers(9).await.expect("list")
}

/// Waits until the only worker satisfies `wanted`.
async fn wait_for_worker(
    test: &TestWorker,
    wanted: impl Fn(&RegisteredWorker) -> bool,
) -> RegisteredWorker {
    eventually_some("the registry shows it", async || {
        let workers = registered_workers(test).await;
        assert!(workers.len() <= 1, "{workers:?}");
        workers.into_iter().next().filter(&wanted)
    })
    .await
}

fn ended_jobs(beat: &Heartbeat) -> u64 {
    beat.slots.iter().map(|slots| slots.ended).sum()
}

#[tokio::test]
async fn worker_is_registered_with_statistics_until_drained() {
    let test = TestWorker::new(FREQUENT_HEARTBEATS).await;
    let (worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
    let shown = wait_for_worker(&test, |worker| ended_jobs(&worker.beat) == 2).await;
    assert_eq!(shown.status(), WorkerStatus::Running);
    let beat = &shown.beat;
    assert_eq!((beat.pid, beat.concurrency), (std::process::id(), 2));
    let (kinds, lanes) = (JobKind::ALL.len(), Lane::ALL.len());
    assert_eq!((beat.kinds.len(), beat.lanes.len()), (kinds, lanes));
    assert_eq!(beat.slots.len(), kinds * lanes);
    assert!(!beat.host.is_empty() && !beat.version.is_empty());
    assert!(beat.slots.iter().all(|slots| slots.busy == 0 && slots.slots > 0), "{beat:?}");
    test.shutdown.cancel();
    within("the worker ends", worker).await.expect("no panic");
    assert_eq!(registered_workers(&test).await, []);
}

#[tokio::test]
async fn draining_worker_reports_running_jobs() {
    let test = TestWorker::new(FREQUENT_HEARTBEATS).await;
    let _relay = test.relay();
    let release = Arc::new(Notify::new());
    let (gate, options, shutdown) = (release.clone(), options(), test.shutdown.clone());
    let handler = move |_, _| -> futures::future::BoxFuture<'static, _> {
        let gate = gate.clone();
        Box::pin(async move {
            gate.notified().await;
            Err(Failure::new(ErrorCode::CorruptImage, "damaged"))
        })
    };
    let worker = Worker::with_handler(&test.parts, options, Box::new(handler));
    let statuses = test.statuses.clone();
    let draining = tokio::spawn(async move {
        consumer::run_registered(worker, &statuses, shutdown).await;
    });
    // Both jobs of the upload run until they are released.
    test.upload(&picture()).await;
    let busy =
        |worker: &RegisteredWorker| worker.beat.slots.iter().map(|slots| slots.busy).sum::<u32>();
    wait_for_worker(&test, |worker| busy(worker) == 2).await;
    test.shutdown.cancel();
    let shown = wait_for_worker(&test, |worker| worker.status() == WorkerStatus::Draining).await;
    assert_eq!(busy(&shown), 2);
    release.notify_waiters();
    within("the worker ends", draining).await.expect("no panic");
    assert_eq!(registered_workers(&test).await, []);
}

#[tokio::test]
async fn worker_reports_last_runs_of_its_services() {
    let test = TestWorker::new(FREQUENT_HEARTBEATS).await;
    test.parts.queue.close().await;
    let _services = test.services(&["outbox_relay", "old_tasks"]);
    let _worker = test.worker();
    test.upload(&picture()).await;
    let has_failed = |worker: &RegisteredWorker| {
        worker.beat.services.iter().any(|service| service.last_error.is_some())
    };
    let services = wait_for_worker(&test, has_failed).await.beat.services;
    let names: Vec<_> = services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["old_tasks", "outbox_relay"]);
    let (tasks, relay) = (&services[0], &services[1]);
    assert!(tasks.last_success_at.is_some() && tasks.last_error.is_none(), "{tasks:?}");
    assert!(relay.last_run_at > relay.last_success_at, "{relay:?}");
    assert!(relay.last_error.is_some(), "{relay:?}");
}

#[tokio::test]
async fn worker_survives_failed_heartbeats() {
    let test = TestWorker::new(FREQUENT_HEARTBEATS).await;
    let worker = test.worker();
    let before = wait_for_worker(&test, |_| true).await;
    test.store.plan.unavailable.store(true, Ordering::SeqCst);
    wait_for_worker(&test, |worker| worker.status() == WorkerStatus::Lost).await;
    assert!(test.store.plan.rejected_calls.load(Ordering::SeqCst) >= 2 && !worker.is_finished());
    test.store.plan.unavailable.store(false, Ordering::SeqCst);
    let after = wait_for_worker(&test, |worker| worker.status() == WorkerStatus::Running).await;
    assert_eq!((after.beat.id, after.started_at), (before.beat.id, before.started_at));
}
