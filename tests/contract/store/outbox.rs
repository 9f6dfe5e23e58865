//! The outbox: jobs that are not published yet, and jobs that must be published again.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::{
    BackfillKind, BackfillSpec, ImageId, JobId, JobKind, JobNotice, Lane, Owner, TaskId, TaskKind,
    TraceContext,
};
use safelight_store::{
    BackfillStep, ChildTask, NewBackfill, NewUpload, OutboxBatch, Outcome, QueueCapacity,
};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, thumbnail_notice, upload, write_notice, write_succeeded,
    },
};

promises!(
    due_jobs_are_taken_oldest_first_up_to_the_limit,
    taken_jobs_are_hidden_during_the_hold,
    concurrent_takers_never_get_the_same_job,
    published_jobs_leave_the_outbox,
    marking_published_keeps_a_later_attempt,
    returned_jobs_can_be_taken_immediately,
    retry_is_due_after_its_delay,
    lost_messages_return_to_the_outbox,
    only_queued_due_published_jobs_return_to_the_outbox,
    republished_job_waits_the_full_time_again,
    full_queue_gets_no_jobs,
    owners_are_taken_in_turn,
    old_backlog_does_not_always_come_first,
    backfills_are_taken_in_turn,
    job_keeps_its_trace,
);

const WRITE: (JobKind, Lane) = (JobKind::Write, Lane::Interactive);

async fn due_jobs_are_taken_oldest_first_up_to_the_limit(store: TestStore) -> Result<()> {
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(10), HOUR).await?,
        OutboxBatch::default()
    );
    let mut expected = Vec::new();
    for _ in 0..5 {
        let upload = store.accept_new_upload().await?;
        expected.extend([write_notice(&upload), thumbnail_notice(&upload)]);
    }
    let first = store.take_unpublished(&QueueCapacity::each(2), HOUR).await?;
    assert_eq!(first.due, expected[..4]);
    assert_eq!(first.next_in, Some(NOW));
    let rest = store.take_unpublished(&QueueCapacity::each(100), HOUR).await?;
    assert_eq!(rest.due, expected[4..]);
    Ok(())
}

async fn taken_jobs_are_hidden_during_the_hold(store: TestStore) -> Result<()> {
    store.accept_new_upload().await?;
    // A hold of zero ends immediately, as if the taker had died.
    let taken = store.take_unpublished(&QueueCapacity::each(10), NOW).await?;
    assert_eq!(taken.due.len(), 2);
    assert_eq!(store.count_unpublished().await?, 2);
    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(again.due, taken.due);
    let next_in = again.next_in.context("they become visible again")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");

    let hidden = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(hidden.due, []);
    let next_in = hidden.next_in.context("they become visible again")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn concurrent_takers_never_get_the_same_job(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    for _ in 0..40 {
        store.accept_new_upload().await?;
    }
    let take = async |taker: usize| -> Result<Vec<JobNotice>> {
        let store = if taker.is_multiple_of(2) { &store.store } else { &other };
        let mut taken = Vec::new();
        loop {
            let batch = store.take_unpublished(&QueueCapacity::each(3), HOUR).await?;
            if batch.due.is_empty() {
                return Ok(taken);
            }
            taken.extend(batch.due);
        }
    };
    let mut all = Vec::new();
    for taken in join_all((0..8).map(take)).await {
        all.extend(taken?);
    }
    assert_eq!(all.len(), 80);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), 80);
    Ok(())
}

async fn published_jobs_leave_the_outbox(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.take_unpublished(&QueueCapacity::each(10), NOW).await?;
    store.mark_published(&[write_notice(&upload)]).await?;
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(10), NOW).await?.due,
        [thumbnail_notice(&upload)]
    );
    store.mark_published(&[write_notice(&upload), thumbnail_notice(&upload)]).await?;
    store.mark_published(&[]).await?;
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(10), NOW).await?,
        OutboxBatch::default()
    );
    Ok(())
}

/// The job runs, fails and is due again before the relay marks its first message.
async fn marking_published_keeps_a_later_attempt(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let first = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;

    store.mark_published(&first).await?;
    store.release_taken(&first).await?;

    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(again.due, [JobNotice { generation: 1, ..write_notice(&upload) }]);
    Ok(())
}

async fn returned_jobs_can_be_taken_immediately(store: TestStore) -> Result<()> {
    store.accept_new_upload().await?;
    let taken = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    store.release_taken(&taken[..1]).await?;
    assert_eq!(store.count_unpublished().await?, 1);
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, taken[..1]);
    Ok(())
}

async fn retry_is_due_after_its_delay(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.publish_all().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;

    let batch = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(batch.due, []);
    let next_in = batch.next_in.context("a retry waits")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");
    assert_eq!(store.count_unpublished().await?, 0);
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 0);
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, NOW, 10).await?, 0);
    Ok(())
}

async fn lost_messages_return_to_the_outbox(store: TestStore) -> Result<()> {
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(write_notice(&store.accept_new_upload().await?));
    }
    // A job that was attempted returns with its generation.
    let job = store.claim_job(&expected[0]).await?;
    store.settle_job(&job, &Outcome::Released).await?;
    expected[0].generation = 1;
    store.publish_all().await?;
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 5);

    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, NOW, 2).await?, 2);
    // Oldest first: the released job has waited for the shortest time.
    assert_eq!(store.publish_all().await?, expected[1..3]);
    for notice in &expected {
        store.claim_job(notice).await?;
    }
    Ok(())
}

async fn only_queued_due_published_jobs_return_to_the_outbox(store: TestStore) -> Result<()> {
    let uploads = [
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
        store.accept_new_upload().await?,
    ];
    let published: Vec<_> = uploads[..2].iter().map(write_notice).collect();
    // The third is still in the outbox.
    store.mark_published(&published).await?;
    let running = store.claim_job(&published[0]).await?;

    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 1);
    assert_eq!(store.count_published(JobKind::Thumbnail, Lane::Interactive).await?, 0);
    assert_eq!(store.count_published(JobKind::Write, Lane::Bulk).await?, 0);
    assert_eq!(store.requeue_lost(JobKind::Write, Lane::Bulk, NOW, 10).await?, 0);
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, NOW, 10).await?, 1);
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 0);
    assert!(
        store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due.contains(&published[1])
    );

    store.settle_job(&running, &write_succeeded()).await?;
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, NOW, 10).await?, 0);
    Ok(())
}

async fn republished_job_waits_the_full_time_again(store: TestStore) -> Result<()> {
    store.accept_new_upload().await?;
    store.publish_all().await?;
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, HOUR, 10).await?, 0);

    // In the database it has waited for two hours.
    let hours_ago = match store.url {
        safelight_config::DatabaseUrl::Sqlite(_) => {
            "update jobs set waiting_since = waiting_since - 7200000000"
        }
        safelight_config::DatabaseUrl::Postgres(_) => {
            "update jobs set waiting_since = waiting_since - interval '2 hours'"
        }
    };
    store.tamper(hours_ago).await?;
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, HOUR, 10).await?, 1);
    store.publish_all().await?;
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, Duration::from_mins(1), 10).await?, 0);
    assert_eq!(store.requeue_lost(WRITE.0, WRITE.1, NOW, 10).await?, 1);
    Ok(())
}

async fn full_queue_gets_no_jobs(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let writes = QueueCapacity(vec![
        (JobKind::Write, Lane::Interactive, 5),
        (JobKind::Thumbnail, Lane::Interactive, 0),
    ]);
    let batch = store.take_unpublished(&writes, HOUR).await?;
    assert_eq!(batch.due, [write_notice(&upload)]);
    let next_in = batch.next_in.context("the taken job becomes visible again")?;
    assert!(next_in > HOUR / 2, "a full queue must not be polled immediately: {next_in:?}");
    let none = store.take_unpublished(&QueueCapacity::default(), HOUR).await?;
    assert_eq!(none.due, []);
    assert!(none.next_in.is_none_or(|next| next > HOUR / 2), "{:?}", none.next_in);
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(1), HOUR).await?.due,
        [thumbnail_notice(&upload)]
    );
    Ok(())
}

async fn owners_are_taken_in_turn(store: TestStore) -> Result<()> {
    let mut ada_notices = Vec::new();
    for _ in 0..20 {
        ada_notices.push(write_notice(&store.accept_new_upload().await?));
    }
    store.tamper("update jobs set share = 'ada'").await?;
    store.tamper("update outbox set share = 'ada'").await?;
    let mut other_notices = Vec::new();
    for _ in 0..3 {
        other_notices.push(write_notice(&store.accept_new_upload().await?));
    }
    let capacity = QueueCapacity(vec![(JobKind::Write, Lane::Interactive, 4)]);
    let first = store.take_unpublished(&capacity, HOUR).await?;
    assert_eq!(first.next_in, Some(NOW), "more is due");
    assert_eq!(first.due, [ada_notices[0], ada_notices[1], other_notices[0], other_notices[1]]);
    let second = store.take_unpublished(&capacity, HOUR).await?;
    assert_eq!(second.due, [ada_notices[2], ada_notices[3], ada_notices[4], other_notices[2]]);
    Ok(())
}

async fn old_backlog_does_not_always_come_first(store: TestStore) -> Result<()> {
    for _ in 0..100 {
        store.accept_new_upload().await?;
    }
    store.tamper("update jobs set share = 'ada'").await?;
    store.tamper("update outbox set share = 'ada'").await?;
    let late = write_notice(&store.accept_new_upload().await?);
    // One free place at a time, as in a nearly full queue. The chance that the late job is never taken is
    // 1 in 2^100.
    let capacity = QueueCapacity(vec![(JobKind::Write, Lane::Interactive, 1)]);
    for _ in 0..100 {
        if store.take_unpublished(&capacity, HOUR).await?.due == [late] {
            return Ok(());
        }
    }
    anyhow::bail!("the old backlog always came first")
}

/// Starts a backfill with one queued job per image.
async fn queue_backfill(store: &TestStore, images: &[ImageId]) -> Result<Vec<JobNotice>> {
    let spec = BackfillSpec::new(BackfillKind::Renditions);
    let new = NewBackfill { task: TaskId::new(), owner: Owner::local(), spec };
    store.create_backfill(&new).await?;
    let kind = JobKind::Thumbnail;
    let child = |&image| {
        let jobs = vec![(JobId::new(), kind)];
        ChildTask { task: TaskId::new(), kind: TaskKind::Rendition, image, jobs, import: None }
    };
    let work: Vec<ChildTask> = images.iter().map(child).collect();
    let notice = |job| JobNotice { job, kind, lane: Lane::Bulk, generation: 0, trace: None };
    let notices = work.iter().map(|child| notice(child.jobs[0].0)).collect();
    let step = BackfillStep { work, max_attempts: 3, ..BackfillStep::of(new.task, None) };
    assert!(store.advance_backfill(&step).await?);
    Ok(notices)
}

async fn backfills_are_taken_in_turn(store: TestStore) -> Result<()> {
    let image = store.accept_new_upload().await?.image;
    store.publish_all().await?;
    let large = queue_backfill(&store, &[image; 20]).await?;
    let small = queue_backfill(&store, &[image; 2]).await?;
    let capacity = QueueCapacity(vec![(JobKind::Thumbnail, Lane::Bulk, 4)]);
    let taken = store.take_unpublished(&capacity, NOW).await?.due;
    let number_of = |jobs: &[JobNotice]| taken.iter().filter(|one| jobs.contains(one)).count();
    assert_eq!((number_of(&large), number_of(&small)), (2, 2), "{taken:?}");

    // A lost message returns with its share.
    store.publish_all().await?;
    store.requeue_lost(JobKind::Thumbnail, Lane::Bulk, NOW, 100).await?;
    let taken = store.take_unpublished(&capacity, HOUR).await?.due;
    assert_eq!(taken.iter().filter(|notice| small.contains(notice)).count(), 2, "{taken:?}");
    Ok(())
}

/// Also when its notice is published again: after a dead letter, a retry, a lost message, or by hand.
async fn job_keeps_its_trace(store: TestStore) -> Result<()> {
    let trace = TraceContext { trace: [0xab; 16], span: [7; 8], flags: 1 };
    let upload = NewUpload { trace: Some(trace), ..upload() };
    store.accept_upload(&upload).await?;
    store.accept_new_upload().await?;
    let first = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(first.iter().map(|notice| notice.trace).collect::<Vec<_>>()[..2], [Some(trace); 2]);
    assert_eq!(first.iter().map(|notice| notice.trace).collect::<Vec<_>>()[2..], [None; 2]);
    store.mark_published(&first).await?;

    let write = JobNotice { trace: Some(trace), ..write_notice(&upload) };
    assert!(store.requeue_one(write.job, NOW).await?);
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, [write]);
    store.mark_published(&[write]).await?;

    let job = store.claim_job(&write).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;
    let retried = JobNotice { generation: 1, ..write };
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, [retried]);
    store.mark_published(&[retried]).await?;

    let (kind, lane) = WRITE;
    store.requeue_lost(kind, lane, NOW, 10).await?;
    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert!(again.contains(&retried), "{again:?}");

    for notice in [retried, thumbnail_notice(&upload)] {
        let job = store.claim_job(&notice).await?;
        store.settle_job(&job, &Outcome::Failed(failure())).await?;
    }
    store.mark_published(&again).await?;
    assert_eq!(store.retry(&[upload.task]).await?, [upload.task]);
    let by_hand = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(by_hand.iter().map(|notice| notice.trace).collect::<Vec<_>>(), [Some(trace); 2]);
    Ok(())
}
