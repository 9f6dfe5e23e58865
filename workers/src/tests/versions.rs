//! A worker that runs beside newer ones.

use std::time::Duration;

use safelight_config::DatabaseUrl;
use safelight_domain::{JOB_VERSION, JobKind, Status};
use safelight_store::QueueCapacity;
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};

use super::test_worker::{TestWorker, eventually, job, picture};

/// Sets the version that a worker needs to run the jobs of a kind.
async fn set_version(test: &TestWorker, kind: JobKind, version: u32) {
    let DatabaseUrl::Sqlite(file) = &test.parts.config.database_url else { panic!("no file") };
    let mut conn = SqliteConnectOptions::new().filename(file).connect().await.expect("open");
    sqlx::query("update jobs set needs_version = $1 where kind = $2")
        .bind(version)
        .bind(kind.as_str())
        .execute(&mut conn)
        .await
        .expect("update");
}

#[tokio::test]
async fn old_worker_leaves_newer_job_without_using_attempt() {
    let test = TestWorker::new(&[]).await;
    let upload = test.upload(&picture()).await;
    set_version(&test, JobKind::Write, JOB_VERSION + 1).await;
    // Publish without a relay, so that nothing publishes it again before the check.
    let due = test
        .parts
        .store
        .take_unpublished(&QueueCapacity::each(9), Duration::from_mins(1))
        .await
        .expect("take");
    test.parts.queue.publish(&due.due).await.expect("publish");
    test.parts.store.mark_published(&due.due).await.expect("mark");
    let _worker = test.worker();
    let thumbnail_is_done = |task: &_| job(task, JobKind::Thumbnail).status == Status::Succeeded;
    test.wait_for_task(upload.task, thumbnail_is_done).await;
    eventually("the worker calls requeue_one", async || test.finished_calls("requeue_one") > 0)
        .await;
    let batch = test
        .store
        .inner
        .take_unpublished(&QueueCapacity::each(9), Duration::from_mins(1))
        .await
        .expect("take");
    assert_eq!((batch.due.len(), test.count_messages().await), (0, 0), "not published immediately");
    assert!(batch.next_in.is_some_and(|next| next <= Duration::from_secs(1)), "{batch:?}");
    let task = test.task(upload.task).await;
    let write = job(&task, JobKind::Write);
    assert_eq!((write.status, write.attempt, &write.error), (Status::Queued, 0, &None));
    // Lowering the version has the same effect as a newer worker.
    set_version(&test, JobKind::Write, 1).await;
    let _relay = test.relay();
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!((task.status, job(&task, JobKind::Write).attempt), (Status::Succeeded, 1));
}
