//! Uploads through the worker, with and without faults.

use std::sync::atomic::Ordering;

use safelight_blobs::BlobKey;
use safelight_domain::{ErrorCode, ImageFormat, JobKind, Status, Task};

use super::test_worker::{TestWorker, eventually, job, picture, within};

#[tokio::test]
async fn upload_becomes_blob_with_facts_and_renditions() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.parts.outbox_signal.notify();
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Succeeded);
    assert!(task.jobs.iter().all(|job| job.attempt == 1 && job.error.is_none()), "{task:?}");
    let image = task.image.expect("the upload's image");
    let facts = image.facts.expect("facts");
    assert_eq!((facts.format, facts.width, facts.height), (ImageFormat::Png, 300, 200));
    assert!(test.blob_path(&BlobKey::Blob(upload.sha256)).exists());
    assert!(!test.blob_path(&BlobKey::Incoming(upload.image)).exists());
    let mut sizes: Vec<_> =
        image.renditions.iter().map(|r| (r.preset.as_str(), r.width, r.height)).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [("large", 300, 200), ("medium", 300, 200), ("small", 256, 171)]);
    for rendition in &image.renditions {
        let stored =
            std::fs::metadata(test.blob_path(&BlobKey::rendition(upload.sha256, rendition)));
        assert_eq!(stored.expect("stored").len(), rendition.bytes);
    }
}

#[tokio::test]
async fn equal_upload_reuses_renditions() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let first = test.upload(&picture()).await;
    test.wait_until_ended(first.task).await;
    // A second rendering would write the folder again.
    std::fs::remove_dir_all(test.rendition_folder()).expect("remove");
    let second = test.upload(&picture()).await;
    let task = test.wait_until_ended(second.task).await;
    assert_eq!(task.status, Status::Succeeded);
    assert_eq!(task.image.expect("image").renditions.len(), 3);
    assert!(!test.rendition_folder().exists());
}

#[tokio::test]
async fn job_is_retried_until_blob_store_recovers() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "2")]).await;
    // A file in place of the folder: nothing can be written below it.
    std::fs::write(test.rendition_folder(), "").expect("write");
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    let have_repeated = async || test.finished_calls("claim") >= 5;
    eventually("the job is repeated", have_repeated).await;
    let task = test
        .wait_for_task(upload.task, |task| {
            let thumbnail = job(task, JobKind::Thumbnail);
            thumbnail.status == Status::Queued && thumbnail.error.is_some()
        })
        .await;
    let thumbnail = job(&task, JobKind::Thumbnail);
    let error = thumbnail.error.as_ref().expect("the last failure");
    assert_eq!(error.code, ErrorCode::StoreUnavailable);
    assert!(!error.message.contains('/'), "no paths: {error}");
    assert!(thumbnail.retry_at.is_some());
    std::fs::remove_file(test.rendition_folder()).expect("remove");
    assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
}

#[tokio::test]
async fn unavailable_blob_store_uses_no_attempts() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "3")]).await;
    // Neither renditions nor the worker's write probes can be written.
    std::fs::write(test.rendition_folder(), "").expect("write");
    std::fs::write(test.probe_folder(), "").expect("write");
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    let has_failed = |task: &Task| job(task, JobKind::Thumbnail).error.is_some();
    test.wait_for_task(upload.task, has_failed).await;
    let late = test.upload(&picture()).await;
    let claims = test.finished_calls("claim");
    // Retries are due after 50 ms at most, and the relay polls every 20 ms: within so many polls all attempts
    // would be used up.
    let end = test.finished_calls("take_unpublished") + 50;
    let has_polled = async || test.finished_calls("take_unpublished") >= end;
    eventually("the relay has polled for a while", has_polled).await;
    let is_published = test.store.inner.count_unpublished().await.expect("count") == 0;
    assert!(is_published, "all messages of both tasks were published");
    let tasks = [test.task(upload.task).await, test.task(late.task).await];
    let attempts = tasks.each_ref().map(|task| job(task, JobKind::Thumbnail).attempt);
    assert_eq!(attempts, [0, 0]);
    // One for each slot that was waiting for its message.
    let claims = test.finished_calls("claim") - claims;
    assert!(claims <= 4, "{claims} claims while the store is away");

    std::fs::remove_file(test.rendition_folder()).expect("remove");
    std::fs::remove_file(test.probe_folder()).expect("remove");
    assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
    assert_eq!(test.wait_until_ended(late.task).await.status, Status::Succeeded);
}

#[tokio::test]
async fn job_fails_when_attempts_are_used_up() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "3")]).await;
    let upload = test.upload(&picture()).await;
    test.parts.blobs.delete(&BlobKey::Blob(upload.sha256)).await.expect("delete");
    let (_worker, _relay) = (test.worker(), test.relay());
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Failed);
    for job in &task.jobs {
        assert_eq!((job.status, job.attempt), (Status::Failed, 3));
        assert_eq!(job.error.as_ref().expect("an error").code, ErrorCode::BlobMissing);
    }
}

#[tokio::test]
async fn permanent_failure_is_not_retried() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_PIXELS", "59999")]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let truncated = &picture()[..400];
    for (bytes, code) in [
        (&b"not a picture"[..], ErrorCode::NotAnImage),
        (&picture(), ErrorCode::TooManyPixels),
        (&b"\x89PNG\r\n\x1a\nand nothing else"[..], ErrorCode::CorruptImage),
        // A JPEG with 12 bits per sample.
        (
            &b"\xFF\xD8\xFF\xC1\0\x0B\x0C\0\x10\0\x10\x01\x01\x11\0"[..],
            ErrorCode::UnsupportedFormat,
        ),
    ] {
        let upload = test.upload(bytes).await;
        let task = test.wait_until_ended(upload.task).await;
        assert_eq!(task.status, Status::Failed);
        for job in &task.jobs {
            assert_eq!(job.attempt, 1, "{code}");
            assert_eq!(job.error.as_ref().expect("an error").code, code);
        }
    }
    // With a valid header and missing pixels, the write job stores the original, and the thumbnail job
    // fails.
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let task = test.wait_until_ended(test.upload(truncated).await.task).await;
    assert_eq!(job(&task, JobKind::Write).status, Status::Succeeded);
    let thumbnail = job(&task, JobKind::Thumbnail);
    assert_eq!(thumbnail.error.as_ref().expect("an error").code, ErrorCode::CorruptImage);
}

#[tokio::test]
async fn unavailable_database_uses_no_attempts() {
    let test = TestWorker::new(&[]).await;
    let upload = test.upload(&picture()).await;
    let relay = test.relay();
    eventually("both jobs are published", async || test.count_messages().await == 2).await;
    // When the worker starts, messages wait and the database is unavailable.
    relay.abort();
    test.store.plan.unavailable.store(true, Ordering::SeqCst);
    let _worker = test.worker();
    let rejected = &test.store.plan.rejected_calls;
    eventually("calls fail", async || rejected.load(Ordering::SeqCst) >= 4).await;
    let task = test.store.inner.task(upload.task).await.expect("task").expect("known");
    assert_eq!(task.status, Status::Queued);
    test.store.plan.unavailable.store(false, Ordering::SeqCst);
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Succeeded);
    assert!(task.jobs.iter().all(|job| job.attempt == 1), "{task:?}");
}

#[tokio::test]
async fn lost_settle_response_changes_nothing() {
    let test = TestWorker::new(&[]).await;
    test.store.plan.settle_responses_to_lose.store(2, Ordering::SeqCst);
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Succeeded);
    assert_eq!(task.image.expect("image").renditions.len(), 3);
}

#[tokio::test]
async fn stopping_worker_finishes_running_jobs_and_leaves_the_rest() {
    let test = TestWorker::new(&[]).await;
    let (worker, _relay) = (test.worker(), test.relay());
    let mut tasks = Vec::new();
    for _ in 0..20 {
        tasks.push(test.upload(&picture()).await.task);
    }
    test.wait_until_ended(tasks[0]).await;
    test.shutdown.cancel();
    within("the worker ends", worker).await.expect("no panic");
    for task in tasks {
        let task = test.store.inner.task(task).await.expect("task").expect("known");
        assert!(task.jobs.iter().all(|job| job.status != Status::Running), "{task:?}");
    }
}
