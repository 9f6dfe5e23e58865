//! How a backfill stands, for clients.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use safelight_domain::{Backfill, BackfillKind, BackfillState, ImageFormat, Visibility};
use serde::Serialize;
use utoipa::ToSchema;

/// How a backfill stands.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Backfill)]
pub struct BackfillDocument {
    /// What it does.
    pub kind: BackfillKind,
    /// How far it has come.
    pub state: BackfillState,
    /// Whether it waits to be resumed.
    pub paused: bool,
    /// Whether it only counts.
    pub dry_run: bool,
    /// Counts of images; of an import, of what was found in its source; of `gc`, of stored objects.
    pub images: BackfillImages,
    /// Those that need nothing, by reason: `up_to_date`, `failed_before`, `duplicate`,
    /// `not_an_image`, `not_a_file`; of `gc` `in_use`, `too_young`, `unknown_name`.
    pub skipped: BTreeMap<String, u64>,
    /// What was asked for.
    pub request: BackfillRequested,
    /// Why it broke off, if it did.
    pub problem: Option<String>,
    /// Where its report is.
    pub report: String,
}

/// Counts of images. At the end `total` = `succeeded` + `failed` + `skipped` + `cancelled`, unless images
/// were removed meanwhile, or it was cancelled before it had seen all.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackfillImages {
    /// All there are to look at; null until they were counted.
    pub total: Option<u64>,
    /// Those looked at.
    pub walked: u64,
    /// Those that get work; of a dry run, that would.
    pub planned: u64,
    /// Those that need nothing.
    pub skipped: u64,
    /// Done.
    pub succeeded: u64,
    /// Failed for good, before (`verify`) or now, or not to be taken in.
    pub failed: u64,
    /// Cancelled.
    pub cancelled: u64,
}

/// What a backfill was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub struct BackfillRequested {
    /// Only these presets; all of them if empty.
    pub presets: Vec<String>,
    /// Whether renditions are made that are there already.
    pub all: bool,
    /// Only images accepted at this time or later.
    pub created_after: Option<DateTime<Utc>>,
    /// Only originals of this format.
    pub format: Option<ImageFormat>,
    /// Where an import finds pictures.
    pub source: Option<String>,
    /// Who may read the bytes of what an import takes in.
    pub visibility: Option<Visibility>,
    /// Images per second at most.
    pub rate: Option<f64>,
    /// Images under way at once at most.
    pub concurrency: Option<u32>,
    /// Whether images that failed before are tried again, or taken in anew.
    pub retry_failed: bool,
}

impl BackfillDocument {
    /// What a client sees of `backfill`.
    pub fn new(backfill: &Backfill) -> Self {
        let spec = &backfill.spec;
        Self {
            kind: spec.kind,
            state: backfill.state,
            paused: backfill.paused,
            dry_run: spec.dry_run,
            images: BackfillImages {
                total: backfill.expected,
                walked: backfill.walked(),
                planned: backfill.planned,
                skipped: backfill.skipped_total(),
                succeeded: backfill.succeeded,
                failed: backfill.failed + backfill.refused,
                cancelled: backfill.cancelled_images,
            },
            skipped: backfill.skipped.clone(),
            request: BackfillRequested {
                presets: spec.presets.clone(),
                all: spec.all,
                created_after: spec.created_after,
                format: spec.format,
                source: spec.source.clone(),
                visibility: spec.visibility,
                rate: spec.rate,
                concurrency: spec.concurrency,
                retry_failed: spec.retry_failed,
            },
            problem: backfill.problem.clone(),
            report: format!("/v1/tasks/{}/report", backfill.id),
        }
    }
}
