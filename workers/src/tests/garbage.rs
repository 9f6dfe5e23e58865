//! The collection of garbage: objects that nothing refers to.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use safelight_blobs::BlobKey;
use safelight_domain::{
    Backfill, BackfillKind, BackfillSpec, BackfillState, ContentHash, ErrorCode, Failure,
    ImageFormat, ItemOutcome, JOB_VERSION, JobKind, JobNotice, TaskId, WorkerId,
};
use safelight_store::{Claim, Lease, NewBackfill, NewUpload, Outcome, ReportLine};

use super::{
    cancel::stored_upload,
    delete::image,
    test_worker::{TestWorker, picture, within},
};

/// Collects garbage; returns the ended backfill and its report.
async fn collect(test: &TestWorker, dry_run: bool) -> (Backfill, Vec<ReportLine>) {
    let store = &test.parts.store;
    let spec = BackfillSpec { dry_run, ..BackfillSpec::new(BackfillKind::Gc) };
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    store.create_backfill(&new).await.expect("begin");
    let coordinator = test.stepping_coordinator();
    within("the backfill ends", async {
        loop {
            Box::pin(coordinator.step()).await.expect("a step");
            let task = store.task(new.task).await.expect("read").expect("a task");
            let backfill = *task.backfill.expect("a backfill");
            if backfill.state == BackfillState::Ended {
                return (
                    backfill,
                    store.backfill_report(new.task, None, 999).await.expect("report"),
                );
            }
        }
    })
    .await
}

/// Sets the file's modification time to two hours ago.
fn make_old(path: &Path) {
    let two_hours_ago = SystemTime::now() - Duration::from_hours(2);
    let file = fs::File::options().append(true).open(path).expect("a file");
    file.set_modified(two_hours_ago).expect("a time");
}

fn rendition_of(of: ContentHash) -> BlobKey {
    BlobKey::Rendition {
        of,
        preset: "small".to_owned(),
        fingerprint: "0123456789ab".to_owned(),
        format: ImageFormat::Jpeg,
    }
}

/// Stores an old object that no row refers to.
async fn store_orphan(test: &TestWorker, key: &BlobKey) {
    test.parts.blobs.put(key, "left over".into()).await.expect("put");
    make_old(&test.blob_path(key));
}

fn skipped(backfill: &Backfill, reason: &str) -> u64 {
    backfill.skipped.get(reason).copied().unwrap_or(0)
}

#[tokio::test]
async fn garbage_collection_removes_only_unreferenced_objects() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let live = image(&test, &upload).await;
    let renditions = live.renditions.iter().map(|made| BlobKey::rendition(live.sha256, made));
    let kept: Vec<BlobKey> = renditions.chain([BlobKey::Blob(live.sha256)]).collect();
    for key in &kept {
        make_old(&test.blob_path(key));
    }
    let unused = ContentHash::of(b"left over");
    let garbage = [BlobKey::Blob(unused), rendition_of(unused), rendition_of(live.sha256)];
    for key in &garbage {
        store_orphan(&test, key).await;
    }
    let young = BlobKey::Blob(ContentHash::of(b"young"));
    test.parts.blobs.put(&young, "young".into()).await.expect("put");
    let foreign = test.blob_path(&BlobKey::Blob(unused)).with_file_name("notes.txt");
    fs::write(&foreign, "not ours").expect("write");
    make_old(&foreign);

    let (plan, lines) = collect(&test, true).await;
    assert_eq!((plan.planned, plan.succeeded, plan.expected), (3, 0, Some(9)));
    assert!(lines.iter().all(|line| line.outcome == ItemOutcome::Planned), "{lines:?}");
    let mut named: Vec<_> = lines.iter().filter_map(|line| line.source.clone()).collect();
    named.sort();
    let mut expected = garbage.each_ref().map(|key| key.path().to_string());
    expected.sort();
    assert_eq!(named, expected);
    assert!(garbage.iter().all(|key| test.blob_path(key).exists()), "a dry run removes nothing");

    let (done, lines) = collect(&test, false).await;
    assert_eq!((done.planned, done.succeeded, done.expected), (3, 3, Some(9)));
    assert_eq!((skipped(&done, "in_use"), skipped(&done, "too_young")), (4, 1));
    let removed = lines.iter().filter(|line| line.outcome == ItemOutcome::Succeeded);
    assert!(removed.clone().all(|line| line.detail.as_deref() == Some("9 bytes")));
    assert_eq!((removed.count(), skipped(&done, "unknown_name")), (3, 1));
    assert!(garbage.iter().all(|key| !test.blob_path(key).exists()));
    assert!(
        kept.iter().chain([&young]).all(|key| test.blob_path(key).exists()) && foreign.exists()
    );
    assert_eq!(image(&test, &upload).await, live);
    assert_eq!(test.trash_count(), 0);
    assert_eq!(collect(&test, false).await.0.planned, 0, "nothing is left");
}

/// Collects more objects than fit into a step or a page.
#[tokio::test]
async fn garbage_collection_spans_steps_and_pages() {
    let test = TestWorker::new(&[]).await;
    let keys: Vec<_> =
        (0..600_u32).map(|n| BlobKey::Blob(ContentHash::of(&n.to_le_bytes()))).collect();
    for key in &keys {
        let path = test.blob_path(key);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(&path, "left over").expect("write");
        make_old(&path);
    }
    let (done, lines) = collect(&test, false).await;
    assert_eq!((done.succeeded, lines.len()), (600, 600));
    assert!(keys.iter().all(|key| !test.blob_path(key).exists()));
}

#[tokio::test]
async fn garbage_collection_leaves_cancelled_uploads_to_janitor() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, b"cancelled").await;
    make_old(&test.blob_path(&BlobKey::Blob(upload.sha256)));
    test.parts.store.cancel(upload.task).await.expect("cancel");
    assert_eq!(skipped(&collect(&test, false).await.0, "in_use"), 1);
    test.parts.store.mark_removed(upload.image).await.expect("mark");
    assert_eq!(collect(&test, false).await.0.succeeded, 1);
}

/// A job may have stored a rendition that it has not recorded yet.
#[tokio::test]
async fn garbage_collection_keeps_unrecorded_renditions() {
    let test = TestWorker::new(&[]).await;
    let upload = stored_upload(&test, &picture()).await;
    let lease = claim(&test, &upload).await;
    let made = rendition_of(upload.sha256);
    store_orphan(&test, &made).await;
    assert_eq!(skipped(&collect(&test, false).await.0, "in_use"), 2);
    assert!(test.blob_path(&made).exists());
    let failed = Outcome::Failed(Failure::new(ErrorCode::CorruptImage, "damaged"));
    test.parts.store.settle(&lease, &failed).await.expect("settle");
    assert_eq!(
        collect(&test, false).await.0.succeeded,
        1,
        "after the job failed, nothing will record it"
    );
    assert!(
        !test.blob_path(&made).exists() && test.blob_path(&BlobKey::Blob(upload.sha256)).exists()
    );
}

async fn claim(test: &TestWorker, upload: &NewUpload) -> Lease {
    let (job, kind) = upload.jobs[1];
    assert_eq!(kind, JobKind::Thumbnail);
    let notice = JobNotice { job, kind, lane: upload.lane, generation: 0, trace: None };
    let (worker, lease) = (WorkerId::new(), Duration::from_hours(1));
    match test.parts.store.claim(&notice, false, worker, lease, JOB_VERSION).await {
        Ok(Claim::Run(job)) => job.lease,
        other => panic!("{other:?}"),
    }
}
