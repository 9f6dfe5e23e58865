//! Seeded simulation: the real store, worker, relay and rescuer, driven by a schedule that a seed
//! decides, with a broker and a network that fail as it says.
//!
//! `SAFELIGHT_SIM_SEEDS=100000` runs so many schedules, from `SAFELIGHT_SIM_FROM` on;
//! `SAFELIGHT_SIM_SEED=42` replays one and prints it. `make simulate` does the former.

mod actions;
mod audit;
mod broker;
mod client;
mod odds;
mod process;
mod shared;
mod text;
mod turnstile;
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

/// Schedules in a usual test run.
const SEEDS: u64 = 200;

/// What all simulations of one thread stand on.
struct Ground {
    folder: TempDir,
    /// An empty database with the schema.
    database: Vec<u8>,
    config: Config,
}

/// How one simulation went.
struct Run {
    trace: Vec<String>,
    result: Result<Report, String>,
}

impl Ground {
    fn new() -> Self {
        // In memory, where the system has such a folder.
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
        let database = runtime().block_on(empty_database(folder.path()));
        Self { folder, database, config }
    }

    /// Runs the schedule of a seed.
    fn simulate(&self, seed: u64) -> Run {
        let path = self.folder.path().join(format!("{seed}.db"));
        std::fs::write(&path, &self.database).expect("write the database");
        let location = BlobLocation::Folder(self.folder.path().join("blobs"));
        let blobs = Blobs::open(&location, &self.folder.path().join("spool"));
        let (held, release) = mpsc::channel::<()>();
        let run = runtime().block_on(async {
            // As long as blocking work is under way, tokio's paused clock only goes when told to.
            tokio::task::spawn_blocking(move || release.recv());
            let mut world =
                World::new(seed, path.clone(), &self.config, blobs.expect("blobs")).await;
            let result = world.run().await;
            drop(held);
            Run { trace: world.shared.trace(), result }
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

async fn empty_database(folder: &Path) -> Vec<u8> {
    let (path, copy) = (folder.join("schema.db"), folder.join("empty.db"));
    let store = SqliteStore::open_simulated(&path, Clock::default()).await.expect("open");
    store.migrate().await.expect("migrate");
    let mut conn = SqliteConnectOptions::new().filename(&path).connect().await.expect("open");
    sqlx::query("vacuum into $1").bind(copy.to_str()).execute(&mut conn).await.expect("copy");
    std::fs::read(copy).expect("read the copy")
}

/// Runs schedules on all processors until one fails.
fn explore(from: u64, seeds: u64) -> Vec<Report> {
    let (next, failed) = (AtomicU64::new(from), AtomicBool::new(false));
    let reports = Mutex::new(Vec::new());
    let work = || {
        let ground = Ground::new();
        while !failed.load(Ordering::SeqCst) {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= from + seeds {
                break;
            }
            let run = ground.simulate(seed);
            match run.result {
                Ok(report) => {
                    reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
                }
                Err(what) => {
                    failed.store(true, Ordering::SeqCst);
                    println!("{}\nseed {seed}: {what}", run.trace.join("\n"));
                    println!(
                        "again: SAFELIGHT_SIM_SEED={seed} cargo test --workspace --lib -- simulation --nocapture"
                    );
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    assert!(!failed.load(Ordering::SeqCst), "a schedule broke a promise: see its trace above");
    reports.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn schedules_never_lose_block_or_duplicate_work() {
    if let Some(seed) = variable("SAFELIGHT_SIM_SEED") {
        let run = Ground::new().simulate(seed);
        println!("{}", run.trace.join("\n"));
        println!("{:?}", run.result.expect("keeps its promises"));
        return;
    }
    let from = variable("SAFELIGHT_SIM_FROM").unwrap_or(0);
    let seeds = variable("SAFELIGHT_SIM_SEEDS").unwrap_or(SEEDS);
    let began = Instant::now();
    let reports = explore(from, seeds);
    let sum = |of: fn(&Report) -> usize| reports.iter().map(of).sum::<usize>();
    println!(
        "{seeds} schedules from seed {from} in {:.1?}: {} steps, {} tasks, {} of them failed",
        began.elapsed(),
        sum(|one| one.steps),
        sum(|one| one.tasks),
        sum(|one| one.failed)
    );
}

#[test]
fn same_seed_gives_same_schedule() {
    let mut lines = 0;
    for seed in 0..20 {
        let [first, second] = [(); 2].map(|()| Ground::new().simulate(seed).trace);
        lines += first.len();
        let differs = first.iter().zip(&second).position(|(one, other)| one != other);
        let near = differs.map(|at| (&first[at.saturating_sub(5)..=at], &second[at]));
        assert_eq!(first.len(), second.len(), "seed {seed}: {near:#?}");
        assert!(near.is_none(), "seed {seed}: {near:#?}");
    }
    assert!(lines > 2000, "{lines} lines show too little");
}
