//! The two lanes of a worker, and how much of a backlog the relay publishes.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures::FutureExt;
use safelight_decoder::Attempt;
use safelight_domain::{JobKind, Lane};
use safelight_queue::Queue;
use safelight_store::{ClaimedJob, Outcome};
use tokio::{sync::Semaphore, task::JoinHandle};

use super::test_worker::{TestWorker, eventually, picture};
use crate::{
    WorkerOptions,
    consumer::{self, worker::Worker},
    services::relay,
};

/// Counts started thumbnail jobs by lane. Each job runs until it is released.
#[derive(Clone)]
struct HeldJobs {
    started: Arc<[AtomicUsize; 2]>,
    release: Arc<Semaphore>,
}

impl HeldJobs {
    fn start(test: &TestWorker, lanes: &[Lane], concurrency: usize) -> (Self, JoinHandle<()>) {
        let jobs = Self { started: Arc::default(), release: Arc::new(Semaphore::new(0)) };
        let held = jobs.clone();
        let handler = move |attempt: Attempt, job: ClaimedJob| {
            let jobs = held.clone();
            async move {
                // The attempt holds the slot.
                let _attempt = attempt;
                jobs.started[job.lane as usize].fetch_add(1, Ordering::SeqCst);
                jobs.release.acquire().await.expect("open").forget();
                Ok(Outcome::Succeeded(Vec::new()))
            }
            .boxed()
        };
        let (kinds, lanes) = (vec![JobKind::Thumbnail], lanes.to_vec());
        let options = WorkerOptions { kinds, lanes, concurrency };
        let worker = Worker::with_handler(&test.parts, options, Box::new(handler));
        let work = consumer::consume(Arc::new(worker), test.shutdown.clone());
        (jobs, tokio::spawn(work))
    }

    fn started(&self, lane: Lane) -> usize {
        self.started[lane as usize].load(Ordering::SeqCst)
    }

    async fn wait_until_started(&self, lane: Lane, count: usize) {
        eventually("jobs start", async || self.started(lane) >= count).await;
    }
}

#[tokio::test]
async fn bulk_backlog_leaves_slot_for_interactive_job() {
    let test = TestWorker::new(&[]).await;
    for _ in 0..12 {
        test.upload_on(Lane::Bulk, &picture()).await;
    }
    let _relay = test.relay();
    let (jobs, _worker) = HeldJobs::start(&test, Lane::ALL, 4);
    jobs.wait_until_started(Lane::Bulk, 3).await;
    // No job ends here, so this one starts only if bulk jobs left a slot.
    test.upload(&picture()).await;
    test.parts.outbox_signal.notify();
    jobs.wait_until_started(Lane::Interactive, 1).await;
    assert_eq!(jobs.started(Lane::Bulk), 3);
}

#[tokio::test]
async fn interactive_jobs_come_first_and_may_use_every_slot() {
    let test = TestWorker::new(&[]).await;
    for _ in 0..4 {
        test.upload_on(Lane::Bulk, &picture()).await;
        test.upload(&picture()).await;
    }
    let relay = test.relay();
    let queues = Lane::ALL.iter().map(|&lane| Queue { kind: JobKind::Thumbnail, lane });
    for queue in queues {
        let are_published = async || test.parts.queue.depth(queue).await.expect("depth") == 4;
        eventually("all jobs are published", are_published).await;
    }
    relay.abort();
    let (jobs, _worker) = HeldJobs::start(&test, Lane::ALL, 1);
    for done in 1..=4 {
        jobs.wait_until_started(Lane::Interactive, done).await;
        assert_eq!(jobs.started(Lane::Bulk), 0, "bulk jobs wait while interactive jobs wait");
        jobs.release.add_permits(1);
    }
    jobs.wait_until_started(Lane::Bulk, 1).await;
}

#[tokio::test]
async fn bulk_only_worker_uses_all_slots() {
    let test = TestWorker::new(&[]).await;
    for _ in 0..6 {
        test.upload_on(Lane::Bulk, &picture()).await;
    }
    let _relay = test.relay();
    let (jobs, _worker) = HeldJobs::start(&test, &[Lane::Bulk], 4);
    jobs.wait_until_started(Lane::Bulk, 4).await;
}

#[tokio::test]
async fn relay_publishes_backlog_only_as_queue_drains() {
    let test = TestWorker::new(&[("SAFELIGHT_PUBLISH_AHEAD", "5")]).await;
    let mut uploads = Vec::new();
    for _ in 0..12 {
        uploads.push(test.upload(&picture()).await);
    }
    let _relay = test.relay();
    let depth = async |kind| {
        let queue = Queue { kind, lane: Lane::Interactive };
        test.parts.queue.depth(queue).await.expect("depth")
    };
    eventually("both queues are full", async || {
        depth(JobKind::Write).await >= 5 && depth(JobKind::Thumbnail).await >= 5
    })
    .await;
    // A notification publishes nothing more, because the queues are full.
    test.parts.outbox_signal.notify();
    let unpublished = async || test.parts.store.count_unpublished().await.expect("count");
    eventually("the rest stays in the outbox", async || unpublished().await == 14).await;
    // New relays, as after a restart, publish nothing more either.
    for _ in 0..3 {
        relay(&test.parts).step().await.expect("step");
    }
    assert_eq!((depth(JobKind::Write).await, depth(JobKind::Thumbnail).await), (5, 5));
    let _worker = test.worker();
    for upload in uploads {
        test.wait_until_ended(upload.task).await;
    }
}
