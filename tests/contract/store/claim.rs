//! Claims, leases and their ends.

use anyhow::{Context, Result};
use futures::future::join_all;
use safelight_domain::JobNotice;
use safelight_domain::{JOB_VERSION, JobId, Owner, Status, WorkerId};
use safelight_store::{Claim, IdempotencyKey, KeyState, Lease, Outcome, Settled};

use super::{
    fixture::{
        Fixture, HOUR, NOW, facts, failure, rendered, thumbnail_notice, upload, write_notice,
        written,
    },
    promises,
};

promises!(
    a_claim_has_all_that_its_handler_needs,
    claims_at_once_give_one_lease,
    nothing_is_claimed_that_must_not_run,
    a_retry_is_not_claimed_before_it_is_due,
    a_lease_that_ran_out_may_be_taken_over,
    a_redelivered_message_takes_over_its_own_attempt_only,
    nobody_takes_a_running_attempt_over_from_itself,
    attempts_never_exceed_the_maximum,
    a_hand_back_does_not_count,
    renewing_keeps_what_is_still_held,
    leases_that_ran_out_are_found_oldest_first,
    what_the_dead_held_is_free_at_once,
);

async fn a_claim_has_all_that_its_handler_needs(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let job = store.claimed(&write_notice(&upload)).await?;
    assert_eq!(job.lease, Lease { job: upload.jobs[0].0, fence: 1 });
    assert_eq!((job.task, job.kind, job.lane), (upload.task, upload.jobs[0].1, upload.lane));
    assert_eq!((job.attempt, job.max_attempts), (1, 3));
    assert_eq!(Some(&job.image), store.image(upload.image).await?.as_ref());

    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.jobs[0].status), (Status::Running, Status::Running));
    assert_eq!((task.jobs[0].attempt, task.jobs[1].attempt), (1, 0));

    store.settled(&job, &written()).await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    assert_eq!(job.image.facts, Some(facts()));
    Ok(())
}

async fn claims_at_once_give_one_lease(store: Fixture) -> Result<()> {
    let other = store.another().await?;
    for _ in 0..20 {
        let upload = store.accepted().await?;
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
        // A redelivered message may take the first attempt over, each fence is given out once.
        leases.sort_unstable();
        assert!(leases == [1] || leases == [1, 2], "{leases:?}");
    }
    Ok(())
}

async fn nothing_is_claimed_that_must_not_run(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let notice = write_notice(&upload);
    store.refused(&JobNotice { job: JobId::new(), ..notice }, false).await?;
    let job = store.claimed(&notice).await?;
    // Held by another.
    store.refused(&notice, false).await?;
    store.settled(&job, &written()).await?;
    // Done; a late or doubled message changes nothing.
    let before = store.task_of(&upload).await?;
    store.refused(&notice, true).await?;
    store.refused(&JobNotice { generation: 1, ..notice }, false).await?;
    assert_eq!(store.task_of(&upload).await?, before);
    Ok(())
}

async fn a_retry_is_not_claimed_before_it_is_due(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let notice = write_notice(&upload);
    let job = store.claimed(&notice).await?;
    store.settled(&job, &Outcome::Retry(failure(), HOUR)).await?;
    store.refused(&notice, false).await?;
    store.refused(&JobNotice { generation: 1, ..notice }, true).await?;

    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.jobs[0].status), (Status::Running, Status::Queued));
    assert_eq!(task.jobs[0].error, Some(failure()));
    let retry_in = task.jobs[0].retry_at.context("no retry_at")? - chrono::Utc::now();
    assert!((55..=60).contains(&retry_in.num_minutes()), "{retry_in}");

    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&job, &Outcome::Retry(failure(), NOW)).await?;
    let job = store.claimed(&thumbnail_notice(&upload)).await?;
    assert_eq!(job.attempt, 2);
    // It runs, so it has no retry_at; its last error stays until it succeeds.
    let task = store.task_of(&upload).await?;
    assert_eq!((task.jobs[1].retry_at, &task.jobs[1].error), (None, &Some(failure())));
    Ok(())
}

async fn a_lease_that_ran_out_may_be_taken_over(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let late = store.claimed_for(&write_notice(&upload), NOW).await?;
    let heir = store.claimed(&write_notice(&upload)).await?;
    assert_eq!((heir.lease.fence, heir.attempt), (2, 2));
    let before = store.task_of(&upload).await?;
    for outcome in [written(), Outcome::Failed(failure()), Outcome::Released] {
        assert_eq!(store.settle(&late.lease, &outcome).await?, Settled::Stale);
    }
    assert_eq!(store.task_of(&upload).await?, before);
    store.settled(&heir, &written()).await
}

async fn a_redelivered_message_takes_over_its_own_attempt_only(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let notice = write_notice(&upload);
    store.claimed(&notice).await?;
    // The broker took the message of attempt 1 back from a worker that is gone.
    let claim = store.claim(&notice, true, WorkerId::new(), HOUR, JOB_VERSION).await?;
    let Claim::Run(job) = claim else { anyhow::bail!("not taken over") };
    assert_eq!(job.lease.fence, 2);
    // Now attempt 2 runs, which that message did not start.
    store.refused(&notice, true).await?;
    store.refused(&JobNotice { generation: 2, ..notice }, true).await?;
    store.refused(&JobNotice { generation: 1, ..notice }, false).await?;
    Ok(())
}

async fn nobody_takes_a_running_attempt_over_from_itself(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let notice = write_notice(&upload);
    let worker = WorkerId::new();
    let claim = store.claim(&notice, false, worker, HOUR, JOB_VERSION).await?;
    let Claim::Run(job) = claim else { anyhow::bail!("not claimed") };
    // A second message of the same job, or the same one over a new connection: the attempt goes on.
    assert_eq!(store.claim(&notice, true, worker, HOUR, JOB_VERSION).await?, Claim::Nothing);
    store.settled(&job, &written()).await
}

async fn attempts_never_exceed_the_maximum(store: Fixture) -> Result<()> {
    let upload = store.accepted().await?;
    let (write, thumbnail) = (write_notice(&upload), thumbnail_notice(&upload));
    // One whose worker dies each time: its lease runs out.
    for attempt in 1..=3 {
        assert_eq!(store.claimed_for(&write, NOW).await?.attempt, attempt);
    }
    store.refused(&write, false).await?;
    store.refused(&JobNotice { generation: 2, ..write }, true).await?;
    let dead = store.expired_leases(10).await?.pop().context("it is still there to be failed")?;
    assert_eq!((dead.attempt, dead.max_attempts), (3, 3));
    store.settled(&dead, &Outcome::Failed(failure())).await?;

    // One that fails each time: a retry without an attempt left is a failure, not a wait for ever.
    for attempt in 1..=3 {
        let job = store.claimed(&thumbnail).await?;
        assert_eq!(job.attempt, attempt);
        store.settled(&job, &Outcome::Retry(failure(), NOW)).await?;
    }
    store.refused(&thumbnail, false).await?;
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.progress.failed), (Status::Failed, 2));
    assert_eq!((task.jobs[1].status, task.jobs[1].retry_at), (Status::Failed, None));
    Ok(())
}

async fn a_hand_back_does_not_count(store: Fixture) -> Result<()> {
    let mut upload = upload();
    upload.max_attempts = 1;
    store.accept_it(&upload).await?;
    store.publish_all().await?;
    for fence in 1..=5 {
        let job = store.claimed(&write_notice(&upload)).await?;
        assert_eq!((job.attempt, job.lease.fence), (1, fence));
        store.settled(&job, &Outcome::Released).await?;
        assert_eq!(store.settle(&job.lease, &written()).await?, Settled::Stale);
        let task = store.task_of(&upload).await?;
        assert_eq!((task.jobs[0].status, task.jobs[0].attempt), (Status::Queued, 0));
        assert_eq!((task.jobs[0].retry_at, &task.jobs[0].error), (None, &None));
        let notices = store.publish_all().await?;
        assert_eq!(notices, [JobNotice { generation: fence, ..write_notice(&upload) }]);
    }
    let job = store.claimed(&write_notice(&upload)).await?;
    store.settled(&job, &Outcome::Retry(failure(), NOW)).await?;
    assert_eq!(store.task_of(&upload).await?.jobs[0].status, Status::Failed);
    Ok(())
}

async fn renewing_keeps_what_is_still_held(store: Fixture) -> Result<()> {
    let (first, second) = (store.accepted().await?, store.accepted().await?);
    let overdue = store.claimed_for(&write_notice(&first), NOW).await?;
    let lost = store.claimed_for(&thumbnail_notice(&first), NOW).await?;
    let heir = store.claimed(&thumbnail_notice(&first)).await?;
    let done = store.claimed(&write_notice(&second)).await?;
    store.settled(&done, &written()).await?;
    let unknown = Lease { job: JobId::new(), fence: 1 };

    let asked = [overdue.lease, lost.lease, heir.lease, done.lease, unknown];
    let mut held = store.renew(&asked, HOUR).await?.held;
    held.sort_by_key(|lease| lease.job);

    // One that ran out but that nobody took is still held, and now runs on.
    assert_eq!(held, [overdue.lease, heir.lease]);
    store.refused(&write_notice(&first), false).await?;
    assert_eq!(store.renew(&[], HOUR).await?.held, []);
    store.settled(&overdue, &written()).await?;
    store.settled(&heir, &rendered()).await
}

async fn leases_that_ran_out_are_found_oldest_first(store: Fixture) -> Result<()> {
    assert_eq!(store.expired_leases(10).await?, []);
    let mut expired = Vec::new();
    for _ in 0..3 {
        let upload = store.accepted().await?;
        expired.push(store.claimed_for(&write_notice(&upload), NOW).await?);
        store.claimed(&thumbnail_notice(&upload)).await?;
    }
    assert_eq!(store.expired_leases(2).await?, expired[..2]);
    assert_eq!(store.expired_leases(10).await?, expired);
    store.settled(&expired[0], &Outcome::Retry(failure(), HOUR)).await?;
    assert_eq!(store.expired_leases(10).await?, expired[1..]);
    Ok(())
}

async fn what_the_dead_held_is_free_at_once(store: Fixture) -> Result<()> {
    let key = IdempotencyKey { owner: Owner::local(), key: "in flight".to_owned() };
    store.reserve_key(&key, HOUR).await?;
    let upload = store.accepted().await?;
    let held = store.claimed(&write_notice(&upload)).await?;
    let done = store.claimed(&thumbnail_notice(&upload)).await?;
    store.settled(&done, &rendered()).await?;

    assert_eq!(store.take_over().await?, 1);

    let free: Vec<_> = store.expired_leases(10).await?.iter().map(|job| job.lease).collect();
    assert_eq!(free, [held.lease]);
    assert!(matches!(store.reserve_key(&key, HOUR).await?, KeyState::Reserved(_)));
    Ok(())
}
