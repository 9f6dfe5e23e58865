//! Relay, rescuer and janitor.

use std::{
    fs::File,
    time::{Duration, SystemTime},
};

use safelight_blobs::BlobKey;
use safelight_domain::{ErrorCode, ImageId, JOB_VERSION, JobNotice, Status, WorkerId};
use safelight_store::{Claim, Effect, QueueCapacity};

use super::test_worker::{TestWorker, facts, picture, within};

/// Takes everything out of the outbox as if it had been published, and loses it.
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

async fn until_depth(test: &TestWorker, depth: u64) {
    within("the broker holds the messages", async {
        while test.depth().await != depth {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn relay_republishes_messages_lost_by_in_process_queue() {
    let test = TestWorker::new(&[]).await;
    test.upload(&picture()).await;
    assert_eq!(lose_messages(&test).await.len(), 2);
    let _relay = test.relay();
    until_depth(&test, 2).await;
    assert_eq!(test.parts.store.count_unpublished().await.expect("count"), 0);
}

#[tokio::test]
async fn relay_keeps_rows_while_queue_is_closed() {
    let test = TestWorker::new(&[]).await;
    test.parts.queue.close().await;
    test.upload(&picture()).await;
    let relay = test.relay();
    within("it has given the rows back", async {
        while !test.store.plan.called.lock().expect("not poisoned").contains("return_unpublished") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
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
    // Workers that claim and are never heard of again.
    for attempt in 1..=2_u32 {
        let mut claimed = 0;
        within("both jobs come due", async {
            while claimed < 2 {
                let batch = store
                    .take_unpublished(&QueueCapacity::each(9), Duration::from_secs(10))
                    .await
                    .expect("take");
                store.mark_published(&batch.due).await.expect("mark");
                for notice in &batch.due {
                    let lease = Duration::from_millis(1);
                    let claim =
                        store.claim(notice, false, WorkerId::new(), lease, JOB_VERSION).await;
                    let Ok(Claim::Run(job)) = claim else { panic!("{claim:?}") };
                    assert_eq!(job.attempt, attempt);
                    claimed += 1;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    let task = test.ended(upload.task).await;
    assert_eq!(task.status, Status::Failed);
    for job in &task.jobs {
        assert_eq!(job.attempt, 2);
        assert_eq!(job.error.as_ref().expect("reason").code, ErrorCode::LeaseLost);
    }
}

#[tokio::test]
async fn janitor_deletes_only_old_unowned_bytes() {
    let test = TestWorker::new(&[]).await;
    let blobs = &test.parts.blobs;
    let abandon = async || {
        let image = ImageId::new();
        let mut staging = blobs.stage(image).await.expect("stage");
        staging.write(b"bytes").await.expect("write");
        staging.finish().await.expect("finish");
        test.path(&BlobKey::Incoming(image))
    };
    let (old, young) = (abandon().await, abandon().await);
    // An accepted upload whose write job has not run, and one whose write job has.
    let waiting = test.path(&BlobKey::Incoming(test.upload(&picture()).await.image));
    let stored = test.upload(b"another picture").await;
    let left_over = test.path(&BlobKey::Incoming(stored.image));
    settle_write_job(&test, stored.image).await;
    let long_ago = SystemTime::now() - Duration::from_hours(24);
    for path in [&old, &waiting, &left_over] {
        File::options().append(true).open(path).expect("open").set_modified(long_ago).expect("age");
    }
    let _janitor = test.janitor();
    within("the sweep is done", async {
        while old.exists() || left_over.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(young.exists() && waiting.exists());
    let bytes = std::fs::read(test.path(&BlobKey::Blob(stored.sha256))).expect("moved, not lost");
    assert_eq!(bytes, b"another picture");
}

/// Records a write job as done while its staged bytes lie where they are.
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
        let written = Outcome::Succeeded(vec![Effect::StoredBlob(facts())]);
        let settled = store.settle(&job.lease, &written).await.expect("settle");
        assert_eq!(settled, Settled::Applied);
    }
}
