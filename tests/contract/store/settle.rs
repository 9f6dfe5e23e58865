//! How attempts, jobs and tasks end.

use anyhow::{Context, Result};
use futures::future::{join_all, try_join_all};
use safelight_domain::{ErrorCode, Failure, JobKind, Lane, Placeholder, Progress, Status};
use safelight_store::{Effect, NewUpload, Outcome, PageRequest, Settled};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, facts, failure, placeholder, rendition, renditions, thumbnail_notice,
        thumbnail_succeeded, upload, write_notice, write_succeeded,
    },
};

promises!(
    settle_records_all_effects,
    stale_attempt_has_no_effect,
    renditions_are_replaced_not_duplicated,
    equal_uploads_share_the_latest_placeholder,
    task_fails_if_any_job_failed,
    cancelled_job_cancels_its_task,
    concurrent_settles_end_their_task_once,
    concurrent_settles_of_one_attempt_count_once,
    jobs_are_counted_by_kind_lane_and_status,
);

async fn settle_records_all_effects(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let thumbnail = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&thumbnail, &Outcome::Retry(failure(), NOW)).await?;
    let thumbnail = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&thumbnail, &thumbnail_succeeded()).await?;

    let task = store.task_of(&upload).await?;
    assert_eq!(task.status, Status::Running);
    assert_eq!(task.progress, Progress { total: 2, succeeded: 1, ..Progress::default() });
    assert_eq!(task.finished_at, None);
    let image = task.image.context("no image")?;
    assert_eq!((image.facts, image.stored_at), (None, None));
    assert_eq!(super::test_store::without_made_at(&image.renditions), renditions());
    assert_eq!(image.placeholder, Some(placeholder(1)));

    let write = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&write, &write_succeeded()).await?;

    let task = store.task_of(&upload).await?;
    assert_eq!(task.status, Status::Succeeded);
    assert_eq!(task.progress, Progress { total: 2, succeeded: 2, ..Progress::default() });
    assert!(task.finished_at >= Some(task.created_at));
    for job in &task.jobs {
        assert_eq!((job.status, &job.error, job.retry_at), (Status::Succeeded, &None, None));
    }
    let image = task.image.context("no image")?;
    assert_eq!(image.facts, Some(facts()));
    assert_eq!(image.format, facts().format);
    assert!(image.stored_at >= Some(image.created_at));
    Ok(())
}

async fn stale_attempt_has_no_effect(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.publish_all().await?;
    let write = store.claim_job_for(&write_notice(&upload), NOW).await?;
    let thumbnail = store.claim_job_for(&thumbnail_notice(&upload), NOW).await?;
    store.claim_job(&write_notice(&upload)).await?;
    store.claim_job(&thumbnail_notice(&upload)).await?;
    let before = store.task_of(&upload).await?;

    let failed = Outcome::Failed(failure());
    let retry = Outcome::Retry(failure(), NOW);
    for outcome in [&write_succeeded(), &thumbnail_succeeded(), &failed, &retry, &Outcome::Released]
    {
        for job in [&write, &thumbnail] {
            assert_eq!(store.settle(&job.lease, outcome).await?, Settled::Stale);
        }
    }
    assert_eq!(store.task_of(&upload).await?, before);
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn renditions_are_replaced_not_duplicated(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let mut again = super::test_store::upload();
    again.sha256 = upload.sha256;
    store.accept_upload(&again).await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;

    let job = store.claim_job(&thumbnail_notice(&again)).await?;
    let made = vec![rendition("small", 9999), rendition("large", 90_000)];
    store.settle_job(&job, &Outcome::Succeeded(vec![Effect::UpsertRenditions(made)])).await?;

    let image = store.image(upload.image).await?.context("no image")?;
    let expected =
        [rendition("large", 90_000), rendition("medium", 40_000), rendition("small", 9999)];
    assert_eq!(super::test_store::without_made_at(&image.renditions), expected);
    Ok(())
}

async fn equal_uploads_share_the_latest_placeholder(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    let other = store.accept_new_upload().await?;
    let equal = NewUpload { sha256: first.sha256, ..upload() };
    store.accept_upload(&equal).await?;
    let stale = store.claim_job_for(&thumbnail_notice(&equal), NOW).await?;
    let seen = async |upload: &NewUpload| -> Result<Option<Placeholder>> {
        let single = store.image(upload.image).await?.context("no image")?;
        let document = store.task_of(upload).await?.image.context("no image")?;
        assert_eq!(document.placeholder, single.placeholder);
        Ok(single.placeholder)
    };
    assert_eq!(seen(&first).await?, None);

    let made = |mark| {
        Outcome::Succeeded(vec![
            Effect::UpsertRenditions(renditions()),
            Effect::Placeholder(placeholder(mark)),
        ])
    };
    let job = store.claim_job(&thumbnail_notice(&first)).await?;
    store.settle_job(&job, &made(7)).await?;
    assert_eq!(seen(&first).await?, Some(placeholder(7)));
    assert_eq!(seen(&equal).await?, Some(placeholder(7)), "it belongs to the blob");
    assert_eq!(seen(&other).await?, None);

    let job = store.claim_job(&thumbnail_notice(&equal)).await?;
    assert_eq!(job.image.placeholder, Some(placeholder(7)));
    assert_eq!(store.settle(&stale.lease, &made(8)).await?, Settled::Stale);
    assert_eq!(seen(&first).await?, Some(placeholder(7)));
    store.settle_job(&job, &made(9)).await?;
    assert_eq!(seen(&first).await?, Some(placeholder(9)), "the latest one");

    let page = store.list_images(None, &PageRequest { before: None, limit: 10 }).await?;
    let listed: Vec<_> = page.images.into_iter().map(|image| image.placeholder).collect();
    assert_eq!(listed, [Some(placeholder(9)), None, Some(placeholder(9))]);
    Ok(())
}

async fn task_fails_if_any_job_failed(store: TestStore) -> Result<()> {
    let corrupt = Failure::new(ErrorCode::CorruptImage, "cut short after 12 rows");
    for failing_first in [true, false] {
        let upload = store.accept_new_upload().await?;
        let write = store.claim_job(&write_notice(&upload)).await?;
        let thumbnail = store.claim_job(&thumbnail_notice(&upload)).await?;
        let failed = Outcome::Failed(corrupt.clone());
        if failing_first {
            store.settle_job(&thumbnail, &failed).await?;
            // The task ends only with its last job.
            assert_eq!(store.task_of(&upload).await?.status, Status::Running);
            store.settle_job(&write, &write_succeeded()).await?;
        } else {
            store.settle_job(&write, &write_succeeded()).await?;
            store.settle_job(&thumbnail, &failed).await?;
        }
        let task = store.task_of(&upload).await?;
        assert_eq!(task.status, Status::Failed);
        assert_eq!((task.progress.succeeded, task.progress.failed), (1, 1));
        assert!(task.finished_at.is_some());
        assert_eq!(task.jobs[1].error, Some(corrupt.clone()));
        assert_eq!(task.jobs[1].retry_at, None);
    }
    Ok(())
}

async fn cancelled_job_cancels_its_task(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let write = store.claim_job(&write_notice(&upload)).await?;
    let thumbnail = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.tamper("update jobs set status = 'cancelled' where kind = 'thumbnail'").await?;
    store.tamper("update tasks set jobs_cancelled = 1").await?;

    assert_eq!(store.settle(&thumbnail.lease, &thumbnail_succeeded()).await?, Settled::Stale);
    assert_eq!(store.renew(&[thumbnail.lease], HOUR).await?.held, []);
    store.assert_unclaimable(&thumbnail_notice(&upload), true).await?;
    store.settle_job(&write, &write_succeeded()).await?;
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.progress.cancelled), (Status::Cancelled, 1));
    Ok(())
}

async fn concurrent_settles_end_their_task_once(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    // All uploads share one blob, so they also contend for its renditions.
    let blob = super::test_store::upload().sha256;
    let mut uploads: Vec<_> = (0..60).map(|_| super::test_store::upload()).collect();
    for upload in &mut uploads {
        upload.sha256 = blob;
        store.accept_upload(upload).await?;
    }
    let ended = join_all(uploads.iter().enumerate().map(async |(index, upload)| -> Result<()> {
        let (write, thumbnail) = (
            store.claim_job(&write_notice(upload)).await?,
            store.claim_job(&thumbnail_notice(upload)).await?,
        );
        // Every third upload fails, so both outcomes happen concurrently.
        let made = if index % 3 == 0 { Outcome::Failed(failure()) } else { thumbnail_succeeded() };
        let facts = write_succeeded();
        let both = [store.settle(&write.lease, &facts), other.settle(&thumbnail.lease, &made)];
        assert_eq!(try_join_all(both).await?, [Settled::Applied; 2]);

        let task = store.task_of(upload).await?;
        let (status, succeeded) =
            if index % 3 == 0 { (Status::Failed, 1) } else { (Status::Succeeded, 2) };
        assert_eq!((task.status, task.progress.succeeded), (status, succeeded), "{task:?}");
        assert_eq!(task.progress.failed, 2 - succeeded);
        assert!(task.finished_at.is_some());
        // Accepted, claimed twice and settled twice: no change is lost.
        assert_eq!(task.version, 5);
        Ok(())
    }));
    ended.await.into_iter().collect()
}

async fn concurrent_settles_of_one_attempt_count_once(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    for _ in 0..20 {
        let upload = store.accept_new_upload().await?;
        let job = store.claim_job(&write_notice(&upload)).await?;
        let (done, failed) = (write_succeeded(), Outcome::Failed(failure()));
        let settled = try_join_all([
            store.settle(&job.lease, &done),
            other.settle(&job.lease, &failed),
            store.settle(&job.lease, &Outcome::Released),
        ]);
        let applied = settled.await?.into_iter().filter(|s| *s == Settled::Applied).count();
        assert_eq!(applied, 1);
        let progress = store.task_of(&upload).await?.progress;
        assert!(progress.succeeded + progress.failed <= 1, "{progress:?}");
    }
    Ok(())
}

async fn jobs_are_counted_by_kind_lane_and_status(store: TestStore) -> Result<()> {
    assert_eq!(store.job_counts().await?, []);
    let mut bulk = super::test_store::upload();
    bulk.lane = Lane::Bulk;
    store.accept_upload(&bulk).await?;
    let uploads = [
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
    ];
    store.claim_job(&write_notice(&uploads[0])).await?;
    let job = store.claim_job(&write_notice(&uploads[1])).await?;
    store.settle_job(&job, &Outcome::Failed(failure())).await?;
    let job = store.claim_job(&write_notice(&uploads[2])).await?;
    store.settle_job(&job, &write_succeeded()).await?;

    let mut counts = store.job_counts().await?;
    counts.sort_by_key(|count| (count.kind, count.lane, count.status));
    let found: Vec<_> =
        counts.iter().map(|count| (count.kind, count.lane, count.status, count.count)).collect();
    let expected = [
        (JobKind::Write, Lane::Interactive, Status::Running, 1),
        (JobKind::Write, Lane::Interactive, Status::Failed, 1),
        (JobKind::Write, Lane::Bulk, Status::Queued, 1),
        (JobKind::Thumbnail, Lane::Interactive, Status::Queued, 3),
        (JobKind::Thumbnail, Lane::Bulk, Status::Queued, 1),
    ];
    assert_eq!(found, expected);
    for count in counts {
        let waited = count.oldest_due_seconds;
        let waits = count.status == Status::Queued;
        assert!(if waits { waited > 0.0 && waited < 60.0 } else { waited == 0.0 }, "{count:?}");
    }
    Ok(())
}
