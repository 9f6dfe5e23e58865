//! A blob store that is away, or is not this installation's, and a database that is an older copy of itself.

use std::{fs, path::Path, time::Duration};

use bytes::Bytes;
use safelight_blobs::{BlobKey, StagedUpload};
use safelight_domain::{ContentHash, ErrorCode, ImageId, JobKind, Status, Task};

use super::test_worker::{TestWorker, count_files, eventually, job, picture};
use safelight_removal::InstallationGuard;

fn guard(test: &TestWorker) -> InstallationGuard {
    test.parts.installation_guard()
}

async fn stage(test: &TestWorker, bytes: &[u8]) -> StagedUpload {
    let (image, sha256) = (ImageId::new(), ContentHash::of(bytes));
    let key = BlobKey::Incoming(image);
    test.parts.blobs.put(&key, Bytes::copy_from_slice(bytes)).await.expect("stage");
    StagedUpload { image, sha256, bytes: bytes.len() as u64 }
}

#[tokio::test]
async fn missing_bytes_of_absent_store_use_no_attempts() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "2")]).await;
    let upload = test.upload(&picture()).await;
    let lost = test.upload_damaged(&other(), |path| fs::remove_file(path).expect("lose")).await;
    test.unmount_blobs();
    let (_worker, _relay) = (test.worker(), test.relay());
    let have_failed = |task: &Task| task.jobs.iter().any(|job| job.error.is_some());
    let task = test.wait_for_task(upload.task, have_failed).await;
    let failed = task.jobs.iter().find(|job| job.error.is_some()).expect("a failed job");
    assert_eq!(failed.error.as_ref().expect("an error").code, ErrorCode::StoreUnavailable);
    let end = test.finished_calls("take_unpublished") + 50;
    let has_polled = async || test.finished_calls("take_unpublished") >= end;
    eventually("the relay has polled for a while", has_polled).await;
    for task in [upload.task, lost.task] {
        let task = test.task(task).await;
        assert!(task.jobs.iter().all(|job| job.attempt == 0), "{task:?}");
    }
    test.mount_blobs();
    assert_eq!(test.wait_until_ended(upload.task).await.status, Status::Succeeded);
    // The store is back, and these bytes are really missing.
    let task = test.wait_until_ended(lost.task).await;
    let error = job(&task, JobKind::Write).error.as_ref().expect("an error");
    assert_eq!((error.code, task.status), (ErrorCode::BlobMissing, Status::Failed));
}

/// Bytes that no other upload has.
fn other() -> Vec<u8> {
    [picture(), b"other".to_vec()].concat()
}

#[tokio::test]
async fn nothing_is_removed_from_foreign_store() {
    let test = TestWorker::new(&[("SAFELIGHT_STAGED_GRACE_MS", "1000")]).await;
    let _ = stage(&test, b"PNG of another installation").await;
    let incoming = test.blob_path(&BlobKey::Incoming(ImageId::new())).with_file_name("");
    let foreign = r#"{"installation":"0193c2a4-7d1e-7c3a-9d52-3f1f5a3c9b10"}"#;
    fs::write(incoming.with_file_name("installation.json"), foreign).expect("a foreign mark");
    let _janitor = test.janitor();
    let has_failed = |name: &str| {
        let statuses = test.statuses.snapshot();
        let status = statuses.iter().find(|status| status.name == name);
        status.is_some_and(|status| status.last_error.is_some())
    };
    for service in ["staged_bytes", "trash"] {
        eventually("the janitor refuses", async || has_failed(service)).await;
    }
    assert_eq!(count_files(&incoming), 1);
}

#[tokio::test]
async fn older_database_keeps_what_it_does_not_know() {
    let test = TestWorker::new(&[("SAFELIGHT_RECOVERY_GRACE_MS", "3600000")]).await;
    let guard = guard(&test);
    assert!(guard.may_remove_unknown().await.expect("look"));
    guard.advance().await.expect("advance");
    assert!(guard.may_remove_unknown().await.expect("look"), "the same database");

    let known = test.parts.blobs.generation().await.expect("read");
    test.parts.blobs.raise_generation(known + 7).await.expect("a newer database wrote it");
    assert!(!guard.may_remove_unknown().await.expect("look"));
    assert!(!guard.may_remove_unknown().await.expect("look"), "for the grace time");
    guard.advance().await.expect("advance");
    assert!(test.parts.blobs.generation().await.expect("read") > known + 7);

    let unknown = stage(&test, b"an upload that the database lost").await;
    let path = test.blob_path(&BlobKey::Incoming(unknown.image));
    age(&path);
    let _janitor = test.janitor();
    wait_for_sweep(&test).await;
    assert!(path.exists());
}

#[tokio::test]
async fn staged_uploads_newer_than_database_are_kept() {
    let test = TestWorker::new(&[("SAFELIGHT_RECOVERY_GRACE_MS", "3600000")]).await;
    test.upload(&picture()).await;
    let mut forgotten = Vec::new();
    for _ in 0..20 {
        let upload = stage(&test, b"an upload that the database lost").await;
        forgotten.push(test.blob_path(&BlobKey::Incoming(upload.image)));
    }
    for path in &forgotten {
        age(path);
    }
    let _janitor = test.janitor();
    wait_for_sweep(&test).await;
    assert!(forgotten.iter().all(|path| path.exists()));
    assert!(!guard(&test).may_remove_unknown().await.expect("look"), "other bytes are kept too");
}

/// Makes a file older than every grace time of staged bytes.
fn age(path: &Path) {
    let hours_ago = std::time::SystemTime::now() - Duration::from_hours(5);
    fs::File::open(path).expect("open").set_modified(hours_ago).expect("touch");
}

/// Waits until the janitor has looked at the staged bytes.
async fn wait_for_sweep(test: &TestWorker) {
    let has_swept = async || {
        let statuses = test.statuses.snapshot();
        statuses.iter().any(|one| one.name == "staged_bytes" && one.last_success_at.is_some())
    };
    eventually("the janitor has swept", has_swept).await;
}

#[tokio::test]
async fn without_grace_time_older_database_removes_what_it_does_not_know() {
    let test = TestWorker::new(&[("SAFELIGHT_RECOVERY_GRACE_MS", "0")]).await;
    let guard = guard(&test);
    test.parts.blobs.raise_generation(7).await.expect("a newer database wrote it");
    assert!(!guard.may_remove_unknown().await.expect("look"));
    assert!(guard.may_remove_unknown().await.expect("look"));
}

#[tokio::test]
async fn damaged_staged_bytes_replace_no_good_original() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let first = test.upload(&picture()).await;
    test.wait_until_ended(first.task).await;
    let blob = test.blob_path(&BlobKey::Blob(first.sha256));
    let good = fs::read(&blob).expect("a blob");
    for damage in [good[..good.len() / 2].to_vec(), vec![0; good.len()]] {
        // Accepted after its bytes rotted, so that no worker is faster.
        let second =
            test.upload_damaged(&picture(), |path| fs::write(path, &damage).expect("rot")).await;
        assert_eq!(test.wait_until_ended(second.task).await.status, Status::Succeeded);
        assert_eq!(fs::read(&blob).expect("the blob"), good);
    }
}

#[tokio::test]
async fn damaged_staged_bytes_are_never_rendered() {
    let test = TestWorker::new(&[("SAFELIGHT_MAX_ATTEMPTS", "2")]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let bytes = picture();
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 16].fill(0);
    let upload = test.upload_damaged(&bytes, |path| fs::write(path, &damaged).expect("rot")).await;
    let task = test.wait_until_ended(upload.task).await;
    assert_eq!(task.status, Status::Failed);
    for job in &task.jobs {
        let error = job.error.as_ref().expect("an error");
        assert_eq!((error.code, job.attempt), (ErrorCode::BlobDamaged, 2), "{error}");
    }
    assert_eq!(count_files(&test.rendition_folder()), 0);
    assert!(!test.blob_path(&BlobKey::Blob(upload.sha256)).exists());

    // The same picture uploaded again serves both.
    let again = test.upload(&bytes).await;
    assert_eq!(test.wait_until_ended(again.task).await.status, Status::Succeeded);
    assert_eq!(fs::read(test.blob_path(&BlobKey::Blob(upload.sha256))).expect("a blob"), bytes);
}
