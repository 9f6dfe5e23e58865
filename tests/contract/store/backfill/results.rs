//! Results of child tasks: counting, retrying, cancelling, and the report.

use anyhow::{Context, Result};
use safelight_domain::{
    BackfillKind, BackfillSpec, BackfillState, ErrorCode, ItemOutcome, JobId, JobKind, JobNotice,
    Status, TaskKind, WorkerId, new_id,
};
use safelight_store::{BackfillStep, ChildTask, Effect, Outcome, ReportLine};

use super::{
    child, corrupt_outcome, finished_upload, load_backfill, notice, queue_children, settle_child,
    skipped_line, spec, start_backfill, step,
};
use crate::contract::store::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, rendition, thumbnail_notice, thumbnail_succeeded, without_made_at,
        write_notice, write_succeeded,
    },
};

promises!(
    unfinished_and_failed_jobs_block_an_image,
    later_success_unblocks_an_image,
    collecting_the_last_result_ends_the_backfill,
    backfill_with_failures_fails_and_keeps_failed_tasks,
    failures_of_deleted_images_count_as_cancelled,
    retrying_a_backfill_queues_its_failed_images,
    retrying_one_failed_image_reopens_its_backfill,
    cancelled_backfill_cancels_its_open_tasks_and_ends,
    claim_includes_the_backfill_spec,
    verify_records_repaired_renditions,
    report_is_read_in_pages,
);

async fn unfinished_and_failed_jobs_block_an_image(store: TestStore) -> Result<()> {
    let (open, done) = (store.accept_new_upload().await?, finished_upload(&store).await?);
    let bad = store.accept_new_upload().await?;
    for notice in [write_notice(&bad), thumbnail_notice(&bad)] {
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &corrupt_outcome()).await?;
    }
    let all = [open.image, done.image, bad.image];
    let mut found = store.blocking_jobs(&all).await?;
    found.sort_by_key(|job| (job.image, job.kind.as_str()));
    let seen: Vec<_> = found.iter().map(|job| (job.image, job.kind, job.status)).collect();
    assert_eq!(
        seen,
        [
            (open.image, JobKind::Thumbnail, Status::Queued),
            (open.image, JobKind::Write, Status::Queued),
            (bad.image, JobKind::Thumbnail, Status::Failed),
            (bad.image, JobKind::Write, Status::Failed),
        ]
    );
    let failure = found[2].failure.as_ref().context("no failure")?;
    assert_eq!((failure.code, failure.message.as_str()), (ErrorCode::CorruptImage, "cut short"));
    Ok(())
}

async fn later_success_unblocks_an_image(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    for (notice, outcome) in
        [(write_notice(&upload), write_succeeded()), (thumbnail_notice(&upload), corrupt_outcome())]
    {
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &outcome).await?;
    }
    assert_eq!(store.blocking_jobs(&[upload.image]).await?.len(), 1);
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[upload.image]).await?;
    settle_child(&store, &work[0], &thumbnail_succeeded()).await?;
    assert_eq!(store.blocking_jobs(&[upload.image]).await?, [], "the newest job succeeded");
    store.collect_results(id, 9).await?;
    assert!(store.task(work[0].task).await?.is_none());
    assert_eq!(store.blocking_jobs(&[upload.image]).await?, [], "also after its task is removed");
    // A failure after that counts again.
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[upload.image]).await?;
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    assert_eq!(store.blocking_jobs(&[upload.image]).await?.len(), 1);
    Ok(())
}

async fn collecting_the_last_result_ends_the_backfill(store: TestStore) -> Result<()> {
    let (first, second) = (finished_upload(&store).await?, finished_upload(&store).await?);
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[first.image, second.image]).await?;
    assert_eq!(store.collect_results(id, 9).await?, 0);
    assert_eq!(load_backfill(&store, id).await?.state, BackfillState::Walked);

    settle_child(&store, &work[0], &thumbnail_succeeded()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    assert!(store.task(work[0].task).await?.is_none(), "its task is removed");
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.succeeded, current.under_way()), (1, 1));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Running);

    settle_child(&store, &work[1], &thumbnail_succeeded()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let task = store.task(id).await?.context("no task")?;
    assert_eq!((task.status, task.finished_at.is_some()), (Status::Succeeded, true));
    assert_eq!(load_backfill(&store, id).await?.state, BackfillState::Ended);
    assert!(store.lead_backfills(WorkerId::new(), HOUR, 9).await?.is_empty());
    assert_eq!(store.backfill_report(id, None, 9).await?.len(), 2);
    assert!(!store.pause_backfill(id, true).await?);
    assert!(!store.cancel(id).await?);
    Ok(())
}

async fn backfill_with_failures_fails_and_keeps_failed_tasks(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[image]).await?;
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    assert_eq!(store.collect_results(id, 9).await?, 0, "it is counted once");
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Failed);
    let kept = store.task(work[0].task).await?.context("it is kept")?;
    assert_eq!(kept.status, Status::Failed);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].reason.as_deref(), Some("corrupt_image"));
    assert_eq!(report[0].detail.as_deref(), Some("cut short"));
    Ok(())
}

async fn failures_of_deleted_images_count_as_cancelled(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[image]).await?;
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    store.tamper("update images set discarded_at = created_at").await?;
    assert_eq!(store.collect_results(id, 9).await?, 1);
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.failed, current.cancelled_images), (0, 1));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].outcome, ItemOutcome::Cancelled);
    assert!(store.task(work[0].task).await?.is_none(), "it cannot be retried");
    Ok(())
}

async fn retrying_a_backfill_queues_its_failed_images(store: TestStore) -> Result<()> {
    let (first, second) = (finished_upload(&store).await?, finished_upload(&store).await?);
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[first.image, second.image]).await?;
    for child in &work {
        settle_child(&store, child, &corrupt_outcome()).await?;
    }
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry(&[id]).await?, [id]);
    let current = load_backfill(&store, id).await?;
    assert!(current.retrying);
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Running);

    assert_eq!(store.retry_backfill(id, 1).await?, 1);
    assert_eq!(load_backfill(&store, id).await?.under_way(), 1);
    assert_eq!(store.retry_backfill(id, 9).await?, 1);
    // The first image fails again. This retry does not queue it a second time.
    let job = store.claim_job(&JobNotice { generation: 1, ..notice(&work[0]) }).await?;
    store.settle_job(&job, &corrupt_outcome()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry_backfill(id, 9).await?, 0);
    assert!(!load_backfill(&store, id).await?.retrying);
    let job = store.claim_job(&JobNotice { generation: 1, ..notice(&work[1]) }).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    store.collect_results(id, 9).await?;
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.succeeded, current.failed, current.under_way()), (1, 1, 0));
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Failed);
    let report = store.backfill_report(id, None, 9).await?;
    let outcomes: Vec<_> = report.iter().map(|item| item.outcome).collect();
    assert_eq!(outcomes, [ItemOutcome::Failed, ItemOutcome::Succeeded], "one line per image");
    Ok(())
}

async fn retrying_one_failed_image_reopens_its_backfill(store: TestStore) -> Result<()> {
    let image = finished_upload(&store).await?.image;
    let id = start_backfill(&store, spec()).await?;
    let work = queue_children(&store, id, &[image]).await?;
    settle_child(&store, &work[0], &corrupt_outcome()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.retry(&[work[0].task]).await?, [work[0].task]);
    let current = load_backfill(&store, id).await?;
    assert_eq!(
        (current.state, current.failed, current.retrying),
        (BackfillState::Walked, 0, false)
    );
    let job = store.claim_job(&JobNotice { generation: 1, ..notice(&work[0]) }).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    store.collect_results(id, 9).await?;
    assert_eq!(store.task(id).await?.context("no task")?.status, Status::Succeeded);
    Ok(())
}

async fn cancelled_backfill_cancels_its_open_tasks_and_ends(store: TestStore) -> Result<()> {
    let (first, second) = (finished_upload(&store).await?, finished_upload(&store).await?);
    let id = start_backfill(&store, spec()).await?;
    let mut work = Vec::new();
    for (from, to, image) in [(None, "a", first.image), (Some("a"), "b", second.image)] {
        let step = step(id, from, to, image);
        assert!(store.advance_backfill(&step).await?);
        work.extend(step.work);
    }
    settle_child(&store, &work[0], &thumbnail_succeeded()).await?;
    assert!(store.cancel(id).await?);
    assert!(!store.advance_backfill(&step(id, Some("b"), "c", first.image)).await?);
    store.assert_unclaimable(&notice(&work[1]), false).await?;
    assert_eq!(store.collect_results(id, 9).await?, 2);
    let task = store.task(id).await?.context("no task")?;
    assert_eq!(task.status, Status::Cancelled);
    let current = load_backfill(&store, id).await?;
    assert_eq!((current.succeeded, current.cancelled_images), (1, 1));
    assert!(!store.image(second.image).await?.context("no image")?.discarded);
    Ok(())
}

async fn claim_includes_the_backfill_spec(store: TestStore) -> Result<()> {
    let (upload, other) = (finished_upload(&store).await?, store.accept_new_upload().await?);
    let mut spec = spec();
    spec.all = true;
    let id = start_backfill(&store, spec.clone()).await?;
    let work = queue_children(&store, id, &[upload.image]).await?;
    assert_eq!(store.claim_job_for(&notice(&work[0]), NOW).await?.backfill, Some(spec.clone()));
    assert_eq!(store.expired_leases(9).await?[0].backfill, Some(spec));
    assert_eq!(store.claim_job(&write_notice(&other)).await?.backfill, None);
    Ok(())
}

async fn verify_records_repaired_renditions(store: TestStore) -> Result<()> {
    let upload = finished_upload(&store).await?;
    let id = start_backfill(&store, BackfillSpec::new(BackfillKind::Verify)).await?;
    let jobs = vec![(JobId::new(), JobKind::Verify)];
    let child = ChildTask { kind: TaskKind::Verify, jobs, ..child(upload.image) };
    let work = vec![child.clone()];
    let step = BackfillStep { work, max_attempts: 3, is_last: true, ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let repaired = rendition("small", 777);
    let outcome = Outcome::Succeeded(vec![
        Effect::UpsertRenditions(vec![repaired.clone()]),
        Effect::ForgetRenditions(vec![rendition("medium", 40_000)]),
        Effect::Note("small was missing".to_owned()),
    ]);
    settle_child(&store, &child, &outcome).await?;
    let image = store.image(upload.image).await?.context("no image")?;
    assert_eq!(without_made_at(&image.renditions), [repaired]);
    assert!(image.placeholder.is_some(), "it is unchanged");
    store.collect_results(id, 9).await?;
    let report = store.backfill_report(id, None, 9).await?;
    assert_eq!(report[0].detail.as_deref(), Some("small was missing"));
    assert_eq!(report[0].outcome, ItemOutcome::Succeeded);
    Ok(())
}

async fn report_is_read_in_pages(store: TestStore) -> Result<()> {
    let id = start_backfill(&store, spec()).await?;
    let mut items: Vec<ReportLine> = (0..5).map(|_| skipped_line(new_id())).collect();
    let step = BackfillStep { without_work: items.clone(), ..BackfillStep::of(id, None) };
    assert!(store.advance_backfill(&step).await?);
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let page = store.backfill_report(id, after, 2).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        read.extend(page);
    }
    items.sort_unstable_by_key(|line| line.id);
    assert_eq!(read, items);
    Ok(())
}
