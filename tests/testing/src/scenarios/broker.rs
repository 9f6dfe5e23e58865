//! Outages of RabbitMQ, which never affect the acceptance of uploads.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::block_in_place;

use super::{
    outcome::{Outcome, Setting},
    site::{self, CLIENTS, ENV},
};
use crate::{
    fleet::Engines, load::Load, postgres::Postgres, rabbitmq::RabbitMq, test_cluster::TestCluster,
};

/// The full length of each outage.
const OUTAGE: Duration = Duration::from_secs(40);

/// Lost messages are published again within a second.
const FAST_REPUBLISH: &[(&str, &str)] = &[("SAFELIGHT_REPUBLISH_AFTER_MS", "500")];

/// One after the other under one load: the node is killed, frozen, and loses its queues.
pub(super) async fn outages(setting: Setting) -> Result<Outcome> {
    let mut node = block_in_place(RabbitMq::start)?;
    let engines =
        Engines { database_url: Postgres::fresh_database().await?, queue_url: node.fresh_vhost()? };
    let env = [ENV, FAST_REPUBLISH].concat();
    let cluster = TestCluster::start_on(engines, &setting.binary, 1, 2, &env)?;
    let (client, outage) = (cluster.client()?, setting.outage(OUTAGE));
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(10).await?;

    node.kill()?;
    tokio::time::sleep(outage).await;
    block_in_place(|| node.start_node())?;
    cluster.database().wait_for_progress().await.context("after a kill")?;
    node.signal("STOP")?;
    tokio::time::sleep(outage).await;
    node.signal("CONT")?;
    cluster.database().wait_for_progress().await.context("after a freeze")?;
    block_in_place(|| delete_queues(&node, &cluster.engines.queue_url))?;
    cluster.database().wait_for_progress().await.context("after the queues were deleted")?;

    let result = site::recover(&client, load, &mut outcome).await?;
    let is_unnoticed = outcome.rejections.is_empty();
    outcome.expect(is_unnoticed, "uploads are accepted without the broker");
    outcome.add(cluster.audit_with(&node).run(&result.ledger).await?);
    Ok(outcome)
}

fn delete_queues(node: &RabbitMq, url: &str) -> Result<()> {
    let vhost = url.rsplit('/').next().context("a virtual host")?;
    let queues = node.ctl(&["list_queues", "--no-table-headers", "-p", vhost, "name"])?;
    for queue in queues.split_whitespace() {
        // A publisher may have declared a deleted queue again, so errors do not matter.
        let _ = node.ctl(&["delete_queue", "-p", vhost, queue]);
    }
    Ok(())
}
