//! The registry of workers: what each reports with its heartbeats.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use safelight_domain::WorkerId;
use serde::{Deserialize, Serialize};

use crate::StoreError;

/// The registry of workers.
#[async_trait]
pub trait Workers: Send + Sync + 'static {
    /// Registers a worker, or updates when it was last alive and what it does. Its uptime counts the first
    /// time only.
    async fn heartbeat(&self, beat: &Heartbeat) -> Result<(), StoreError>;

    /// Up to `limit` registered workers, the latest heartbeat first.
    async fn list_workers(&self, limit: u32) -> Result<Vec<RegisteredWorker>, StoreError>;

    /// Removes workers without a heartbeat for `silent`. Returns how many.
    async fn forget_workers(&self, silent: Duration) -> Result<u64, StoreError>;

    /// Removes a worker that has drained.
    async fn leave(&self, worker: WorkerId) -> Result<(), StoreError>;
}

/// The status of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkerStatus {
    /// Takes jobs.
    Running,
    /// Takes no more jobs, and finishes those that it has.
    Draining,
    /// Has sent no heartbeat for three of its periods.
    Lost,
}

impl WorkerStatus {
    /// Every status.
    pub const ALL: [Self; 3] = [Self::Running, Self::Draining, Self::Lost];

    /// The stable name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Lost => "lost",
        }
    }

    /// The status of a worker that sends this heartbeat.
    pub const fn of(beat: &Heartbeat) -> Self {
        if beat.draining { Self::Draining } else { Self::Running }
    }
}

/// A worker as it describes itself. Kinds and lanes are names, not values, because a newer worker
/// may have some that the reader does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its id, new with every start.
    pub id: WorkerId,
    /// The name of its host.
    pub host: String,
    /// Its process id there.
    pub pid: u32,
    /// Its release.
    pub version: String,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// The kinds of jobs that it takes.
    pub kinds: Vec<String>,
    /// The lanes that it takes them from.
    pub lanes: Vec<String>,
    /// Concurrent thumbnail jobs, as configured.
    pub concurrency: u32,
    /// Each kind on each lane that it serves.
    pub slots: Vec<QueueSlots>,
    /// The background services of its process; none from a release that does not send them.
    pub services: Vec<ServiceRun>,
    /// The interval of its heartbeats.
    pub period: Duration,
    /// How long ago it started.
    pub uptime: Duration,
}

/// The work of one worker on one kind and lane. Stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSlots {
    /// The kind of its jobs.
    pub kind: String,
    /// The lane.
    pub lane: String,
    /// The limit of concurrent attempts. Lanes of a kind share slots, so the sum over lanes may exceed the
    /// number of slots.
    pub slots: u32,
    /// Attempts running now.
    pub busy: u32,
    /// Jobs that ended here since the start, failed ones included, retried ones excluded.
    pub ended: u64,
    /// Time spent on attempts since the start, in ms.
    pub run_ms: u64,
}

/// The last run of one background service. Stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceRun {
    /// Its name.
    pub name: String,
    /// When its last run began, by the clock of its machine.
    pub last_run_at: Option<DateTime<Utc>>,
    /// When its last successful run ended.
    pub last_success_at: Option<DateTime<Utc>>,
    /// Why its last finished run failed; `None` if that succeeded.
    pub last_error: Option<String>,
}

/// A worker with a heartbeat that has not left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredWorker {
    /// Its last heartbeat.
    pub beat: Heartbeat,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// The time of its last heartbeat.
    pub last_heartbeat_at: DateTime<Utc>,
    /// How long ago that is.
    pub silent_for: Duration,
}

impl RegisteredWorker {
    /// Heartbeats that may be missing before it counts as lost.
    const PATIENCE: u32 = 3;

    /// Its status now.
    pub fn status(&self) -> WorkerStatus {
        if self.silent_for > self.beat.period * Self::PATIENCE {
            WorkerStatus::Lost
        } else {
            WorkerStatus::of(&self.beat)
        }
    }
}
