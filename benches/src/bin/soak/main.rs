//! `make soak`: load with random faults, then an audit of the audit.

mod alone;
mod backfill;
mod fleet;
mod random;

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

/// Uploads without end to Safelight while its processes and engines are killed, frozen and wiped, in an
/// order that the seed decides; then compares the audit. At the end a fleet imports a folder of pictures
/// meanwhile, and the report of that is added up. Prints one line of JSON for each; exits with 1 if
/// anything was lost, stuck, doubled or left behind.
#[derive(Parser)]
struct Options {
    /// How long to go on, for each of the first two
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Only one of them: one process under load, a fleet under load, a fleet that imports while uploads go on
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Decides which faults come, and when; printed, so that a run can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Pictures that the import is of
    #[arg(long, default_value_t = 10_000)]
    pictures: usize,
    /// Clients that upload at once
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// The safelight binary; the one beside this program unless said
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Only {
    Embedded,
    Fleet,
    Backfill,
}

/// What every node of a soak is configured with: lost things are found while one waits.
const ENV: &[(&str, &str)] = &[
    ("SAFELIGHT_LEASE_MS", "5000"),
    ("SAFELIGHT_REPUBLISH_AFTER_MS", "5000"),
    ("SAFELIGHT_STAGED_GRACE_MS", "20000"),
    ("SAFELIGHT_IDEMPOTENCY_HOLD_MS", "10000"),
    // More kills come in a minute than in other machines' years.
    ("SAFELIGHT_MAX_ATTEMPTS", "50"),
    ("SAFELIGHT_BACKOFF_CAP_MS", "5000"),
];

/// A running Safelight, and what can be done to it.
trait Victim {
    /// Where clients find it.
    fn url(&self) -> String;

    /// The database.
    fn database(&self) -> Database;

    /// Does one fault, from its beginning to its end; says which.
    async fn harm(&mut self, random: &mut Random) -> Result<&'static str>;

    /// Where the truth lies.
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
        let alone = alone::Alone::start(&binary)?;
        clean &= soak("embedded", alone, &options, seed).await?;
    }
    if wanted(Only::Fleet) {
        let fleet = fleet::Victims::start(&binary)?;
        clean &= soak("fleet", fleet, &options, seed).await?;
    }
    if wanted(Only::Backfill) {
        clean &= backfill::soak(&binary, options.pictures, options.clients).await?;
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Harms `victim` under load, then audits it; says whether all is well.
async fn soak(name: &str, mut victim: impl Victim, options: &Options, seed: u64) -> Result<bool> {
    let mut random = Random::new(seed);
    let begun = Instant::now();
    let load = Load::start(options.clients, &[&victim.url()])?;
    let (mut faults, mut recoveries) = (Vec::new(), Vec::new());
    while begun.elapsed().as_secs_f64() < options.minutes * 60.0 {
        tokio::time::sleep(random.between(Duration::from_secs(1), Duration::from_secs(5))).await;
        let fault = victim.harm(&mut random).await?;
        let flows = victim.database().wait_for_progress().await;
        let took = flows.with_context(|| format!("{name}: {fault}"))?;
        eprintln!(
            "{name}: {fault}; work flows after {took:.2?}; {} uploads accepted",
            load.accepted()
        );
        faults.push(fault);
        recoveries.push(took.as_secs_f64());
    }
    let tally = load.stop().await?;
    let report = victim.audit().run(&tally.ledger).await?;
    recoveries.sort_by(f64::total_cmp);
    let unknown = report.tasks.saturating_sub(report.accepted);
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
            "stuck": report.stuck.len(),
            "duplicate_effects": report.doubled.len() + unknown,
            "left_behind": report.left.len(),
            "repeated_attempts": report.repeated(),
            "refusals": tally.rejections,
            "recovery_p50_s": recoveries.get(recoveries.len() / 2),
            "recovery_max_s": recoveries.last(),
        })
    );
    let clean = report.is_clean() && unknown == 0;
    if !clean {
        eprintln!("{report:#?}");
    }
    Ok(clean)
}

/// How often each fault came.
fn count(faults: &[&str]) -> Value {
    let mut counts = serde_json::Map::new();
    for fault in faults {
        let sofar = counts.get(*fault).and_then(Value::as_u64).unwrap_or(0);
        counts.insert((*fault).to_owned(), json!(sofar + 1));
    }
    counts.into()
}
