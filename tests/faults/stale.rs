//! Workers that sleep past their leases and wake.

use anyhow::Result;
use safelight_harness::{client::Client, pictures};

use super::{Alone, Cluster, HASTY, LIMIT, armed, eventually, stops, upload_all};

/// Promise: a worker that wakes with a result in hand, after another has done the job, changes
/// nothing; it counts a lost lease.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_wakes_too_late_changes_nothing() -> Result<()> {
    let cluster = Cluster::start(1, 0, HASTY).await?;
    let client = cluster.client()?;
    let ledger = {
        let mut sleeper =
            cluster.node(&["worker", "--kinds", "thumbnail"], &[armed("worker.worked=stop")])?;
        let ledger = upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await?;
        stops(&mut sleeper).await?;
        let _other = cluster.node(&["worker"], &[])?;
        let path = format!("/v1/tasks/{}", ledger.entries()[0].task.parse::<uuid::Uuid>()?);
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
    let report = cluster.books()?.audit(&ledger).await?.clean()?;
    assert!(report.repeated() >= 1, "{report:?}");
    Ok(())
}

/// Promise: a single process that slept past its own leases goes on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_asleep_goes_on() -> Result<()> {
    let alone = Alone::new(HASTY)?;
    let (mut server, client) = alone.start(&[armed("worker.worked=stop")])?;
    // Its answer may have to wait until the server wakes.
    let upload =
        tokio::spawn(async move { upload_all(&client, &[pictures::jpeg(320, 240, 1)?]).await });
    stops(&mut server).await?;
    // Past the lease, for which there is nothing else to wait for.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    server.signal("CONT")?;
    let ledger = upload.await??;
    let report = alone.books().audit_within(&ledger, LIMIT).await?.clean()?;
    assert!(report.repeated() <= 2, "{report:?}");
    Ok(())
}
