//! The document of a task.

use chrono::{DateTime, Utc};
use safelight_domain::{
    Backfill, BackfillKind, ErrorCode, Failure, ImageFormat, Job, JobId, JobKind, Lane, Owner,
    Progress, Receipt, RemovedRendition, Status, Task, TaskId, TaskKind,
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{backfill::BackfillDocument, image::ImageDocument};
use crate::presets::CurrentPresets;

/// What a client polls.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Task)]
pub struct TaskDocument {
    /// Its id.
    pub id: TaskId,
    /// The kind of task.
    pub kind: TaskKind,
    /// The lane that its jobs are queued on.
    pub lane: Lane,
    /// The status.
    pub status: Status,
    /// The owner.
    #[schema(value_type = String)]
    pub owner: Owner,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// How many of its jobs have ended.
    pub progress: ProgressDocument,
    /// Its jobs, in the order they were created. A backfill has no jobs: each image has its own task.
    pub jobs: Vec<JobDocument>,
    /// The image that the task uploads, makes renditions of, or deletes.
    pub image: Option<ImageDocument>,
    /// The state of the backfill; backfills only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backfill: Option<BackfillDocument>,
    /// What the deletion removes; deletions only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<ReceiptDocument>,
    /// Why it failed: the first failed job's error.
    pub error: Option<ErrorDocument>,
}

/// How many jobs of a task have ended, by result; for a backfill, how many images.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Progress)]
pub struct ProgressDocument {
    /// The total number.
    pub total: u32,
    /// The number that succeeded.
    pub succeeded: u32,
    /// The number that failed permanently.
    pub failed: u32,
    /// The number that needed no work; backfills only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<u32>,
}

/// One unit of work.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobDocument {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The status.
    pub status: Status,
    /// The number of attempts started so far.
    pub attempt: u32,
    /// The maximum number of attempts.
    pub max_attempts: u32,
    /// When the next attempt is due after a failed one.
    pub retry_at: Option<DateTime<Utc>>,
    /// The last failure.
    pub error: Option<ErrorDocument>,
}

/// Why a job failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Failure)]
pub struct ErrorDocument {
    /// The stable error code.
    pub code: ErrorCode,
    /// What happened.
    pub message: String,
    /// Whether another attempt can succeed.
    pub retryable: bool,
}

/// What a deletion removes. Bytes that another owner has also stored are kept for that owner; the receipt
/// does not show this.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Receipt)]
pub struct ReceiptDocument {
    /// The size of the original, in bytes.
    pub original_bytes: u64,
    /// The removed renditions.
    pub renditions: Vec<RemovedRenditionDocument>,
    /// The size of the original and its renditions, in bytes.
    pub bytes: u64,
    /// How many caching proxies have confirmed that they removed the image; null until all have.
    pub proxies: Option<u32>,
    /// When everything was removed; null until then.
    pub removed_at: Option<DateTime<Utc>>,
}

/// A rendition in a receipt.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RemovedRendition)]
pub struct RemovedRenditionDocument {
    /// The preset's name.
    pub preset: String,
    /// Its format.
    pub format: ImageFormat,
    /// Its size, in bytes.
    pub bytes: u64,
}

impl ReceiptDocument {
    fn new(task: &Task, receipt: &Receipt) -> Self {
        let renditions = receipt.renditions.iter();
        Self {
            original_bytes: receipt.bytes,
            bytes: receipt.bytes + renditions.clone().map(|made| made.bytes).sum::<u64>(),
            renditions: renditions.map(RemovedRenditionDocument::new).collect(),
            proxies: receipt.proxies,
            removed_at: task.finished_at.filter(|_| task.status == Status::Succeeded),
        }
    }
}

impl RemovedRenditionDocument {
    fn new(made: &RemovedRendition) -> Self {
        Self { preset: made.preset.clone(), format: made.format, bytes: made.bytes }
    }
}

impl TaskDocument {
    /// What a client sees of `task`.
    pub fn new(task: &Task, presets: &CurrentPresets) -> Self {
        let failed = task.jobs.iter().find(|job| job.status == Status::Failed);
        let incomplete = task.backfill.as_deref().map(incomplete);
        let error = incomplete.as_ref().or(failed.and_then(|job| job.error.as_ref()));
        Self {
            id: task.id,
            kind: task.kind,
            lane: task.lane,
            status: task.status,
            owner: task.owner.clone(),
            created_at: task.created_at,
            updated_at: task.updated_at,
            finished_at: task.finished_at,
            progress: ProgressDocument::new(task),
            jobs: task.jobs.iter().map(JobDocument::new).collect(),
            image: task.image.as_ref().map(|image| ImageDocument::new(image, presets)),
            backfill: task.backfill.as_deref().map(BackfillDocument::new),
            receipt: task.receipt.as_deref().map(|receipt| ReceiptDocument::new(task, receipt)),
            error: error.filter(|_| task.status == Status::Failed).map(ErrorDocument::new),
        }
    }
}

/// What a backfill that failed says of it.
fn incomplete(backfill: &Backfill) -> Failure {
    let failed = backfill.failed + backfill.refused;
    let looked_at = backfill.walked();
    let message = match &backfill.problem {
        Some(problem) if backfill.spec.kind == BackfillKind::Gc => match backfill.succeeded {
            0 => format!("nothing was moved: {problem}"),
            moved => format!("it broke off after it moved {moved} objects: {problem}"),
        },
        Some(problem) => format!("it broke off after {looked_at} images: {problem}"),
        None => format!("{failed} of {looked_at} images failed; its report says which, and why"),
    };
    Failure::new(ErrorCode::BackfillIncomplete, message)
}

impl ProgressDocument {
    fn new(task: &Task) -> Self {
        let Some(backfill) = &task.backfill else {
            let Progress { total, succeeded, failed, .. } = task.progress;
            return Self { total, succeeded, failed, skipped: None };
        };
        let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
        let walked = backfill.walked();
        Self {
            total: count(backfill.expected.map_or(walked, |expected| expected.max(walked))),
            succeeded: count(backfill.succeeded),
            failed: count(backfill.failed + backfill.refused),
            skipped: Some(count(backfill.skipped_total())),
        }
    }
}

impl JobDocument {
    fn new(job: &Job) -> Self {
        Self {
            id: job.id,
            kind: job.kind,
            status: job.status,
            attempt: job.attempt,
            max_attempts: job.max_attempts,
            retry_at: job.retry_at,
            error: job.error.as_ref().map(ErrorDocument::new),
        }
    }
}

impl ErrorDocument {
    fn new(failure: &Failure) -> Self {
        Self {
            code: failure.code,
            message: failure.message.clone(),
            retryable: failure.code.is_retryable(),
        }
    }
}
