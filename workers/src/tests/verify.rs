//! The `verify` backfill.

use std::fs;

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, BackfillState, Image, ItemOutcome, Status, TaskId,
};
use safelight_store::{NewBackfill, NewUpload, ReportLine};

use super::test_worker::{TestWorker, picture, within};

/// Verifies all images, including those that failed before; returns the status and the report.
async fn run_verify(test: &TestWorker) -> (Status, Vec<ReportLine>) {
    let store = &test.parts.store;
    let mut spec = BackfillSpec::new(BackfillKind::Verify);
    spec.retry_failed = true;
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    store.create_backfill(&new).await.expect("begin");
    let coordinator = test.stepping_coordinator();
    within("the backfill ends", async {
        loop {
            Box::pin(coordinator.step()).await.expect("a step");
            let task = store.task(new.task).await.expect("read").expect("a task");
            if task.backfill.expect("a backfill").state == BackfillState::Ended {
                let report = store.backfill_report(new.task, None, 100).await.expect("report");
                return (task.status, report);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn image(test: &TestWorker, upload: &NewUpload) -> Image {
    test.parts.store.image(upload.image).await.expect("read").expect("an image")
}

#[tokio::test]
async fn verify_repairs_damaged_renditions() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    assert_eq!(run_verify(&test).await.0, Status::Succeeded);

    let made = image(&test, &upload).await.renditions;
    let file = |at: usize| test.blob_path(&BlobKey::rendition(upload.sha256, &made[at]));
    let good = fs::read(file(0)).expect("a rendition");
    fs::write(file(0), b"damaged").expect("write");
    fs::remove_file(file(1)).expect("remove");
    let (status, report) = run_verify(&test).await;
    assert_eq!(status, Status::Succeeded);
    let found = report[0].detail.as_deref().expect("a detail");
    for damaged in [format!("{} (", made[0].preset), format!("{} (", made[1].preset)] {
        assert!(found.contains(&damaged), "{found}");
    }
    assert!(found.contains("damaged") && found.contains("missing"), "{found}");
    assert_eq!(fs::read(file(0)).expect("the rendition is restored"), good);
    assert!(file(1).exists());
    assert_eq!(run_verify(&test).await.1[0].detail, None, "everything is repaired");
}

#[tokio::test]
async fn verify_reports_damaged_original_and_keeps_it() {
    let test = TestWorker::new(&[]).await;
    let (_worker, _relay) = (test.worker(), test.relay());
    let upload = test.upload(&picture()).await;
    test.wait_until_ended(upload.task).await;
    let blob = test.blob_path(&BlobKey::Blob(upload.sha256));
    let good = fs::read(&blob).expect("a blob");
    fs::write(&blob, b"damaged").expect("write");
    let (status, report) = run_verify(&test).await;
    assert_eq!(status, Status::Failed);
    assert_eq!(report[0].outcome, ItemOutcome::Failed);
    assert_eq!(report[0].reason.as_deref(), Some("blob_damaged"));
    assert!(blob.exists(), "damaged originals are kept");

    // Staged bytes, as after a lost promotion, restore it.
    fs::write(test.blob_path(&BlobKey::Incoming(upload.image)), &good).expect("write");
    let (status, report) = run_verify(&test).await;
    assert_eq!(status, Status::Succeeded, "{report:?}");
    assert_eq!(fs::read(&blob).expect("the blob is restored"), good);
}
