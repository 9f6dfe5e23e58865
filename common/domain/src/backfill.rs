//! Backfills: tasks that walk over many images and hand out work for each.
//!
//! ```text
//! walking ──walked to the end, or cancelled──▶ walked ──all that was handed out has ended──▶ ended
//!    ▲                                           ▲                                             │
//!    └ pause, resume (a switch of its own)       └────────────── retry by hand ────────────────┘
//! ```

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ImageFormat, Owner, Quota, TaskId, Visibility, text_enum::text_enum};

text_enum! {
    /// What a backfill does.
    "backfill kind" BackfillKind {
        /// Makes renditions of images that are stored.
        Renditions = "renditions",
        /// Takes in existing pictures.
        Import = "import",
        /// Reads everything back and compares it with its hash.
        Verify = "verify",
        /// Collects garbage: removes stored objects that nobody refers to.
        Gc = "gc",
    }
}

text_enum! {
    /// How far a backfill has come.
    "backfill state" BackfillState {
        /// It looks at images, one after the other.
        Walking = "walking",
        /// It has looked at all of them; what it handed out is still under way.
        Walked = "walked",
        /// Nothing is under way any more.
        Ended = "ended",
    }
}

text_enum! {
    /// What became of one image, or one source of an import, in a backfill.
    "outcome" ItemOutcome {
        /// Its work was done.
        Succeeded = "succeeded",
        /// Its work failed for good, or it could not be taken in.
        Failed = "failed",
        /// It needed no work.
        Skipped = "skipped",
        /// Somebody cancelled it.
        Cancelled = "cancelled",
        /// It would be worked on: of a dry run that says so line by line.
        Planned = "planned",
    }
}

/// What a backfill was asked to do. Never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BackfillSpec {
    /// What it does.
    pub kind: BackfillKind,
    /// Renditions: only these presets; all of them if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<String>,
    /// Renditions: make them also where they are there already.
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
    /// Import: folders and `s3://` prefixes that a list may name; anything if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<String>,
    /// Import: who may read what it takes in; everybody if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<Visibility>,
    /// Import: what its owner may store, as it was when it was begun.
    #[serde(default, skip_serializing_if = "Quota::is_unlimited")]
    pub quota: Quota,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
    /// Images handed out per second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Images under way at once at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Also images that failed for good before.
    #[serde(default)]
    pub retry_failed: bool,
}

impl BackfillSpec {
    /// A backfill of this kind over everything, without limits.
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
        }
    }

    /// Whether it is about this preset.
    pub fn wants(&self, preset: &str) -> bool {
        self.presets.is_empty() || self.presets.iter().any(|name| name == preset)
    }
}

/// A backfill as it stands. Counts are of images; of an import, of what was found in its source; of a
/// collection of garbage, of stored objects.
#[derive(Debug, Clone, PartialEq)]
pub struct Backfill {
    /// Its task.
    pub id: TaskId,
    /// Whose task it is.
    pub owner: Owner,
    /// When it was begun, by the database's clock.
    pub begun_at: DateTime<Utc>,
    /// What it was asked to do.
    pub spec: BackfillSpec,
    /// How far it has come.
    pub state: BackfillState,
    /// Hands out nothing until it is resumed.
    pub paused: bool,
    /// Somebody cancelled it.
    pub cancelled: bool,
    /// What failed before is being handed out again.
    pub retrying: bool,
    /// Where the walk stands: everything up to here is counted. What it means is the walk's own.
    pub cursor: Option<String>,
    /// How many there are to look at; `None` until they were counted.
    pub expected: Option<u64>,
    /// Those handed out; of a dry run, those that would be.
    pub planned: u64,
    /// Those that need nothing, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// Those that failed without being handed out: not to be taken in, or known to be bad.
    pub refused: u64,
    /// Of those handed out: done.
    pub succeeded: u64,
    /// Of those handed out: failed for good.
    pub failed: u64,
    /// Of those handed out: cancelled.
    pub cancelled_images: u64,
    /// Why the walk broke off, if it did.
    pub problem: Option<String>,
    /// Seconds since images were last handed out, by the database's clock, as far as `rate` was not
    /// used up; `None` before the first.
    pub rested_seconds: Option<f64>,
}

impl Backfill {
    /// Those handed out whose end is not counted yet.
    pub fn under_way(&self) -> u64 {
        if self.spec.dry_run {
            return 0;
        }
        self.planned.saturating_sub(self.succeeded + self.failed + self.cancelled_images)
    }

    /// Those that need nothing.
    pub fn skipped_total(&self) -> u64 {
        self.skipped.values().sum()
    }

    /// Those looked at.
    pub fn walked(&self) -> u64 {
        self.planned + self.refused + self.skipped_total()
    }
}
