//! `make bench-queue`: the cost of a job without its work, compared with Celery and `BullMQ`; whether more
//! workers process more jobs; whether a backfill delays uploads; the time of a backfill over a million
//! images.
//!
//! Everything shares the machine: clients, servers and engines. Compare ratios, not rates.

mod ceiling;
mod interactive;
mod noop;
mod noop_worker;
mod peers;
mod plan;
mod scale;
mod seed;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use safelight_testing::server::find_binary;

/// Measures the queue and its workers.
#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    role: Option<Role>,
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "noop,rows,peers,padded,cores,interactive,plan"
    )]
    only: Vec<Part>,
    /// Jobs that do nothing, for each measurement
    #[arg(long, default_value_t = 20_000)]
    jobs: usize,
    /// Jobs of the long drain, and rows in the jobs table for it
    #[arg(long, default_value_t = 100_000)]
    many_jobs: usize,
    /// Rows of ended jobs
    #[arg(long, default_value_t = 1_000_000)]
    rows: usize,
    /// Images in the backfill
    #[arg(long, default_value_t = 1_000_000)]
    images: usize,
    /// Measurements of each; the median counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// A Python that has Celery, and a folder in which npm installed `BullMQ`; see `benches/queue/run`
    #[arg(long, env = "BENCH_CELERY_PYTHON")]
    celery: Option<PathBuf>,
    #[arg(long, env = "BENCH_BULLMQ_FOLDER")]
    bullmq: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Role {
    /// A worker whose jobs only wait; this program starts it
    #[command(hide = true)]
    NoopWorker(noop_worker::NoopWorkerArgs),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Claim, settle, publish and acknowledge without work, compared with the databases alone
    Noop,
    /// Of those only SQLite and the in-process queue, with the processor time of each job
    Embedded,
    /// The same with a million rows in the jobs table
    Rows,
    /// Celery and `BullMQ` with jobs that do nothing
    Peers,
    /// One, two and four workers of one slot, each job waiting for 40 ms
    Padded,
    /// One and two workers that decode
    Cores,
    /// Uploads with and without a backfill that uses all it can get
    Interactive,
    /// A backfill over a million images that need no work
    Plan,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    safelight_client::install_crypto_provider();
    if let Some(Role::NoopWorker(args)) = &options.role {
        return noop_worker::run(args).await;
    }
    let wants = |part| options.only.contains(&part);
    if wants(Part::Noop) {
        noop::run(&options).await?;
    }
    if wants(Part::Embedded) {
        noop::embedded_only(&options).await?;
    }
    if wants(Part::Rows) {
        noop::with_rows(&options).await?;
    }
    if wants(Part::Peers) {
        peers::run(&options).await?;
    }
    if wants(Part::Padded) {
        scale::padded(&options).await?;
    }
    let binary = find_binary(options.binary.as_deref());
    if wants(Part::Cores) {
        let binary = binary.as_deref().map_err(|error| anyhow::anyhow!("{error}"))?;
        scale::cores(binary, options.rounds).await?;
    }
    if wants(Part::Interactive) {
        interactive::run(binary.as_deref().map_err(|error| anyhow::anyhow!("{error}"))?).await?;
    }
    if wants(Part::Plan) {
        plan::run(binary.as_deref().map_err(|error| anyhow::anyhow!("{error}"))?, options.images)
            .await?;
    }
    Ok(())
}
