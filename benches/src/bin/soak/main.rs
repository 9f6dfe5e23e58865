//! `make soak`: load with random faults, followed by an audit.

mod backfill;
mod fleet;
mod random;
mod single_process;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use random::Random;
use safelight_testing::{
    audit::{Audit, Database},
    load::Load,
    server::find_binary,
};
use serde_json::{Value, json};

/// Uploads continuously while processes and engines are killed, frozen and wiped in an order that the seed
/// decides; then audits the result. At the end, a fleet imports a folder of pictures under faults, and the
/// report is checked. Prints one line of JSON for each part; exits with 1 if anything was lost, stuck,
/// duplicated or left behind.
#[derive(Parser)]
struct Options {
    /// Duration of each of the first two parts
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Only one part: one process under load, a fleet under load, or a fleet that imports while uploads
    /// continue
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Decides which faults occur, and when; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Number of pictures to import
    #[arg(long, default_value_t = 10_000)]
    pictures: usize,
    /// Number of concurrent clients
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// The safelight binary (default: the one in the directory of this program)
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Embedded,
    Fleet,
    Backfill,
}

/// The configuration of all nodes: short times, so that lost work is detected during the run.
const ENV: &[(&str, &str)] = &[
    ("SAFELIGHT_LEASE_MS", "5000"),
    ("SAFELIGHT_REPUBLISH_AFTER_MS", "5000"),
    ("SAFELIGHT_STAGED_GRACE_MS", "20000"),
    ("SAFELIGHT_RECOVERY_GRACE_MS", "20000"),
    ("SAFELIGHT_IDEMPOTENCY_HOLD_MS", "10000"),
    // Many kills per minute must not use up the attempts of a job.
    ("SAFELIGHT_MAX_ATTEMPTS", "50"),
    ("SAFELIGHT_BACKOFF_CAP_MS", "5000"),
];

/// A running deployment and its faults.
trait Deployment {
    /// The URL for clients.
    fn url(&self) -> String;

    /// Its database.
    fn database(&self) -> Database;

    /// Injects a random fault and waits until it is over; returns its name.
    async fn inject_fault(&mut self, random: &mut Random) -> Result<&'static str>;

    /// An audit of it.
    fn audit(&self) -> Audit<'_>;
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let binary = find_binary(options.binary.as_deref())?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = options.seed.unwrap_or(now.as_secs());
    let mut clean = true;
    let wanted = |one| options.only.is_none_or(|only| only == one);
    if wanted(Only::Embedded) {
        let single_process = single_process::SingleProcess::start(&binary)?;
        clean &= soak("embedded", single_process, &options, seed).await?;
    }
    if wanted(Only::Fleet) {
        let fleet = fleet::FleetUnderTest::start(&binary)?;
        clean &= soak("fleet", fleet, &options, seed).await?;
    }
    if wanted(Only::Backfill) {
        clean &= backfill::soak(&binary, options.pictures, options.clients).await?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Injects faults into `deployment` under load, then audits it; returns whether the audit is clean.
async fn soak(
    name: &str,
    mut deployment: impl Deployment,
    options: &Options,
    seed: u64,
) -> Result<bool> {
    let mut random = Random::new(seed);
    let started = Instant::now();
    let load = Load::start(options.clients, &[&deployment.url()])?;
    let (mut faults, mut recoveries) = (Vec::new(), Vec::new());
    while started.elapsed().as_secs_f64() < options.minutes * 60.0 {
        tokio::time::sleep(random.between(Duration::from_secs(1), Duration::from_secs(5))).await;
        let fault = deployment.inject_fault(&mut random).await?;
        let progress = deployment.database().wait_for_progress().await;
        let took = progress.with_context(|| format!("{name}: {fault}"))?;
        eprintln!(
            "{name}: {fault}; work continues after {took:.2?}; {} uploads accepted",
            load.accepted()
        );
        faults.push(fault);
        recoveries.push(took.as_secs_f64());
    }
    let result = load.stop().await?;
    let report = deployment.audit().run(&result.ledger).await?;
    recoveries.sort_by(f64::total_cmp);
    let unexpected = report.tasks.saturating_sub(report.accepted);
    println!(
        "{}",
        json!({
            "deployment": name,
            "seed": seed,
            "minutes": options.minutes,
            "kills_survived": faults.len(),
            "kinds": count(&faults),
            "uploads_accepted": report.accepted,
            "lost": report.lost.len(),
            "wrong": report.wrong.len(),
            "stuck": report.stuck.len(),
            "duplicate_effects": report.doubled.len() + unexpected,
            "left_behind": report.left.len(),
            "repeated_attempts": report.repeated(),
            "refusals": result.rejections,
            "recovery_p50_s": recoveries.get(recoveries.len() / 2),
            "recovery_max_s": recoveries.last(),
        })
    );
    let clean = report.is_clean() && unexpected == 0;
    if !clean {
        eprintln!("{report:#?}");
    }
    Ok(clean)
}

/// The number of occurrences of each fault.
fn count(faults: &[&str]) -> Value {
    let mut counts = serde_json::Map::new();
    for fault in faults {
        let previous = counts.get(*fault).and_then(Value::as_u64).unwrap_or(0);
        counts.insert((*fault).to_owned(), json!(previous + 1));
    }
    counts.into()
}
