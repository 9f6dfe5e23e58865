//! Claims and settles that are ready at the same time: each is told its own result, as if it were alone.
//!
//! On one thread all calls that are polled together are there before any is carried out, so that a
//! store that gathers them gathers all of these.

use anyhow::{Context, Result};
use futures::future::{join_all, try_join_all};
use safelight_domain::JobNotice;
use safelight_domain::{JOB_VERSION, JobId, Status, WorkerId};
use safelight_store::{
    Claim, ClaimedJob, DynStore, Effect, NewUpload, Outcome, Settled, StoreError,
};

use super::fixture::{
    Fixture, HOUR, NOW, facts, failure, placeholder, rendered, rendition, renditions,
    thumbnail_notice, unmade, upload, write_notice, written,
};

macro_rules! promises_on_one_thread {
    ($($promise:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::Fixture::sqlite().await?).await
            })+
        }
        mod postgres {
            $(#[tokio::test]
            async fn $promise() -> anyhow::Result<()> {
                super::$promise(super::Fixture::postgres().await?).await
            })+
        }
    };
}

promises_on_one_thread!(
    each_claim_has_its_own_answer,
    two_messages_of_one_job_give_one_lease,
    both_jobs_of_a_task_are_claimed_together,
    each_settle_has_its_own_effects,
    both_jobs_of_a_task_end_it_once,
    a_job_settles_once_whoever_asks_at_the_same_time,
    equal_uploads_settle_together,
    what_cannot_be_recorded_fails_alone,
    processes_that_settle_crosswise_do_not_lock_each_other,
);

async fn claim(store: &DynStore, notice: JobNotice) -> Result<Claim, StoreError> {
    store.claim(&notice, false, WorkerId::new(), HOUR, JOB_VERSION).await
}

/// Claims all at once.
async fn claims(store: &DynStore, notices: &[JobNotice]) -> Result<Vec<Claim>> {
    Ok(try_join_all(notices.iter().map(|notice| claim(store, *notice))).await?)
}

fn job(claim: Claim) -> Result<ClaimedJob> {
    match claim {
        Claim::Run(job) => Ok(*job),
        other => anyhow::bail!("not claimed: {other:?}"),
    }
}

async fn claimed(store: &DynStore, notices: &[JobNotice]) -> Result<Vec<ClaimedJob>> {
    claims(store, notices).await?.into_iter().map(job).collect()
}

/// Settles all at once.
async fn settle(store: &DynStore, ends: &[(&ClaimedJob, Outcome)]) -> Result<Vec<Settled>> {
    Ok(try_join_all(ends.iter().map(|(job, outcome)| store.settle(&job.lease, outcome))).await?)
}

async fn each_claim_has_its_own_answer(store: Fixture) -> Result<()> {
    let mut uploads = Vec::new();
    for _ in 0..6 {
        uploads.push(store.accepted().await?);
    }
    let [fresh, done, cancelled, waiting, held, made] = &uploads[..] else { unreachable!() };
    let job = store.claimed(&write_notice(done)).await?;
    store.settled(&job, &written()).await?;
    store.cancel(cancelled.task).await?;
    let job = store.claimed(&write_notice(waiting)).await?;
    store.settled(&job, &Outcome::Retry(failure(), HOUR)).await?;
    store.claimed(&write_notice(held)).await?;
    let job = store.claimed(&thumbnail_notice(made)).await?;
    store.settled(&job, &rendered()).await?;
    let unknown = JobNotice { job: JobId::new(), ..write_notice(fresh) };
    let newer = store.accepted().await?;
    store.tamper("update jobs set needs_version = 1000 where id = (select id from jobs order by id desc limit 1)").await?;

    let mut notices: Vec<_> =
        [made, cancelled, waiting, fresh, held, done].into_iter().map(write_notice).collect();
    notices.extend([thumbnail_notice(&newer), unknown]);
    let claims = claims(&store, &notices).await?;

    for (place, claim) in claims.into_iter().enumerate() {
        match (place, claim) {
            (0, Claim::Run(job)) => {
                assert_eq!(job.task, made.task);
                assert_eq!(unmade(&job.image.renditions), renditions());
            }
            (3, Claim::Run(job)) => {
                assert_eq!((job.task, job.image.id), (fresh.task, fresh.image));
                assert_eq!((job.attempt, job.lease.fence), (1, 1));
                assert_eq!(job.image.renditions, []);
            }
            (6, claim) => assert_eq!(claim, Claim::Newer),
            (_, claim) => assert_eq!(claim, Claim::Nothing, "the claim at {place}"),
        }
    }
    assert_eq!(store.task_of(&newer).await?.jobs[0].attempt, 0);
    Ok(())
}

async fn two_messages_of_one_job_give_one_lease(store: Fixture) -> Result<()> {
    let (first, other) = (store.accepted().await?, store.accepted().await?);
    let notice = write_notice(&first);
    let claims = claims(&store, &[notice, notice, write_notice(&other), notice]).await?;
    let fences = claims.into_iter().filter_map(|claim| job(claim).ok()).map(|job| job.lease);
    let mut leases: Vec<_> = fences.collect();
    leases.sort_unstable_by_key(|lease| lease.job);
    assert_eq!(leases.iter().map(|lease| lease.fence).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(
        leases.iter().map(|l| l.job).collect::<Vec<_>>(),
        [first.jobs[0].0, other.jobs[0].0]
    );
    Ok(())
}

async fn both_jobs_of_a_task_are_claimed_together(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    claimed(&store, &[thumbnail_notice(&upload), write_notice(&upload)]).await?;
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.version), (Status::Running, 3));
    assert!(task.jobs.iter().all(|job| job.status == Status::Running), "{task:?}");
    Ok(())
}

async fn each_settle_has_its_own_effects(store: Fixture) -> Result<()> {
    let mut uploads = Vec::new();
    for _ in 0..6 {
        uploads.push(store.accepted().await?);
    }
    store.publish_all().await?;
    let late = store.claimed_for(&write_notice(&uploads[5]), NOW).await?;
    store.claimed(&write_notice(&uploads[5])).await?;
    let before = store.task_of(&uploads[5]).await?;
    let notices = [
        write_notice(&uploads[0]),
        thumbnail_notice(&uploads[1]),
        write_notice(&uploads[2]),
        write_notice(&uploads[3]),
        write_notice(&uploads[4]),
    ];
    let jobs = claimed(&store, &notices).await?;

    let settled = settle(
        &store,
        &[
            (&jobs[4], Outcome::Released),
            (&late, written()),
            (&jobs[0], written()),
            (&jobs[3], Outcome::Failed(failure())),
            (&jobs[1], rendered()),
            (&jobs[2], Outcome::Retry(failure(), NOW)),
        ],
    )
    .await?;

    let applied = Settled::Applied;
    assert_eq!(settled, [applied, Settled::Stale, applied, applied, applied, applied]);
    let image = store.image(uploads[0].image).await?.context("no image")?;
    assert_eq!((image.facts, image.renditions), (Some(facts()), Vec::new()));
    let image = store.image(uploads[1].image).await?.context("no image")?;
    assert_eq!((image.facts, unmade(&image.renditions)), (None, renditions()));
    assert_eq!(image.placeholder, Some(placeholder(1)));
    let mut stands = Vec::new();
    for upload in &uploads[2..5] {
        let job = store.task_of(upload).await?.jobs.swap_remove(0);
        stands.push((job.status, job.attempt, job.error));
    }
    let failed = Some(failure());
    let queued = Status::Queued;
    assert_eq!(
        stands,
        [(queued, 1, failed.clone()), (Status::Failed, 1, failed), (queued, 0, None)]
    );
    assert_eq!(store.task_of(&uploads[5]).await?, before, "a stale attempt has no effect");
    let mut rung = store.publish_all().await?;
    rung.sort_unstable_by_key(|notice| notice.job);
    let again = |upload| JobNotice { generation: 1, ..write_notice(upload) };
    assert_eq!(rung, [again(&uploads[2]), again(&uploads[4])]);
    Ok(())
}

async fn both_jobs_of_a_task_end_it_once(store: Fixture) -> Result<()> {
    let (good, bad) = (store.accepted().await?, store.accepted().await?);
    let both = |upload| [write_notice(upload), thumbnail_notice(upload)];
    let jobs = claimed(&store, &[both(&good), both(&bad)].concat()).await?;
    let ends = [
        (&jobs[3], Outcome::Failed(failure())),
        (&jobs[1], rendered()),
        (&jobs[0], written()),
        (&jobs[2], written()),
    ];
    assert_eq!(settle(&store, &ends).await?, [Settled::Applied; 4]);
    for (upload, status, succeeded, failed) in
        [(good, Status::Succeeded, 2, 0), (bad, Status::Failed, 1, 1)]
    {
        let task = store.task_of(&upload).await?;
        assert_eq!((task.status, task.version), (status, 5));
        assert_eq!((task.progress.succeeded, task.progress.failed), (succeeded, failed));
        assert!(task.finished_at.is_some());
    }
    Ok(())
}

async fn a_job_settles_once_whoever_asks_at_the_same_time(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    let ends = [(&job, written()), (&job, Outcome::Failed(failure())), (&job, Outcome::Released)];
    let settled = settle(&store, &ends).await?;
    assert_eq!(settled.iter().filter(|one| **one == Settled::Applied).count(), 1);
    Ok(())
}

async fn equal_uploads_settle_together(store: Fixture) -> Result<()> {
    let first = store.accepted().await?;
    let equal = NewUpload { sha256: first.sha256, ..upload() };
    store.accept_it(&equal).await?;
    let jobs = claimed(&store, &[thumbnail_notice(&first), thumbnail_notice(&equal)]).await?;
    let made = |mark: u8| {
        let bytes = u64::from(mark);
        Outcome::Succeeded(vec![
            Effect::UpsertRenditions(vec![rendition("small", bytes), rendition("medium", bytes)]),
            Effect::Placeholder(placeholder(mark)),
        ])
    };
    let ends = [(&jobs[0], made(1)), (&jobs[1], made(2))];
    assert_eq!(settle(&store, &ends).await?, [Settled::Applied; 2]);
    let image = store.image(equal.image).await?.context("no image")?;
    assert_eq!(unmade(&image.renditions), [rendition("medium", 2), rendition("small", 2)]);
    assert_eq!(image.placeholder, Some(placeholder(2)), "the later one");
    Ok(())
}

async fn what_cannot_be_recorded_fails_alone(store: Fixture) -> Result<()> {
    let (bad, good) = (store.accepted().await?, store.accepted().await?);
    let jobs = claimed(&store, &[write_notice(&bad), write_notice(&good)]).await?;
    // PostgreSQL's texts cannot hold it; SQLite's can.
    let mut unspeakable = failure();
    "cut off \0 here".clone_into(&mut unspeakable.message);
    let unspeakable = Outcome::Failed(unspeakable);
    let written = written();
    let (bad_end, good_end) = tokio::join!(
        store.settle(&jobs[0].lease, &unspeakable),
        store.settle(&jobs[1].lease, &written),
    );
    assert_eq!(good_end?, Settled::Applied);
    assert!(!bad_end.is_err_and(|error| error.is_unavailable()));
    assert_eq!(store.task_of(&good).await?.jobs[0].status, Status::Succeeded);
    Ok(())
}

/// Two processes hold one job each of the same tasks, and settle them in opposite orders.
async fn processes_that_settle_crosswise_do_not_lock_each_other(store: Fixture) -> Result<()> {
    let other = store.another().await?;
    for _ in 0..10 {
        let mut uploads = Vec::new();
        for _ in 0..8 {
            uploads.push(store.accepted().await?);
        }
        let (writes, thumbnails): (Vec<_>, Vec<_>) =
            uploads.iter().map(|one| (write_notice(one), thumbnail_notice(one))).unzip();
        let backwards: Vec<_> = thumbnails.into_iter().rev().collect();
        let (writes, thumbnails) =
            tokio::join!(claimed(&store, &writes), claimed(&other, &backwards));
        let (writes, thumbnails) = (writes?, thumbnails?);
        let writes: Vec<_> = writes.iter().map(|job| (job, written())).collect();
        let thumbnails: Vec<_> = thumbnails.iter().map(|job| (job, rendered())).collect();
        let (first, second) = tokio::join!(settle(&store, &writes), settle(&other, &thumbnails));
        assert_eq!([first?, second?].concat(), [Settled::Applied; 16]);
        for task in join_all(uploads.iter().map(|upload| store.task_of(upload))).await {
            let task = task?;
            assert_eq!((task.status, task.version), (Status::Succeeded, 5));
        }
    }
    Ok(())
}

/// Somebody's long transaction, such as a backfill being cancelled.
#[tokio::test]
async fn a_job_that_somebody_has_locked_keeps_no_other_waiting() -> Result<()> {
    use sqlx::Connection;
    let store = Fixture::postgres().await?;
    let safelight_config::DatabaseUrl::Postgres(url) = &store.url else { unreachable!() };
    let (locked, free) = (store.accepted().await?, store.accepted().await?);
    let mut conn = sqlx::PgConnection::connect(url).await?;
    let mut transaction = conn.begin().await?;
    sqlx::query("select from jobs where id = $1 for update")
        .bind(locked.jobs[0].0)
        .execute(&mut *transaction)
        .await?;

    let free_bell = write_notice(&free);
    let mut waits = Box::pin(claim(&store, write_notice(&locked)));
    let free = tokio::select! {
        biased;
        claim = &mut waits => anyhow::bail!("claimed what is locked: {claim:?}"),
        job = store.claimed(&free_bell) => job?,
    };
    store.settled(&free, &written()).await?;
    transaction.commit().await?;
    assert_eq!(job(waits.await?)?.lease.job, locked.jobs[0].0);
    Ok(())
}
