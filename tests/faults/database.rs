//! Crashes of `PostgreSQL` under load.

use anyhow::{Result, ensure};
use reqwest::StatusCode;
use safelight_testing::{
    fleet::Engines, load::Load, pictures, postgres::Postgres, rabbitmq::RabbitMq, server::Server,
};
use tokio::task::block_in_place;

use super::{SHORT_GRACE, TestCluster, binary, eventually};

/// How many warnings and errors one process may log during one outage: one or two each for the relay, the
/// rescuer's loops, the janitor and the worker.
const MAX_WARNING_LINES: usize = 12;

/// Longer than the outage, so that running jobs keep their leases.
const LEASE: (&str, &str) = ("SAFELIGHT_LEASE_MS", "20000");

/// Promise: while the database is unavailable, Safelight rejects uploads with 503 and `Retry-After`,
/// `/readyz` reports it, the log has few lines about it, and no attempts are used up. Work continues without
/// intervention.
#[tokio::test(flavor = "multi_thread")]
async fn work_continues_after_database_crash() -> Result<()> {
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
    // This takes some seconds. Faulty workers would use up attempts in this time.
    load.wait_for_rejected(6).await?;
    block_in_place(|| postgres.start_again())?;
    let took = cluster.database().wait_for_progress().await?;
    eventually("/readyz reports ready", async || Ok(client.get("/readyz").await?.status() == 200))
        .await?;

    let results = load.stop().await?;
    let report = cluster.audit()?.run(&results.ledger).await?.clean()?;
    cluster.audit()?.eventually_all_referenced().await?;
    eprintln!(
        "work continues {took:?} after the database is back; refusals: {:?}",
        results.rejections
    );
    assert_eq!(report.tasks, report.accepted);
    // If the crash lost the answer to a committed claim, the job is claimed again: at most once per slot.
    ensure!(report.repeated() <= 8, "{report:?}");
    for node in cluster.fleet.apis.iter().chain(&cluster.fleet.workers) {
        let lines = warnings_and_errors(node);
        ensure!(lines.len() <= MAX_WARNING_LINES, "{} lines: {lines:#?}", lines.len());
    }
    Ok(())
}

fn warnings_and_errors(node: &Server) -> Vec<String> {
    let output = node.output();
    // An attempt that lost its lease has a line of its own: those are as many as jobs that ran.
    let bad = |line: &&str| {
        (line.contains(" WARN ") || line.contains("ERROR ")) && !line.contains("the attempt failed")
    };
    output.lines().filter(bad).map(str::to_owned).collect()
}
