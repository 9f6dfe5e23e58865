//! Whether uploads notice a backfill that takes all it can get.

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

/// Uploads that are waited for, one at a time.
const UPLOADS: usize = 60;

/// Photographs that the backfill makes all renditions of, over and over.
const PHOTOGRAPHS: usize = 200;

/// From the 202 to `succeeded`, alone and beside a backfill, on one process and on a fleet.
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
    let idle = waits(client, &photo, "idle").await?;
    let id = saturate(client).await?;
    let busy = waits(client, &photo, "busy").await?;
    let left = client.json(&format!("/v1/tasks/{id}")).await?;
    ensure!(left["finished_at"].is_null(), "the backfill ended before the uploads did");
    let of = |times: &[Duration], percent| percentile_ms(times, percent);
    let row = |name: &str, times: &[Duration]| {
        let (p50, p95) = (of(times, 50), of(times, 95));
        let (of_p50, of_p95) = (p50 / of(&idle, 50), p95 / of(&idle, 95));
        println!("  {name:32} {p50:>8.1} {p95:>8.1} {of_p50:>8.2} {of_p95:>8.2}");
    };
    row(what, &idle);
    row("  during a backfill", &busy);
    Ok(())
}

/// Begins a backfill that has enough to do for as long as this lasts, and waits until it is at work.
async fn saturate(client: &Client) -> Result<String> {
    let mut ids = Vec::new();
    // All of them wait in the bulk lane; each goes over all photographs.
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

async fn waits(client: &Client, photo: &[u8], mark: &str) -> Result<Vec<Duration>> {
    let mut waits = Vec::new();
    for number in 0..UPLOADS {
        let bytes = pictures::with_comment(photo, &format!("{mark} {number}"));
        let task = client.upload(bytes).await?;
        let accepted = Instant::now();
        let task = client.finished(&task).await?;
        ensure!(task["status"] == "succeeded", "{task:#}");
        waits.push(accepted.elapsed());
    }
    Ok(waits)
}
