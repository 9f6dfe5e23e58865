//! The name of the installation, its generation, and attempts that an outage postponed.

use anyhow::{Context, Result};
use safelight_domain::{JobKind, JobNotice, Status};
use safelight_store::Outcome;

use super::{
    promises,
    test_store::{HOUR, NOW, TestStore, failure, write_notice},
};

promises!(
    installation_keeps_its_name,
    generation_only_grows,
    unknown_bytes_are_kept_for_a_while,
    postponed_attempts_do_not_count,
);

async fn installation_keeps_its_name(store: TestStore) -> Result<()> {
    let new = store.installation().await?;
    assert!(!new.is_marked && !new.has_images && !new.keeps_unknown && !new.is_other_lineage);
    store.record_mark().await?;
    store.accept_new_upload().await?;
    let store = store.reopen().await?;
    let marked = store.installation().await?;
    assert!(marked.is_marked && marked.has_images && !marked.is_other_lineage);
    assert_eq!(marked.id, new.id);
    let other = safelight_testing::open::store(&store.empty_database().await?, 2).await?;
    other.migrate().await?;
    assert_ne!(other.installation().await?.id, new.id);
    Ok(())
}

async fn generation_only_grows(store: TestStore) -> Result<()> {
    let first = store.advance_generation(0).await?;
    assert_eq!(store.advance_generation(0).await?, first + 1);
    assert_eq!(store.advance_generation(100).await?, 100);
    assert_eq!(store.advance_generation(50).await?, 101);
    assert_eq!(store.installation().await?.generation, 101);
    Ok(())
}

async fn unknown_bytes_are_kept_for_a_while(store: TestStore) -> Result<()> {
    store.record_mark().await?;
    store.keep_unknown(HOUR).await?;
    assert!(store.installation().await?.keeps_unknown);
    store.keep_unknown(NOW).await?;
    assert!(!store.installation().await?.keeps_unknown);
    Ok(())
}

async fn postponed_attempts_do_not_count(store: TestStore) -> Result<()> {
    let upload = store.accept_new_upload().await?;
    let notice = |generation| JobNotice { generation, ..write_notice(&upload) };
    for round in 0..20 {
        let job = store.claim_job(&notice(round)).await?;
        assert_eq!((job.attempt, job.lease.fence), (1, round + 1));
        store.settle_job(&job, &Outcome::Postponed(failure(), NOW)).await?;
        let task = store.task_of(&upload).await?;
        let job = task.jobs.iter().find(|job| job.kind == JobKind::Write).context("a job")?;
        assert_eq!((job.status, job.attempt), (Status::Queued, 0));
        assert_eq!(job.error.as_ref(), Some(&failure()));
    }
    let job = store.claim_job(&notice(20)).await?;
    store.settle_job(&job, &Outcome::Postponed(failure(), HOUR)).await?;
    // It is not due yet.
    store.assert_unclaimable(&notice(21), false).await
}
