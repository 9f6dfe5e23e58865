//! Fail-over of PostgreSQL to a standby.

use std::time::Instant;

use anyhow::Result;
use safelight_testing::{
    audit::{Audit, Database},
    fleet::Engines,
    load::Load,
    postgres::Postgres,
    rabbitmq::RabbitMq,
    server::Server,
};
use tokio::task::block_in_place;

use super::{SHORT_GRACE, TestCluster, binary, eventually};

const DATABASE: &str = "safelight";

/// Longer than the fail-over, so that running jobs keep their leases.
const LEASE: (&str, &str) = ("SAFELIGHT_LEASE_MS", "20000");

/// Promise: with a synchronous standby, a fail-over loses no accepted upload. Nodes that know both servers go on
/// with the promoted one without being restarted.
#[tokio::test(flavor = "multi_thread")]
async fn synchronous_failover_loses_nothing() -> Result<()> {
    let primary = block_in_place(Postgres::start)?;
    block_in_place(|| primary.create_database(DATABASE))?;
    let standby = block_in_place(|| primary.start_standby())?;
    block_in_place(|| primary.set("synchronous_standby_names", "*"))?;
    let engines = Engines {
        database_url: format!("{},{}", primary.url(DATABASE), standby.url(DATABASE)),
        queue_url: block_in_place(|| RabbitMq::shared()?.fresh_vhost())?,
    };
    let cluster = TestCluster::start_on(engines, binary(), 2, 2, &[SHORT_GRACE, LEASE])?;
    let urls: Vec<&str> = cluster.fleet.apis.iter().map(Server::url).collect();
    let load = Load::start(4, &urls)?;
    load.wait_for_more(30).await?;

    block_in_place(|| primary.kill())?;
    let died = Instant::now();
    block_in_place(|| standby.promote())?;
    load.wait_for_more(1).await?;
    eprintln!("the next 202 came {:?} after the primary's death", died.elapsed());
    let database = Database::Postgres(standby.url(DATABASE));
    database.wait_for_progress().await?;
    load.wait_for_more(20).await?;
    let client = cluster.client()?;
    eventually("/readyz reports ready", async || Ok(client.get("/readyz").await?.status() == 200))
        .await?;

    let results = load.stop().await?;
    let audit = Audit {
        database,
        blobs: cluster.fleet.s3.bucket_folder(),
        broker: Some((RabbitMq::shared()?, &cluster.engines.queue_url)),
    };
    let report = audit.run(&results.ledger).await?.clean()?;
    assert_eq!(report.tasks, report.accepted);
    Ok(())
}

/// Promise: a node warns at startup that a fail-over can lose uploads.
#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_standby_is_warned_about() -> Result<()> {
    let primary = block_in_place(Postgres::start)?;
    block_in_place(|| primary.create_database(DATABASE))?;
    let _standby = block_in_place(|| primary.start_standby())?;
    let engines = Engines {
        database_url: primary.url(DATABASE),
        queue_url: block_in_place(|| RabbitMq::shared()?.fresh_vhost())?,
    };
    let cluster = TestCluster::start_on(engines, binary(), 1, 0, &[])?;
    let output = cluster.fleet.apis[0].output();
    assert_eq!(output.matches("none is synchronous").count(), 1, "{output}");
    Ok(())
}
