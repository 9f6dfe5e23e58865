//! Reading everything back.

use std::fs;

use safelight_blobs::BlobKey;
use safelight_domain::{
    BackfillKind, BackfillSpec, BackfillState, Image, ItemOutcome, Status, TaskId, WorkerId,
};
use safelight_store::{NewBackfill, NewUpload, ReportLine};

use super::lab::{Lab, picture, within};
use crate::backfill;

/// Runs a backfill that verifies everything, also what was bad before; answers with its report.
async fn verified(lab: &Lab) -> (Status, Vec<Item>) {
    let store = &lab.services.store;
    let mut spec = BackfillSpec::new(BackfillKind::Verify);
    spec.retry_failed = true;
    let new = NewBackfill { task: TaskId::new(), owner: safelight_domain::Owner::local(), spec };
    store.create_backfill(&new).await.expect("begin");
    let foreman = WorkerId::new();
    within("the backfill ends", async {
        loop {
            Box::pin(backfill::step(&lab.services, foreman)).await.expect("a step");
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

async fn image(lab: &Lab, upload: &NewUpload) -> Image {
    lab.services.store.image(upload.image).await.expect("read").expect("an image")
}

#[tokio::test]
async fn what_is_bad_is_found_and_repaired() {
    let lab = Lab::new(&[]).await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let upload = lab.upload(&picture()).await;
    lab.ended(upload.task).await;
    assert_eq!(verified(&lab).await.0, Status::Succeeded);

    let made = image(&lab, &upload).await.renditions;
    let file = |at: usize| lab.path(&BlobKey::rendition(upload.sha256, &made[at]));
    let good = fs::read(file(0)).expect("a rendition");
    fs::write(file(0), b"damaged").expect("write");
    fs::remove_file(file(1)).expect("remove");
    let (status, report) = verified(&lab).await;
    assert_eq!(status, Status::Succeeded);
    let found = report[0].detail.as_deref().expect("what was found");
    for bad in [format!("{} (", made[0].preset), format!("{} (", made[1].preset)] {
        assert!(found.contains(&bad), "{found}");
    }
    assert!(found.contains("damaged") && found.contains("missing"), "{found}");
    assert_eq!(fs::read(file(0)).expect("it is back"), good);
    assert!(file(1).exists());
    assert_eq!(verified(&lab).await.1[0].detail, None, "all is well again");
}

#[tokio::test]
async fn what_has_no_source_is_told_and_kept() {
    let lab = Lab::new(&[]).await;
    let (_worker, _relay) = (lab.worker(), lab.relay());
    let upload = lab.upload(&picture()).await;
    lab.ended(upload.task).await;
    let blob = lab.path(&BlobKey::Blob(upload.sha256));
    let good = fs::read(&blob).expect("a blob");
    fs::write(&blob, b"damaged").expect("write");
    let (status, report) = verified(&lab).await;
    assert_eq!(status, Status::Failed);
    assert_eq!(report[0].outcome, ItemOutcome::Failed);
    assert_eq!(report[0].reason.as_deref(), Some("blob_damaged"));
    assert!(blob.exists(), "nothing is thrown away");

    // Its staged bytes would do: as after a promotion that was lost.
    fs::write(lab.path(&BlobKey::Incoming(upload.image)), &good).expect("write");
    let (status, report) = verified(&lab).await;
    assert_eq!(status, Status::Succeeded, "{report:?}");
    assert_eq!(fs::read(&blob).expect("it is back"), good);
}
