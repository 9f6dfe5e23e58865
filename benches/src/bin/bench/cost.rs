//! What an image costs from its upload to its renditions: processor time, space and requests to an object store.

#![allow(clippy::cast_precision_loss)] // counts and bytes that are printed

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use safelight_testing::{
    client::{Client, TestClient as _},
    process::family_cpu_seconds,
    s3::S3,
    wait::eventually_within,
};
use serde_json::Value;

use crate::{Setup, payload::Payload};

/// Uploads at the same time.
const AT_ONCE: usize = 8;

/// How long an image may take.
const LIMIT_PER_IMAGE: Duration = Duration::from_secs(1);

/// Images of the measurement with an object store. Requests per image do not depend on their number.
const IN_BUCKET: usize = 200;

/// Measures `images` copies of the reference photograph on `serve`, and some in a bucket.
pub async fn run(setup: &Setup, images: usize) -> Result<()> {
    let payload = Payload::photograph()?;
    let kb = payload.len() / 1000;
    println!("\nCost of {images} JPEGs of {kb} KB, from the upload to three renditions each");
    let (server, data) = setup.serve()?;
    let client = Client::new(server.url())?;
    let (started, before) = (Instant::now(), family_cpu_seconds(server.id())?);
    upload(&client, &payload, images).await?;
    let seconds = family_cpu_seconds(server.id())? - before;
    let each = seconds / images as f64;
    println!("  {:<34}{:>9.1} ms", "processor time per image", each * 1e3);
    println!("  {:<34}{:>9.1} h", "of a million", each * 1e6 / 3600.0);
    println!(
        "  {:<34}{:>9.1} /s",
        "images per second here",
        images as f64 / started.elapsed().as_secs_f64()
    );
    // SIGTERM empties the write-ahead log into the database.
    drop(server);
    println!("\n  per image        files  folders   KB of content   KB on disk");
    for folder in ["blobs/blobs", "blobs/renditions", ""] {
        let name = if folder.is_empty() { "all, with the database" } else { folder };
        let space = Space::of(&data.path().join(folder))?;
        let per = |count: u64| count as f64 / images as f64;
        println!(
            "  {name:<24}{:>6.2}{:>9.2}{:>16.2}{:>13.2}",
            per(space.files),
            per(space.folders),
            per(space.content) / 1e3,
            per(space.on_disk) / 1e3,
        );
    }
    requests(setup, &payload).await
}

/// Uploads `count` images, and waits until all have their renditions.
async fn upload(client: &Client, payload: &Payload, count: usize) -> Result<()> {
    let tasks: Vec<Value> = stream::iter(0..count)
        .map(async |_| Ok::<_, anyhow::Error>(client.upload(payload.bytes()).await?))
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    eventually_within(
        LIMIT_PER_IMAGE * u32::try_from(count + 100)?,
        "all jobs have ended",
        async || {
            let queues: Value = client.get("/v1/queues").await?.error_for_status()?.json().await?;
            let queues = queues["queues"].as_array().context("queues")?;
            let jobs = |queue: &Value| {
                ["depth", "running"].iter().filter_map(|state| queue[*state].as_u64()).sum::<u64>()
            };
            Ok(queues.iter().map(jobs).sum::<u64>() == 0)
        },
    )
    .await?;
    for task in tasks.iter().rev().take(AT_ONCE) {
        let task = client.finished(task).await?;
        ensure!(task["status"] == "succeeded", "{task:#}");
    }
    Ok(())
}

/// Counts the requests to an object store.
async fn requests(setup: &Setup, payload: &Payload) -> Result<()> {
    let s3 = S3::start("cost")?;
    let url = s3.url();
    let mut env = s3.env();
    env.push(("SAFELIGHT_BLOB_URL".to_owned(), url));
    let env: Vec<(&str, &str)> = env.iter().map(|(key, value)| (&**key, &**value)).collect();
    let (server, _data) = setup.serve_with(&env)?;
    let client = Client::new(server.url())?;
    // The first requests of a process look at the store.
    upload(&client, payload, AT_ONCE).await?;
    let before = s3.requests();
    upload(&client, payload, IN_BUCKET).await?;
    println!("\n  requests per image in a bucket ({IN_BUCKET} images)");
    for (name, count) in s3.requests() {
        let of_these = count - before.get(name).copied().unwrap_or_default();
        println!("  {name:<10}{:>8.2}", of_these as f64 / IN_BUCKET as f64);
    }
    Ok(())
}

/// What a folder contains.
#[derive(Default)]
struct Space {
    files: u64,
    folders: u64,
    /// Bytes of the files.
    content: u64,
    /// Bytes of the blocks of files and folders.
    on_disk: u64,
}

impl Space {
    fn of(folder: &Path) -> Result<Self> {
        let mut space = Self::default();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let (path, meta) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?)))?;
                // stat(2): in units of 512 bytes
                space.on_disk += meta.blocks() * 512;
                if meta.is_dir() {
                    space.folders += 1;
                    folders.push(path);
                } else {
                    space.files += 1;
                    space.content += meta.len();
                }
            }
        }
        Ok(space)
    }
}
