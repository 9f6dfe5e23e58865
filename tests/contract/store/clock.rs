//! The database's clock is set back: nothing waits until it is there again, and what must wait still does.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};
use chrono::{TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_domain::{
    BackfillKind, BackfillSpec, ImageId, JobId, JobKind, JobNotice, Lane, TaskId, WorkerId,
};
use safelight_store::{
    Deletion, DeletionRequest, IdempotencyKey, ImageFilter, KeyState, LongestWaits, NewBackfill,
    Outcome, QueueCapacity, RenditionRequest, Requested,
};
use safelight_testing::wait::eventually;

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, failure, thumbnail_notice, thumbnail_succeeded, upload, write_notice,
    },
};

promises!(
    new_jobs_are_due_after_a_step_of_an_hour,
    new_jobs_are_due_after_a_step_of_a_minute,
    many_jobs_are_brought_back_in_batches,
    published_jobs_get_a_new_message,
    retry_keeps_its_delay,
    what_was_written_after_the_step_stays,
    lease_of_a_dead_worker_ends,
    lease_on_a_cancelled_job_delays_no_deletion,
    deletion_waits_no_longer_than_for_caches,
    cancelled_image_can_be_removed,
    key_of_a_dead_process_becomes_free,
    backfill_gets_another_coordinator,
    clock_that_was_ahead_unseen_blocks_nothing,
    clock_that_runs_forward_moves_nothing,
    rendition_made_in_the_future_is_not_recent,
    backfill_sees_images_of_the_future,
    every_time_is_brought_back_or_stays_for_a_reason,
);

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// The lease of the tests.
const LEASE: Duration = Duration::from_secs(20);

/// The delay of retries in the tests.
const DELAY: Duration = Duration::from_mins(5);

const WAITS: LongestWaits = LongestWaits {
    lease: Duration::from_secs(30),
    key_hold: Duration::from_secs(30),
    job_delay: Duration::from_mins(10),
};

/// Sets the clock back for everything that was written. What that changes is changed once.
async fn set_clock_back(store: &TestStore, step: Duration) -> Result<()> {
    // The clock is on record before the step.
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    store.advance_times(step).await?;
    observe_step(store, step).await
}

async fn observe_step(store: &TestStore, step: Duration) -> Result<()> {
    let observed = store.observe_clock(&WAITS).await?.context("no step was observed")?;
    let difference = observed.abs_diff(step);
    assert!(difference < Duration::from_secs(10), "{observed:?}");
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    assert_eq!(store.bring_times_back(&WAITS).await?, 0, "nothing is left ahead");
    Ok(())
}

async fn due(store: &TestStore) -> Result<Vec<JobNotice>> {
    Ok(store.take_unpublished(&QueueCapacity::each(9), HOUR).await?.due)
}

async fn new_jobs_are_due(store: &TestStore, step: Duration) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    set_clock_back(store, step).await?;
    assert_eq!(due(store).await?.len(), 2);
    let job = store.claim_job(&write_notice(&upload)).await?;
    assert_eq!(job.attempt, 1);
    let task = store.task_of(&upload).await?;
    assert!(task.jobs.iter().all(|job| job.retry_at.is_none()), "{task:?}");
    Ok(())
}

async fn new_jobs_are_due_after_a_step_of_an_hour(store: TestStore) -> Result<()> {
    new_jobs_are_due(&store, HOUR).await
}

async fn new_jobs_are_due_after_a_step_of_a_minute(store: TestStore) -> Result<()> {
    new_jobs_are_due(&store, MINUTE).await
}

/// A batch that fails undoes none before it. The step stays on record until all batches are done.
async fn many_jobs_are_brought_back_in_batches(store: TestStore) -> Result<()> {
    let uploads: Vec<_> = (0..600).map(|_| upload()).collect();
    let accepted = stream::iter(&uploads).map(|upload| store.accept_upload(upload));
    accepted.buffer_unordered(32).try_collect::<()>().await?;
    let jobs = || uploads.iter().flat_map(|upload| &upload.jobs).map(|(job, _)| *job);
    let first = jobs().min_by_key(|job| job.0).context("no job")?;
    let last = jobs().max_by_key(|job| job.0).context("no job")?;
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    store.advance_times(HOUR).await?;

    store.refuse_changes_of(last).await?;
    assert!(store.observe_clock(&WAITS).await.is_err());
    let wait = async |job| {
        store.seconds_ahead_where("jobs.run_at", &format!("id = {}", store.sql_id(job))).await
    };
    let waits = [wait(first).await?, wait(last).await?];
    assert!(waits[0] <= 0 && waits[1] > 3000, "{waits:?}");

    store.allow_changes().await?;
    observe_step(&store, HOUR).await?;
    assert!(wait(last).await? <= 0);
    assert_eq!(store.publish_all().await?.len(), jobs().count());
    Ok(())
}

/// A worker that received the message before the step was observed could not claim the job.
async fn published_jobs_get_a_new_message(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    assert_eq!(store.publish_all().await?.len(), 2);
    set_clock_back(&store, HOUR).await?;
    let mut published = store.publish_all().await?;
    published.sort_by_key(|notice| notice.job);
    assert_eq!(published, [write_notice(&upload), thumbnail_notice(&upload)]);
    Ok(())
}

async fn retry_keeps_its_delay(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), DELAY)).await?;
    set_clock_back(&store, HOUR).await?;
    let retry = JobNotice { generation: 1, ..write_notice(&upload) };
    store.assert_unclaimable(&retry, false).await?;
    assert_eq!(due(&store).await?, [thumbnail_notice(&upload)]);
    let retry_at = store.task_of(&upload).await?.jobs[0].retry_at.context("no retry")?;
    let waits = retry_at - Utc::now();
    assert!(waits > TimeDelta::minutes(4) && waits <= TimeDelta::minutes(5), "{waits}");
    Ok(())
}

async fn what_was_written_after_the_step_stays(store: TestStore) -> Result<()> {
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    let before = store.accept_new_upload().await?;
    store.advance_times(HOUR).await?;
    let after = store.accept_new_upload().await?;
    store.claim_job_for(&write_notice(&after), LEASE).await?;
    let failed = store.claim_job_for(&thumbnail_notice(&after), LEASE).await?;
    store.settle_job(&failed, &Outcome::Retry(failure(), DELAY)).await?;
    observe_step(&store, HOUR).await?;
    let lease = store.seconds_ahead("jobs.lease_until").await?;
    assert!((15..=20).contains(&lease), "{lease}");
    let retry = store.seconds_ahead("jobs.run_at").await?;
    assert!((290..=300).contains(&retry), "{retry}");
    store.claim_job(&write_notice(&before)).await?;
    Ok(())
}

async fn lease_of_a_dead_worker_ends(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.claim_job_for(&write_notice(&upload), NOW).await?;
    let living = store.claim_job_for(&thumbnail_notice(&upload), LEASE).await?;
    set_clock_back(&store, HOUR).await?;
    eventually("the lease has ended", async || {
        let expired = store.expired_leases(9).await?;
        Ok(expired.iter().map(|job| job.kind).collect::<Vec<_>>() == [JobKind::Write])
    })
    .await?;
    let lease = store.seconds_ahead("jobs.lease_until").await?;
    assert!((10..=30).contains(&lease), "a lease that is renewed is not lost: {lease}");
    assert_eq!(store.renew(&[living.lease], LEASE).await?.held, [living.lease]);
    Ok(())
}

fn deletion(image: ImageId, after: Duration) -> DeletionRequest {
    DeletionRequest {
        image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 5,
        after,
        presets: Vec::new(),
        trace: None,
    }
}

async fn delete(store: &TestStore, request: &DeletionRequest) -> Result<()> {
    assert_eq!(store.delete_image(request).await?, Deletion::Accepted(request.task));
    Ok(())
}

/// Neither one that is accepted before the step is observed, nor a later one.
async fn lease_on_a_cancelled_job_delays_no_deletion(store: TestStore) -> Result<()> {
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    let uploads = [store.accept_new_upload().await?, store.accept_new_upload().await?];
    for upload in &uploads {
        store.claim_job_for(&write_notice(upload), LEASE).await?;
        store.cancel(upload.task).await?;
    }
    store.advance_times(HOUR).await?;
    delete(&store, &deletion(uploads[0].image, NOW)).await?;
    observe_step(&store, HOUR).await?;
    delete(&store, &deletion(uploads[1].image, NOW)).await?;
    let wait = store.seconds_ahead_where("jobs.run_at", "kind = 'delete'").await?;
    assert!((1..=30).contains(&wait), "{wait}");
    Ok(())
}

async fn deletion_waits_no_longer_than_for_caches(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let request = deletion(upload.image, LEASE);
    delete(&store, &request).await?;
    set_clock_back(&store, HOUR).await?;
    let wait = store.seconds_ahead_where("jobs.run_at", "kind = 'delete'").await?;
    assert!((10..=20).contains(&wait), "{wait}");
    assert_eq!(store.task(request.task).await?.context("no task")?.jobs[0].retry_at, None);
    Ok(())
}

async fn cancelled_image_can_be_removed(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.cancel(upload.task).await?;
    set_clock_back(&store, DAY).await?;
    assert!(store.discarded(9, LEASE).await?.is_empty(), "caches may still have it");
    let found = store.discarded(9, NOW).await?;
    assert_eq!(found.iter().map(|image| image.id).collect::<Vec<_>>(), [upload.image]);
    Ok(())
}

async fn key_of_a_dead_process_becomes_free(store: TestStore) -> Result<()> {
    let key = IdempotencyKey { owner: "ann".parse()?, key: "k".to_owned() };
    assert!(matches!(store.reserve_key(&key, LEASE).await?, KeyState::Reserved(_)));
    set_clock_back(&store, HOUR).await?;
    assert_eq!(store.reserve_key(&key, LEASE).await?, KeyState::InFlight);
    let held = store.seconds_ahead("idempotency_keys.held_until").await?;
    assert!((10..=30).contains(&held), "{held}");
    Ok(())
}

async fn backfill_gets_another_coordinator(store: TestStore) -> Result<()> {
    let spec = BackfillSpec::new(BackfillKind::Renditions);
    let new = NewBackfill { task: TaskId::new(), owner: "ada".parse()?, spec };
    store.create_backfill(&new).await?;
    assert_eq!(store.lead_backfills(WorkerId::new(), LEASE, 9).await?.len(), 1);
    set_clock_back(&store, HOUR).await?;
    assert!(store.lead_backfills(WorkerId::new(), LEASE, 9).await?.is_empty());
    let lead = store.seconds_ahead("backfills.foreman_until").await?;
    assert!((10..=30).contains(&lead), "{lead}");
    Ok(())
}

async fn clock_that_was_ahead_unseen_blocks_nothing(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.claim_job_for(&thumbnail_notice(&upload), NOW).await?;
    for column in store.time_columns().await? {
        if column != "database_clock.seen_at" {
            store.advance_time(&column, DAY).await?;
        }
    }
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    assert!(store.bring_times_back(&WAITS).await? > 0);
    assert_eq!(store.bring_times_back(&WAITS).await?, 0);
    assert!(due(&store).await?.contains(&write_notice(&upload)));
    // Nobody knows by how much the clock was ahead, so the lease lasts as long as a new one.
    let lease = store.seconds_ahead("jobs.lease_until").await?;
    assert!((20..=30).contains(&lease), "{lease}");
    store.claim_job(&write_notice(&upload)).await?;
    Ok(())
}

/// What was written before a clock jumps forward is not touched when it comes back: it was not written in the
/// future.
async fn clock_that_runs_forward_moves_nothing(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job_for(&write_notice(&upload), LEASE).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), DELAY)).await?;
    store.claim_job_for(&thumbnail_notice(&upload), LEASE).await?;
    let before = store.task_of(&upload).await?;
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    // Somebody saw the clock a day ahead, and wrote nothing else.
    store.advance_time("database_clock.seen_at", DAY).await?;
    observe_step(&store, DAY).await?;
    assert_eq!(store.task_of(&upload).await?, before);
    let lease = store.seconds_ahead("jobs.lease_until").await?;
    assert!((10..=20).contains(&lease), "{lease}");
    // The adjustments of NTP are no steps.
    store.advance_time("database_clock.seen_at", Duration::from_millis(500)).await?;
    assert_eq!(store.observe_clock(&WAITS).await?, None);
    Ok(())
}

async fn rendition_made_in_the_future_is_not_recent(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.finish_jobs(&upload).await?;
    let request = || RenditionRequest {
        damaged: None,
        image: upload.image,
        task: TaskId::new(),
        job: JobId::new(),
        max_attempts: 3,
        again_after: MINUTE,
        trace: None,
    };
    let first = request();
    assert_eq!(store.request_rendition(&first).await?, Requested::Queued(first.task));
    let (kind, lane) = (JobKind::Thumbnail, Lane::Interactive);
    let notice = JobNotice { job: first.job, kind, lane, generation: 0, trace: None };
    let job = store.claim_job(&notice).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    assert_eq!(store.request_rendition(&request()).await?, Requested::Recent(first.task));
    set_clock_back(&store, HOUR).await?;
    let second = request();
    assert_eq!(store.request_rendition(&second).await?, Requested::Queued(second.task));
    Ok(())
}

async fn backfill_sees_images_of_the_future(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    set_clock_back(&store, HOUR).await?;
    let filter = ImageFilter { until: Utc::now(), created_after: None, format: None };
    assert_eq!(store.count_images(&filter).await?, 1);
    let walked = store.walk_images(&filter, None, 9).await?;
    assert_eq!(walked.iter().map(|image| image.id).collect::<Vec<_>>(), [upload.image]);
    Ok(())
}

async fn every_time_is_brought_back_or_stays_for_a_reason(store: TestStore) -> Result<()> {
    let moved =
        safelight_store_sql::postgres::BROUGHT_BACK.iter().flat_map(|one| one.columns).copied();
    let in_sqlite =
        safelight_store_sql::sqlite::BROUGHT_BACK.iter().flat_map(|one| one.columns).copied();
    assert!(moved.clone().eq(in_sqlite));
    let stays = safelight_store_sql::postgres::STAYS.iter().map(|(column, _)| *column);
    let listed: BTreeSet<&str> = moved.chain(stays).collect();
    let found = store.time_columns().await?;
    let found: BTreeSet<&str> = found.iter().map(String::as_str).collect();
    let missing: Vec<_> = found.symmetric_difference(&listed).collect();
    assert!(missing.is_empty(), "see store-sql/src/shared/clock_steps.rs: {missing:?}");
    Ok(())
}
