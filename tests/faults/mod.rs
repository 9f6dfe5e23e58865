//! Faults on real engines, by fail points and signals. Every test ends with an audit
//! (`tests/testing/src/audit`).

mod accept;
mod broker;
mod cancel;
mod clock;
mod database;
mod delete;
mod disk;
mod drain;
mod links;
mod poison;
mod stale;
mod work;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::StatusCode;
use safelight_testing::{
    audit::Ledger,
    client::{Client, accepted},
    server::Server,
    test_cluster::TestCluster,
    test_server::TestServer,
    wait::{LIMIT, eventually},
};
use serde_json::Value;
use tokio::task::block_in_place;

/// Lost work is found in a second rather than in half a minute.
const FAST_RECOVERY: &[(&str, &str)] = &[
    ("SAFELIGHT_LEASE_MS", "1500"),
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_IDEMPOTENCY_HOLD_MS", "500"),
];

/// Bytes of rejected uploads are collected while a test waits, but not while an upload is slow.
const SHORT_GRACE: (&str, &str) = ("SAFELIGHT_STAGED_GRACE_MS", "5000");

/// The program under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_safelight"))
}

/// A fail point's variable.
fn armed(point: &str) -> (&'static str, &str) {
    ("SAFELIGHT_FAIL_POINTS", point)
}

/// A folder for one process on embedded parts.
fn test_server(env: &[(&str, &str)]) -> Result<TestServer> {
    TestServer::new(binary(), env)
}

/// Nodes on a database and a virtual host of their own.
async fn test_cluster(apis: usize, workers: usize, env: &[(&str, &str)]) -> Result<TestCluster> {
    TestCluster::start(binary(), apis, workers, env).await
}

/// Waits for a process that a fail point kills.
fn dies(server: &mut Server) -> Result<()> {
    let status = block_in_place(|| server.wait(LIMIT))?;
    ensure!(status.code().is_none(), "ended with {status} rather than by a signal");
    Ok(())
}

/// Waits until every thread of a process stands still.
async fn stops(server: &mut Server) -> Result<()> {
    let id = server.id();
    eventually("the process has stopped", async || {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
        let state = stat.rsplit(')').next().context("a state")?.trim_start().chars().next();
        Ok(state == Some('T'))
    })
    .await
}

/// Sends an upload again until it is accepted, as a client does that got no answer.
async fn upload_until_accepted(client: &Client, body: &[u8], key: &str) -> Result<Value> {
    let mut task = None;
    eventually("the upload is accepted", async || {
        match client.post_image(body.to_vec(), &[("Idempotency-Key", key)]).await {
            // The key of a dead upload is still held.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => {}
            Ok(answer) => task = Some(accepted(answer).await?),
            Err(error) => ensure!(error.is_retryable(), "{error}"),
        }
        Ok(task.is_some())
    })
    .await?;
    task.context("a task")
}

/// Uploads `bodies` and notes them.
async fn upload_all(client: &Client, bodies: &[Vec<u8>]) -> Result<Ledger> {
    let ledger = Ledger::default();
    for body in bodies {
        ledger.record(&client.upload(body.clone()).await?, body)?;
    }
    Ok(ledger)
}
