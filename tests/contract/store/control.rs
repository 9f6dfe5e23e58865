//! Cancelling, retrying, and the bytes that remain to be deleted.

use std::time::Duration;

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use safelight_domain::{ErrorCode, Failure, JobKind, Lane, Owner, Status, TaskId};
use safelight_store::{NewUpload, Outcome, PageRequest, Settled, TaskFilter};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, placeholder, thumbnail_notice, thumbnail_succeeded, upload,
        write_notice, write_succeeded,
    },
};

promises!(
    cancelled_task_never_runs,
    cancelled_running_job_has_no_effect,
    ended_task_cannot_be_cancelled,
    concurrent_settle_and_cancel_count_each_job_once,
    retried_task_gets_all_its_attempts_again,
    only_failed_tasks_with_bytes_are_retried,
    discarded_images_wait_for_leases_to_end,
    shared_blob_is_kept_until_its_last_image_is_cancelled,
    republish_queues_a_new_notice_for_a_waiting_job,
    queued_jobs_are_counted_by_lane,
    tasks_are_filtered_by_failure,
    key_reservation_lasts_while_it_is_extended,
);

async fn cancelled_task_never_runs(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notices = store.publish_all().await?;
    assert!(store.cancel(upload.task).await?);
    let task = store.task_of(&upload).await?;
    assert_eq!(task.status, Status::Cancelled);
    assert!(task.finished_at.is_some());
    assert_eq!((task.progress.cancelled, task.progress.failed), (2, 0));
    assert!(task.jobs.iter().all(|job| job.status == Status::Cancelled));
    for notice in &notices {
        store.assert_unclaimable(notice, false).await?;
        store.assert_unclaimable(notice, true).await?;
    }
    assert!(task.image.context("image")?.discarded);
    Ok(())
}

async fn cancelled_running_job_has_no_effect(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    assert!(store.cancel(upload.task).await?);
    assert!(store.renew(&[job.lease], HOUR).await?.held.is_empty(), "its worker detects it");
    let cancelled = store.task_of(&upload).await?;
    for outcome in [thumbnail_succeeded(), Outcome::Failed(failure()), Outcome::Released] {
        assert_eq!(store.settle(&job.lease, &outcome).await?, Settled::Stale);
    }
    assert_eq!(store.task_of(&upload).await?, cancelled);
    assert_eq!(store.count_unpublished().await?, 0, "no notice remains");
    Ok(())
}

async fn ended_task_cannot_be_cancelled(store: TestStore) -> Result<()> {
    assert!(!store.cancel(TaskId::new()).await?, "unknown");
    let upload = store.accept_new_upload().await?;
    store.finish_jobs(&upload).await?;
    let before = store.task_of(&upload).await?;
    assert!(!store.cancel(upload.task).await?);
    assert_eq!(store.task_of(&upload).await?, before);
    assert!(store.discarded(9, NOW).await?.is_empty());
    Ok(())
}

async fn concurrent_settle_and_cancel_count_each_job_once(store: TestStore) -> Result<()> {
    for _ in 0..20 {
        let upload = store.accept_new_upload().await?;
        let job = store.claim_job(&write_notice(&upload)).await?;
        let written = write_succeeded();
        let (settled, cancelled) =
            tokio::join!(store.settle(&job.lease, &written), store.cancel(upload.task));
        assert!(cancelled?, "the other job was still open");
        let task = store.task_of(&upload).await?;
        let done = u32::from(settled? == Settled::Applied);
        assert_eq!(task.status, Status::Cancelled);
        assert_eq!((task.progress.succeeded, task.progress.cancelled), (done, 2 - done));
        assert!(!store.cancel(upload.task).await?);
    }
    Ok(())
}

async fn retried_task_gets_all_its_attempts_again(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &write_succeeded()).await?;
    for _ in 0..upload.max_attempts {
        store.publish_all().await?;
        let notice = thumbnail_notice(&upload);
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;
    }
    let failed = store.task_of(&upload).await?;
    assert_eq!(failed.status, Status::Failed);

    assert_eq!(store.retry(&[upload.task, TaskId::new()]).await?, [upload.task]);
    let again = store.task_of(&upload).await?;
    assert_eq!((again.status, again.finished_at), (Status::Queued, None));
    assert!(again.version > failed.version);
    assert_eq!((again.progress.succeeded, again.progress.failed), (1, 0));
    let thumbnail = again.jobs.iter().find(|job| job.kind == JobKind::Thumbnail).context("job")?;
    assert_eq!((thumbnail.attempt, &thumbnail.error), (0, &None));

    let notices = store.publish_all().await?;
    assert_eq!(notices.len(), 1, "only the job that had failed");
    let job = store.claim_job(&notices[0]).await?;
    assert_eq!(job.attempt, 1);
    assert!(job.lease.fence > upload.max_attempts, "an old lease is never valid again");
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    assert_eq!(store.task_of(&upload).await?.status, Status::Succeeded);
    Ok(())
}

async fn only_failed_tasks_with_bytes_are_retried(store: TestStore) -> Result<()> {
    let queued = store.accept_new_upload().await?;
    let done = store.accept_new_upload().await?;
    store.finish_jobs(&done).await?;
    // Cancelled after one of its jobs failed.
    let half = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&half)).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    assert!(store.cancel(half.task).await?);
    assert_eq!(store.task_of(&half).await?.status, Status::Cancelled);

    assert!(store.retry(&[queued.task, done.task, half.task]).await?.is_empty());
    assert_eq!(store.task_of(&half).await?.status, Status::Cancelled);
    Ok(())
}

async fn discarded_images_wait_for_leases_to_end(store: TestStore) -> Result<()> {
    let (calm, busy) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    store.claim_job_for(&write_notice(&busy), HOUR).await?;
    store.cancel(calm.task).await?;
    store.cancel(busy.task).await?;
    let discarded = store.discarded(9, NOW).await?;
    assert_eq!(discarded.iter().map(|image| image.id).collect::<Vec<_>>(), [calm.image]);
    store.mark_removed(calm.image).await?;
    assert!(store.discarded(9, NOW).await?.is_empty());
    store.tamper("update jobs set lease_until = null").await?;
    assert_eq!(store.discarded(9, NOW).await?[0].id, busy.image);
    let listed = store.list_images(None, &PageRequest { before: None, limit: 9 }).await?.images;
    assert!(listed.is_empty(), "{listed:?}");
    Ok(())
}

async fn shared_blob_is_kept_until_its_last_image_is_cancelled(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    let job = store.claim_job(&thumbnail_notice(&first)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let second = NewUpload { sha256: first.sha256, ..upload() };
    store.accept_upload(&second).await?;
    store.cancel(first.task).await?;
    assert!(store.is_blob_wanted(&first.sha256).await?);
    assert!(!store.forget_blob(&first.sha256).await?);
    let image = store.image(second.image).await?.context("image")?;
    assert_eq!(image.renditions.len(), 2, "all renditions are kept");
    assert_eq!(image.placeholder, Some(placeholder(1)));

    store.cancel(second.task).await?;
    assert!(!store.is_blob_wanted(&first.sha256).await?);
    assert!(store.forget_blob(&first.sha256).await?);
    let image = store.image(second.image).await?.context("image")?;
    assert!(image.renditions.is_empty() && image.discarded);
    assert_eq!(image.placeholder, None);
    Ok(())
}

async fn republish_queues_a_new_notice_for_a_waiting_job(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let (write, thumbnail) = (upload.jobs[0].0, upload.jobs[1].0);
    assert!(!store.requeue_one(write, NOW).await?, "it is still in the outbox");
    store.publish_all().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    assert!(!store.requeue_one(write, NOW).await?, "it runs");
    assert!(store.requeue_one(thumbnail, HOUR).await?);
    assert_eq!(store.count_unpublished().await?, 0, "not due yet");
    store.tamper("delete from outbox").await?;
    assert!(store.requeue_one(thumbnail, NOW).await?);
    assert_eq!(store.publish_all().await?[0].job, thumbnail);
    store.settle_job(&job, &write_succeeded()).await?;
    assert!(!store.requeue_one(write, NOW).await?, "it has ended");
    Ok(())
}

async fn queued_jobs_are_counted_by_lane(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    store.accept_upload(&NewUpload { lane: Lane::Bulk, ..upload() }).await?;
    store.accept_new_upload().await?;
    assert_eq!(store.count_queued(Lane::Interactive, 100).await?, 4);
    assert_eq!(store.count_queued(Lane::Interactive, 3).await?, 3, "the count stops at the limit");
    assert_eq!(store.count_queued(Lane::Bulk, 100).await?, 2);
    let job = store.claim_job(&write_notice(&first)).await?;
    assert_eq!(store.count_queued(Lane::Interactive, 100).await?, 3);
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;
    assert_eq!(
        store.count_queued(Lane::Interactive, 100).await?,
        4,
        "jobs that are not due count too"
    );
    Ok(())
}

async fn tasks_are_filtered_by_failure(store: TestStore) -> Result<()> {
    let corrupt = Failure::new(ErrorCode::CorruptImage, "cut short");
    let [failed, waiting, _ok] = [
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
    ];
    let job = store.claim_job(&write_notice(&failed)).await?;
    store.settle_job(&job, &Outcome::Failed(corrupt)).await?;
    let job = store.claim_job(&thumbnail_notice(&waiting)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;

    let find = async |filter: TaskFilter| -> Result<Vec<TaskId>> {
        let page = store.list_tasks(&filter, &PageRequest { before: None, limit: 9 }).await?;
        Ok(page.tasks.iter().map(|task| task.id).collect())
    };
    let any = TaskFilter::default();
    let by_code = |code| TaskFilter { code: Some(code), ..TaskFilter::default() };
    assert_eq!(find(by_code(ErrorCode::CorruptImage)).await?, [failed.task]);
    assert_eq!(find(by_code(ErrorCode::StoreUnavailable)).await?, [waiting.task]);
    assert!(find(by_code(ErrorCode::LeaseLost)).await?.is_empty());
    let failed_write =
        TaskFilter { job_kind: Some(JobKind::Write), ..by_code(ErrorCode::CorruptImage) };
    assert_eq!(find(failed_write.clone()).await?, [failed.task]);
    let failed_thumbnail = TaskFilter { job_kind: Some(JobKind::Thumbnail), ..failed_write };
    assert!(find(failed_thumbnail).await?.is_empty());
    assert_eq!(find(TaskFilter { owner: Some(Owner::local()), ..any.clone() }).await?.len(), 3);
    assert!(find(TaskFilter { owner: Some("bob".parse()?), ..any.clone() }).await?.is_empty());
    let soon = Some(Utc::now() + TimeDelta::hours(1));
    assert_eq!(find(TaskFilter { created_before: soon, ..any.clone() }).await?.len(), 3);
    assert!(find(TaskFilter { created_after: soon, ..any }).await?.is_empty());
    Ok(())
}

async fn key_reservation_lasts_while_it_is_extended(store: TestStore) -> Result<()> {
    use safelight_store::{IdempotencyKey, KeyState};
    let key = IdempotencyKey { owner: Owner::local(), key: "holiday".to_owned() };
    let KeyState::Reserved(first) = store.reserve_key(&key, NOW).await? else {
        anyhow::bail!("a free key")
    };
    store.extend_key(&first, HOUR).await?;
    assert_eq!(store.reserve_key(&key, HOUR).await?, KeyState::InFlight);
    store.extend_key(&first, Duration::ZERO).await?;
    let KeyState::Reserved(second) = store.reserve_key(&key, HOUR).await? else {
        anyhow::bail!("its hold has ended")
    };
    // The first ticket has lost the key and can no longer extend it.
    store.extend_key(&first, Duration::ZERO).await?;
    assert_eq!(store.reserve_key(&key, HOUR).await?, KeyState::InFlight);
    store.release_key(&second).await?;
    Ok(())
}
