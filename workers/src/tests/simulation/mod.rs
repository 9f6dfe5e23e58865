//! Seeded simulation: runs the real store, worker, relay and rescuer on a simulated broker, clock and
//! network. A seed decides the schedule: the order of all steps, and every fault.
//!
//! `SAFELIGHT_SIM_SEEDS=100000` runs that many schedules, starting at seed `SAFELIGHT_SIM_FROM`
//! (`make simulate`). `SAFELIGHT_SIM_SEED=42` replays one schedule and prints its trace.

mod actions;
mod audit;
mod broker;
mod client;
mod odds;
mod process;
mod scheduler;
mod shared;
mod text;
mod world;

use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

use safelight_blobs::{BlobLocation, Blobs};
use safelight_config::Config;
use safelight_store::Schema;
use safelight_store_sql::sqlite::{Clock, SqliteStore};
use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use self::world::{Report, World};

/// Schedules in a test run by default.
const SEEDS: u64 = 200;

/// What all simulations of a thread share.
struct SharedSetup {
    folder: TempDir,
    /// The bytes of an empty SQLite database with the schema.
    empty_database: Vec<u8>,
    config: Config,
}

/// The trace of one simulation, and its totals or the promise that it broke.
struct SimulationResult {
    trace: Vec<String>,
    result: Result<Report, String>,
}

impl SharedSetup {
    fn new() -> Self {
        // In memory if possible: commits are then fast.
        let shm = Path::new("/dev/shm");
        let folder = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let folder = folder.expect("temp folder");
        let path = folder.path().to_str().expect("UTF-8");
        let settings = [
            ("SAFELIGHT_DATA_DIR", path),
            ("SAFELIGHT_LEASE_MS", "3000"),
            ("SAFELIGHT_BACKOFF_BASE_MS", "500"),
            ("SAFELIGHT_BACKOFF_CAP_MS", "4000"),
            ("SAFELIGHT_DRAIN_TIMEOUT_MS", "2000"),
            ("SAFELIGHT_REPUBLISH_AFTER_MS", "5000"),
        ];
        let settings = settings.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = safelight_config::load_from(None, settings).expect("configuration");
        let empty_database = runtime().block_on(create_database(folder.path()));
        Self { folder, empty_database, config }
    }

    /// Runs the schedule of a seed.
    fn simulate(&self, seed: u64) -> SimulationResult {
        let path = self.folder.path().join(format!("{seed}.db"));
        std::fs::write(&path, &self.empty_database).expect("write the database");
        let location = BlobLocation::Folder(self.folder.path().join("blobs"));
        let blobs = Blobs::open(&location, &self.folder.path().join("spool"));
        let (clock_guard, release) = mpsc::channel::<()>();
        let run = runtime().block_on(async {
            // While a blocking task runs, tokio's paused clock does not advance by itself.
            tokio::task::spawn_blocking(move || release.recv());
            let mut world =
                World::new(seed, path.clone(), &self.config, blobs.expect("blobs")).await;
            let result = world.run().await;
            drop(clock_guard);
            SimulationResult { trace: world.shared.trace(), result }
        });
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", path.display()));
        }
        run
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().expect("runtime")
}

async fn create_database(folder: &Path) -> Vec<u8> {
    let (path, copy) = (folder.join("schema.db"), folder.join("empty.db"));
    let store = SqliteStore::open_simulated(&path, Clock::default()).await.expect("open");
    store.migrate().await.expect("migrate");
    let mut conn = SqliteConnectOptions::new().filename(&path).connect().await.expect("open");
    sqlx::query("vacuum into $1").bind(copy.to_str()).execute(&mut conn).await.expect("copy");
    std::fs::read(copy).expect("read the copy")
}

/// Runs schedules on all cores until one breaks a promise.
fn explore(from: u64, seeds: u64) -> Vec<Report> {
    let (next, failed) = (AtomicU64::new(from), AtomicBool::new(false));
    let reports = Mutex::new(Vec::new());
    let run_schedules = || {
        let setup = SharedSetup::new();
        while !failed.load(Ordering::SeqCst) {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= from + seeds {
                break;
            }
            let run = setup.simulate(seed);
            match run.result {
                Ok(report) => {
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
                Err(violation) => {
                    failed.store(true, Ordering::SeqCst);
                    println!("{}\nseed {seed}: {violation}", run.trace.join("\n"));
                    println!(
                        "replay: SAFELIGHT_SIM_SEED={seed} cargo test --workspace --lib -- \
                         simulation --nocapture"
                    );
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(run_schedules))));
    assert!(!failed.load(Ordering::SeqCst), "a schedule broke a promise: see its trace above");
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn number_from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn schedules_never_lose_block_or_duplicate_work() {
    if let Some(seed) = number_from_env("SAFELIGHT_SIM_SEED") {
        let run = SharedSetup::new().simulate(seed);
        println!("{}", run.trace.join("\n"));
        println!("{:?}", run.result.expect("keeps its promises"));
        return;
    }
    let from = number_from_env("SAFELIGHT_SIM_FROM").unwrap_or(0);
    let seeds = number_from_env("SAFELIGHT_SIM_SEEDS").unwrap_or(SEEDS);
    let started = Instant::now();
    let reports = explore(from, seeds);
    let sum = |count: fn(&Report) -> usize| reports.iter().map(count).sum::<usize>();
    println!(
        "{seeds} schedules from seed {from} in {:.1?}: {} steps, {} tasks, {} of them failed",
        started.elapsed(),
        sum(|report| report.steps),
        sum(|report| report.tasks),
        sum(|report| report.failed)
    );
}

#[test]
fn same_seed_gives_same_schedule() {
    let mut lines = 0;
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| SharedSetup::new().simulate(seed).trace);
        lines += first.len();
        let difference = first.iter().zip(&second).position(|(a, b)| a != b);
        let context = difference.map(|at| (&first[at.saturating_sub(5)..=at], &second[at]));
        assert_eq!(first.len(), second.len(), "seed {seed}: {context:#?}");
        assert!(context.is_none(), "seed {seed}: {context:#?}");
    }
    assert!(lines > 2000, "{lines} lines are too few to compare");
}
