//! Tasks and jobs, and their states.
//!
//! ```text
//! queued ──claim──▶ running ──settle──▶ succeeded | failed
//!    ▲                 │
//!    └──retry, lease lost, released
//! queued | running ──cancel──▶ cancelled
//! ```

use chrono::{DateTime, Utc};

use super::{
    Backfill, Failure, Image, JobId, JobKind, Lane, Owner, Receipt, TaskId, text_enum::text_enum,
};

/// The newest version of jobs that this release supports. A job's row contains the version that a worker must
/// support to run it. Increase it in a release whose jobs older releases would run incorrectly; they leave these
/// jobs to newer workers. [`JobKind::needs_version`] says what new jobs need.
pub const JOB_VERSION: u32 = 2;

text_enum! {
    /// The status of a task or a job.
    "status" Status {
        /// It waits for a worker, or for its next attempt.
        Queued = "queued",
        /// A worker holds its lease.
        Running = "running",
        /// It is done.
        Succeeded = "succeeded",
        /// It failed permanently; the reason is kept.
        Failed = "failed",
        /// It was cancelled by a request.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether it can only change by a manual retry.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

text_enum! {
    /// The purpose of a task.
    "task kind" TaskKind {
        /// One upload.
        Upload = "upload",
        /// Missing renditions of an image that a client requested.
        Rendition = "rendition",
        /// One backfill.
        Backfill = "backfill",
        /// A backfill's verification of one image.
        Verify = "verify",
        /// The deletion of one image.
        Delete = "delete",
    }
}

/// The number of a task's jobs by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// All jobs.
    pub total: u32,
    /// Done.
    pub succeeded: u32,
    /// Failed permanently.
    pub failed: u32,
    /// Cancelled.
    pub cancelled: u32,
}

/// A task with its jobs and its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// Its purpose.
    pub kind: TaskKind,
    /// Its priority.
    pub lane: Lane,
    /// Its status.
    pub status: Status,
    /// Its owner.
    pub owner: Owner,
    /// Increases with every change of the task or of one of its jobs.
    pub version: i64,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// The outcomes of its jobs.
    pub progress: Progress,
    /// Its jobs in the order of their creation.
    pub jobs: Vec<Job>,
    /// The image that is uploaded, rendered, verified or deleted.
    pub image: Option<Image>,
    /// The state of a backfill; only for backfills.
    pub backfill: Option<Box<Backfill>>,
    /// What is removed; only for deletions.
    pub receipt: Option<Box<Receipt>>,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Its status.
    pub status: Status,
    /// Attempts started and not released; 0 before the first claim.
    pub attempt: u32,
    /// Maximum number of attempts.
    pub max_attempts: u32,
    /// When the next attempt is due; only for a queued job that failed before.
    pub retry_at: Option<DateTime<Utc>>,
    /// The last failure.
    pub error: Option<Failure>,
}
