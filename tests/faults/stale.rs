//! Processes that are frozen for longer than their leases.

use anyhow::Result;
use safelight_testing::{client::Client, pictures};

use super::{
    FAST_RECOVERY, LIMIT, eventually, fail_point, test_cluster, test_server, upload_all,
    wait_until_stopped,
};

/// Promise: a frozen worker that continues with a result after another worker has finished the job changes
/// nothing. It counts a lost lease.
#[tokio::test(flavor = "multi_thread")]
async fn late_result_of_frozen_worker_changes_nothing() -> Result<()> {
    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let client = cluster.client()?;
    let ledger = {
        let mut frozen = cluster
            .start_node(&["worker", "--kinds", "thumbnail"], &[fail_point("worker.worked=stop")])?;
        let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
        wait_until_stopped(&mut frozen).await?;
        let _other = cluster.start_node(&["worker"], &[])?;
        let path = format!("/v1/tasks/{}", ledger.uploads()[0].task.parse::<uuid::Uuid>()?);
        eventually("the other worker has finished the job", async || {
            Ok(client.json(&path).await?["status"] == "succeeded")
        })
        .await?;
        let task = client.json(&path).await?;
        let records = cluster.database().rendition_records().await?;

        frozen.signal("CONT")?;
        let metrics = Client::new(frozen.url())?;
        eventually("the frozen worker counts a lost lease", async || {
            let text = String::from_utf8(metrics.bytes("/metrics").await?.to_vec())?;
            Ok(text.lines().any(|line| line == "safelight_leases_lost_total 1"))
        })
        .await?;
        assert_eq!(client.json(&path).await?, task);
        assert_eq!(cluster.database().rendition_records().await?, records);
        // On a busy machine the other worker may need more than one attempt.
        assert!(task["jobs"][1]["attempt"].as_u64() >= Some(2), "{task:#}");
        ledger
    };
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert!(report.repeated() >= 1, "{report:?}");
    Ok(())
}

/// Promise: a single process that was frozen for longer than its leases continues its work.
#[tokio::test(flavor = "multi_thread")]
async fn frozen_server_continues_its_work() -> Result<()> {
    let setup = test_server(FAST_RECOVERY)?;
    let (mut server, client) = setup.start(&[fail_point("worker.worked=stop")])?;
    // The answer may arrive only after the server continues.
    let upload =
        tokio::spawn(async move { upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await });
    wait_until_stopped(&mut server).await?;
    let database = setup.database();
    eventually("its lease expires", async || Ok(database.expired_leases().await? > 0)).await?;
    server.signal("CONT")?;
    let ledger = upload.await??;
    let report = setup.audit().run_within(&ledger, LIMIT).await?.clean()?;
    assert!(report.repeated() <= 2, "{report:?}");
    Ok(())
}
