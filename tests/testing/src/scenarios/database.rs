//! Outages of PostgreSQL.

use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, Connection, Executor, postgres::PgConnection};
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

/// The name of the database.
const DATABASE: &str = "safelight";

/// One after the other under one load: no transaction may write, every statement is cut short, a table is locked,
/// the server crashes.
pub(super) async fn outages(setting: Setting) -> Result<Outcome> {
    let mut postgres = block_in_place(Postgres::start)?;
    block_in_place(|| postgres.create_database(DATABASE))?;
    let queue_url = block_in_place(|| RabbitMq::shared()?.fresh_vhost())?;
    let engines = Engines { database_url: postgres.url(DATABASE), queue_url };
    let cluster = TestCluster::start_on(engines, &setting.binary, 1, 2, ENV)?;
    let (client, outage) = (cluster.client()?, setting.outage(OUTAGE));
    let mut outcome = Outcome::default();
    let load = Load::start(CLIENTS, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(10).await?;

    for (parameter, value) in [("default_transaction_read_only", "on"), ("statement_timeout", "1")]
    {
        block_in_place(|| postgres.set(parameter, value))?;
        let noticed = site::is_noticed(&client, outage).await;
        if parameter == "default_transaction_read_only" {
            outcome.expect(noticed, "/readyz says that nothing can be written to the database");
        }
        reset(&postgres, parameter).await?;
        load.wait_for_more(5).await.with_context(|| format!("after {parameter}"))?;
    }
    {
        let mut locks = PgConnection::connect(&postgres.url(DATABASE)).await?;
        let mut transaction = locks.begin().await?;
        transaction.execute("lock table jobs in access exclusive mode").await?;
        tokio::time::sleep(outage).await;
        transaction.rollback().await?;
    }
    load.wait_for_more(5).await.context("after a lock")?;
    block_in_place(|| postgres.crash())?;
    let noticed = site::is_noticed(&client, outage).await;
    outcome.expect(noticed, "/readyz says that the database is unavailable");
    block_in_place(|| postgres.start_again())?;

    let result = site::recover(&client, load, &mut outcome).await?;
    outcome.add(cluster.audit()?.run(&result.ledger).await?);
    Ok(outcome)
}

/// Puts a parameter back to its default, in a session on which it has no effect.
async fn reset(postgres: &Postgres, parameter: &str) -> Result<()> {
    let url = postgres.url("postgres");
    let unaffected =
        "?options=-c%20statement_timeout%3D0%20-c%20default_transaction_read_only%3Doff";
    let mut connection = PgConnection::connect(&format!("{url}{unaffected}")).await?;
    connection.execute(AssertSqlSafe(format!("alter system reset {parameter}"))).await?;
    connection.execute("select pg_reload_conf()").await?;
    connection.close().await?;
    Ok(())
}
