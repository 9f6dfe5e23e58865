//! Backfills: tasks that walk over many images and create jobs for them.
//!
//! ```text
//! walking ──end reached, or cancelled──▶ walked ──all created jobs have ended──▶ ended
//!    ▲                                     ▲                                       │
//!    └ pause, resume (a separate flag)     └─────────── manual retry ──────────────┘
//! ```

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    GcProgress, ImageFormat, Owner, Quota, TakeBack, TaskId, Visibility, text_enum::text_enum,
};

text_enum! {
    /// What a backfill does.
    "backfill kind" BackfillKind {
        /// Makes renditions of stored images.
        Renditions = "renditions",
        /// Imports existing pictures.
        Import = "import",
        /// Reads all stored bytes and compares them with their hashes.
        Verify = "verify",
        /// Collects garbage: removes unreferenced objects.
        Gc = "gc",
    }
}

text_enum! {
    /// The phase of a backfill.
    "backfill state" BackfillState {
        /// It visits images, one after the other.
        Walking = "walking",
        /// It has visited all of them; some of its jobs are still running.
        Walked = "walked",
        /// All of its jobs have ended.
        Ended = "ended",
    }
}

text_enum! {
    /// The outcome of one image, or of one source of an import, in a backfill.
    "outcome" ItemOutcome {
        /// Its job succeeded.
        Succeeded = "succeeded",
        /// Its job failed permanently, or it could not be imported.
        Failed = "failed",
        /// It needed no work.
        Skipped = "skipped",
        /// Its job was cancelled.
        Cancelled = "cancelled",
        /// It would get a job; only in the report of a dry run.
        Planned = "planned",
    }
}

/// The request for a backfill. It never changes.
#[allow(clippy::struct_excessive_bools)] // independent options of a request
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackfillSpec {
    /// What it does.
    pub kind: BackfillKind,
    /// Renditions: only these presets; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<String>,
    /// Renditions: make them again if they exist.
    #[serde(default)]
    pub all: bool,
    /// Only images accepted at this time or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_after: Option<DateTime<Utc>>,
    /// Only originals of this format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<ImageFormat>,
    /// Import: a folder, `s3://BUCKET/PREFIX`, or a list (`.ndjson`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Import: folders and `s3://` prefixes that a list may name; all if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// Import: the visibility of its images; public if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Import: its owner's quota at the start.
    #[serde(default, skip_serializing_if = "Quota::is_unlimited")]
    pub quota: Quota,
    /// Dry run: only count.
    #[serde(default)]
    pub dry_run: bool,
    /// Maximum number of images per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Maximum number of concurrent images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Include images that failed permanently before.
    #[serde(default)]
    pub retry_failed: bool,
    /// Gc: collect although the database may know less than it should.
    #[serde(default, skip_serializing_if = "is_false")]
    pub force: bool,
    /// Gc: move objects back from the quarantine instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub take_back: Option<TakeBack>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // what serde calls
fn is_false(flag: &bool) -> bool {
    !flag
}

impl BackfillSpec {
    /// A backfill of this kind over all images, without limits.
    pub fn new(kind: BackfillKind) -> Self {
        Self {
            kind,
            presets: Vec::new(),
            all: false,
            created_after: None,
            format: None,
            source: None,
            roots: Vec::new(),
            visibility: None,
            quota: Quota::default(),
            dry_run: false,
            rate: None,
            concurrency: None,
            retry_failed: false,
            force: false,
            take_back: None,
        }
    }

    /// The cursor before the first step. That of a collection of garbage tells nodes of 0.1.0, which know
    /// neither a quarantine nor a take-back, that there is nothing to do.
    pub fn first_cursor(&self) -> Option<String> {
        (self.kind == BackfillKind::Gc).then(|| GcProgress::default().to_cursor())
    }

    /// Whether it includes this preset.
    pub fn wants(&self, preset: &str) -> bool {
        self.presets.is_empty() || self.presets.iter().any(|name| name == preset)
    }
}

/// The state of a backfill. It counts images; an import counts the entries of its source, and a garbage
/// collection counts stored objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Backfill {
    /// Its task.
    pub id: TaskId,
    /// The owner of the task.
    pub owner: Owner,
    /// When it started, by the database's clock.
    pub started_at: DateTime<Utc>,
    /// The request.
    pub spec: BackfillSpec,
    /// The phase.
    pub state: BackfillState,
    /// Creates no jobs until it is resumed.
    pub paused: bool,
    /// It was cancelled.
    pub cancelled: bool,
    /// It is creating jobs again for images that failed.
    pub retrying: bool,
    /// The position of the walk; everything up to it is counted. Only the walk interprets it.
    pub cursor: Option<String>,
    /// The number to visit; `None` until it is counted.
    pub expected: Option<u64>,
    /// Those with a job; in a dry run, those that would get one.
    pub planned: u64,
    /// Those that need no job, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Those that failed without a job: they cannot be imported, or failed permanently before.
    pub refused: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
    /// Jobs that failed permanently.
    pub failed: u64,
    /// Jobs that were cancelled.
    pub cancelled_images: u64,
    /// Why the walk stopped early, if it did.
    pub problem: Option<String>,
    /// Seconds of unused `rate` since jobs were last created, by the database's clock; `None` before the
    /// first.
    pub rested_seconds: Option<f64>,
}

impl Backfill {
    /// Jobs whose outcome is not counted yet.
    pub fn under_way(&self) -> u64 {
        if self.spec.dry_run {
            return 0;
        }
        self.planned.saturating_sub(self.succeeded + self.failed + self.cancelled_images)
    }

    /// Those that need no job.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Those visited.
    pub fn walked(&self) -> u64 {
        self.planned + self.refused + self.skipped_total()
    }
}
