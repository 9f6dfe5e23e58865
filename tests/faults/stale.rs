//! Workers that sleep past their leases and wake.

use anyhow::Result;
use safelight_testing::{client::Client, pictures};

use super::{
    FAST_RECOVERY, LIMIT, armed, eventually, stops, test_cluster, test_server, upload_all,
};

/// Promise: a worker that wakes with a result in hand, after another has done the job, changes
/// nothing; it counts a lost lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_too_late_changes_nothing() -> Result<()> {
    let cluster = test_cluster(1, 0, FAST_RECOVERY).await?;
    let client = cluster.client()?;
    let ledger = {
        let mut sleeper = cluster
            .start_node(&["worker", "--kinds", "thumbnail"], &[armed("worker.worked=stop")])?;
        let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
        stops(&mut sleeper).await?;
        let _other = cluster.start_node(&["worker"], &[])?;
        let path = format!("/v1/tasks/{}", ledger.uploads()[0].task.parse::<uuid::Uuid>()?);
        eventually("the other has finished it", async || {
            Ok(client.json(&path).await?["status"] == "succeeded")
        })
        .await?;
        let task = client.json(&path).await?;
        let records = cluster.database().rendition_records().await?;

        sleeper.signal("CONT")?;
        let metrics = Client::new(sleeper.url())?;
        eventually("the sleeper knows that it was late", async || {
            let text = String::from_utf8(metrics.bytes("/metrics").await?.to_vec())?;
            Ok(text.lines().any(|line| line == "safelight_leases_lost_total 1"))
        })
        .await?;
        // Its tag is the version of the task.
        assert_eq!(client.json(&path).await?, task);
        assert_eq!(cluster.database().rendition_records().await?, records);
        // On a busy machine the other one may have needed more than one.
        assert!(task["jobs"][1]["attempt"].as_u64() >= Some(2), "{task:#}");
        ledger
    };
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert!(report.repeated() >= 1, "{report:?}");
    Ok(())
}

/// Promise: a single process that slept past its own leases goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_frozen_continues() -> Result<()> {
    let site = test_server(FAST_RECOVERY)?;
    let (mut server, client) = site.start(&[armed("worker.worked=stop")])?;
    // Its answer may have to wait until the server wakes.
    let upload =
        tokio::spawn(async move { upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await });
    stops(&mut server).await?;
    let database = site.database();
    eventually("its lease expires", async || Ok(database.expired_leases().await? > 0)).await?;
    server.signal("CONT")?;
    let ledger = upload.await??;
    let report = site.audit().run_within(&ledger, LIMIT).await?.clean()?;
    assert!(report.repeated() <= 2, "{report:?}");
    Ok(())
}
