//! Whether more workers process more jobs.

use std::{fs, path::Path};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};
use safelight_testing::{
    client::Client,
    fleet::{Engines, Fleet, Plan},
    percentiles::median,
    pictures,
};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::{
    Options, noop,
    seed::{self, Drained},
};

/// Milliseconds that a padded job waits. It uses no processor, because the machine has too few of them.
const PAD_MS: &str = "40";

/// Padded jobs for each worker.
const PADDED: usize = 150;

/// A set of photographs whose renditions are made.
struct Photographs {
    /// The name in the table.
    name: &'static str,
    /// Width and height in pixels. The larger they are, the larger is the part of decoding.
    size: (u32, u32),
    count: usize,
    /// Whether blobs are in a local directory, or on an S3 server.
    local: bool,
    /// Presets as TOML; empty for the default presets.
    presets: &'static str,
}

/// Encoding AVIF is so expensive that it is almost the whole job.
const AVIF: &str = r#"[presets]
small  = { size = 256, format = "avif" }
medium = { size = 640, format = "avif" }
large  = { size = 1280, format = "avif" }
"#;

const RENDERED: [Photographs; 4] = [
    Photographs {
        name: "6 MP to AVIF, local directory",
        size: pictures::REFERENCE,
        count: 30,
        local: true,
        presets: AVIF,
    },
    Photographs {
        name: "24 MP, local directory",
        size: (6000, 4000),
        count: 30,
        local: true,
        presets: "",
    },
    Photographs {
        name: "6 MP, local directory",
        size: pictures::REFERENCE,
        count: 80,
        local: true,
        presets: "",
    },
    Photographs {
        name: "6 MP, S3 server",
        size: pictures::REFERENCE,
        count: 80,
        local: false,
        presets: "",
    },
];

/// Jobs per second of one, two and four workers with one slot each, with jobs that wait.
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
            let start =
                || noop::start_worker(&engines, &["--concurrency", "1", "--pad-ms", PAD_MS]);
            let running = tokio::task::block_in_place(|| {
                (0..workers).map(|_| start()).collect::<Result<Vec<_>>>()
            })?;
            rates.push(seed::drained(&store, jobs, jobs / 10).await?.rate);
            drop(running);
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

/// Photographs per second of one and of two workers with one slot each. Clients and api nodes have ended
/// before the workers start, so only workers and engines are measured.
pub async fn cores(binary: &Path, rounds: usize) -> Result<()> {
    println!("\nWorkers of one slot that make renditions of photographs; medians of {rounds}");
    println!(
        "  {:30} {:>7} {:>9} {:>7} {:>11} {:>12}",
        "", "workers", "images/s", "of one", "cores busy", "CPU ms each"
    );
    for photographs in &RENDERED {
        let name = photographs.name;
        let photo = pictures::jpeg(photographs.size.0, photographs.size.1, 1)?;
        let mut single = 0.0;
        for workers in [1_usize, 2] {
            let (mut rates, mut busy) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                let run = rendered(binary, workers, &photo, photographs).await?;
                rates.push(run.rate / 2.0);
                busy.push(run.busy);
            }
            let (rate, busy) = (median(rates), median(busy));
            if workers == 1 {
                single = rate;
            }
            let (ratio, each) = (rate / single, busy / rate * 1000.0);
            println!("  {name:30} {workers:>7} {rate:>9.1} {ratio:>7.2} {busy:>11.2} {each:>12.1}");
        }
    }
    Ok(())
}

/// Uploads photographs, then starts `workers` workers and measures them.
async fn rendered(
    binary: &Path,
    workers: usize,
    photo: &[u8],
    photographs: &Photographs,
) -> Result<Drained> {
    let engines = Engines::shared().await?;
    let store = safelight_testing::open::store(&engines.database_url.parse()?, 2).await?;
    let folder = TempDir::new()?;
    let file = folder.path().join("safelight.toml");
    fs::write(&file, photographs.presets)?;
    let mut env = vec![
        ("SAFELIGHT_LOG".to_owned(), "warn".to_owned()),
        ("SAFELIGHT_CONFIG".to_owned(), file.to_string_lossy().into_owned()),
    ];
    if photographs.local {
        let url = format!("file://{}/blobs", folder.path().display());
        env.push(("SAFELIGHT_BLOB_URL".to_owned(), url));
    }
    let (program, plan) = (binary.to_owned(), Plan { apis: 1, workers: 0, env });
    let start = move || Fleet::start(&program, &engines, &plan);
    let mut fleet = tokio::task::spawn_blocking(start).await??;
    let client = Client::new(&fleet.url())?;
    let uploads = (0..photographs.count)
        .map(|number| client.upload(pictures::with_comment(photo, &number.to_string())));
    let _: Vec<_> = stream::iter(uploads).buffer_unordered(8).try_collect().await?;
    tokio::task::block_in_place(|| {
        fleet.apis.clear();
        let start = || fleet.start_node(&["worker", "--concurrency", "1"], &[]);
        let _running = (0..workers).map(|_| start()).collect::<Result<Vec<_>>>()?;
        // Each photograph has a write job and a thumbnail job.
        let jobs = 2 * photographs.count;
        Handle::current().block_on(seed::drained(&store, jobs, jobs / 10))
    })
}
