//! What a worker says of itself with every heartbeat, and what is known of it from that.

use std::time::Duration;

use chrono::{DateTime, Utc};
use safelight_domain::WorkerId;
use serde::{Deserialize, Serialize};

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WorkerStatus {
    /// Takes jobs.
    Running,
    /// Takes no more jobs, and ends those that it has.
    Draining,
    /// Has not been heard of for three of its periods.
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

    /// That of a worker that beats now.
    pub const fn of(beat: &Heartbeat) -> Self {
        if beat.draining { Self::Draining } else { Self::Running }
    }
}

/// A worker, as it describes itself. Kinds and lanes are names, not values, because a newer worker
/// may have some that the reader does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Its id, new with every start.
    pub id: WorkerId,
    /// The name of its machine.
    pub host: String,
    /// Its process there.
    pub pid: u32,
    /// Its release.
    pub version: String,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// The kinds of jobs that it takes.
    pub kinds: Vec<String>,
    /// The lanes that it takes them from.
    pub lanes: Vec<String>,
    /// Thumbnail jobs at once, as configured.
    pub concurrency: u32,
    /// Each kind on each lane that it serves.
    pub slots: Vec<QueueSlots>,
    /// The background services of its process; none from a release that does not send them.
    pub services: Vec<ServiceRun>,
    /// How often it means to beat.
    pub period: Duration,
    /// How long ago it started.
    pub uptime: Duration,
}

/// One kind's work on one lane of one worker. Stored as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSlots {
    /// The kind of its jobs.
    pub kind: String,
    /// The lane.
    pub lane: String,
    /// Attempts at once at most. Lanes of a kind share slots, so the sum over lanes may be more than
    /// there are.
    pub slots: u32,
    /// Attempts that run now.
    pub busy: u32,
    /// Jobs that ended here since the start, well or not; those to be tried again have not.
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

/// A worker that has beaten and not left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredWorker {
    /// What it last said.
    pub beat: Heartbeat,
    /// When it started.
    pub started_at: DateTime<Utc>,
    /// When it last beat.
    pub last_heartbeat_at: DateTime<Utc>,
    /// How long ago that is.
    pub silent_for: Duration,
}

impl RegisteredWorker {
    /// Beats that may be missing before it counts as lost.
    const PATIENCE: u32 = 3;

    /// Where it stands.
    pub fn status(&self) -> WorkerStatus {
        if self.silent_for > self.beat.period * Self::PATIENCE {
            WorkerStatus::Lost
        } else {
            WorkerStatus::of(&self.beat)
        }
    }
}
