//! Claims and settles that are ready at the same time: each one gets its own result, as if it ran alone.
//!
//! On one thread all calls that are polled together are queued before any of them runs. So a store that
//! batches calls puts all of these into one batch.

use anyhow::{Context, Result};
use futures::future::{join_all, try_join_all};
use safelight_domain::{JOB_VERSION, JobId, JobNotice, Status, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, DynStore, Effect, NewUpload, Outcome, Settled, StoreError,
};

use super::test_store::{
    HOUR, NOW, TestStore, facts, failure, placeholder, rendition, renditions, thumbnail_notice,
    thumbnail_succeeded, upload, without_made_at, write_notice, write_succeeded,
};

macro_rules! promises_on_one_thread {
    ($($promise:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::TestStore::sqlite().await?).await
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::TestStore::postgres().await?).await
            })+
        }
    };
}

promises_on_one_thread!(
    each_claim_in_a_batch_gets_its_own_result,
    duplicate_messages_in_a_batch_grant_one_lease,
    both_jobs_of_a_task_are_claimed_in_one_batch,
    each_settle_in_a_batch_has_its_own_effects,
    both_jobs_of_a_task_end_it_once,
    job_settles_once_in_a_batch,
    equal_uploads_settle_in_one_batch,
    unrecordable_settle_fails_alone,
    refused_claim_fails_alone,
    refused_settle_fails_alone,
    claim_of_a_gone_caller_is_not_carried_out,
    opposite_settle_orders_do_not_deadlock,
);

async fn claim(store: &DynStore, notice: JobNotice) -> Result<Claim, StoreError> {
    store.claim(&notice, false, WorkerId::new(), HOUR, JOB_VERSION).await
}

/// Makes all claims concurrently.
async fn claim_all(store: &DynStore, notices: &[JobNotice]) -> Result<Vec<Claim>> {
    Ok(try_join_all(notices.iter().map(|notice| claim(store, *notice))).await?)
}

fn expect_job(claim: Claim) -> Result<ClaimedJob> {
    match claim {
        Claim::Run(job) => Ok(*job),
        other => anyhow::bail!("not claimed: {other:?}"),
    }
}

async fn claim_all_jobs(store: &DynStore, notices: &[JobNotice]) -> Result<Vec<ClaimedJob>> {
    claim_all(store, notices).await?.into_iter().map(expect_job).collect()
}

/// Makes all settles concurrently.
async fn settle_all(store: &DynStore, ends: &[(&ClaimedJob, Outcome)]) -> Result<Vec<Settled>> {
    Ok(try_join_all(ends.iter().map(|(job, outcome)| store.settle(&job.lease, outcome))).await?)
}

async fn each_claim_in_a_batch_gets_its_own_result(store: TestStore) -> Result<()> {
    let mut uploads = Vec::new();
    for _ in 0..6 {
        uploads.push(store.accept_new_upload().await?);
    }
    let [fresh, done, cancelled, waiting, held, rendered] = &uploads[..] else { unreachable!() };
    let job = store.claim_job(&write_notice(done)).await?;
    store.settle_job(&job, &write_succeeded()).await?;
    store.cancel(cancelled.task).await?;
    let job = store.claim_job(&write_notice(waiting)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;
    store.claim_job(&write_notice(held)).await?;
    let job = store.claim_job(&thumbnail_notice(rendered)).await?;
    store.settle_job(&job, &thumbnail_succeeded()).await?;
    let unknown = JobNotice { job: JobId::new(), ..write_notice(fresh) };
    let newer = store.accept_new_upload().await?;
    store
        .tamper(
            "update jobs set needs_version = 1000
             where id = (select id from jobs order by id desc limit 1)",
        )
        .await?;

    let mut notices: Vec<_> =
        [rendered, cancelled, waiting, fresh, held, done].into_iter().map(write_notice).collect();
    notices.extend([thumbnail_notice(&newer), unknown]);
    let claims = claim_all(&store, &notices).await?;

    for (index, claim) in claims.into_iter().enumerate() {
        match (index, claim) {
            (0, Claim::Run(job)) => {
                assert_eq!(job.task, rendered.task);
                assert_eq!(without_made_at(&job.image.renditions), renditions());
            }
            (3, Claim::Run(job)) => {
                assert_eq!((job.task, job.image.id), (fresh.task, fresh.image));
                assert_eq!((job.attempt, job.lease.fence), (1, 1));
                assert_eq!(job.image.renditions, []);
            }
            (6, claim) => assert_eq!(claim, Claim::Newer),
            (_, claim) => assert_eq!(claim, Claim::Nothing, "the claim at {index}"),
        }
    }
    assert_eq!(store.task_of(&newer).await?.jobs[0].attempt, 0);
    Ok(())
}

async fn duplicate_messages_in_a_batch_grant_one_lease(store: TestStore) -> Result<()> {
    let (first, other) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let notice = write_notice(&first);
    let claims = claim_all(&store, &[notice, notice, write_notice(&other), notice]).await?;
    let fences = claims.into_iter().filter_map(|claim| expect_job(claim).ok()).map(|job| job.lease);
    let mut leases: Vec<_> = fences.collect();
    leases.sort_unstable_by_key(|lease| lease.job);
    assert_eq!(leases.iter().map(|lease| lease.fence).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(
        leases.iter().map(|l| l.job).collect::<Vec<_>>(),
        [first.jobs[0].0, other.jobs[0].0]
    );
    Ok(())
}

async fn both_jobs_of_a_task_are_claimed_in_one_batch(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    claim_all_jobs(&store, &[thumbnail_notice(&upload), write_notice(&upload)]).await?;
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.version), (Status::Running, 3));
    assert!(task.jobs.iter().all(|job| job.status == Status::Running), "{task:?}");
    Ok(())
}

async fn each_settle_in_a_batch_has_its_own_effects(store: TestStore) -> Result<()> {
    let mut uploads = Vec::new();
    for _ in 0..6 {
        uploads.push(store.accept_new_upload().await?);
    }
    store.publish_all().await?;
    let late = store.claim_job_for(&write_notice(&uploads[5]), NOW).await?;
    store.claim_job(&write_notice(&uploads[5])).await?;
    let before = store.task_of(&uploads[5]).await?;
    let notices = [
        write_notice(&uploads[0]),
        thumbnail_notice(&uploads[1]),
        write_notice(&uploads[2]),
        write_notice(&uploads[3]),
        write_notice(&uploads[4]),
    ];
    let jobs = claim_all_jobs(&store, &notices).await?;

    let settled = settle_all(
        &store,
        &[
            (&jobs[4], Outcome::Released),
            (&late, write_succeeded()),
            (&jobs[0], write_succeeded()),
            (&jobs[3], Outcome::Failed(failure())),
            (&jobs[1], thumbnail_succeeded()),
            (&jobs[2], Outcome::Retry(failure(), NOW)),
        ],
    )
    .await?;

    let applied = Settled::Applied;
    assert_eq!(settled, [applied, Settled::Stale, applied, applied, applied, applied]);
    let image = store.image(uploads[0].image).await?.context("no image")?;
    assert_eq!((image.facts, image.renditions), (Some(facts()), Vec::new()));
    let image = store.image(uploads[1].image).await?.context("no image")?;
    assert_eq!((image.facts, without_made_at(&image.renditions)), (None, renditions()));
    assert_eq!(image.placeholder, Some(placeholder(1)));
    let mut job_states = Vec::new();
    for upload in &uploads[2..5] {
        let job = store.task_of(upload).await?.jobs.swap_remove(0);
        job_states.push((job.status, job.attempt, job.error));
    }
    let failed = Some(failure());
    let queued = Status::Queued;
    assert_eq!(
        job_states,
        [(queued, 1, failed.clone()), (Status::Failed, 1, failed), (queued, 0, None)]
    );
    assert_eq!(store.task_of(&uploads[5]).await?, before, "a stale attempt has no effect");
    let mut published = store.publish_all().await?;
    published.sort_unstable_by_key(|notice| notice.job);
    let again = |upload| JobNotice { generation: 1, ..write_notice(upload) };
    assert_eq!(published, [again(&uploads[2]), again(&uploads[4])]);
    Ok(())
}

async fn both_jobs_of_a_task_end_it_once(store: TestStore) -> Result<()> {
    let (good, bad) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let worse = store.accept_new_upload().await?;
    let both = |upload| [write_notice(upload), thumbnail_notice(upload)];
    let jobs = claim_all_jobs(&store, &[both(&good), both(&bad), both(&worse)].concat()).await?;
    let ends = [
        (&jobs[3], Outcome::Failed(failure())),
        (&jobs[1], thumbnail_succeeded()),
        (&jobs[0], write_succeeded()),
        (&jobs[2], write_succeeded()),
        (&jobs[4], Outcome::Failed(failure())),
        (&jobs[5], Outcome::Failed(failure())),
    ];
    assert_eq!(settle_all(&store, &ends).await?, [Settled::Applied; 6]);
    for (upload, status, succeeded, failed) in [
        (good, Status::Succeeded, 2, 0),
        (bad, Status::Failed, 1, 1),
        (worse, Status::Failed, 0, 2),
    ] {
        let task = store.task_of(&upload).await?;
        assert_eq!((task.status, task.version), (status, 5));
        assert_eq!((task.progress.succeeded, task.progress.failed), (succeeded, failed));
        assert!(task.finished_at.is_some());
    }
    Ok(())
}

async fn job_settles_once_in_a_batch(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    let ends =
        [(&job, write_succeeded()), (&job, Outcome::Failed(failure())), (&job, Outcome::Released)];
    let settled = settle_all(&store, &ends).await?;
    assert_eq!(settled.iter().filter(|one| **one == Settled::Applied).count(), 1);
    Ok(())
}

async fn equal_uploads_settle_in_one_batch(store: TestStore) -> Result<()> {
    let first = store.accept_new_upload().await?;
    let equal = NewUpload { sha256: first.sha256, ..upload() };
    store.accept_upload(&equal).await?;
    let jobs =
        claim_all_jobs(&store, &[thumbnail_notice(&first), thumbnail_notice(&equal)]).await?;
    let made = |mark: u8| {
        let bytes = u64::from(mark);
        Outcome::Succeeded(vec![
            Effect::UpsertRenditions(vec![rendition("small", bytes), rendition("medium", bytes)]),
            Effect::Placeholder(placeholder(mark)),
        ])
    };
    let ends = [(&jobs[0], made(1)), (&jobs[1], made(2))];
    assert_eq!(settle_all(&store, &ends).await?, [Settled::Applied; 2]);
    let image = store.image(equal.image).await?.context("no image")?;
    assert_eq!(without_made_at(&image.renditions), [rendition("medium", 2), rendition("small", 2)]);
    assert_eq!(image.placeholder, Some(placeholder(2)), "the latest one");
    Ok(())
}

async fn unrecordable_settle_fails_alone(store: TestStore) -> Result<()> {
    let (bad, good) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let jobs = claim_all_jobs(&store, &[write_notice(&bad), write_notice(&good)]).await?;
    // PostgreSQL cannot store a NUL in a text, SQLite can.
    let mut unrecordable = failure();
    "cut off \0 here".clone_into(&mut unrecordable.message);
    let unrecordable = Outcome::Failed(unrecordable);
    let written = write_succeeded();
    let (bad_end, good_end) = tokio::join!(
        store.settle(&jobs[0].lease, &unrecordable),
        store.settle(&jobs[1].lease, &written),
    );
    assert_eq!(good_end?, Settled::Applied);
    assert!(!bad_end.is_err_and(|error| error.is_unavailable()));
    assert_eq!(store.task_of(&good).await?.jobs[0].status, Status::Succeeded);
    Ok(())
}

async fn refused_claim_fails_alone(store: TestStore) -> Result<()> {
    let (bad, good) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    store.refuse_changes_of(bad.jobs[0].0).await?;
    let (bad_claim, write, thumbnail) = tokio::join!(
        claim(&store, write_notice(&bad)),
        claim(&store, write_notice(&good)),
        claim(&store, thumbnail_notice(&good)),
    );
    assert!(bad_claim.is_err_and(|error| !error.is_unavailable()));
    for job in [expect_job(write?)?, expect_job(thumbnail?)?] {
        assert_eq!((job.task, job.attempt, job.lease.fence), (good.task, 1, 1));
    }
    assert_eq!(store.task_of(&good).await?.version, 3, "each claim is counted once");
    let untouched = store.task_of(&bad).await?;
    assert_eq!((untouched.status, untouched.version), (Status::Queued, 1));
    store.allow_changes().await?;
    store.claim_job(&write_notice(&bad)).await?;
    Ok(())
}

async fn refused_settle_fails_alone(store: TestStore) -> Result<()> {
    let (bad, good) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let notices = [write_notice(&bad), write_notice(&good), thumbnail_notice(&good)];
    let jobs = claim_all_jobs(&store, &notices).await?;
    store.refuse_changes_of(bad.jobs[0].0).await?;
    let (written, rendered) = (write_succeeded(), thumbnail_succeeded());
    let (bad_end, write, thumbnail) = tokio::join!(
        store.settle(&jobs[0].lease, &written),
        store.settle(&jobs[1].lease, &written),
        store.settle(&jobs[2].lease, &rendered),
    );
    assert!(bad_end.is_err_and(|error| !error.is_unavailable()));
    assert_eq!([write?, thumbnail?], [Settled::Applied; 2]);
    let task = store.task_of(&good).await?;
    assert_eq!((task.status, task.version, task.progress.succeeded), (Status::Succeeded, 5, 2));
    assert_eq!(store.task_of(&bad).await?.status, Status::Running);
    store.allow_changes().await?;
    store.settle_job(&jobs[0], &written).await
}

/// Its lease would only block the job until it ends.
async fn claim_of_a_gone_caller_is_not_carried_out(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let mut gone = Box::pin(claim(&store, write_notice(&upload)));
    assert!(futures::poll!(&mut gone).is_pending());
    drop(gone);
    assert_eq!(store.claim_job(&write_notice(&upload)).await?.lease.fence, 1);
    Ok(())
}

/// Two processes hold one job each of the same tasks and settle them in opposite orders.
async fn opposite_settle_orders_do_not_deadlock(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    for _ in 0..10 {
        let mut uploads = Vec::new();
        for _ in 0..8 {
            uploads.push(store.accept_new_upload().await?);
        }
        let (writes, thumbnails): (Vec<_>, Vec<_>) =
            uploads.iter().map(|one| (write_notice(one), thumbnail_notice(one))).unzip();
        let backwards: Vec<_> = thumbnails.into_iter().rev().collect();
        let (writes, thumbnails) =
            tokio::join!(claim_all_jobs(&store, &writes), claim_all_jobs(&other, &backwards));
        let (writes, thumbnails) = (writes?, thumbnails?);
        let writes: Vec<_> = writes.iter().map(|job| (job, write_succeeded())).collect();
        let thumbnails: Vec<_> =
            thumbnails.iter().map(|job| (job, thumbnail_succeeded())).collect();
        let (first, second) =
            tokio::join!(settle_all(&store, &writes), settle_all(&other, &thumbnails));
        assert_eq!([first?, second?].concat(), [Settled::Applied; 16]);
        for task in join_all(uploads.iter().map(|upload| store.task_of(upload))).await {
            let task = task?;
            assert_eq!((task.status, task.version), (Status::Succeeded, 5));
        }
    }
    Ok(())
}

/// The lock stands for a long transaction, such as the cancellation of a backfill.
#[tokio::test]
async fn locked_job_does_not_block_other_claims() -> Result<()> {
    use sqlx::Connection;
    let store = TestStore::postgres().await?;
    let safelight_config::DatabaseUrl::Postgres(url) = &store.url else { unreachable!() };
    let (locked, free) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let mut conn = sqlx::PgConnection::connect(&url[0]).await?;
    let mut transaction = conn.begin().await?;
    sqlx::query("select from jobs where id = $1 for update")
        .bind(locked.jobs[0].0)
        .execute(&mut *transaction)
        .await?;

    let free_notice = write_notice(&free);
    let mut blocked = Box::pin(claim(&store, write_notice(&locked)));
    let free = tokio::select! {
        biased;
        claim = &mut blocked => anyhow::bail!("claimed a locked job: {claim:?}"),
        job = store.claim_job(&free_notice) => job?,
    };
    store.settle_job(&free, &write_succeeded()).await?;
    transaction.commit().await?;
    assert_eq!(expect_job(blocked.await?)?.lease.job, locked.jobs[0].0);
    Ok(())
}
