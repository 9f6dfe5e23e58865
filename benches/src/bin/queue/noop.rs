//! Jobs that do nothing, to measure the cost of the queue itself.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, anyhow};
use safelight_config::DatabaseUrl;
use safelight_store::DynStore;
use safelight_testing::{
    fleet::Engines,
    percentiles::median,
    process::{cpu_seconds, peak_mib},
    server::Server,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::{Options, ceiling, noop_worker, seed};

/// Concurrent jobs of a worker, which wait for the database and not for a processor.
const CONCURRENCY: usize = 64;

/// Starts this program as a worker in a separate process.
pub fn start_worker(engines: &Engines, args: &[&str]) -> Result<(Server, TempDir)> {
    let folder = TempDir::new()?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("noop-worker")
        .args(args)
        .env("SAFELIGHT_DATABASE_URL", &engines.database_url)
        .env("SAFELIGHT_QUEUE_URL", &engines.queue_url)
        .env("SAFELIGHT_DATA_DIR", folder.path());
    Ok((Server::start(command)?, folder))
}

/// Creates a migrated database and a virtual host.
pub async fn engines() -> Result<(Engines, DynStore)> {
    let engines = Engines::shared().await?;
    let url: DatabaseUrl = engines.database_url.parse()?;
    let store = safelight_testing::open::store(&url, 32).await?;
    store.migrate().await?;
    Ok((engines, store))
}

/// Jobs per second on PostgreSQL and RabbitMQ, and in one process on SQLite, compared with each database
/// alone.
pub async fn run(options: &Options) -> Result<()> {
    println!(
        "\nJobs that do nothing, {} of them, one worker; medians of {}",
        options.jobs, options.rounds
    );
    println!("  {:44} {:>9} {:>10}", "", "jobs/s", "of ceiling");
    let mut fleet = Vec::new();
    let mut single_process = Vec::new();
    for _ in 0..options.rounds {
        fleet.push(on_engines(options.jobs, 0).await?.0);
        single_process.push(embedded(options.jobs).await?.0);
    }
    let raw = median(ceiling::postgres(options.jobs, options.rounds).await?);
    let fleet = median(fleet);
    println!("  {:44} {raw:>9.0} {:>10.2}", "PostgreSQL alone: claim, settle", 1.0);
    println!("  {:44} {fleet:>9.0} {:>10.2}", "PostgreSQL and RabbitMQ", fleet / raw);
    let raw = median(ceiling::sqlite(options.jobs, options.rounds).await?);
    let single_process = median(single_process);
    println!("  {:44} {raw:>9.0} {:>10.2}", "SQLite alone: claim, settle, 32 per commit", 1.0);
    println!(
        "  {:44} {single_process:>9.0} {:>10.2}",
        "SQLite and the in-process queue",
        single_process / raw
    );
    Ok(())
}

/// Jobs per second on SQLite and the in-process queue, round by round, and the processor time of each job.
pub async fn embedded_only(options: &Options) -> Result<()> {
    println!("\n{} jobs that do nothing, SQLite and the in-process queue", options.jobs);
    println!("  {:>9} {:>20}", "jobs/s", "processor us per job");
    for _ in 0..options.rounds {
        let (rate, processor_us) = embedded(options.jobs).await?;
        println!("  {rate:>9.0} {processor_us:>20.0}");
    }
    Ok(())
}

/// Drains the same jobs with few and with many rows of ended jobs in the tables.
pub async fn with_rows(options: &Options) -> Result<()> {
    let (jobs, rows) = (options.many_jobs, options.rows);
    println!("\n{jobs} jobs that do nothing, drained on PostgreSQL and RabbitMQ");
    println!("  {:44} {:>9} {:>10} {:>12}", "", "jobs/s", "seconds", "worker MiB");
    let mut rates = Vec::new();
    for rows in [1_000, rows] {
        let (rate, seconds, memory) = on_engines(jobs, rows).await?;
        let what = format!("{rows} rows of ended jobs in the table");
        println!("  {what:44} {rate:>9.0} {seconds:>10.1} {memory:>12}");
        rates.push(rate);
    }
    println!("  {:44} {:>9.2}", "ratio", rates[1] / rates[0]);
    Ok(())
}

/// Jobs per second, seconds in all, and the worker's peak memory in MiB.
async fn on_engines(jobs: usize, rows: usize) -> Result<(f64, f64, u64)> {
    let (engines, store) = engines().await?;
    if rows > 0 {
        insert_ended_jobs(&engines.database_url, rows).await?;
    }
    seed::jobs(&store, jobs).await?;
    let concurrency = CONCURRENCY.to_string();
    let start = || start_worker(&engines, &["--concurrency", &concurrency]);
    let (worker, _folder) = tokio::task::block_in_place(start)?;
    let drained = seed::drained(&store, jobs, jobs / 20).await?;
    Ok((drained.rate, drained.seconds, peak_mib(worker.id())?))
}

/// Inserts tasks and jobs that have ended.
async fn insert_ended_jobs(url: &str, rows: usize) -> Result<()> {
    use sqlx::Connection;
    let mut conn = sqlx::PgConnection::connect(url).await?;
    for statement in [
        "create temporary table old as
         select gen_random_uuid() as image, gen_random_uuid() as task, gen_random_uuid() as job
         from generate_series(1, $1)",
        "insert into images (id, sha256, bytes, format, stored_at)
         select image, sha256(image::text::bytea), 1, 'jpeg', now() from old where $1 > 0",
        "insert into tasks (id, kind, lane, status, image_id, jobs_total, jobs_succeeded, finished_at)
         select task, 'upload', 'interactive', 'succeeded', image, 1, 1, now() from old where $1 > 0",
        "insert into jobs (id, task_id, image_id, kind, lane, status, fence, max_attempts)
         select job, task, image, 'thumbnail', 'interactive', 'succeeded', 1, 8 from old where $1 > 0",
    ] {
        sqlx::query(statement).bind(i32::try_from(rows)?).execute(&mut conn).await?;
    }
    // Without this, the measurement would include the work that PostgreSQL postponed for these rows.
    for statement in ["vacuum analyze", "checkpoint"] {
        sqlx::query(statement).execute(&mut conn).await.context(statement)?;
    }
    Ok(())
}

/// Jobs per second in one process on SQLite and the in-process queue, and microseconds of this process's processor
/// time for each job.
async fn embedded(jobs: usize) -> Result<(f64, f64)> {
    let folder = TempDir::new()?;
    let data = folder.path().to_string_lossy().into_owned();
    let config = safelight_config::load_from(None, [("SAFELIGHT_DATA_DIR".to_owned(), data)])
        .map_err(|error| anyhow!("{error}"))?;
    let parts = noop_worker::parts(config).await?;
    seed::jobs(&parts.store, jobs).await?;
    let used = cpu_seconds(std::process::id())?;
    let shutdown = CancellationToken::new();
    let (relayed, worked) = (parts.clone(), parts.clone());
    let (relay_end, work_end) = (shutdown.clone(), shutdown.clone());
    let running = [
        tokio::spawn(async move { noop_worker::relay(&relayed, relay_end).await }),
        tokio::spawn(async move {
            noop_worker::work(&worked, CONCURRENCY, Duration::ZERO, work_end).await;
        }),
    ];
    let drained = seed::drained(&parts.store, jobs, jobs / 20).await?;
    shutdown.cancel();
    for task in running {
        task.await?;
    }
    #[allow(clippy::cast_precision_loss)] // exact up to 2^53 jobs
    let processor_us = (cpu_seconds(std::process::id())? - used) * 1e6 / jobs as f64;
    Ok((drained.rate, processor_us))
}
