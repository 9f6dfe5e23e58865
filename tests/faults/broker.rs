//! Faults of `RabbitMQ`. They never affect the acceptance of uploads.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties,
    options::{BasicPublishOptions, QueueDeleteOptions, QueuePurgeOptions},
};
use safelight_testing::{
    audit::Database, fleet::Engines, load::Load, pictures, postgres::Postgres, rabbitmq::RabbitMq,
};
use serde_json::json;
use tokio::task::block_in_place;

use super::{TestCluster, binary, eventually, test_cluster, upload_all};

/// The queues that uploads use.
const QUEUES: [&str; 2] = ["safelight.write.interactive.v1", "safelight.thumbnail.interactive.v1"];

/// Lost messages are published again within a second.
const FAST_REPUBLISH: &[(&str, &str)] = &[("SAFELIGHT_REPUBLISH_AFTER_MS", "500")];

/// Promise: while the broker is down or short of memory, uploads are accepted as usual and `/readyz` reports
/// `degraded`. Work continues without intervention. (One test, because starting a broker takes seconds.)
#[tokio::test(flavor = "multi_thread")]
async fn uploads_continue_while_broker_is_down_or_out_of_memory() -> Result<()> {
    let mut node = block_in_place(RabbitMq::start)?;
    let engines =
        Engines { database_url: Postgres::fresh_database().await?, queue_url: node.fresh_vhost()? };
    let cluster = TestCluster::start_on(engines, binary(), 1, 2, &[])?;
    let client = cluster.client()?;
    let readiness = async || anyhow::Ok(client.json("/readyz").await?["status"].clone());
    let load = Load::start(3, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(20).await?;

    node.kill()?;
    eventually("/readyz reports degraded", async || Ok(readiness().await? == "degraded")).await?;
    load.wait_for_more(20).await?;
    block_in_place(|| node.start_node())?;
    let after_kill = cluster.database().wait_for_progress().await?;
    eventually("/readyz reports ready", async || Ok(readiness().await? == "ready")).await?;

    let watermark = async |limit: &str| {
        block_in_place(|| node.ctl(&["set_vm_memory_high_watermark", "absolute", limit]))
    };
    watermark("1").await?;
    eventually("/readyz reports degraded", async || Ok(readiness().await? == "degraded")).await?;
    let since = Instant::now();
    load.wait_for_more(30).await?;
    let mut took = load.latencies(since);
    took.sort_unstable();
    let median = took[took.len() / 2];
    ensure!(median < Duration::from_secs(1), "uploads take {median:?} during the memory alarm");
    watermark("1GB").await?;
    let after_alarm = cluster.database().wait_for_progress().await?;

    let results = load.stop().await?;
    eprintln!(
        "work continues {after_kill:?} after a kill, {after_alarm:?} after an alarm; \
         an upload takes {median:?} during the alarm"
    );
    ensure!(results.rejections.is_empty(), "rejected uploads: {:?}", results.rejections);
    let report = cluster.audit_with(&node).run(&results.ledger).await?.clean()?;
    assert_eq!(report.tasks, report.accepted);
    Ok(())
}

async fn channel(cluster: &TestCluster) -> Result<(Connection, Channel)> {
    let url = &cluster.engines.queue_url;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    Ok((connection, channel))
}

async fn wait_until_published(database: &Database, jobs: usize) -> Result<()> {
    eventually("all jobs are published", async || Ok(database.published().await? == jobs)).await
}

/// Promise: jobs whose messages are purged or whose queues are deleted are published again, with and without
/// running workers.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_survive_purged_and_deleted_queues() -> Result<()> {
    let cluster = test_cluster(1, 0, FAST_REPUBLISH).await?;
    let (client, database) = (cluster.client()?, cluster.database());
    let photo = pictures::jpeg(320, 240, 1)?;
    let bodies: Vec<_> =
        (0..6).map(|number| pictures::with_comment(&photo, &number.to_string())).collect();
    let ledger = upload_all(&client, &bodies).await?;
    wait_until_published(&database, 12).await?;
    let (_connection, channel) = channel(&cluster).await?;
    channel.queue_purge(QUEUES[0].into(), QueuePurgeOptions::default()).await?;
    channel.queue_delete(QUEUES[1].into(), QueueDeleteOptions::default()).await?;

    let _worker = cluster.start_node(&["worker"], &[])?;
    cluster.audit()?.run(&ledger).await?.clean()?;
    // The same while a worker consumes the queues.
    for queue in QUEUES {
        channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await?;
    }
    let late = upload_all(&client, &[pictures::jpeg(320, 240, 2)?]).await?;
    let report = cluster.audit()?.run(&late).await?.clean()?;
    assert_eq!((report.tasks, report.repeated()), (7, 0));
    Ok(())
}

/// Promise: messages that arrive three times and in any order cause no attempt to be repeated.
#[tokio::test(flavor = "multi_thread")]
async fn duplicate_and_reordered_messages_change_nothing() -> Result<()> {
    let cluster = test_cluster(1, 0, &[]).await?;
    let photo = pictures::jpeg(320, 240, 1)?;
    let bodies: Vec<_> =
        (0..8).map(|number| pictures::with_comment(&photo, &number.to_string())).collect();
    let ledger = upload_all(&cluster.client()?, &bodies).await?;
    let database = cluster.database();
    wait_until_published(&database, 16).await?;
    let notices = database.notices().await?;
    let (_connection, channel) = channel(&cluster).await?;
    // 7 and 16 have no common divisor, so each round publishes every notice once, in a different order.
    for step in 0..3 * notices.len() {
        let [kind, lane, job, generation] = &notices[(step * 7 + step / 16) % notices.len()];
        let body = json!({ "v": 1, "job": job, "generation": generation.parse::<u32>()? });
        let queue = format!("safelight.{kind}.{lane}.v1");
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default().with_delivery_mode(2);
        channel
            .basic_publish(
                "safelight".into(),
                queue.into(),
                options,
                body.to_string().as_bytes(),
                properties,
            )
            .await?
            .await
            .context("not published")?;
    }
    let (_worker, _other_worker) =
        (cluster.start_node(&["worker"], &[])?, cluster.start_node(&["worker"], &[])?);
    let report = cluster.audit()?.run(&ledger).await?.clean()?;
    assert_eq!((report.tasks, report.repeated()), (8, 0));
    Ok(())
}
