//! Whether a backfill that uses all it can get delays uploads.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_testing::{
    client::{Client, TestClient as _},
    fleet::{Engines, Fleet, Plan},
    percentiles::percentile_ms,
    pictures,
    server::{Server, safelight},
    wait::eventually,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// The number of uploads, one at a time.
const UPLOADS: usize = 60;

/// The number of photographs whose renditions the backfills make again and again.
const PHOTOGRAPHS: usize = 200;

/// Measures the time from the 202 to `succeeded`, with and without a backfill, on one process and on a fleet.
pub async fn run(binary: &Path) -> Result<()> {
    println!("\nFrom the 202 to `succeeded`, one upload at a time, {UPLOADS} times; ms");
    println!("  {:32} {:>8} {:>8} {:>8} {:>8}", "", "p50", "p95", "p50 x", "p95 x");
    let data = TempDir::new()?;
    let folder = data.path().to_string_lossy().into_owned();
    let env = [
        ("SAFELIGHT_DATA_DIR", folder.as_str()),
        ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
        ("SAFELIGHT_LOG", "warn"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let start = || Server::start(safelight(binary, ["serve"], &env));
    let server = tokio::task::block_in_place(start)?;
    measure("one process", &Client::new(server.url())?).await?;
    drop(server);

    let engines = Engines::shared().await?;
    let env = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
    let (program, plan) = (binary.to_owned(), Plan { apis: 1, workers: 1, env });
    let start = move || Fleet::start(&program, &engines, &plan);
    let fleet = tokio::task::spawn_blocking(start).await??;
    measure("PostgreSQL, RabbitMQ, one worker", &Client::new(&fleet.url())?).await
}

async fn measure(what: &str, client: &Client) -> Result<()> {
    let (width, height) = pictures::REFERENCE;
    let photo = pictures::jpeg(width, height, 1)?;
    let copies = (0..PHOTOGRAPHS)
        .map(|number| client.upload(pictures::with_comment(&photo, &number.to_string())));
    let tasks: Vec<Value> = stream::iter(copies).buffer_unordered(8).try_collect().await?;
    for task in &tasks {
        client.finished(task).await?;
    }
    let idle = wait_times(client, &photo, "idle").await?;
    let id = saturate(client).await?;
    let busy = wait_times(client, &photo, "busy").await?;
    let left = client.json(&format!("/v1/tasks/{id}")).await?;
    ensure!(left["finished_at"].is_null(), "the backfill ended before the uploads did");
    let row = |name: &str, times: &[Duration]| {
        let (p50, p95) = (percentile_ms(times, 50), percentile_ms(times, 95));
        let p50_ratio = p50 / percentile_ms(&idle, 50);
        let p95_ratio = p95 / percentile_ms(&idle, 95);
        println!("  {name:32} {p50:>8.1} {p95:>8.1} {p50_ratio:>8.2} {p95_ratio:>8.2}");
    };
    row(what, &idle);
    row("  during a backfill", &busy);
    Ok(())
}

/// Starts enough backfills for the whole measurement, and waits until one of them makes renditions. Returns
/// the id of the last one.
async fn saturate(client: &Client) -> Result<String> {
    let mut ids = Vec::new();
    // All of them wait in the bulk lane; each covers all photographs.
    for _ in 0..20 {
        let body = json!({ "kind": "renditions", "scope": "all" });
        let task = client.start_backfill(&body).await?;
        ids.push(task["id"].as_str().unwrap_or_default().to_owned());
    }
    eventually("the backfill is at work", async || {
        let task = client.task(&ids[0]).await?;
        Ok(task["progress"]["succeeded"].as_u64().unwrap_or(0) > 2)
    })
    .await?;
    Ok(ids.pop().unwrap_or_default())
}

async fn wait_times(client: &Client, photo: &[u8], label: &str) -> Result<Vec<Duration>> {
    let mut waits = Vec::new();
    for number in 0..UPLOADS {
        let bytes = pictures::with_comment(photo, &format!("{label} {number}"));
        let task = client.upload(bytes).await?;
        let accepted = Instant::now();
        let task = client.finished(&task).await?;
        ensure!(task["status"] == "succeeded", "{task:#}");
        waits.push(accepted.elapsed());
    }
    Ok(waits)
}
