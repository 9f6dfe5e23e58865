//! The outbox: what is still to be published, and what must be published anew.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::JobNotice;
use safelight_domain::{
    BackfillKind, BackfillSpec, ImageId, JobId, JobKind, Lane, Owner, TaskId, TaskKind,
    TraceContext,
};
use safelight_store::{
    BackfillStep, ChildTask, NewBackfill, NewUpload, OutboxBatch, Outcome, QueueCapacity,
};

use super::{
    fixture::{Fixture, HOUR, NOW, failure, thumbnail_notice, upload, write_notice, written},
    promises,
};

promises!(
    due_jobs_are_taken_oldest_first_up_to_the_limit,
    taken_jobs_are_hidden_for_the_hold,
    takers_at_once_never_get_the_same,
    marked_jobs_are_gone,
    marking_spares_a_later_attempt,
    returned_jobs_show_again_at_once,
    a_retry_comes_due_after_its_delay,
    lost_messages_are_put_back,
    only_queued_due_published_jobs_are_put_back,
    a_job_put_back_waits_anew,
    a_queue_without_room_gets_nothing,
    owners_are_taken_in_turn,
    an_old_backlog_does_not_always_come_first,
    backfills_are_taken_in_turn,
    a_job_keeps_its_trace,
);

const WRITE: (JobKind, Lane) = (JobKind::Write, Lane::Interactive);

async fn due_jobs_are_taken_oldest_first_up_to_the_limit(store: Fixture) -> Result<()> {
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(10), HOUR).await?,
        OutboxBatch::default()
    );
    let mut expected = Vec::new();
    for _ in 0..5 {
        let upload = store.accepted().await?;
        expected.extend([write_notice(&upload), thumbnail_notice(&upload)]);
    }
    let first = store.take_unpublished(&QueueCapacity::each(2), HOUR).await?;
    assert_eq!(first.due, expected[..4]);
    assert_eq!(first.next_in, Some(NOW));
    let rest = store.take_unpublished(&QueueCapacity::each(100), HOUR).await?;
    assert_eq!(rest.due, expected[4..]);
    Ok(())
}

async fn taken_jobs_are_hidden_for_the_hold(store: Fixture) -> Result<()> {
    store.accepted().await?;
    // A hold of zero is over at once: as if the taker had died.
    let taken = store.take_unpublished(&QueueCapacity::each(10), NOW).await?;
    assert_eq!(taken.due.len(), 2);
    assert_eq!(store.count_unpublished().await?, 2);
    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(again.due, taken.due);
    let next_in = again.next_in.context("they show again")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");

    let hidden = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(hidden.due, []);
    let next_in = hidden.next_in.context("they show again")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");
    assert_eq!(store.count_unpublished().await?, 0);
    Ok(())
}

async fn takers_at_once_never_get_the_same(store: Fixture) -> Result<()> {
    let other = store.another().await?;
    for _ in 0..40 {
        store.accepted().await?;
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

async fn marked_jobs_are_gone(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
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

/// The job runs, fails and is due again before the relay comes to mark its first message.
async fn marking_spares_a_later_attempt(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let first = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    let job = store.claimed(&write_notice(&upload)).await?;
    store.settled(&job, &Outcome::Retry(failure(), NOW)).await?;

    store.mark_published(&first).await?;
    store.return_unpublished(&first).await?;

    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(again.due, [JobNotice { generation: 1, ..write_notice(&upload) }]);
    Ok(())
}

async fn returned_jobs_show_again_at_once(store: Fixture) -> Result<()> {
    store.accepted().await?;
    let taken = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    store.return_unpublished(&taken[..1]).await?;
    assert_eq!(store.count_unpublished().await?, 1);
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, taken[..1]);
    Ok(())
}

async fn a_retry_comes_due_after_its_delay(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    store.publish_all().await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    store.settled(&job, &Outcome::Retry(failure(), HOUR)).await?;

    let batch = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?;
    assert_eq!(batch.due, []);
    let next_in = batch.next_in.context("a retry waits")?;
    assert!(next_in > HOUR / 2 && next_in <= HOUR, "{next_in:?}");
    assert_eq!(store.count_unpublished().await?, 0);
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 0);
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, NOW, 10).await?, 0);
    Ok(())
}

async fn lost_messages_are_put_back(store: Fixture) -> Result<()> {
    let mut expected = Vec::new();
    for _ in 0..5 {
        expected.push(write_notice(&store.accepted().await?));
    }
    // A job that has been tried comes back with its generation.
    let job = store.claimed(&expected[0]).await?;
    store.settled(&job, &Outcome::Released).await?;
    expected[0].generation = 1;
    store.publish_all().await?;
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 5);

    assert_eq!(store.unpublish(WRITE.0, WRITE.1, NOW, 2).await?, 2);
    // Oldest first: the released job has waited least.
    assert_eq!(store.publish_all().await?, expected[1..3]);
    for notice in &expected {
        store.claimed(notice).await?;
    }
    Ok(())
}

async fn only_queued_due_published_jobs_are_put_back(store: Fixture) -> Result<()> {
    let uploads = [store.accepted().await?, store.accepted().await?, store.accepted().await?];
    let published: Vec<_> = uploads[..2].iter().map(write_notice).collect();
    // The third is still in the outbox.
    store.mark_published(&published).await?;
    let running = store.claimed(&published[0]).await?;

    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 1);
    assert_eq!(store.count_published(JobKind::Thumbnail, Lane::Interactive).await?, 0);
    assert_eq!(store.count_published(JobKind::Write, Lane::Bulk).await?, 0);
    assert_eq!(store.unpublish(JobKind::Write, Lane::Bulk, NOW, 10).await?, 0);
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, NOW, 10).await?, 1);
    assert_eq!(store.count_published(WRITE.0, WRITE.1).await?, 0);
    assert!(
        store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due.contains(&published[1])
    );

    store.settled(&running, &written()).await?;
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, NOW, 10).await?, 0);
    Ok(())
}

async fn a_job_put_back_waits_anew(store: Fixture) -> Result<()> {
    store.accepted().await?;
    store.publish_all().await?;
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, HOUR, 10).await?, 0);

    // It has waited for two hours, as far as the database knows.
    let hours_ago = match store.url {
        safelight_config::DatabaseUrl::Sqlite(_) => {
            "update jobs set waiting_since = waiting_since - 7200000000"
        }
        safelight_config::DatabaseUrl::Postgres(_) => {
            "update jobs set waiting_since = waiting_since - interval '2 hours'"
        }
    };
    store.tamper(hours_ago).await?;
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, HOUR, 10).await?, 1);
    store.publish_all().await?;
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, Duration::from_mins(1), 10).await?, 0);
    assert_eq!(store.unpublish(WRITE.0, WRITE.1, NOW, 10).await?, 1);
    Ok(())
}

async fn a_queue_without_room_gets_nothing(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let writes = QueueCapacity(vec![
        (JobKind::Write, Lane::Interactive, 5),
        (JobKind::Thumbnail, Lane::Interactive, 0),
    ]);
    let batch = store.take_unpublished(&writes, HOUR).await?;
    assert_eq!(batch.due, [write_notice(&upload)]);
    let next_in = batch.next_in.context("what was taken shows again")?;
    assert!(next_in > HOUR / 2, "what finds no room is nothing to look for at once: {next_in:?}");
    let nowhere = store.take_unpublished(&QueueCapacity::default(), HOUR).await?;
    assert_eq!(nowhere.due, []);
    assert!(nowhere.next_in.is_none_or(|next| next > HOUR / 2), "{:?}", nowhere.next_in);
    assert_eq!(
        store.take_unpublished(&QueueCapacity::each(1), HOUR).await?.due,
        [thumbnail_notice(&upload)]
    );
    Ok(())
}

async fn owners_are_taken_in_turn(store: Fixture) -> Result<()> {
    let mut of_ada = Vec::new();
    for _ in 0..20 {
        of_ada.push(write_notice(&store.accepted().await?));
    }
    store.tamper("update jobs set share = 'ada'").await?;
    store.tamper("update outbox set share = 'ada'").await?;
    let mut of_others = Vec::new();
    for _ in 0..3 {
        of_others.push(write_notice(&store.accepted().await?));
    }
    let room = QueueCapacity(vec![(JobKind::Write, Lane::Interactive, 4)]);
    let first = store.take_unpublished(&room, HOUR).await?;
    assert_eq!(first.next_in, Some(NOW), "more is due");
    assert_eq!(first.due, [of_ada[0], of_ada[1], of_others[0], of_others[1]]);
    let second = store.take_unpublished(&room, HOUR).await?;
    assert_eq!(second.due, [of_ada[2], of_ada[3], of_ada[4], of_others[2]]);
    Ok(())
}

async fn an_old_backlog_does_not_always_come_first(store: Fixture) -> Result<()> {
    for _ in 0..100 {
        store.accepted().await?;
    }
    store.tamper("update jobs set share = 'ada'").await?;
    store.tamper("update outbox set share = 'ada'").await?;
    let late = write_notice(&store.accepted().await?);
    // A single place at a time, as when a queue is nearly full. That the late one never comes would take
    // a hundred tosses of a coin that all fall alike.
    let room = QueueCapacity(vec![(JobKind::Write, Lane::Interactive, 1)]);
    for _ in 0..100 {
        if store.take_unpublished(&room, HOUR).await?.due == [late] {
            return Ok(());
        }
    }
    anyhow::bail!("the oldest backlog always came first")
}

/// A backfill that has handed out a job for each of `images`.
async fn backfill(store: &Fixture, images: &[ImageId]) -> Result<Vec<JobNotice>> {
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

async fn backfills_are_taken_in_turn(store: Fixture) -> Result<()> {
    let image = store.accepted().await?.image;
    store.publish_all().await?;
    let large = backfill(&store, &[image; 20]).await?;
    let small = backfill(&store, &[image; 2]).await?;
    let room = QueueCapacity(vec![(JobKind::Thumbnail, Lane::Bulk, 4)]);
    let taken: HashSet<JobNotice> =
        store.take_unpublished(&room, NOW).await?.due.into_iter().collect();
    assert_eq!(taken, HashSet::from([large[0], large[1], small[0], small[1]]));

    // A message that got lost comes back with its share.
    store.publish_all().await?;
    store.unpublish(JobKind::Thumbnail, Lane::Bulk, NOW, 100).await?;
    let taken = store.take_unpublished(&room, HOUR).await?.due;
    assert_eq!(taken.iter().filter(|notice| small.contains(notice)).count(), 2, "{taken:?}");
    Ok(())
}

/// However often its notice is rung, and for whatever reason.
async fn a_job_keeps_its_trace(store: Fixture) -> Result<()> {
    let trace = TraceContext { trace: [0xab; 16], span: [7; 8], flags: 1 };
    let upload = NewUpload { trace: Some(trace), ..upload() };
    store.accept_it(&upload).await?;
    store.accepted().await?;
    let first = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(first.iter().map(|notice| notice.trace).collect::<Vec<_>>()[..2], [Some(trace); 2]);
    assert_eq!(first.iter().map(|notice| notice.trace).collect::<Vec<_>>()[2..], [None; 2]);
    store.mark_published(&first).await?;

    let write = JobNotice { trace: Some(trace), ..write_notice(&upload) };
    assert!(store.republish(write.job, NOW).await?);
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, [write]);
    store.mark_published(&[write]).await?;

    let job = store.claimed(&write).await?;
    store.settled(&job, &Outcome::Retry(failure(), NOW)).await?;
    let retried = JobNotice { generation: 1, ..write };
    assert_eq!(store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due, [retried]);
    store.mark_published(&[retried]).await?;

    let (kind, lane) = WRITE;
    store.unpublish(kind, lane, NOW, 10).await?;
    let again = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert!(again.contains(&retried), "{again:?}");

    for notice in [retried, thumbnail_notice(&upload)] {
        let job = store.claimed(&notice).await?;
        store.settled(&job, &Outcome::Failed(failure())).await?;
    }
    store.mark_published(&again).await?;
    assert_eq!(store.retry(&[upload.task]).await?, [upload.task]);
    let by_hand = store.take_unpublished(&QueueCapacity::each(10), HOUR).await?.due;
    assert_eq!(by_hand.iter().map(|notice| notice.trace).collect::<Vec<_>>(), [Some(trace); 2]);
    Ok(())
}
