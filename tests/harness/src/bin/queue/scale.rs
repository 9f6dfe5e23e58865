//! Whether more workers do more.

use std::{path::Path, time::Instant};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use safelight_harness::{
    client::Client,
    figures::median,
    fleet::{Engines, Fleet, Plan},
    pictures,
};

use crate::{Options, noop, seed};

/// Milliseconds that a padded job waits: the machine has too few processors to work in.
const PAD_MS: &str = "40";

/// Padded jobs for each worker.
const PADDED: usize = 150;

/// Photographs for each measurement with decoding.
const PHOTOGRAPHS: usize = 80;

/// Jobs per second of one, two and four workers with one slot each, whose jobs wait.
pub async fn padded(options: &Options) -> Result<()> {
    println!(
        "\nWorkers of one slot on PostgreSQL and RabbitMQ, each job waits for {PAD_MS} ms; medians of {}",
        options.rounds
    );
    println!("  {:>7} {:>9} {:>10}", "workers", "jobs/s", "of linear");
    let mut single = 0.0;
    for workers in [1_usize, 2, 4] {
        let mut rates = Vec::new();
        for _ in 0..options.rounds {
            let (engines, store) = noop::engines().await?;
            let jobs = PADDED * workers;
            seed::jobs(&store, jobs).await?;
            let start = || noop::workman(&engines, &["--concurrency", "1", "--pad-ms", PAD_MS]);
            let team = tokio::task::block_in_place(|| {
                (0..workers).map(|_| start()).collect::<Result<Vec<_>>>()
            })?;
            let (took, left) = seed::drained(&store, jobs, jobs / 10).await?;
            #[allow(clippy::cast_precision_loss)] // a few hundred
            rates.push(left as f64 / took.as_secs_f64());
            drop(team);
        }
        let rate = median(rates);
        if workers == 1 {
            single = rate;
        }
        #[allow(clippy::cast_precision_loss)] // at most four
        let linear = single * workers as f64;
        println!("  {workers:>7} {rate:>9.1} {:>10.2}", rate / linear);
    }
    Ok(())
}

/// Photographs per second of one and of two workers with one slot each, which decode.
pub async fn cores(binary: &Path) -> Result<()> {
    println!(
        "\nWorkers of one slot that make thumbnails of {PHOTOGRAPHS} photographs, on two processors"
    );
    println!("  {:>7} {:>9} {:>10}", "workers", "images/s", "of one");
    let mut single = 0.0;
    for workers in [1_usize, 2] {
        let engines = Engines::shared().await?;
        let env = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
        let (program, plan) = (binary.to_owned(), Plan { apis: 1, workers: 0, env });
        let start = move || Fleet::start(&program, &engines, &plan);
        let fleet = tokio::task::spawn_blocking(start).await??;
        let client = Client::new(&fleet.url())?;
        let (width, height) = pictures::REFERENCE;
        let photo = pictures::jpeg(width, height, 1)?;
        let uploads = (0..PHOTOGRAPHS)
            .map(|number| client.upload(pictures::with_comment(&photo, &number.to_string())));
        let tasks: Vec<_> = stream::iter(uploads).buffer_unordered(8).try_collect().await?;
        let start = || fleet.start_node(&["worker", "--concurrency", "1"], &[]);
        let begun = Instant::now();
        let team = tokio::task::block_in_place(|| {
            (0..workers).map(|_| start()).collect::<Result<Vec<_>>>()
        })?;
        for task in &tasks {
            client.finished(task).await?;
        }
        #[allow(clippy::cast_precision_loss)] // less than a hundred
        let rate = PHOTOGRAPHS as f64 / begun.elapsed().as_secs_f64();
        drop(team);
        if workers == 1 {
            single = rate;
        }
        println!("  {workers:>7} {rate:>9.1} {:>10.2}", rate / single);
    }
    Ok(())
}
