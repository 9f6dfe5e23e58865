//! Faults on real engines, caused by fail points and signals. Every test ends with an audit
//! (`tests/testing/src/audit`).

mod accept;
mod balancer;
mod broker;
mod cancel;
mod chaos;
mod clock;
mod database;
mod delete;
mod disk;
mod drain;
mod failover;
mod gc;
mod links;
mod poison;
mod renditions;
mod stale;
mod work;

use std::{
    fs,
    path::{Path, PathBuf},
};

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

/// Lost work is recovered after a second instead of half a minute.
const FAST_RECOVERY: &[(&str, &str)] = &[
    ("SAFELIGHT_LEASE_MS", "1500"),
    ("SAFELIGHT_BACKOFF_BASE_MS", "20"),
    ("SAFELIGHT_STAGED_GRACE_MS", "1000"),
    ("SAFELIGHT_RECOVERY_GRACE_MS", "1000"),
    ("SAFELIGHT_IDEMPOTENCY_HOLD_MS", "500"),
];

/// Short enough that a test can wait until bytes of rejected uploads are deleted, and longer than a slow
/// upload.
const SHORT_GRACE: (&str, &str) = ("SAFELIGHT_STAGED_GRACE_MS", "5000");

/// The program under test.
fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_safelight"))
}

/// The environment variable that sets a fail point.
fn fail_point(point: &str) -> (&'static str, &str) {
    ("SAFELIGHT_FAIL_POINTS", point)
}

/// A data folder for one process with SQLite and the in-process queue.
fn test_server(env: &[(&str, &str)]) -> Result<TestServer> {
    TestServer::new(binary(), env)
}

/// Nodes with their own database and virtual host.
async fn test_cluster(apis: usize, workers: usize, env: &[(&str, &str)]) -> Result<TestCluster> {
    TestCluster::start(binary(), apis, workers, env).await
}

/// Waits for a process that a fail point kills.
fn wait_until_killed(server: &mut Server) -> Result<()> {
    let status = block_in_place(|| server.wait(LIMIT))?;
    ensure!(status.code().is_none(), "ended with {status}, not by a signal");
    Ok(())
}

/// Waits until a process has stopped itself with SIGSTOP.
async fn wait_until_stopped(server: &mut Server) -> Result<()> {
    let id = server.id();
    eventually("the process has stopped", async || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
        let state = stat.rsplit(')').next().context("a state")?.trim_start().chars().next();
        Ok(state == Some('T'))
    })
    .await
}

/// Repeats an upload until it is accepted, like a client that got no answer.
async fn upload_until_accepted(client: &Client, body: &[u8], key: &str) -> Result<Value> {
    let mut task = None;
    eventually("the upload is accepted", async || {
        match client.post_image(body.to_vec(), &[("Idempotency-Key", key)]).await {
            // The crashed upload still holds the key.
            Ok(answer) if answer.status() == StatusCode::CONFLICT => {}
            Ok(answer) => task = Some(accepted(answer).await?),
            Err(error) => ensure!(error.is_retryable(), "{error}"),
        }
        Ok(task.is_some())
    })
    .await?;
    task.context("a task")
}

/// Uploads `bodies` and records them.
async fn upload_all(client: &Client, bodies: &[Vec<u8>]) -> Result<Ledger> {
    let ledger = Ledger::default();
    for body in bodies {
        ledger.record(&client.upload(body.clone()).await?, body)?;
    }
    Ok(ledger)
}

/// The files of all objects in a blob store's folder, also of those that no record names. Files beside the folders
/// belong to the store itself.
fn files(blobs: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(blobs)? {
        folders.extend(Some(entry?.path()).filter(|path| path.is_dir()));
    }
    while let Some(folder) = folders.pop() {
        // It may be removed meanwhile.
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    Ok(found)
}
