//! `make bench-accept`: how fast uploads are accepted, beside what the same machine can do at most
//! in the same run; how much memory that takes; how long a client waits for its renditions.
//!
//! Everything shares the machine: clients, servers, engines. Read the ratios, not the rates.

mod accept;
mod ceiling;
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
    /// The safelight binary; the one beside this program unless said
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
    /// Clients at once, each sending the next upload when it has its answer
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    clients: Vec<usize>,
    /// Seconds per row
    #[arg(long, default_value_t = 8)]
    seconds: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Uploads per second, and percentiles of the 202
    Accept,
    /// Resident memory under 200 large uploads at once
    Memory,
    /// From the 202 to `succeeded`, at idle
    Latency,
    /// Uploads per second and memory with ten times as many clients as there is room for
    Overload,
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
    Ok(())
}

/// What every part needs.
struct Setup {
    binary: PathBuf,
    /// Of one row of a table.
    duration: Duration,
}

impl Setup {
    /// `safelight serve` on a fresh folder.
    fn serve(&self) -> Result<(Server, TempDir)> {
        self.serve_with(&[])
    }

    /// The same with further variables.
    fn serve_with(&self, further: &[(&str, &str)]) -> Result<(Server, TempDir)> {
        let data = TempDir::new()?;
        let folder = data.path().to_string_lossy();
        let base = [
            ("SAFELIGHT_DATA_DIR", &*folder),
            ("SAFELIGHT_LISTEN", "127.0.0.1:0"),
            ("SAFELIGHT_LOG", "warn"),
        ];
        let all = base.iter().chain(further);
        let env: Vec<_> =
            all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Ok((Server::start(safelight(&self.binary, ["serve"], &env))?, data))
    }

    /// A fleet on an empty database.
    async fn fleet(&self, apis: usize, workers: usize) -> Result<Fleet> {
        let engines = Engines::shared().await?;
        let env = vec![("SAFELIGHT_LOG".to_owned(), "warn".to_owned())];
        let (binary, plan) = (self.binary.clone(), Plan { apis, workers, env });
        tokio::task::spawn_blocking(move || Fleet::start(&binary, &engines, &plan)).await?
    }

    /// An empty database for a ceiling.
    async fn database(&self) -> Result<String> {
        Postgres::fresh_database().await.context("PostgreSQL")
    }
}
