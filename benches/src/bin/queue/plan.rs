//! The time and memory of a backfill over many images that need no work.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    client::Client,
    fleet::{Engines, Fleet, Plan},
    process::peak_mib,
};
use serde_json::json;
use sqlx::Connection;

/// The number of images per insert.
const BATCH: usize = 100_000;

/// How long a backfill may take.
const LIMIT: Duration = Duration::from_mins(20);

/// Measures time, memory and growth of the database, for a dry run and for a real backfill.
pub async fn run(binary: &Path, images: usize) -> Result<()> {
    println!("\nA backfill over {images} images that have all their renditions, on PostgreSQL");
    println!(
        "  {:20} {:>9} {:>10} {:>11} {:>12}",
        "", "seconds", "images/s", "worker MiB", "database MiB"
    );
    let engines = Engines::shared().await?;
    let url = engines.database_url.clone();
    let env = [("LOG", "warn"), ("PRESETS", "{ small = { size = 256 } }")]
        .map(|(key, value)| (format!("SAFELIGHT_{key}"), value.to_owned()));
    let (program, plan) = (binary.to_owned(), Plan { apis: 1, workers: 1, env: env.to_vec() });
    let start = move || Fleet::start(&program, &engines, &plan);
    let fleet = tokio::task::spawn_blocking(start).await??;
    let mut conn = sqlx::PgConnection::connect(&url).await?;
    insert_images(&mut conn, images).await?;
    let client = Client::new(&fleet.url())?;
    let worker = fleet.workers.first().context("a worker")?;
    for (what, dry_run) in [("dry run", true), ("backfill", false)] {
        let before = database_size(&mut conn).await?;
        let started = Instant::now();
        let body = json!({ "kind": "renditions", "dry_run": dry_run });
        let task = client.start_backfill(&body).await?;
        let id = task["id"].as_str().context("an id")?;
        let ended = tokio::time::timeout(LIMIT, client.wait_for_task(id)).await;
        let task = ended.context("the backfill did not end")??;
        let seconds = started.elapsed().as_secs_f64();
        let skipped = task["backfill"]["images"]["skipped"].as_u64().unwrap_or(0);
        ensure!(skipped == images as u64, "{task:#}");
        let growth = database_size(&mut conn).await?.saturating_sub(before) >> 20;
        #[allow(clippy::cast_precision_loss)] // exact up to 2^53 images
        let rate = images as f64 / seconds;
        let memory = peak_mib(worker.id())?;
        println!("  {what:20} {seconds:>9.1} {rate:>10.0} {memory:>11} {growth:>12}");
    }
    Ok(())
}

/// Inserts images, each with its only rendition.
async fn insert_images(conn: &mut sqlx::PgConnection, images: usize) -> Result<()> {
    let presets = [("SAFELIGHT_PRESETS".to_owned(), "{ small = { size = 256 } }".to_owned())];
    let config =
        safelight_config::load_from(None, presets).map_err(|error| anyhow::anyhow!("{error}"))?;
    let fingerprint = config.presets.get("small").context("the preset")?.fingerprint();
    for first in (0..images).step_by(BATCH) {
        sqlx::query(
            "with new as (
                 insert into images (id, sha256, bytes, format, width, height, orientation, stored_at)
                 select ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid,
                        sha256(n::text::bytea), 1, 'jpeg', 1, 1, 1, now()
                 from generate_series($1::int, $2::int) n
                 returning sha256)
             insert into renditions (sha256, preset, fingerprint, format, width, height, bytes,
                                     rendition_sha256)
             select sha256, 'small', $3, 'jpeg', 1, 1, 1, sha256 from new",
        )
        .bind(i32::try_from(first)?)
        .bind(i32::try_from(images.min(first + BATCH) - 1)?)
        .bind(&fingerprint)
        .execute(&mut *conn)
        .await?;
    }
    sqlx::query("vacuum analyze").execute(conn).await?;
    Ok(())
}

async fn database_size(conn: &mut sqlx::PgConnection) -> Result<u64> {
    let bytes: i64 =
        sqlx::query_scalar("select pg_database_size(current_database())").fetch_one(conn).await?;
    Ok(u64::try_from(bytes)?)
}
