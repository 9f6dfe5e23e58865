//! Claims, leases, and how they end.

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::{JOB_VERSION, JobId, JobNotice, Owner, Status, WorkerId};
use safelight_store::{Claim, IdempotencyKey, KeyState, Lease, Outcome, Settled};

use super::{
    promises,
    test_store::{
        HOUR, NOW, TestStore, facts, failure, thumbnail_notice, thumbnail_succeeded, upload,
        write_notice, write_succeeded,
    },
};

promises!(
    claim_returns_job_image_and_lease,
    concurrent_claims_never_share_a_fencing_token,
    unknown_held_and_ended_jobs_are_not_claimed,
    retry_is_not_claimed_before_it_is_due,
    expired_lease_can_be_taken_over,
    redelivered_message_takes_over_only_its_own_attempt,
    worker_does_not_take_over_its_own_attempt,
    attempts_never_exceed_the_maximum,
    released_attempt_does_not_count,
    renew_extends_only_leases_still_held,
    expired_leases_are_listed_oldest_first,
    take_over_frees_jobs_and_keys_immediately,
);

async fn claim_returns_job_image_and_lease(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let job = store.claim_job(&write_notice(&upload)).await?;
    assert_eq!(job.lease, Lease { job: upload.jobs[0].0, fence: 1 });
    assert_eq!((job.task, job.kind, job.lane), (upload.task, upload.jobs[0].1, upload.lane));
    assert_eq!((job.attempt, job.max_attempts), (1, 3));
    assert_eq!(Some(&job.image), store.image(upload.image).await?.as_ref());

    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.jobs[0].status), (Status::Running, Status::Running));
    assert_eq!((task.jobs[0].attempt, task.jobs[1].attempt), (1, 0));

    store.settle_job(&job, &write_succeeded()).await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    assert_eq!(job.image.facts, Some(facts()));
    Ok(())
}

async fn concurrent_claims_never_share_a_fencing_token(store: TestStore) -> Result<()> {
    let other = store.another_store().await?;
    for _ in 0..20 {
        let upload = store.accept_new_upload().await?;
        let notice = write_notice(&upload);
        let claims = join_all((0..8).map(|worker| {
            let store = if worker % 2 == 0 { &store.store } else { &other };
            store.claim(&notice, worker % 3 == 0, WorkerId::new(), HOUR, JOB_VERSION)
        }));
        let mut leases = Vec::new();
        for claim in claims.await {
            if let Claim::Run(job) = claim? {
                leases.push(job.lease.fence);
            }
        }
        // A redelivered message may take over the first attempt, but never with the same token.
        leases.sort_unstable();
        assert!(leases == [1] || leases == [1, 2], "{leases:?}");
    }
    Ok(())
}

async fn unknown_held_and_ended_jobs_are_not_claimed(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = write_notice(&upload);
    store.assert_unclaimable(&JobNotice { job: JobId::new(), ..notice }, false).await?;
    let job = store.claim_job(&notice).await?;
    // Another worker holds it.
    store.assert_unclaimable(&notice, false).await?;
    store.settle_job(&job, &write_succeeded()).await?;
    // It has ended: a late or duplicate message changes nothing.
    let before = store.task_of(&upload).await?;
    store.assert_unclaimable(&notice, true).await?;
    store.assert_unclaimable(&JobNotice { generation: 1, ..notice }, false).await?;
    assert_eq!(store.task_of(&upload).await?, before);
    Ok(())
}

async fn retry_is_not_claimed_before_it_is_due(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = write_notice(&upload);
    let job = store.claim_job(&notice).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), HOUR)).await?;
    store.assert_unclaimable(&notice, false).await?;
    store.assert_unclaimable(&JobNotice { generation: 1, ..notice }, true).await?;

    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.jobs[0].status), (Status::Running, Status::Queued));
    assert_eq!(task.jobs[0].error, Some(failure()));
    let retry_in = task.jobs[0].retry_at.context("no retry_at")? - chrono::Utc::now();
    assert!((55..=60).contains(&retry_in.num_minutes()), "{retry_in}");

    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;
    let job = store.claim_job(&thumbnail_notice(&upload)).await?;
    assert_eq!(job.attempt, 2);
    // A running job has no `retry_at`, and keeps its last error until it succeeds.
    let task = store.task_of(&upload).await?;
    assert_eq!((task.jobs[1].retry_at, &task.jobs[1].error), (None, &Some(failure())));
    Ok(())
}

async fn expired_lease_can_be_taken_over(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let late = store.claim_job_for(&write_notice(&upload), NOW).await?;
    let successor = store.claim_job(&write_notice(&upload)).await?;
    assert_eq!((successor.lease.fence, successor.attempt), (2, 2));
    let before = store.task_of(&upload).await?;
    for outcome in [write_succeeded(), Outcome::Failed(failure()), Outcome::Released] {
        assert_eq!(store.settle(&late.lease, &outcome).await?, Settled::Stale);
    }
    assert_eq!(store.task_of(&upload).await?, before);
    store.settle_job(&successor, &write_succeeded()).await
}

async fn redelivered_message_takes_over_only_its_own_attempt(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = write_notice(&upload);
    store.claim_job(&notice).await?;
    // The broker redelivers the message of attempt 1, whose worker has died.
    let claim = store.claim(&notice, true, WorkerId::new(), HOUR, JOB_VERSION).await?;
    let Claim::Run(job) = claim else { anyhow::bail!("not taken over") };
    assert_eq!(job.lease.fence, 2);
    // Attempt 2 runs now. That message did not start it.
    store.assert_unclaimable(&notice, true).await?;
    store.assert_unclaimable(&JobNotice { generation: 2, ..notice }, true).await?;
    store.assert_unclaimable(&JobNotice { generation: 1, ..notice }, false).await?;
    Ok(())
}

async fn worker_does_not_take_over_its_own_attempt(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = write_notice(&upload);
    let worker = WorkerId::new();
    let claim = store.claim(&notice, false, worker, HOUR, JOB_VERSION).await?;
    let Claim::Run(job) = claim else { anyhow::bail!("not claimed") };
    // A second message of the same job, or the same one over a new connection: the attempt continues.
    assert_eq!(store.claim(&notice, true, worker, HOUR, JOB_VERSION).await?, Claim::Nothing);
    store.settle_job(&job, &write_succeeded()).await
}

async fn attempts_never_exceed_the_maximum(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let (write, thumbnail) = (write_notice(&upload), thumbnail_notice(&upload));
    // The worker dies each time, so the lease expires.
    for attempt in 1..=3 {
        assert_eq!(store.claim_job_for(&write, NOW).await?.attempt, attempt);
    }
    store.assert_unclaimable(&write, false).await?;
    store.assert_unclaimable(&JobNotice { generation: 2, ..write }, true).await?;
    let dead = store.expired_leases(10).await?.pop().context("an expired lease")?;
    assert_eq!((dead.attempt, dead.max_attempts), (3, 3));
    store.settle_job(&dead, &Outcome::Failed(failure())).await?;

    // The job fails each time: a retry without an attempt left is a failure, not an endless wait.
    for attempt in 1..=3 {
        let job = store.claim_job(&thumbnail).await?;
        assert_eq!(job.attempt, attempt);
        store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;
    }
    store.assert_unclaimable(&thumbnail, false).await?;
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.progress.failed), (Status::Failed, 2));
    assert_eq!((task.jobs[1].status, task.jobs[1].retry_at), (Status::Failed, None));
    Ok(())
}

async fn released_attempt_does_not_count(store: TestStore) -> Result<()> {
    let mut upload = upload();
    upload.max_attempts = 1;
    store.accept_upload(&upload).await?;
    store.publish_all().await?;
    for fence in 1..=5 {
        let job = store.claim_job(&write_notice(&upload)).await?;
        assert_eq!((job.attempt, job.lease.fence), (1, fence));
        store.settle_job(&job, &Outcome::Released).await?;
        assert_eq!(store.settle(&job.lease, &write_succeeded()).await?, Settled::Stale);
        let task = store.task_of(&upload).await?;
        assert_eq!((task.jobs[0].status, task.jobs[0].attempt), (Status::Queued, 0));
        assert_eq!((task.jobs[0].retry_at, &task.jobs[0].error), (None, &None));
        let notices = store.publish_all().await?;
        assert_eq!(notices, [JobNotice { generation: fence, ..write_notice(&upload) }]);
    }
    let job = store.claim_job(&write_notice(&upload)).await?;
    store.settle_job(&job, &Outcome::Retry(failure(), NOW)).await?;
    assert_eq!(store.task_of(&upload).await?.jobs[0].status, Status::Failed);
    Ok(())
}

async fn renew_extends_only_leases_still_held(store: TestStore) -> Result<()> {
    let (first, second) = (store.accept_new_upload().await?, store.accept_new_upload().await?);
    let overdue = store.claim_job_for(&write_notice(&first), NOW).await?;
    let lost = store.claim_job_for(&thumbnail_notice(&first), NOW).await?;
    let successor = store.claim_job(&thumbnail_notice(&first)).await?;
    let done = store.claim_job(&write_notice(&second)).await?;
    store.settle_job(&done, &write_succeeded()).await?;
    let unknown = Lease { job: JobId::new(), fence: 1 };

    let asked = [overdue.lease, lost.lease, successor.lease, done.lease, unknown];
    let mut held = store.renew(&asked, HOUR).await?.held;
    held.sort_by_key(|lease| lease.job);

    // An expired lease that no other worker took over is still held, and is extended.
    assert_eq!(held, [overdue.lease, successor.lease]);
    store.assert_unclaimable(&write_notice(&first), false).await?;
    assert_eq!(store.renew(&[], HOUR).await?.held, []);
    store.settle_job(&overdue, &write_succeeded()).await?;
    store.settle_job(&successor, &thumbnail_succeeded()).await
}

async fn expired_leases_are_listed_oldest_first(store: TestStore) -> Result<()> {
    assert_eq!(store.expired_leases(10).await?, []);
    let mut expired = Vec::new();
    for _ in 0..3 {
        let upload = store.accept_new_upload().await?;
        expired.push(store.claim_job_for(&write_notice(&upload), NOW).await?);
        store.claim_job(&thumbnail_notice(&upload)).await?;
    }
    assert_eq!(store.expired_leases(2).await?, expired[..2]);
    assert_eq!(store.expired_leases(10).await?, expired);
    store.settle_job(&expired[0], &Outcome::Retry(failure(), HOUR)).await?;
    assert_eq!(store.expired_leases(10).await?, expired[1..]);
    Ok(())
}

async fn take_over_frees_jobs_and_keys_immediately(store: TestStore) -> Result<()> {
    let key = IdempotencyKey { owner: Owner::local(), key: "in flight".to_owned() };
    store.reserve_key(&key, HOUR).await?;
    let upload = store.accept_new_upload().await?;
    let held = store.claim_job(&write_notice(&upload)).await?;
    let done = store.claim_job(&thumbnail_notice(&upload)).await?;
    store.settle_job(&done, &thumbnail_succeeded()).await?;

    assert_eq!(store.take_over().await?, 1);

    let free: Vec<_> = store.expired_leases(10).await?.iter().map(|job| job.lease).collect();
    assert_eq!(free, [held.lease]);
    assert!(matches!(store.reserve_key(&key, HOUR).await?, KeyState::Reserved(_)));
    Ok(())
}
