//! Crashes of workers at each step of a job.

use anyhow::{Context, Result};
use safelight_testing::{
    audit::{Audit, Ledger},
    pictures,
};

use super::{FAST_RECOVERY, fail_point, test_cluster, test_server, upload_all, wait_until_killed};

/// The fail points, the kind of job that crashes there, and whether its result was already recorded.
const STEPS: [(&str, &str, bool); 10] = [
    ("worker.claimed", "write", false),
    ("write.inspected", "write", false),
    ("write.promoted", "write", false),
    ("worker.worked", "write", false),
    ("worker.settled", "write", true),
    ("worker.claimed", "thumbnail", false),
    ("thumbnail.rendered", "thumbnail", false),
    ("thumbnail.stored", "thumbnail", false),
    ("worker.worked", "thumbnail", false),
    ("worker.settled", "thumbnail", true),
];

/// Promise: a worker may crash at any step of a job. Another worker takes over the job, and each effect
/// happens once. The crash costs one attempt, or none if the result was recorded.
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_finishes_job_after_crash_at_every_step() -> Result<()> {
    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let client = cluster.client()?;
    let ledger = Ledger::default();
    let mut expected = 0;
    for (number, (step, kind, settled)) in (1..).zip(STEPS) {
        let photo = pictures::jpeg(320, 240, number)?;
        let mut crashing = cluster
            .start_node(&["worker", "--kinds", kind], &[fail_point(&format!("{step}=kill"))])?;
        ledger.record(&client.upload(photo.clone()).await?, &photo)?;
        wait_until_killed(&mut crashing).with_context(|| format!("{step} of {kind}"))?;
        let _replacement = cluster.start_node(&["worker"], &[])?;
        // Auditing the broker takes a second, so it happens only at the end.
        let audit = Audit { broker: None, ..cluster.audit()? };
        let report = audit.run(&ledger).await?.clean();
        let report = report.with_context(|| format!("{step} of {kind}"))?;
        expected += u64::from(!settled);
        assert_eq!(report.repeated(), expected, "after {step} of {kind}");
    }
    cluster.audit()?.run(&ledger).await?.clean()?;
    Ok(())
}

/// The same promise for a single process that is restarted.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_finishes_job_after_crash_at_every_step() -> Result<()> {
    for (number, (step, kind, _)) in (1..).zip(STEPS) {
        // The steps of the worker itself are the same for both kinds.
        if kind == "thumbnail" && step.starts_with("worker.") {
            continue;
        }
        let setup = test_server(FAST_RECOVERY)?;
        let (mut server, client) = setup.start(&[fail_point(&format!("{step}=kill"))])?;
        let ledger = upload_all(&client, &[pictures::jpeg(320, 240, number)?]).await;
        wait_until_killed(&mut server).context(step)?;
        let _server = setup.start(&[])?;
        // The crash may have lost the answer. The upload is finished anyway.
        let report = setup.audit().run(&ledger.unwrap_or_default()).await?;
        let report = report.clean().context(step)?;
        assert_eq!(report.tasks, 1, "after {step}");
        assert!(report.repeated() <= 2, "after {step}: {report:?}");
    }
    Ok(())
}
