//! A backlog on real engines. Most of it waits in the database.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use safelight_domain::{JobKind, Lane};
use safelight_queue::Queue;
use safelight_testing::{
    client::{Client, TestClient as _},
    fleet::{Engines, Fleet, Plan},
    pictures,
};

use super::binary;
use safelight_testing::wait::eventually;

#[tokio::test]
async fn backlog_waits_in_database_and_not_in_broker() -> Result<()> {
    const UPLOADS: usize = 30;
    let engines = Engines::shared().await?;
    let broker = safelight_testing::open::queue(&engines.queue_url.parse()?);
    let env = vec![("SAFELIGHT_PUBLISH_AHEAD".to_owned(), "8".to_owned())];
    let plan = Plan { apis: 1, workers: 0, env };
    let start = move || Fleet::start(binary(), &engines, &plan);
    let mut fleet = tokio::task::spawn_blocking(start).await??;
    let client = Client::new(&fleet.url())?;
    let photo = pictures::jpeg(64, 48, 1)?;
    let uploads = (0..UPLOADS)
        .map(|number| client.upload(pictures::with_comment(&photo, &number.to_string())));
    let tasks = try_join_all(uploads).await?;

    let queues =
        [JobKind::Write, JobKind::Thumbnail].map(|kind| Queue { kind, lane: Lane::Interactive });
    for queue in queues {
        eventually("8 jobs of the queue are published", async || {
            Ok(broker.depth(queue).await? == 8)
        })
        .await?;
    }
    let unpublished = async || -> Result<f64> {
        let text = String::from_utf8(client.bytes("/metrics").await?.to_vec())?;
        let line = text.lines().find_map(|line| line.strip_prefix("safelight_unpublished_jobs "));
        Ok(line.context("the metric")?.parse()?)
    };
    #[allow(clippy::float_cmp, clippy::cast_precision_loss)] // small whole numbers
    let rest = async || Ok(unpublished().await? == (2 * UPLOADS - 16) as f64);
    eventually("the other jobs are unpublished", rest).await?;
    for queue in queues {
        assert_eq!(broker.depth(queue).await?, 8);
    }
    fleet.add_worker()?;
    for task in &tasks {
        assert_eq!(client.finished(task).await?["status"], "succeeded");
    }
    broker.close().await;
    Ok(())
}
