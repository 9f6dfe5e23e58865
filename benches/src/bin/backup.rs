//! `make bench-backup`: backs up a server with many images while uploads continue, restores the backup, and compares
//! every image that was accepted before with its bytes. Prints one line of JSON; exits with 1 if anything is missing.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use safelight_testing::{
    client::Client,
    load::Load,
    pictures,
    process::peak_mib,
    server::{Server, find_binary, owned, run, safelight},
    wait::eventually_within,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::block_in_place;

/// How long a command, or the processing of all images, may take.
const LIMIT: Duration = Duration::from_hours(2);

/// Concurrent requests while images are prepared and compared.
const AT_ONCE: usize = 16;

/// Measures `safelight backup` and `safelight restore` on SQLite and a directory.
#[derive(Parser)]
struct Options {
    /// Number of images before the backup
    #[arg(long, default_value_t = 10_000)]
    pictures: u64,
    /// Concurrent clients that upload during the backup, about six pictures per second each
    #[arg(long, default_value_t = 9)]
    clients: usize,
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// A command's report, how long it took.
struct Measured {
    report: Value,
    seconds: f64,
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let binary = find_binary(options.binary.as_deref())?;
    let (data, place, target) = (TempDir::new()?, TempDir::new()?, TempDir::new()?);
    let env = |folder: &TempDir| {
        owned(&[
            ("SAFELIGHT_DATA_DIR", &folder.path().to_string_lossy()),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_LOG", "warn,safelight=info"),
        ])
    };
    let (source_env, target_env) = (env(&data), env(&target));
    let start = |env: &[(String, String)]| {
        let command = safelight(&binary, ["serve"], env);
        block_in_place(|| Server::start(command))
    };
    let measured = |args: &[&str], env: &[(String, String)]| -> Result<Measured> {
        let started = Instant::now();
        let command = safelight(&binary, args, env);
        let ended = block_in_place(|| run(command, LIMIT))?.success()?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(Measured { report: serde_json::from_str(&ended.stdout)?, seconds })
    };

    let server = start(&source_env)?;
    let client = Client::new(server.url())?;
    let before = prepare(&client, options.pictures).await?;
    eprintln!("{} images are stored", before.len());
    let load = Load::start(options.clients, &[server.url()])?;
    load.wait_for_more(options.clients * 2).await?;
    let (accepted, started) = (load.accepted(), Instant::now());
    let to = place.path().to_string_lossy().into_owned();
    let backup = measured(&["backup", "--init", &to, "--json"], &source_env)?;
    #[allow(clippy::cast_precision_loss)] // a count of uploads
    let rate = (load.accepted() - accepted) as f64 / started.elapsed().as_secs_f64();
    let again = measured(&["backup", &to, "--json"], &source_env)?;
    let verified = measured(&["backup", &to, "--verify", "--json"], &source_env)?;
    load.stop().await?;
    let server_mib = peak_mib(server.id())?;
    drop(server);

    let restore = measured(&["restore", &to, "--json"], &target_env)?;
    let server = start(&target_env)?;
    let wrong = compare(&Client::new(server.url())?, &before).await?;
    let missing = backup.report["missing"]["count"].as_u64().unwrap_or(u64::MAX)
        + restore.report["missing"]["count"].as_u64().unwrap_or(u64::MAX);
    println!(
        "{}",
        json!({
            "images": before.len(),
            "uploads_per_second": rate,
            "backup_s": backup.seconds,
            "copied": backup.report["copied"],
            "copied_bytes": backup.report["copied_bytes"],
            "second_backup_s": again.seconds,
            "verify_s": verified.seconds,
            "verified": verified.report["verified"],
            "restore_s": restore.seconds,
            "restored": restore.report["copied"],
            "missing": missing,
            "wrong_or_unreadable": wrong,
            "server_peak_mib": server_mib,
        })
    );
    Ok(if missing == 0 && wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Uploads different pictures and waits until they are processed. Returns their ids, each with its number.
async fn prepare(client: &Client, count: u64) -> Result<Vec<(String, u64)>> {
    let photo = pictures::jpeg(128, 96, 1)?;
    let uploads = stream::iter(0..count).map(|number| {
        let body = pictures::with_comment(&photo, &number.to_string());
        async move {
            let task = client.upload(body).await?;
            let image = task["image"]["id"].as_str().context("an image")?.to_owned();
            Ok::<_, anyhow::Error>((image, number))
        }
    });
    let images: Vec<_> = uploads.buffer_unordered(AT_ONCE).try_collect().await?;
    eventually_within(LIMIT, "all images are processed", async || {
        let queues = client.queues().await?;
        let queues = queues["queues"].as_array().context("queues")?.clone();
        Ok(queues.iter().all(|queue| queue["depth"] == 0 && queue["running"] == 0))
    })
    .await?;
    Ok(images)
}

/// How many images cannot be read, or have other bytes.
async fn compare(client: &Client, images: &[(String, u64)]) -> Result<usize> {
    let photo = pictures::jpeg(128, 96, 1)?;
    ensure!(!images.is_empty(), "nothing to compare");
    let compared = stream::iter(images).map(|(image, number)| {
        let body = pictures::with_comment(&photo, &number.to_string());
        async move {
            let read = client.bytes(&format!("/images/{image}")).await;
            !read.is_ok_and(|bytes| *bytes == *body)
        }
    });
    let wrong = compared.buffer_unordered(AT_ONCE).filter(|wrong| std::future::ready(*wrong));
    Ok(wrong.count().await)
}
