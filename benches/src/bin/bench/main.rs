//! `make bench-accept`: how fast uploads are accepted, compared with the ceiling of the same machine in the
//! same run; how much memory that takes; how long a client waits for its renditions.
//!
//! Everything shares the machine: clients, servers and engines. Compare ratios, not rates.

mod accept;
mod ceiling;
mod cost;
mod latency;
mod memory;
mod overload;
mod payload;
mod row;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use safelight_testing::{
    fleet::{Engines, Fleet, Plan},
    postgres::Postgres,
    server::{Server, find_binary, safelight},
};
use tempfile::TempDir;

/// Measures the acceptance of uploads.
#[derive(Parser)]
struct Options {
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "accept,memory,latency,overload"
    )]
    only: Vec<Part>,
    /// Concurrent clients; each sends the next upload after the response to the last one
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    clients: Vec<usize>,
    /// Seconds per row
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Images of `--only cost`
    #[arg(long, default_value_t = 10_000)]
    images: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Uploads per second, and percentiles of the 202
    Accept,
    /// Resident memory during 200 large concurrent uploads
    Memory,
    /// Time from the 202 to `succeeded` on an idle server
    Latency,
    /// Uploads per second and memory with ten times as many clients as allowed
    Overload,
    /// Processor time, space and requests to an object store per image
    Cost,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let binary = find_binary(options.binary.as_deref())?;
    safelight_client::install_crypto_provider();
    let setup = Setup { binary, duration: Duration::from_secs(options.seconds) };
    if options.only.contains(&Part::Accept) {
        accept::run(&setup, &options.clients).await?;
    }
    if options.only.contains(&Part::Memory) {
        memory::run(&setup).await?;
    }
    if options.only.contains(&Part::Latency) {
        latency::run(&setup).await?;
    }
    if options.only.contains(&Part::Overload) {
        overload::run(&setup).await?;
    }
    if options.only.contains(&Part::Cost) {
        cost::run(&setup, options.images).await?;
    }
    Ok(())
}

/// The binary and the duration of measurements.
struct Setup {
    binary: PathBuf,
    /// Duration of the measurement for one row.
    duration: Duration,
}

impl Setup {
    /// Starts `safelight serve` on a new folder.
    fn serve(&self) -> Result<(Server, TempDir)> {
        self.serve_with(&[])
    }

    /// Starts `safelight serve` on a new folder with additional variables.
    fn serve_with(&self, additional: &[(&str, &str)]) -> Result<(Server, TempDir)> {
        let data = TempDir::new()?;
        let folder = data.path().to_string_lossy();
        let base = [
            ("SAFELIGHT_DATA_DIR", &*folder),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_LOG", "warn"),
        ];
        let all = base.iter().chain(additional);
        let env: Vec<_> =
            all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Ok((Server::start(safelight(&self.binary, ["serve"], &env))?, data))
    }

    /// Starts a fleet with an empty database.
    async fn fleet(&self, apis: usize, workers: usize) -> Result<Fleet> {
        let engines = Engines::shared().await?;
        let env = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
        let (binary, plan) = (self.binary.clone(), Plan { apis, workers, env });
        tokio::task::spawn_blocking(move || Fleet::start(&binary, &engines, &plan)).await?
    }

    /// Creates an empty database for a ceiling.
    async fn database(&self) -> Result<String> {
        Postgres::fresh_database().await.context("PostgreSQL")
    }
}
