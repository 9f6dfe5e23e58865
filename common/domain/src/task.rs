//! Tasks and jobs, and the states they go through.
//!
//! ```text
//! queued ──claim──▶ running ──settle──▶ succeeded | failed
//!    ▲                 │
//!    └──retry, lease lost, handed back
//! queued | running ──cancel──▶ cancelled
//! ```

use chrono::{DateTime, Utc};

use super::{Backfill, Failure, Image, JobId, Owner, Receipt, TaskId, text_enum::text_enum};

/// The newest version of jobs that this release understands. A job's row says which one a worker must
/// understand to run it. Raise it with a release that queues jobs which earlier ones would run
/// wrongly; those then leave them to newer workers. What an upload queues asks for 2: its image shows its
/// renditions once a worker has said that they are made, which earlier ones do not.
pub const JOB_VERSION: u32 = 2;

text_enum! {
    /// Where a task or a job stands.
    "status" Status {
        /// Waits for a worker, or for its next attempt.
        Queued = "queued",
        /// A worker holds its lease.
        Running = "running",
        /// Done.
        Succeeded = "succeeded",
        /// Ended for good without success; the reason is kept.
        Failed = "failed",
        /// Ended because somebody asked.
        Cancelled = "cancelled",
    }
}

impl Status {
    /// Whether nothing will change any more (short of a retry by hand).
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

text_enum! {
    /// What a job does.
    "job kind" JobKind {
        /// Persist the blob under its content's name, and its metadata.
        Write = "write",
        /// Make the presets' renditions.
        Thumbnail = "thumbnail",
        /// Read an image's bytes and renditions back, compare, repair.
        Verify = "verify",
        /// Remove all that is stored of an image.
        Delete = "delete",
    }
}

text_enum! {
    /// Who waits for the work. Bulk never delays interactive.
    "lane" Lane {
        /// Somebody is waiting.
        Interactive = "interactive",
        /// A backfill.
        Bulk = "bulk",
    }
}

text_enum! {
    /// What a task is for.
    "task kind" TaskKind {
        /// One upload.
        Upload = "upload",
        /// Renditions that somebody asked for and that an image lacks.
        Rendition = "rendition",
        /// One backfill.
        Backfill = "backfill",
        /// A backfill's look at one image's bytes.
        Verify = "verify",
        /// One image's deletion.
        Delete = "delete",
    }
}

/// How many of a task's jobs have ended, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// All of them.
    pub total: u32,
    /// Done.
    pub succeeded: u32,
    /// Failed for good.
    pub failed: u32,
    /// Cancelled.
    pub cancelled: u32,
}

/// A task with its jobs and its image.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id.
    pub id: TaskId,
    /// What it is for.
    pub kind: TaskKind,
    /// Who waits for it.
    pub lane: Lane,
    /// Where it stands.
    pub status: Status,
    /// Whose it is.
    pub owner: Owner,
    /// Grows with every change of the task or of one of its jobs.
    pub version: i64,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Counts over its jobs.
    pub progress: Progress,
    /// Its jobs in the order they were made.
    pub jobs: Vec<Job>,
    /// The image of an upload, that lacks renditions, or that is deleted.
    pub image: Option<Image>,
    /// How a backfill stands; only of a backfill.
    pub backfill: Option<Box<Backfill>>,
    /// What is removed; only of a deletion.
    pub receipt: Option<Box<Receipt>>,
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// Where it stands.
    pub status: Status,
    /// Attempts begun and not handed back; 0 before the first claim.
    pub attempt: u32,
    /// Attempts at most.
    pub max_attempts: u32,
    /// When the next attempt is due; only for a queued job that has failed before.
    pub retry_at: Option<DateTime<Utc>>,
    /// The last failure.
    pub error: Option<Failure>,
}
