//! Accepting uploads.

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::{ImageId, JobKind, Progress, Status, TaskId, TaskKind};
use safelight_store::{QueueCapacity, StoreError};

use super::{
    promises,
    test_store::{
        HOUR, TestStore, thumbnail_notice, thumbnail_succeeded, upload, write_notice,
        write_succeeded,
    },
};

promises!(
    accepted_upload_reads_back_complete,
    accepted_upload_is_in_the_outbox,
    accepting_again_changes_nothing,
    bad_upload_in_a_batch_fails_alone,
    equal_uploads_share_renditions,
    unknown_ids_return_none,
);

async fn accepted_upload_reads_back_complete(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;

    let task = store.task_of(&upload).await?;
    assert_eq!((task.id, task.kind, task.lane), (upload.task, TaskKind::Upload, upload.lane));
    assert_eq!(task.status, Status::Queued);
    assert_eq!(task.progress, Progress { total: 2, ..Progress::default() });
    assert_eq!((task.updated_at, task.finished_at), (task.created_at, None));
    let age = chrono::Utc::now() - task.created_at;
    assert!(age.num_seconds().abs() < 60, "{age}");

    let jobs: Vec<_> = task.jobs.iter().map(|job| (job.id, job.kind)).collect();
    assert_eq!(jobs, upload.jobs);
    for job in &task.jobs {
        assert_eq!((job.status, job.attempt, job.max_attempts), (Status::Queued, 0, 3));
        assert_eq!((&job.error, job.retry_at), (&None, None));
    }

    let image = task.image.context("no image")?;
    assert_eq!(store.image(upload.image).await?.as_ref(), Some(&image));
    assert_eq!((image.id, image.sha256, image.bytes), (upload.image, upload.sha256, upload.bytes));
    assert_eq!((image.format, image.facts, image.stored_at), (upload.format, None, None));
    assert_eq!(image.labels, upload.labels);
    assert_eq!(image.renditions, []);
    Ok(())
}

async fn accepted_upload_is_in_the_outbox(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    assert_eq!(store.count_unpublished().await?, 2);
    let mut due = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    due.sort_by_key(|notice| notice.job);
    assert_eq!(due, [write_notice(&upload), thumbnail_notice(&upload)]);
    Ok(())
}

async fn accepting_again_changes_nothing(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.publish_all().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &write_succeeded()).await?;
    let before = store.task_of(&upload).await?;

    store.accept_upload(&upload).await?;

    assert_eq!(store.task_of(&upload).await?, before);
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

/// Uploads may share a transaction, but one that fails must not fail the others.
async fn bad_upload_in_a_batch_fails_alone(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    let mut uploads: Vec<_> = (0..64).map(|_| upload()).collect();
    uploads[20].image = first.image; // the id of another task's image
    uploads[40].jobs[1] = first.jobs[1];

    let results = join_all(uploads.iter().map(|upload| store.accept(upload))).await;

    for (index, (upload, result)) in uploads.iter().zip(results).enumerate() {
        let task = store.task(upload.task).await?;
        if index == 20 || index == 40 {
            assert!(matches!(result, Err(StoreError::Database(_))), "{result:?}");
            assert_eq!(task, None);
        } else {
            result?;
            assert_eq!(task.context("lost")?.jobs.len(), 2);
        }
    }
    assert_eq!(store.image(uploads[40].image).await?, None);
    assert_eq!(store.count_unpublished().await?, 2 * 63);
    Ok(())
}

async fn equal_uploads_share_renditions(store: TestStore) -> Result<()> {
    let (first, mut second) = (upload(), upload());
    second.sha256 = first.sha256;
    store.accept_upload(&first).await?;
    store.accept_upload(&second).await?;

    let job = store.claim_job(&thumbnail_notice(&first)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;

    let job = store.claim_job(&thumbnail_notice(&second)).await?;
    assert_eq!(job.image.id, second.image);
    assert_eq!(
        super::test_store::without_made_at(&job.image.renditions),
        super::test_store::renditions()
    );
    Ok(())
}

async fn unknown_ids_return_none(store: TestStore) -> Result<()> {
    assert_eq!(store.task(TaskId::new()).await?, None);
    assert_eq!(store.image(ImageId::new()).await?, None);
    assert_eq!(store.last_task_of_image(ImageId::new(), JobKind::Write).await?, None);
    Ok(())
}
