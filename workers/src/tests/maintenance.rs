//! The outbox relay, the rescuers and the janitor.

use std::{
    cell::Cell,
    fs::File,
    time::{Duration, SystemTime},
};

use safelight_blobs::BlobKey;
use safelight_domain::{ErrorCode, ImageId, JOB_VERSION, JobNotice, Status, WorkerId};
use safelight_store::{Claim, Effect, QueueCapacity};

use super::test_worker::{TestWorker, eventually, facts, picture};

/// Marks everything in the outbox as published without publishing it.
async fn lose_messages(test: &TestWorker) -> Vec<JobNotice> {
    let store = &test.parts.store;
    let due = store
        .take_unpublished(&QueueCapacity::each(100), Duration::from_secs(10))
        .await
        .expect("take")
        .due;
    store.mark_published(&due).await.expect("mark");
    due
}

async fn wait_for_messages(test: &TestWorker, count: u64) {
    let is_there = async || test.count_messages().await == count;
    eventually("the queues hold the messages", is_there).await;
}

#[tokio::test]
async fn relay_republishes_messages_lost_by_in_process_queue() {
    let test = TestWorker::new(&[]).await;
    test.upload(&picture()).await;
    assert_eq!(lose_messages(&test).await.len(), 2);
    let _relay = test.relay();
    wait_for_messages(&test, 2).await;
    assert_eq!(test.parts.store.count_unpublished().await.expect("count"), 0);
}

#[tokio::test]
async fn relay_keeps_rows_while_queue_is_closed() {
    let test = TestWorker::new(&[]).await;
    test.parts.queue.close().await;
    test.upload(&picture()).await;
    let relay = test.relay();
    let has_returned = async || test.finished_calls("release_taken") > 0;
    eventually("the relay returns the rows", has_returned).await;
    assert_eq!(test.parts.store.count_unpublished().await.expect("count"), 2);
    assert!(!relay.is_finished());
}

#[tokio::test]
async fn jobs_of_dead_workers_are_retried_until_attempts_are_used_up() {
    let test =
        TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "2"), ("SAFELIGHT_LEASE_MS", "100")]).await;
    let upload = test.upload(&picture()).await;
    let _rescuer = test.rescuer();
    let store = &test.parts.store;
    // Workers that claim the jobs and die.
    for attempt in 1..=2_u32 {
        let claimed = Cell::new(0);
        eventually("both jobs are due", async || {
            for notice in lose_messages(&test).await {
                let lease = Duration::from_millis(1);
                let claim = store.claim(&notice, false, WorkerId::new(), lease, JOB_VERSION).await;
                let Ok(Claim::Run(job)) = claim else { panic!("{claim:?}") };
                assert_eq!(job.attempt, attempt);
                claimed.set(claimed.get() + 1);
            }
            claimed.get() == 2
        })
        .await;
    }
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Failed);
    for job in &task.jobs {
        assert_eq!(job.attempt, 2);
        assert_eq!(job.error.as_ref().expect("an error").code, ErrorCode::LeaseLost);
    }
}

/// The watch starts when the clock is right again.
#[tokio::test]
async fn jobs_of_a_clock_that_was_ahead_unseen_run() {
    let test = TestWorker::new(&[]).await;
    let upload = test.upload(&picture()).await;
    test.tamper(
        "update jobs set run_at = run_at + 86400000000, waiting_since = waiting_since + 86400000000,
                         updated_at = updated_at + 86400000000;
         update outbox set due_at = due_at + 86400000000",
    )
    .await;
    let _services = (test.worker(), test.relay(), test.clock_watch());
    assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
}

#[tokio::test]
async fn janitor_deletes_only_old_unowned_bytes() {
    let test = TestWorker::new(&[]).await;
    let blobs = &test.parts.blobs;
    let stage_without_accept = async || {
        let image = ImageId::new();
        let bytes = bytes::Bytes::from_static(b"bytes");
        blobs.put(&BlobKey::Incoming(image), bytes).await.expect("stage");
        test.blob_path(&BlobKey::Incoming(image))
    };
    let (old, young) = (stage_without_accept().await, stage_without_accept().await);
    // Two accepted uploads, one before and one after its write job.
    let waiting = test.blob_path(&BlobKey::Incoming(test.upload_staged(&picture()).await.image));
    let stored = test.upload_staged(b"another picture").await;
    let left_over = test.blob_path(&BlobKey::Incoming(stored.image));
    settle_write_job(&test, stored.image).await;
    // Of a process that was killed while it probed the store.
    std::fs::create_dir_all(test.probe_folder()).expect("create");
    let probe = test.probe_folder().join("67e55044-10b1-426f-9247-bb680e5fe0c8");
    std::fs::write(&probe, b"probe").expect("write");
    let long_ago = SystemTime::now() - Duration::from_hours(24);
    for path in [&old, &waiting, &left_over, &probe] {
        File::options().append(true).open(path).expect("open").set_modified(long_ago).expect("age");
    }
    let _janitor = test.janitor();
    let are_deleted = async || !old.exists() && !left_over.exists() && !probe.exists();
    eventually("old bytes are deleted", are_deleted).await;
    assert!(young.exists() && waiting.exists());
    let bytes = std::fs::read(test.blob_path(&BlobKey::Blob(stored.sha256)))
        .expect("promoted, not deleted");
    assert_eq!(bytes, b"another picture");
}

/// Settles a write job while its staged bytes stay in staging.
async fn settle_write_job(test: &TestWorker, image: ImageId) {
    use safelight_domain::JobKind;
    use safelight_store::{Outcome, Settled};
    let store = &test.parts.store;
    for notice in lose_messages(test).await {
        let claim =
            store.claim(&notice, false, WorkerId::new(), Duration::from_mins(1), JOB_VERSION).await;
        let Ok(Claim::Run(job)) = claim else { panic!("{claim:?}") };
        if job.image.id != image || job.kind != JobKind::Write {
            continue;
        }
        let outcome = Outcome::Succeeded(vec![Effect::StoredBlob(facts())]);
        let settled = store.settle(&job.lease, &outcome).await.expect("settle");
        assert_eq!(settled, Settled::Applied);
    }
}
