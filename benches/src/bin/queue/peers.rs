//! Celery and `BullMQ` with jobs that do nothing, each with private engines and one worker.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use safelight_testing::{
    percentiles::median, postgres::Postgres, rabbitmq::RabbitMq, redis::Redis,
};

use crate::Options;

const CELERY: &str = include_str!("../../../queue/celery_noop.py");
const BULLMQ: &str = include_str!("../../../queue/bullmq_noop.mjs");

/// Tasks per second of each peer that is installed.
pub async fn run(options: &Options) -> Result<()> {
    println!(
        "\nPeers doing nothing, {} tasks, one worker; medians of {}",
        options.jobs, options.rounds
    );
    let jobs = options.jobs.to_string();
    match &options.celery {
        None => println!("  Celery: not installed (benches/queue/run installs it)"),
        Some(python) => {
            for (what, results) in [("results dropped", false), ("results in PostgreSQL", true)] {
                let mut rates = Vec::new();
                for _ in 0..options.rounds {
                    let database = Postgres::fresh_database().await?;
                    rates.push(tokio::task::block_in_place(|| {
                        celery(python, &jobs, results.then_some(&*database))
                    })?);
                }
                let what = format!("Celery on RabbitMQ, {what}");
                println!("  {what:44} {:>9.0}", median(rates));
            }
        }
    }
    match &options.bullmq {
        None => println!("  BullMQ: not installed (benches/queue/run installs it)"),
        Some(folder) => {
            for (what, syncs) in
                [("in memory only", false), ("that syncs each write, as ours do", true)]
            {
                let mut rates = Vec::new();
                for _ in 0..options.rounds {
                    rates.push(tokio::task::block_in_place(|| bullmq(folder, &jobs, syncs))?);
                }
                let what = format!("BullMQ on a Redis {what}");
                println!("  {what:44} {:>9.0}", median(rates));
            }
        }
    }
    Ok(())
}

fn celery(python: &Path, jobs: &str, database: Option<&str>) -> Result<f64> {
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("noop.py"), CELERY)?;
    let mut command = Command::new(python);
    command
        .arg("noop.py")
        .arg(jobs)
        .current_dir(folder.path())
        .env("BROKER_URL", RabbitMq::shared()?.fresh_vhost()?);
    if let Some(url) = database {
        let url = url.replacen("postgres://", "db+postgresql+psycopg://", 1);
        command.env("RESULT_URL", url);
    }
    rate(&mut command)
}

fn bullmq(folder: &Path, jobs: &str, syncs: bool) -> Result<f64> {
    let redis = Redis::start()?;
    // BullMQ requires this: an evicted job is a lost job.
    redis.ask("CONFIG SET maxmemory-policy noeviction")?;
    redis.ask("CONFIG SET maxmemory 0")?;
    if syncs {
        redis.ask("CONFIG SET appendfsync always")?;
        redis.ask("CONFIG SET appendonly yes")?;
    }
    let script = folder.join("noop.mjs");
    fs::write(&script, BULLMQ)?;
    let mut command = Command::new("node");
    command.arg(&script).arg(jobs).arg(redis.port().to_string()).current_dir(folder);
    rate(&mut command)
}

/// The rate, which a peer prints in its last line.
fn rate(command: &mut Command) -> Result<f64> {
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{command:?} failed");
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("no output")?;
    last.trim().parse().with_context(|| format!("`{last}` is not a rate"))
}
