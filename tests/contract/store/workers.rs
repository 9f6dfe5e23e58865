//! The worker registry, and jobs of a newer release.

use std::time::Duration;

use anyhow::Result;
use chrono::DateTime;
use safelight_domain::{JOB_VERSION, JobKind, Lane, Status, WorkerId};
use safelight_store::{Claim, Heartbeat, QueueSlots, RegisteredWorker, ServiceRun, WorkerStatus};

use super::{
    promises,
    test_store::{HOUR, NOW, TestStore, thumbnail_notice, write_notice, write_succeeded},
};

promises!(
    worker_shows_its_last_heartbeat,
    silent_worker_is_lost_and_then_forgotten,
    leaving_worker_is_removed,
    take_over_clears_the_worker_registry,
    job_of_a_newer_release_is_not_claimed,
    rows_of_a_newer_release_do_not_block_others,
);

fn heartbeat() -> Heartbeat {
    let queue = |kind: &str, slots| QueueSlots {
        kind: kind.to_owned(),
        lane: "bulk".to_owned(),
        slots,
        busy: 1,
        ended: 1 << 40,
        run_ms: 12,
    };
    Heartbeat {
        id: WorkerId::new(),
        host: "höst".to_owned(),
        pid: u32::MAX,
        version: "0.1.0".to_owned(),
        draining: false,
        // A newer worker may have kinds that this release does not know.
        kinds: vec!["thumbnail".to_owned(), "dream".to_owned()],
        lanes: vec!["bulk".to_owned()],
        concurrency: 2,
        slots: vec![queue("thumbnail", 2), queue("dream", 8)],
        services: vec![ServiceRun {
            name: "outbox_relay".to_owned(),
            last_run_at: DateTime::from_timestamp(1_700_000_000, 0),
            last_success_at: None,
            last_error: Some("the broker is not connected".to_owned()),
        }],
        period: Duration::from_mins(1),
        uptime: HOUR,
    }
}

async fn worker_shows_its_last_heartbeat(store: TestStore) -> Result<()> {
    let first = heartbeat();
    store.heartbeat(&first).await?;
    let shown = store.list_workers(9).await?;
    assert_eq!(shown.len(), 1);
    assert_eq!((&shown[0].beat, shown[0].status()), (&first, WorkerStatus::Running));
    assert_eq!((shown[0].last_heartbeat_at - shown[0].started_at).to_std()?, HOUR);
    assert!(shown[0].silent_for < Duration::from_secs(30), "{shown:?}");

    let mut second = Heartbeat { draining: true, uptime: HOUR * 2, ..first };
    second.slots[0].busy = 0;
    second.services[0].last_error = None;
    store.heartbeat(&second).await?;
    let again = store.list_workers(9).await?;
    assert_eq!((again.len(), again[0].status()), (1, WorkerStatus::Draining));
    assert_eq!(again[0].beat.slots, second.slots);
    assert_eq!(again[0].beat.services, second.services);
    assert_eq!(again[0].started_at, shown[0].started_at, "it is set once");
    assert!(again[0].last_heartbeat_at > shown[0].last_heartbeat_at);

    let other = heartbeat();
    store.heartbeat(&other).await?;
    let latest = store.list_workers(1).await?;
    assert_eq!((latest.len(), latest[0].beat.id), (1, other.id));
    assert_eq!(store.list_workers(9).await?.len(), 2);
    Ok(())
}

async fn silent_worker_is_lost_and_then_forgotten(store: TestStore) -> Result<()> {
    store.heartbeat(&Heartbeat { period: NOW, ..heartbeat() }).await?;
    store.heartbeat(&heartbeat()).await?;
    let shown = store.list_workers(9).await?;
    let status: Vec<_> = shown.iter().map(RegisteredWorker::status).collect();
    assert_eq!(status, [WorkerStatus::Running, WorkerStatus::Lost]);
    assert_eq!(store.forget_workers(HOUR).await?, 0);
    assert_eq!(store.forget_workers(NOW).await?, 2);
    assert_eq!(store.list_workers(9).await?, []);
    Ok(())
}

async fn leaving_worker_is_removed(store: TestStore) -> Result<()> {
    let (leaver, other) = (heartbeat(), heartbeat());
    store.heartbeat(&leaver).await?;
    store.heartbeat(&other).await?;
    for _ in 0..2 {
        store.leave(leaver.id).await?;
        let shown = store.list_workers(9).await?;
        assert_eq!((shown.len(), shown[0].beat.id), (1, other.id));
    }
    // A worker that sends a heartbeat after it left is registered again.
    store.heartbeat(&leaver).await?;
    assert_eq!(store.list_workers(1).await?[0].beat, leaver);
    Ok(())
}

async fn take_over_clears_the_worker_registry(store: TestStore) -> Result<()> {
    store.heartbeat(&heartbeat()).await?;
    store.take_over().await?;
    assert_eq!(store.list_workers(9).await?, []);
    Ok(())
}

async fn job_of_a_newer_release_is_not_claimed(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = write_notice(&upload);
    store.tamper("update jobs set needs_version = needs_version + 2 where kind = 'write'").await?;
    let claim = async |redelivered, understood| {
        store.claim(&notice, redelivered, WorkerId::new(), HOUR, understood).await
    };
    for redelivered in [false, true] {
        assert_eq!(claim(redelivered, JOB_VERSION).await?, Claim::Newer);
    }
    let task = store.task_of(&upload).await?;
    assert_eq!((task.status, task.jobs[0].attempt), (Status::Queued, 0));
    // It can run the other job.
    store.claim_job(&thumbnail_notice(&upload)).await?;

    let Claim::Run(job) = claim(false, JOB_VERSION + 1).await? else {
        anyhow::bail!("a newer worker cannot claim it")
    };
    assert_eq!(job.attempt, 1);
    // It runs or has ended, so no notice is needed.
    assert_eq!(claim(true, JOB_VERSION).await?, Claim::Nothing);
    store.settle_job(&job, &write_succeeded()).await?;
    assert_eq!(claim(false, JOB_VERSION).await?, Claim::Nothing);
    Ok(())
}

async fn rows_of_a_newer_release_do_not_block_others(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    store.tamper("update jobs set kind = 'dream' where kind = 'write'").await?;
    store.tamper("update outbox set kind = 'dream' where kind = 'write'").await?;
    let known = upload.jobs[1].0;

    let due: Vec<_> = store.publish_all().await?.iter().map(|notice| notice.job).collect();
    assert_eq!(due, [known]);

    let counts = store.job_counts().await?;
    assert_eq!(counts.len(), 1, "{counts:?}");
    assert_eq!((counts[0].kind, counts[0].lane), (JobKind::Thumbnail, Lane::Interactive));
    assert_eq!((counts[0].count, counts[0].due), (1, 1));

    store.claim_job_for(&thumbnail_notice(&upload), NOW).await?;
    store.tamper("update jobs set status = 'running', lease_until = created_at").await?;
    let expired = store.expired_leases(9).await?;
    assert_eq!(expired.iter().map(|job| job.lease.job).collect::<Vec<_>>(), [known]);
    Ok(())
}
