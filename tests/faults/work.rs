//! Workers that die at each step of a job.

use anyhow::{Context, Result};
use safelight_testing::{
    audit::{Audit, Ledger},
    pictures,
};

use super::{FAST_RECOVERY, armed, dies, test_cluster, test_server, upload_all};

/// The steps, the kind of job that dies there, and whether its attempt had counted already.
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

/// Promise: a worker may die anywhere in a job. Another takes it over, each effect happens once,
/// and the death costs one attempt; none, once the result was recorded.
#[tokio::test(flavor = "multi_thread")]
async fn another_worker_finishes_job_after_crash_at_every_step() -> Result<()> {
    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let client = cluster.client()?;
    let ledger = Ledger::default();
    let mut expected = 0;
    for (number, (step, kind, settled)) in (1..).zip(STEPS) {
        let photo = pictures::jpeg(320, 240, number)?;
        let mut doomed =
            cluster.start_node(&["worker", "--kinds", kind], &[armed(&format!("{step}=kill"))])?;
        ledger.record(&client.upload(photo.clone()).await?, &photo)?;
        dies(&mut doomed).with_context(|| format!("{step} of {kind}"))?;
        let _heir = cluster.start_node(&["worker"], &[])?;
        // The broker is asked at the end: that takes a second.
        let audit = Audit { broker: None, ..cluster.audit()? };
        let report = audit.run(&ledger).await?.clean();
        let report = report.with_context(|| format!("{step} of {kind}"))?;
        expected += u64::from(!settled);
        assert_eq!(report.repeated(), expected, "after {step} of {kind}");
    }
    cluster.audit()?.run(&ledger).await?.clean()?;
    Ok(())
}

/// The same promise for one process that is started again.
#[tokio::test(flavor = "multi_thread")]
async fn restarted_server_finishes_job_after_crash_at_every_step() -> Result<()> {
    for (number, (step, kind, _)) in (1..).zip(STEPS) {
        // Both kinds meet the steps of the worker itself: once is enough.
        if kind == "thumbnail" && step.starts_with("worker.") {
            continue;
        }
        let site = test_server(FAST_RECOVERY)?;
        let (mut server, client) = site.start(&[armed(&format!("{step}=kill"))])?;
        let ledger = upload_all(&client, &[pictures::jpeg(320, 240, number)?]).await;
        dies(&mut server).context(step)?;
        let _server = site.start(&[])?;
        // The answer may have died with the process; its upload is finished all the same.
        let report = site.audit().run(&ledger.unwrap_or_default()).await?;
        let report = report.clean().context(step)?;
        assert_eq!(report.tasks, 1, "after {step}");
        assert!(report.repeated() <= 2, "after {step}: {report:?}");
    }
    Ok(())
}
