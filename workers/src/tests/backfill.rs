//! Concurrent backfills, and sources with errors.

use std::{fs, path::Path};

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, ContentHash, ImageId, ItemOutcome, JobKind, Quota, Status, Task,
    TaskId, Visibility,
};
use safelight_store::{NewBackfill, ReportLine};

use super::test_worker::{TestWorker, count_files, picture, within};

async fn start_backfill(test: &TestWorker, spec: BackfillSpec) -> TaskId {
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    assert!(test.parts.store.create_backfill(&new).await.expect("begin"));
    new.task
}

fn import(source: &Path) -> BackfillSpec {
    let mut spec = BackfillSpec::new(BackfillKind::Import);
    spec.source = Some(source.to_string_lossy().into_owned());
    spec
}

/// Waits for the end of a backfill; returns its task and its report, sorted by source because the files of a
/// step are read concurrently.
async fn wait_for_report(test: &TestWorker, id: TaskId) -> (Task, Vec<ReportLine>) {
    let task = test.wait_until_ended(id).await;
    let mut report = test.store.inner.backfill_report(id, None, 100).await.expect("report");
    report.sort_by(|a, b| a.source.cmp(&b.source));
    (task, report)
}

fn reasons(report: &[ReportLine]) -> Vec<(&str, Option<&str>)> {
    report.iter().map(|line| (line.outcome.as_str(), line.reason.as_deref())).collect()
}

#[tokio::test]
async fn hanging_import_delays_no_other_backfill_and_can_be_cancelled() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let photos = tempfile::tempdir().expect("folder");
    fs::write(photos.path().join("a.png"), picture()).expect("write");
    *test.store.plan.hanging_method.lock().expect("not poisoned") = Some("images_with_blobs");
    let hanging = start_backfill(&test, import(photos.path())).await;
    let other = start_backfill(&test, BackfillSpec::new(BackfillKind::Verify)).await;
    let _coordinator = test.coordinator();
    test.wait_for_task(hanging, |task| {
        task.backfill.as_ref().is_some_and(|backfill| backfill.expected == Some(1))
    })
    .await;
    assert_eq!(test.wait_until_ended(other).await.status, Status::Succeeded);
    assert!(test.store.inner.cancel(hanging).await.expect("cancel"));
    assert_eq!(test.wait_until_ended(hanging).await.status, Status::Cancelled);
}

#[tokio::test]
async fn import_fails_if_source_is_no_list() {
    let test = TestWorker::new(&[]).await;
    let folder = tempfile::tempdir().expect("folder");
    let (pipe, photo) = (folder.path().join("pipe"), folder.path().join("a.png"));
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo");
    assert!(made.success());
    fs::write(&photo, picture()).expect("write");
    let _coordinator = test.coordinator();
    for (source, why) in [
        (pipe.as_path(), "is neither folder nor file"),
        (Path::new("/dev/zero"), "is neither folder nor file"),
        (photo.as_path(), "is a picture; name its folder"),
    ] {
        let id = start_backfill(&test, import(source)).await;
        let task = test.wait_until_ended(id).await;
        let problem = task.backfill.and_then(|backfill| backfill.problem).unwrap_or_default();
        assert!(problem.contains(why), "{problem}");
        assert_eq!(task.status, Status::Failed);
    }
}

#[tokio::test]
async fn import_reports_bad_entries_and_continues() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let folder = tempfile::tempdir().expect("folder");
    fs::write(folder.path().join("good.png"), picture()).expect("write");
    let looped = folder.path().join("looped");
    std::os::unix::fs::symlink(&looped, &looped).expect("link");
    let list = folder.path().join("list.ndjson");
    let lines = [
        format!("\"{}.jpg\"", "x".repeat(300)),
        "\"a\\u0000b.jpg\"".to_owned(),
        "\"looped\"".to_owned(),
        "\"/dev/zero\"".to_owned(),
        r#"{"path":"good.png","tags":["a\u0000"]}"#.to_owned(),
        "\"good.png\"".to_owned(),
    ];
    fs::write(&list, lines.join("\n")).expect("write");
    let id = start_backfill(&test, import(&list)).await;
    let _coordinator = test.coordinator();
    let (task, report) = wait_for_report(&test, id).await;
    assert_eq!(task.status, Status::Failed);
    let mut found = reasons(&report);
    found.sort_unstable();
    let unreadable = ("failed", Some("unreadable"));
    let invalid = ("failed", Some("invalid_line"));
    let skipped = ("skipped", Some("not_a_file"));
    assert_eq!(
        found,
        [invalid, invalid, unreadable, unreadable, skipped, ("succeeded", None)],
        "{report:?}"
    );
}

#[tokio::test]
async fn import_skips_equal_images_and_retries_failed_ones_on_request() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay, _coordinator) = (test.worker(), test.relay(), test.coordinator());
    let mut truncated = picture();
    truncated.truncate(truncated.len() / 2);
    let failed = test.upload(&truncated).await;
    assert_eq!(test.wait_until_ended(failed.task).await.status, Status::Failed);
    let lost = test.upload(&picture()).await;
    test.wait_until_ended(lost.task).await;
    let blob = test.blob_path(&BlobKey::Blob(lost.sha256));
    fs::remove_file(&blob).expect("remove");
    let photos = tempfile::tempdir().expect("folder");
    fs::write(photos.path().join("1.png"), &truncated).expect("write");
    fs::write(photos.path().join("2.png"), picture()).expect("write");

    let id = start_backfill(&test, import(photos.path())).await;
    let (_, found) = wait_for_report(&test, id).await;
    let outcomes = [("skipped", Some("failed_before")), ("skipped", Some("duplicate"))];
    assert_eq!(reasons(&found), outcomes, "{found:?}");
    assert!(
        found[0].detail.as_deref().is_some_and(|why| why.contains("corrupt_image")),
        "{found:?}"
    );
    assert_eq!(ContentHash::of(&fs::read(&blob).expect("the blob is restored")), lost.sha256);

    let mut with_retry = import(photos.path());
    with_retry.retry_failed = true;
    let id = start_backfill(&test, with_retry).await;
    let (_, found) = wait_for_report(&test, id).await;
    let outcomes = [("failed", Some("corrupt_image")), ("skipped", Some("duplicate"))];
    let mut sorted = reasons(&found);
    sorted.sort_unstable();
    assert_eq!(sorted, outcomes, "{found:?}");
    let retried = found.iter().find(|line| line.outcome == ItemOutcome::Failed).expect("a line");
    assert!(test.parts.store.image(ImageId(retried.id)).await.expect("read").is_some());
}

#[tokio::test]
async fn import_respects_quota_and_continues_when_it_is_raised() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay, _coordinator) = (test.worker(), test.relay(), test.coordinator());
    let photos = tempfile::tempdir().expect("folder");
    fs::write(photos.path().join("1.png"), picture()).expect("write");
    // The same pixels in other bytes.
    fs::write(photos.path().join("2.png"), [picture(), vec![0]].concat()).expect("write");
    let mut spec = import(photos.path());
    spec.visibility = Some(Visibility::Private);
    spec.quota = Quota { images: Some(1), bytes: None };
    let over_quota = ("failed", Some("over_quota"));
    for first in [("succeeded", None), ("skipped", Some("duplicate"))] {
        let id = start_backfill(&test, spec.clone()).await;
        let (task, found) = wait_for_report(&test, id).await;
        assert_eq!(task.status, Status::Failed, "{found:?}");
        let mut reasons = reasons(&found);
        reasons.sort_unstable_by_key(|reason| *reason == over_quota);
        assert_eq!(reasons, [first, over_quota], "{found:?}");
    }
    let staged = test.blob_path(&BlobKey::Incoming(ImageId::new()));
    assert_eq!(count_files(staged.parent().expect("a folder")), 0, "rejected files are not staged");

    spec.quota.images = Some(2);
    let id = start_backfill(&test, spec).await;
    let (task, found) = wait_for_report(&test, id).await;
    assert_eq!(task.status, Status::Succeeded, "{found:?}");
    let mut reasons = reasons(&found);
    reasons.sort_unstable();
    assert_eq!(reasons, [("skipped", Some("duplicate")), ("succeeded", None)]);
    let made = found.iter().find(|line| line.outcome == ItemOutcome::Succeeded).expect("a line");
    let image = test.parts.store.image(ImageId(made.id)).await.expect("read").expect("an image");
    assert_eq!(image.visibility(), Visibility::Private);
}

/// A step ends early once it has stored many bytes (in unit tests, those of a few pictures).
#[tokio::test]
async fn import_of_many_bytes_takes_several_steps() {
    let test = TestWorker::new(&[]).await;
    let photos = tempfile::tempdir().expect("folder");
    for n in 0..20_u8 {
        fs::write(photos.path().join(format!("{n}.png")), [picture(), vec![n]].concat())
            .expect("write");
    }
    let id = start_backfill(&test, import(photos.path())).await;
    let (_worker, _relay, _coordinator) = (test.worker(), test.relay(), test.coordinator());
    let (task, report) = wait_for_report(&test, id).await;
    assert_eq!(task.status, Status::Succeeded, "{report:?}");
    assert_eq!(reasons(&report), vec![("succeeded", None); 20]);
    let steps = test.finished_calls("advance_backfill");
    assert!(steps > 4, "{steps} steps");
}

#[tokio::test]
async fn dry_run_counts_equal_files_once() {
    let test = TestWorker::new(&[("SAFELIGHT_BACKFILL_WINDOW", "1")]).await;
    let photos = tempfile::tempdir().expect("folder");
    for name in ["1.png", "2.png", "3.png"] {
        fs::write(photos.path().join(name), picture()).expect("write");
    }
    let mut spec = import(photos.path());
    spec.dry_run = true;
    let id = start_backfill(&test, spec).await;
    let _coordinator = test.coordinator();
    let counted = test.wait_until_ended(id).await.backfill.expect("a backfill");
    assert_eq!((counted.planned, counted.skipped["duplicate"]), (1, 2));
}

#[tokio::test]
async fn verify_reports_known_damage_and_rechecks_on_request_or_new_upload() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay, _coordinator) = (test.worker(), test.relay(), test.coordinator());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    fs::write(test.blob_path(&BlobKey::Blob(upload.sha256)), b"damaged").expect("write");
    let verify = async |retry_failed: bool| {
        let mut spec = BackfillSpec::new(BackfillKind::Verify);
        spec.retry_failed = retry_failed;
        let id = start_backfill(&test, spec).await;
        let (task, found) = wait_for_report(&test, id).await;
        let backfill = task.backfill.expect("a backfill");
        (task.status, backfill.planned, found)
    };
    let failed = [("failed", Some("blob_damaged"))];
    let (status, planned, found) = verify(false).await;
    assert_eq!((status, planned, reasons(&found)), (Status::Failed, 1, failed.to_vec()));
    // Without `retry_failed`, known damage is reported again but not verified again.
    for _ in 0..2 {
        let (status, planned, found) = verify(false).await;
        assert_eq!((status, planned, reasons(&found)), (Status::Failed, 0, failed.to_vec()));
        let why = found[0].detail.as_deref().expect("a detail");
        assert!(why.contains("not looked at again") && why.contains("damaged"), "{why}");
    }
    let (status, planned, found) = verify(true).await;
    assert_eq!((status, planned, reasons(&found)), (Status::Failed, 1, failed.to_vec()));
    // Uploading the same picture again stores its bytes again.
    let again = test.upload(&picture()).await;
    test.wait_until_ended(again.task).await;
    let (status, planned, found) = verify(false).await;
    assert_eq!((status, planned), (Status::Succeeded, 2), "{found:?}");
}

#[tokio::test]
async fn import_restores_missing_and_damaged_originals() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay, _coordinator) = (test.worker(), test.relay(), test.coordinator());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let blob = test.blob_path(&BlobKey::Blob(upload.sha256));
    let photos = tempfile::tempdir().expect("folder");
    fs::write(photos.path().join("the same.png"), picture()).expect("write");
    let run = async |spec: BackfillSpec| {
        let id = start_backfill(&test, spec).await;
        let (task, found) = wait_for_report(&test, id).await;
        (task.status, found)
    };
    let verify = || BackfillSpec::new(BackfillKind::Verify);
    let other = vec![0; picture().len()];
    for (bytes, reason, word) in [
        (None, "blob_missing", "gone"),
        (Some(&b""[..]), "blob_damaged", "damaged"),
        (Some(other.as_slice()), "blob_damaged", "damaged"),
    ] {
        match bytes {
            Some(bytes) => fs::write(&blob, bytes).expect("write"),
            None => fs::remove_file(&blob).expect("remove"),
        }
        // The second run reports the same without reading the original.
        for _ in 0..2 {
            let (status, found) = run(verify()).await;
            assert_eq!((status, reasons(&found)), (Status::Failed, vec![("failed", Some(reason))]));
        }
        let (_, found) = run(import(photos.path())).await;
        assert_eq!(reasons(&found), [("skipped", Some("duplicate"))]);
        let detail = found[0].detail.as_deref().expect("a detail");
        assert!(detail.ends_with(&format!("whose bytes were {word} and are back")), "{detail}");
        assert_eq!(fs::read(&blob).expect("read"), picture());
        let (status, found) = run(verify()).await;
        assert_eq!(status, Status::Succeeded, "{found:?}");
        let (_, found) = run(import(photos.path())).await;
        let detail = found[0].detail.as_deref().expect("a detail");
        assert!(!detail.contains("whose bytes"), "{detail}");
    }
}

#[tokio::test]
async fn backfills_include_images_of_unfinished_tasks() {
    let test = TestWorker::new(&[]).await;
    let _coordinator = test.coordinator();
    // No worker runs yet, so the jobs of the upload and of the first backfill wait.
    let upload = test.upload(&picture()).await;
    let mut ids = Vec::new();
    for preset in ["small", "medium"] {
        let mut spec = BackfillSpec::new(BackfillKind::Renditions);
        spec.presets = vec![preset.to_owned()];
        ids.push(start_backfill(&test, spec).await);
    }
    ids.push(start_backfill(&test, BackfillSpec::new(BackfillKind::Verify)).await);
    for &id in &ids {
        test.wait_for_task(id, |task| {
            task.backfill.as_ref().is_some_and(|backfill| backfill.planned == 1)
        })
        .await;
    }
    let (_worker, _relay) = (test.worker(), test.relay());
    for id in ids {
        let (task, found) = wait_for_report(&test, id).await;
        assert_eq!((task.status, reasons(&found)), (Status::Succeeded, vec![("succeeded", None)]));
    }
    within("the upload has ended", test.wait_until_ended(upload.task)).await;
    let blocking = test.parts.store.blocking_jobs(&[upload.image]).await.expect("read");
    assert!(blocking.iter().all(|job| job.kind != JobKind::Write), "{blocking:?}");
}
