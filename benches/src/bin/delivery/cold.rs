//! First and second reads with a distant object store, for each cache tier alone.

use std::time::{Duration, Instant};

use anyhow::Result;
use safelight_testing::{client::Client, percentiles::percentile_ms, redis::Redis};
use tokio::task::block_in_place;

use crate::{Node, Setup, pictures};

/// Prints a row for each tier.
pub async fn run(setup: &Setup) -> Result<()> {
    let fleet = setup.fleet(&[("SAFELIGHT_PRESETS", pictures::PRESETS)]).await?;
    let client = Client::new(&fleet.url())?;
    let images = pictures::upload(&client, setup.options.reads, pictures::photo).await?;
    let paths = pictures::renditions(&images)?;
    let (_chaos, endpoint) = setup.distant(&fleet.s3)?;
    let redis = block_in_place(Redis::start)?;
    println!(
        "\n{} renditions of 11 KB read one after the other, twice, the store delayed by {} ms; ms",
        setup.options.reads, setup.options.delay_ms
    );
    println!("  {:<34}{:>10}{:>10}{:>12}{:>10}", "", "first p50", "p99", "second p50", "p99");
    let url = redis.url();
    let (off, on) = ("0", "268435456");
    for (title, memory, disk, shared) in [
        ("no tier", off, off, ""),
        ("memory", on, off, ""),
        ("disk", off, on, ""),
        ("shared", off, off, &*url),
        ("all", on, on, &*url),
    ] {
        let _ = redis.ask("FLUSHALL")?;
        let node = Node::start(
            &fleet,
            &[
                ("AWS_ENDPOINT", &endpoint),
                ("SAFELIGHT_MEMORY_CACHE_BYTES", memory),
                ("SAFELIGHT_DISK_CACHE_BYTES", disk),
                ("SAFELIGHT_SHARED_CACHE_URL", shared),
            ],
        )?;
        let client = Client::new(node.url())?;
        let (first, second) = (read(&client, &paths).await?, read(&client, &paths).await?);
        println!(
            "  {title:<34}{:>10.1}{:>10.1}{:>12.1}{:>10.1}",
            percentile_ms(&first, 50),
            percentile_ms(&first, 99),
            percentile_ms(&second, 50),
            percentile_ms(&second, 99),
        );
    }
    Ok(())
}

async fn read(client: &Client, paths: &[String]) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(paths.len());
    for path in paths {
        let started = Instant::now();
        client.bytes(path).await?;
        times.push(started.elapsed());
    }
    Ok(times)
}
