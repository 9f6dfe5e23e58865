//! The time from the 202 until the task has succeeded, with a single client.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use safelight_testing::client::{Client, TestClient as _};

use crate::{Setup, payload::Payload};

const UPLOADS: usize = 40;

/// Measures `serve`, compared with the time of the job itself, and a fleet.
pub async fn run(setup: &Setup) -> Result<()> {
    println!("\nFrom the 202 to `succeeded`, one upload at a time, {UPLOADS} times");
    let (server, data) = setup.serve()?;
    let client = Client::new(server.url())?;
    let wait = wait_p50(&client).await?;
    println!("  serve                 p50 {:>6.1} ms", ms(wait));
    let job = thumbnail_mean(&client).await?;
    println!("  the thumbnail job alone   {:>6.1} ms (mean)", ms(job));
    println!("  everything else           {:>6.1} ms", ms(wait.saturating_sub(job)));
    drop((server, data));
    let fleet = setup.fleet(2, 2).await?;
    let wait = wait_p50(&Client::new(&fleet.url())?).await?;
    println!("  fleet                 p50 {:>6.1} ms", ms(wait));
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

async fn wait_p50(client: &Client) -> Result<Duration> {
    let payload = Payload::photograph()?;
    let mut waits = Vec::new();
    for _ in 0..UPLOADS {
        let task = client.upload(payload.bytes()).await?;
        let accepted = Instant::now();
        let task = client.finished(&task).await?;
        ensure!(task["status"] == "succeeded", "{task:#}");
        waits.push(accepted.elapsed());
    }
    waits.sort_unstable();
    Ok(waits[UPLOADS / 2])
}

/// The mean time of the job, without claim and settle, from the server's histogram.
async fn thumbnail_mean(client: &Client) -> Result<Duration> {
    let text = client.get("/metrics").await?.error_for_status()?.text().await?;
    let value = |suffix: &str| -> Result<f64> {
        let line = text.lines().find(|line| {
            line.starts_with(&format!("safelight_job_seconds_{suffix}"))
                && line.contains("thumbnail")
                && line.contains("run")
        });
        let line = line.context("no safelight_job_seconds in /metrics")?;
        Ok(line.rsplit(' ').next().context("a value")?.parse()?)
    };
    Ok(Duration::from_secs_f64(value("sum")? / value("count")?))
}
