//! `PostgreSQL` that dies under load.

use anyhow::{Result, ensure};
use reqwest::StatusCode;
use safelight_testing::{
    fleet::Engines, load::Load, pictures, postgres::Postgres, rabbitmq::RabbitMq, server::Server,
};
use tokio::task::block_in_place;

use super::{SHORT_GRACE, TestCluster, binary, eventually};

/// Lines of trouble that one process may log over one outage: one or two each for the relay, the
/// rescuer's loops, the janitor and the worker.
const TROUBLE_LINES: usize = 12;

/// Longer than the outage, so that jobs in hand keep their leases.
const LEASE: (&str, &str) = ("SAFELIGHT_LEASE_MS", "20000");

/// Promise: without its database Safelight refuses uploads with 503 and `Retry-After`, says so in
/// `/readyz` and in few lines of its log, burns no attempts, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_crashed_database_costs_time_and_nothing_else() -> Result<()> {
    let mut postgres = block_in_place(Postgres::start)?;
    block_in_place(|| postgres.create_database("safelight"))?;
    let queue_url = block_in_place(|| RabbitMq::shared()?.fresh_vhost())?;
    let engines = Engines { database_url: postgres.url("safelight"), queue_url };
    let cluster = TestCluster::start_on(engines, binary(), 1, 2, &[SHORT_GRACE, LEASE])?;
    let client = cluster.client()?;
    let load = Load::start(3, &[cluster.fleet.apis[0].url()])?;
    load.wait_for_more(30).await?;

    block_in_place(|| postgres.crash())?;
    load.wait_for_rejected(6).await?;
    let answer = client.post_image(pictures::jpeg(64, 48, 1)?, &[]).await?;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
    assert_eq!(client.get("/readyz").await?.status(), StatusCode::SERVICE_UNAVAILABLE);
    client.bytes("/livez").await?;
    // Some seconds, in which workers would use up attempts if they did so during an outage.
    load.wait_for_rejected(6).await?;
    block_in_place(|| postgres.start_again())?;
    let took = cluster.database().wait_for_progress().await?;
    eventually("/readyz says ready", async || Ok(client.get("/readyz").await?.status() == 200))
        .await?;

    let tally = load.stop().await?;
    let report = cluster.audit()?.run(&tally.ledger).await?.clean()?;
    eprintln!("work flows {took:?} after the database is back; refusals: {:?}", tally.rejections);
    assert_eq!(report.tasks, report.accepted);
    // A claim that was committed just before the crash, and whose answer was lost with it, is taken
    // anew: at most one for each slot.
    ensure!(report.repeated() <= 8, "{report:?}");
    for node in cluster.fleet.apis.iter().chain(&cluster.fleet.workers) {
        let said = trouble(node);
        ensure!(said.len() <= TROUBLE_LINES, "{} lines: {said:#?}", said.len());
    }
    Ok(())
}

/// What a process complained of.
fn trouble(node: &Server) -> Vec<String> {
    let output = node.output();
    let bad = |line: &&str| line.contains(" WARN ") || line.contains("ERROR ");
    output.lines().filter(bad).map(str::to_owned).collect()
}
